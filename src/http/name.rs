//! Header fields and the few names the codec must know.
//! Classified once by the parsers; `rebuild` and `framing` compare the result.
//! Never looks at values.

use super::Span;

/// Field names with a meaning to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the field of that name")]
pub enum Name {
    Connection,
    KeepAlive,
    ProxyConnection,
    TransferEncoding,
    ContentLength,
    Te,
    Trailer,
    Upgrade,
    Host,
    Expect,
    Other,
}

/// One field line.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Which name it is.
    pub id: Name,
    /// Name as received.
    pub name: Span,
    /// Value without surrounding white space.
    pub value: Span,
}

impl Name {
    /// Classifies a name, ignoring case.
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        let (text, id): (&[u8], Self) = match name.len() {
            2 => (b"te", Self::Te),
            4 => (b"host", Self::Host),
            6 => (b"expect", Self::Expect),
            7 if name[0] | 0x20 == b't' => (b"trailer", Self::Trailer),
            7 => (b"upgrade", Self::Upgrade),
            10 if name[0] | 0x20 == b'k' => (b"keep-alive", Self::KeepAlive),
            10 => (b"connection", Self::Connection),
            14 => (b"content-length", Self::ContentLength),
            16 => (b"proxy-connection", Self::ProxyConnection),
            17 => (b"transfer-encoding", Self::TransferEncoding),
            _ => return Self::Other,
        };
        if name.eq_ignore_ascii_case(text) { id } else { Self::Other }
    }

    /// Whether the codec alone decides about this field: framing and hop-by-hop (RFC 9110 section 7.6.1).
    #[must_use]
    pub fn is_connection_level(self) -> bool {
        !matches!(self, Self::Host | Self::Expect | Self::Other)
    }
}
