//! Which protocol a connection may be switched to (RFC 9110 section 7.8).
//! Called by the parsers of both heads. Never lets through a protocol that would carry requests past us.

use super::framing::tokens;
use super::line::is_token;
use super::{Field, Name, Span};

/// What a request is, as far as its response depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Its method.
    pub method: super::Method,
    /// Whether it asked for another protocol.
    pub upgrade: bool,
}

impl From<super::Method> for Asked {
    fn from(method: super::Method) -> Self {
        Self { method, upgrade: false }
    }
}

impl From<&super::RequestHead> for Asked {
    fn from(head: &super::RequestHead) -> Self {
        Self { method: head.method, upgrade: head.upgrade.is_some() }
    }
}

/// The protocols a head names, where its Connection field says that it means them. `None` where there are
/// none, where they are malformed, or where one of them is HTTP again or TLS: requests inside would be
/// nobody's to check.
pub(super) fn protocols(buf: &[u8], fields: &[Field]) -> Option<Span> {
    let mut named = fields.iter().filter(|field| field.id == Name::Upgrade).map(|field| field.value);
    let value = named.next()?;
    let connection = fields.iter().filter(|field| field.id == Name::Connection);
    let meant =
        connection.flat_map(|field| tokens(field.value.of(buf))).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    let allowed = tokens(value.of(buf)).all(may_be_tunnelled);
    (meant && allowed && named.next().is_none()).then_some(value)
}

/// Whether a server may answer a request for `asked` with `switched`.
#[must_use]
pub fn is_switch_between(asked: &[u8], switched: &[u8]) -> bool {
    tokens(asked).any(|protocol| protocol.eq_ignore_ascii_case(switched))
}

/// `protocol-name ["/" protocol-version]`, and no other way to ask for resources.
pub(super) fn may_be_tunnelled(protocol: &[u8]) -> bool {
    let mut parts = protocol.split(|&byte| byte == b'/');
    let name = parts.next().unwrap_or_default();
    let version = parts.next().unwrap_or(b"1");
    let well_formed = [name, version].iter().all(|part| !part.is_empty() && part.iter().all(|&byte| is_token(byte)));
    let of_requests = [&b"h2"[..], b"h2c", b"h3", b"http", b"https", b"tls"];
    well_formed && parts.next().is_none() && !of_requests.iter().any(|other| name.eq_ignore_ascii_case(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_carries_requests_is_not_passed_on() {
        for protocol in ["websocket", "WebSocket", "foo/2", "tcp", "SPDY/3"] {
            assert!(may_be_tunnelled(protocol.as_bytes()), "{protocol}");
        }
        for protocol in ["h2c", "H2C", "h2", "HTTP/2.0", "TLS/1.0", "", "a/", "/1", "a b", "a/b/c", "a;b"] {
            assert!(!may_be_tunnelled(protocol.as_bytes()), "{protocol}");
        }
    }

    #[test]
    fn a_server_switches_to_what_was_asked_for() {
        assert!(is_switch_between(b"foo/1, websocket", b"WebSocket"));
        assert!(!is_switch_between(b"websocket", b"foo"));
        assert!(!is_switch_between(b"foo, websocket", b"foo, websocket"));
    }
}
