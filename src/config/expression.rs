//! Values with `%[…]` in them: what is known of a connection, in HAProxy's words.
//! Read by `frontend`, evaluated by `proxy`. Never evaluates anything.

use serde::{Deserialize, Serialize};

use super::report::suggestion;

/// Text and what is put between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template(pub Vec<Piece>);

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// Itself.
    Text(String),
    /// What is found out of a connection, then converted.
    Fetch(Fetch, Vec<Converter>),
}

/// A fact of a connection (HAProxy's configuration manual, 7.3.3 and 7.3.4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is what HAProxy calls so")]
pub enum Fetch {
    Src,
    SrcPort,
    Dst,
    DstPort,
    FeName,
    SslFc,
    SslFcProtocol,
    SslFcCipher,
    SslFcSni,
    SslFcAlpn,
    SslFcIsResumed,
    SslCUsed,
    SslCVerify,
    SslCSDn(Option<String>),
    SslCIDn(Option<String>),
    SslCSerial,
    SslCSha1,
    SslCDer,
    SslCNotBefore,
    SslCNotAfter,
}

impl Fetch {
    fn is_of_certificate(&self) -> bool {
        matches!(
            self,
            Self::SslCSDn(_)
                | Self::SslCIDn(_)
                | Self::SslCSerial
                | Self::SslCSha1
                | Self::SslCDer
                | Self::SslCNotBefore
                | Self::SslCNotAfter
        )
    }
}

/// What is done with a value (HAProxy's configuration manual, 7.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is what HAProxy calls so")]
pub enum Converter {
    Hex,
    Base64,
    Lower,
    Upper,
}

const FETCHES: [(&str, Fetch); 20] = [
    ("src", Fetch::Src),
    ("src_port", Fetch::SrcPort),
    ("dst", Fetch::Dst),
    ("dst_port", Fetch::DstPort),
    ("fe_name", Fetch::FeName),
    ("ssl_fc", Fetch::SslFc),
    ("ssl_fc_protocol", Fetch::SslFcProtocol),
    ("ssl_fc_cipher", Fetch::SslFcCipher),
    ("ssl_fc_sni", Fetch::SslFcSni),
    ("ssl_fc_alpn", Fetch::SslFcAlpn),
    ("ssl_fc_is_resumed", Fetch::SslFcIsResumed),
    ("ssl_c_used", Fetch::SslCUsed),
    ("ssl_c_verify", Fetch::SslCVerify),
    ("ssl_c_s_dn", Fetch::SslCSDn(None)),
    ("ssl_c_i_dn", Fetch::SslCIDn(None)),
    ("ssl_c_serial", Fetch::SslCSerial),
    ("ssl_c_sha1", Fetch::SslCSha1),
    ("ssl_c_der", Fetch::SslCDer),
    ("ssl_c_notbefore", Fetch::SslCNotBefore),
    ("ssl_c_notafter", Fetch::SslCNotAfter),
];

const CONVERTERS: [(&str, Converter); 4] =
    [("hex", Converter::Hex), ("base64", Converter::Base64), ("lower", Converter::Lower), ("upper", Converter::Upper)];

/// What is wrong with an expression, and what would be right.
type Trouble = (String, String);

impl Template {
    /// Reads a value; `None` when it is text alone. `%%[` stands for `%[` itself.
    ///
    /// # Errors
    /// An expression that is not understood, with those that are.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, Trouble> {
        let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find("%[") {
            let (before, after) = (&rest[..at], &rest[at + 2..]);
            if let Some(before) = before.strip_suffix('%') {
                plain += before;
                plain += "%[";
                rest = after;
                continue;
            }
            plain += before;
            let unclosed =
                || (String::from("`%[` without `]`"), String::from("write %[src], or %%[ for the text itself"));
            let (inside, behind) = after.split_once(']').ok_or_else(unclosed)?;
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(expression(inside)?);
            rest = behind;
        }
        plain += rest;
        if pieces.is_empty() && plain == text {
            return Ok(None);
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Some(Self(pieces)))
    }

    /// Whether it asks for anything of a client's certificate.
    pub(super) fn asks_for_certificate(&self) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Fetch(fetch, _) if fetch.is_of_certificate()))
    }
}

/// `name(argument),converter,…`.
fn expression(text: &str) -> Result<Piece, Trouble> {
    let mut parts = text.split(',').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let (name, argument) = match first.split_once('(') {
        None => (first, None),
        Some((name, rest)) => {
            let Some(argument) = rest.strip_suffix(')') else {
                return Err((format!("`{first}` is not understood"), String::from("one argument: ssl_c_s_dn(cn)")));
            };
            (name, Some(argument.trim()).filter(|argument| !argument.is_empty()))
        }
    };
    let known: Vec<_> = FETCHES.iter().map(|(name, _)| *name).collect();
    let Some((_, fetch)) = FETCHES.iter().find(|(known, _)| *known == name) else {
        return Err((format!("`{name}` is not known"), suggestion(name, &known)));
    };
    let fetch = match (fetch, argument) {
        (Fetch::SslCSDn(_), argument) => Fetch::SslCSDn(argument.map(str::to_owned)),
        (Fetch::SslCIDn(_), argument) => Fetch::SslCIDn(argument.map(str::to_owned)),
        (fetch, None) => fetch.clone(),
        (_, Some(_)) => return Err((format!("`{name}` takes no argument"), format!("write %[{name}]"))),
    };
    let mut converters = Vec::new();
    for word in parts {
        let known: Vec<_> = CONVERTERS.iter().map(|(name, _)| *name).collect();
        match CONVERTERS.iter().find(|(name, _)| *name == word) {
            Some((_, converter)) => converters.push(*converter),
            None => return Err((format!("`{word}` is no converter"), suggestion(word, &known))),
        }
    }
    let binary = matches!(fetch, Fetch::SslCSerial | Fetch::SslCSha1 | Fetch::SslCDer);
    if binary && !matches!(converters.first(), Some(Converter::Hex | Converter::Base64)) {
        return Err((format!("`{name}` is binary"), format!("write %[{name},hex] or %[{name},base64]")));
    }
    Ok(Piece::Fetch(fetch, converters))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<Piece> {
        Template::parse(text).unwrap().unwrap().0
    }

    #[test]
    fn text_alone_is_no_template() {
        for text in ["", "plain", "100%", "50 % of [it]", "%{src}"] {
            assert_eq!(Template::parse(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn expressions_are_found_between_text() {
        let text = |text: &str| Piece::Text(text.to_owned());
        assert_eq!(parsed("%[src]"), [Piece::Fetch(Fetch::Src, Vec::new())]);
        let dn = Fetch::SslCSDn(Some(String::from("cn")));
        assert_eq!(
            parsed("a %[ssl_c_s_dn(cn),lower]b"),
            [text("a "), Piece::Fetch(dn, vec![Converter::Lower]), text("b")]
        );
        let serial = Piece::Fetch(Fetch::SslCSerial, vec![Converter::Hex, Converter::Lower]);
        assert_eq!(parsed("%[ssl_c_serial,hex,lower]"), [serial]);
        assert_eq!(parsed("%%[src]"), [text("%[src]")]);
        assert_eq!(parsed("%[ssl_c_i_dn()]"), [Piece::Fetch(Fetch::SslCIDn(None), Vec::new())]);
    }

    #[test]
    fn what_is_not_understood_is_said_with_what_would_be() {
        for (text, problem, fix) in [
            ("%[sorc]", "`sorc` is not known", "did you mean `src`?"),
            ("%[something]", "`something` is not known", "known here: src, src_port, dst"),
            ("%[]", "`` is not known", "known here: "),
            ("%[src", "`%[` without `]`", "%%["),
            ("%[src(1)]", "`src` takes no argument", "write %[src]"),
            ("%[ssl_c_s_dn(cn]", "`ssl_c_s_dn(cn` is not understood", "ssl_c_s_dn(cn)"),
            ("%[ssl_c_s_dn(cn,2)]", "`ssl_c_s_dn(cn` is not understood", "one argument"),
            ("%[src,hexx]", "`hexx` is no converter", "did you mean `hex`?"),
            ("%[ssl_c_serial]", "`ssl_c_serial` is binary", "write %[ssl_c_serial,hex]"),
            ("%[ssl_c_der,lower]", "`ssl_c_der` is binary", ",base64]"),
        ] {
            let (found, label) = Template::parse(text).unwrap_err();
            assert!(found == problem && label.contains(fix), "{text}: {found}; {label}");
        }
    }

    #[test]
    fn questions_about_certificates_are_told_from_others() {
        let asks = |text| Template::parse(text).unwrap().unwrap().asks_for_certificate();
        assert!(asks("%[ssl_c_s_dn]") && asks("%[src] %[ssl_c_serial,hex]") && asks("%[ssl_c_notafter]"));
        assert!(!asks("%[src]") && !asks("%[ssl_fc_sni]") && !asks("%[ssl_c_used]"));
    }
}
