//! Header edits whose values are made of what is known of a connection.
//! Called by `connection` once a connection is established. Never lets a value end its line.

use std::fmt::Write as _;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};

use crate::config::{Converter, Fetch, Frontend, HeaderEdits, Piece, Template};
use crate::logging::Endpoint;
use crate::tls::{certificate_field, cipher_name};

/// Edits of one connection, or of all connections of a frontend.
pub struct Edits {
    /// Of requests on their way to a server.
    pub request: HeaderEdits,
    /// Of responses on their way to a client.
    pub response: HeaderEdits,
}

/// What is known of a connection.
pub(super) struct Facts<'a> {
    pub(super) frontend: &'a Frontend,
    pub(super) peer: Endpoint,
    pub(super) local: Endpoint,
    pub(super) session: Option<&'a ServerConnection>,
}

impl Edits {
    /// Those of a frontend as they are written.
    pub fn of(frontend: &Frontend) -> Rc<Self> {
        Rc::new(Self { request: frontend.request_headers.clone(), response: frontend.response_headers.clone() })
    }

    /// The same for one connection; nothing is made where nothing has to be.
    pub(super) fn made(self: &Rc<Self>, facts: &Facts<'_>) -> Rc<Self> {
        if self.request.made.is_empty() && self.response.made.is_empty() {
            return Rc::clone(self);
        }
        Rc::new(Self { request: made(&self.request, facts), response: made(&self.response, facts) })
    }
}

fn made(edits: &HeaderEdits, facts: &Facts<'_>) -> HeaderEdits {
    let mut own = edits.clone();
    for made in &edits.made {
        let list = if made.added { &mut own.add } else { &mut own.set };
        if let Some((_name, value)) = list.get_mut(made.place) {
            *value = evaluate(&made.template, facts);
        }
    }
    own
}

fn evaluate(template: &Template, facts: &Facts<'_>) -> String {
    let mut text = String::new();
    for piece in &template.0 {
        match piece {
            Piece::Text(piece) => text += piece,
            Piece::Fetch(fetch, converters) => {
                let value = converters.iter().fold(facts.fetch(fetch), |value, converter| convert(value, *converter));
                // A certificate may say anything; a field of a header may not.
                text.extend(String::from_utf8_lossy(&value).chars().map(|c| if c.is_control() { '?' } else { c }));
            }
        }
    }
    text
}

fn convert(value: Vec<u8>, converter: Converter) -> Vec<u8> {
    match converter {
        Converter::Hex => {
            let mut text = String::with_capacity(2 * value.len());
            for byte in value {
                // Writing to a String cannot fail.
                let _ = write!(text, "{byte:02X}");
            }
            text.into_bytes()
        }
        Converter::Base64 => STANDARD.encode(value).into_bytes(),
        Converter::Lower => value.to_ascii_lowercase(),
        Converter::Upper => value.to_ascii_uppercase(),
    }
}

impl Facts<'_> {
    fn fetch(&self, fetch: &Fetch) -> Vec<u8> {
        let flag = |set: bool| if set { b"1".to_vec() } else { b"0".to_vec() };
        let session = self.session;
        match fetch {
            Fetch::Src => ip(self.peer),
            Fetch::SrcPort => port(self.peer),
            Fetch::Dst => ip(self.local),
            Fetch::DstPort => port(self.local),
            Fetch::FeName => self.frontend.name.clone().into_bytes(),
            Fetch::SslFc => flag(session.is_some()),
            Fetch::SslFcProtocol => session.map(protocol).unwrap_or_default().into(),
            Fetch::SslFcCipher => session
                .and_then(|session| session.negotiated_cipher_suite())
                .map_or(Vec::new(), |suite| cipher_name(&suite).into_bytes()),
            Fetch::SslFcSni => session.and_then(|session| session.server_name()).unwrap_or_default().into(),
            Fetch::SslFcAlpn => session.and_then(|session| session.alpn_protocol()).unwrap_or_default().to_vec(),
            Fetch::SslFcIsResumed => {
                flag(session.is_some_and(|session| session.handshake_kind() == Some(HandshakeKind::Resumed)))
            }
            Fetch::SslCUsed => flag(self.certificate().is_some()),
            // Who was let in was believed.
            Fetch::SslCVerify => flag(false),
            of_certificate => self.certificate().map_or(Vec::new(), |der| certificate_field(der, of_certificate)),
        }
    }

    fn certificate(&self) -> Option<&[u8]> {
        self.session?.peer_certificates()?.first().map(AsRef::as_ref)
    }
}

/// As OpenSSL writes it.
pub(super) fn protocol(session: &ServerConnection) -> &'static str {
    match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    }
}

fn ip(end: Endpoint) -> Vec<u8> {
    end.ip().map_or(Vec::new(), |ip| ip.to_string().into_bytes())
}

fn port(end: Endpoint) -> Vec<u8> {
    match end {
        Endpoint::Internet(address) => address.port().to_string().into_bytes(),
        Endpoint::Unix(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_converted_one_after_the_other() {
        assert_eq!(convert(vec![0x0A, 0xBC], Converter::Hex), b"0ABC");
        assert_eq!(convert(convert(vec![0x0A, 0xBC], Converter::Hex), Converter::Lower), b"0abc");
        assert_eq!(convert(b"a".to_vec(), Converter::Base64), b"YQ==");
        assert_eq!(convert("Zoë".into(), Converter::Upper), "ZOë".as_bytes());
    }
}
