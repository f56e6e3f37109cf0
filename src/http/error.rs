//! Why a message is refused, and the status a client gets for it.
//! Returned by every parser of the codec, answered and logged by `proxy`.
//! Never carries bytes of the peer: nothing here can forge a log line.

/// A message that is not understood in exactly one way.
#[derive(thiserror::Error, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Line that does not end in CRLF.
    #[error("a bare LF or CR in the head")]
    BareLineEnd,
    /// Not a request line (RFC 9112 section 3).
    #[error("malformed request line")]
    RequestLine,
    /// Method is not a token.
    #[error("malformed method")]
    Method,
    /// Not a status line, or a status outside 100 to 599 (RFC 9112 section 4).
    #[error("malformed status line")]
    StatusLine,
    /// Request target in no form of RFC 9112 section 3.2 that suits its method.
    #[error("malformed request target")]
    Target,
    /// Field name empty or followed by anything but a colon.
    #[error("malformed field name")]
    FieldName,
    /// Control byte in a field value.
    #[error("control byte in a field value")]
    FieldValue,
    /// Line folding (RFC 9112 section 5.2).
    #[error("folded field line")]
    Folded,
    /// HTTP/1.1 without Host.
    #[error("no Host field")]
    HostMissing,
    /// More than one Host.
    #[error("more than one Host field")]
    HostRepeated,
    /// Bytes no host may hold.
    #[error("malformed Host")]
    HostInvalid,
    /// Absolute target and Host name different authorities.
    #[error("Host contradicts the request target")]
    HostContradicts,
    /// Not a single decimal number below 2^64.
    #[error("malformed Content-Length")]
    ContentLength,
    /// More than one Content-Length.
    #[error("more than one Content-Length")]
    ContentLengthRepeated,
    /// Both framings at once.
    #[error("Content-Length together with Transfer-Encoding")]
    LengthAndCoding,
    /// Chunked applied twice or not last, or an empty coding.
    #[error("malformed Transfer-Encoding")]
    Coding,
    /// Coding other than chunked, underneath chunked.
    #[error("unknown transfer coding")]
    CodingUnknown,
    /// Transfer-Encoding in an HTTP/1.0 message.
    #[error("Transfer-Encoding in HTTP/1.0")]
    CodingInHttp10,
    /// Request target beyond the limit.
    #[error("request target too long")]
    TargetTooLong,
    /// Head beyond the limit.
    #[error("head too large")]
    HeadTooLarge,
    /// More fields than allowed.
    #[error("too many header fields")]
    TooManyFields,
    /// Neither 1.0 nor 1.1.
    #[error("HTTP version not supported")]
    Version,
    /// Field of a connection in HTTP/2, which has none (RFC 9113 section 8.2.2).
    #[error("connection-specific field in HTTP/2")]
    ConnectionField,
    /// The connection is for another host (RFC 9110 section 15.5.20).
    #[error("misdirected request")]
    Misdirected,
    /// Tunnels are not offered.
    #[error("CONNECT refused")]
    ConnectRefused,
    /// Server switched protocols although it was not asked to.
    #[error("unexpected 101 response")]
    SwitchedProtocols,
    /// Chunk size not hexadecimal or too large.
    #[error("malformed chunk size")]
    ChunkSize,
    /// Chunk extension malformed or too long, or too many of them.
    #[error("malformed chunk extension")]
    ChunkExtension,
    /// Chunk data not followed by CRLF.
    #[error("chunk without its line end")]
    ChunkEnd,
    /// Trailer section beyond the limit.
    #[error("trailers too large")]
    TrailersTooLarge,
}

impl Refusal {
    /// Status for the client whose request is refused; a refused response is always a 502.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::ConnectRefused => 405,
            Self::TargetTooLong => 414,
            Self::Misdirected => 421,
            Self::HeadTooLarge | Self::TooManyFields | Self::TrailersTooLarge => 431,
            Self::CodingUnknown => 501,
            Self::Version => 505,
            Self::SwitchedProtocols => 502,
            _ => 400,
        }
    }
}
