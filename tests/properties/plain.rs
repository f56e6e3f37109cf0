//! A head read a second time, by splitting strings: what the parsers made of it has to be the same.

/// First line and fields, names in lower case, of a head that the parsers accepted.
pub struct Plain {
    pub line: Vec<u8>,
    pub fields: Fields,
}

pub type Fields = Vec<(String, Vec<u8>)>;

pub fn read(head: &[u8]) -> Plain {
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    // One character a byte, so that nothing is lost.
    let text: String = head.iter().map(|&byte| char::from(byte)).collect();
    let lines = text.strip_suffix("\r\n\r\n").expect("an empty line ends a head");
    assert!(!lines.replace("\r\n", "").contains(['\r', '\n', '\0']), "{text:?}");
    let bytes = |text: &str| text.chars().map(|character| u8::try_from(character).unwrap()).collect::<Vec<_>>();
    let mut lines = lines.split("\r\n");
    let line = bytes(lines.next().unwrap());
    let fields = lines.map(|line| {
        let (name, value) = line.split_once(':').expect("a colon in every field line");
        (name.to_ascii_lowercase(), bytes(value.trim_matches([' ', '\t'])))
    });
    Plain { line, fields: fields.collect() }
}

impl Plain {
    /// How many fields have one of these names.
    pub fn count(&self, names: &[&str]) -> usize {
        self.fields.iter().filter(|(name, _)| names.contains(&name.as_str())).count()
    }

    /// Whether a list such as Connection holds a token.
    pub fn lists(&self, field: &str, token: &str) -> bool {
        let values = self.fields.iter().filter(|(name, _)| name == field).map(|(_, value)| value);
        values.flat_map(|value| value.split(|&byte| byte == b',')).any(|each| {
            let end = each.trim_ascii();
            end.eq_ignore_ascii_case(token.as_bytes())
        })
    }

    /// The fields that are the sender's own: none that belongs to one connection or that our side writes anew.
    pub fn own(&self, ours: &[&str]) -> Fields {
        let own = |name: &str| !HOP_BY_HOP.contains(&name) && !ours.contains(&name);
        self.fields.iter().filter(|(name, _)| own(name) && !self.lists("connection", name)).cloned().collect()
    }
}

const HOP_BY_HOP: [&str; 8] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// The same fields as HTTP/2 hands them on: those of one name side by side, crumbs of a cookie joined.
pub fn grouped(mut fields: Fields) -> Fields {
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    let cookies: Vec<_> =
        fields.iter().filter(|(name, _)| name == "cookie").map(|(_, value)| value.as_slice()).collect();
    let cookie = (!cookies.is_empty()).then(|| (String::from("cookie"), cookies.join(&b"; "[..])));
    fields.retain(|(name, _)| name != "cookie");
    fields.extend(cookie);
    fields
}
