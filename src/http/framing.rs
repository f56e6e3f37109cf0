//! How long a body is (RFC 9112 section 6) and whether the connection lives on (section 9.3).
//! Called by the request and response parsers.
//! Never guesses: two framings, or one that is not exactly right, are refused.

use super::{Field, Name, Refusal, Version};

/// Framing of a message body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// No body at all.
    None,
    /// This many bytes.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
    /// Everything until the peer closes; responses only.
    UntilClose,
}

impl Body {
    /// The same where the end of a stream says where it ends, and trailers may stand before that.
    #[must_use]
    pub fn streamed(self) -> Self {
        if matches!(self, Self::None | Self::Length(0)) { self } else { Self::UntilClose }
    }
}

/// What the fields of a head say about framing and persistence.
pub(super) struct Declared {
    /// Framing fields; `None` when there are none.
    pub(super) body: Option<Body>,
    /// Wish of the peer, version considered.
    pub(super) keep_alive: bool,
}

/// Reads Content-Length, Transfer-Encoding and Connection.
pub(super) fn declared(buf: &[u8], fields: &[Field], version: Version) -> Result<Declared, Refusal> {
    let mut length = None;
    let (mut close, mut keep) = (false, false);
    for field in fields {
        let value = field.value.of(buf);
        match field.id {
            Name::ContentLength => {
                let length_before = length.replace(content_length(value)?);
                if length_before.is_some() {
                    return Err(Refusal::ContentLengthRepeated);
                }
            }
            Name::Connection => {
                for token in tokens(value) {
                    close |= token.eq_ignore_ascii_case(b"close");
                    keep |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            _ => {}
        }
    }
    let body = match (length, is_chunked(buf, fields)?) {
        (Some(_), true) => return Err(Refusal::LengthAndCoding),
        (None, true) if version == Version::Http10 => return Err(Refusal::CodingInHttp10),
        (None, true) => Some(Body::Chunked),
        (Some(length), false) => Some(Body::Length(length)),
        (None, false) => None,
    };
    Ok(Declared { body, keep_alive: !close && (version == Version::Http11 || keep) })
}

/// The elements of a comma-separated list, trimmed; empty ones included.
pub(super) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii)
}

pub(super) fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() {
        return Err(Refusal::ContentLength);
    }
    value.iter().try_fold(0_u64, |sum, &byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return Err(Refusal::ContentLength);
        }
        sum.checked_mul(10).and_then(|sum| sum.checked_add(u64::from(digit))).ok_or(Refusal::ContentLength)
    })
}

/// Whether the body is chunked. All Transfer-Encoding fields are one list, of which `chunked` alone is understood; a
/// list that ends in anything else says nothing about where the body ends (RFC 9112 section 6.3).
fn is_chunked(buf: &[u8], fields: &[Field]) -> Result<bool, Refusal> {
    let values = fields.iter().filter(|field| field.id == Name::TransferEncoding).map(|field| field.value.of(buf));
    let (mut count, mut chunked, mut last) = (0, 0, false);
    for coding in values.flat_map(tokens) {
        if coding.is_empty() {
            return Err(Refusal::Coding);
        }
        last = coding.eq_ignore_ascii_case(b"chunked");
        count += 1;
        chunked += usize::from(last);
    }
    match (count, chunked) {
        (0, _) => Ok(false),
        (1, 1) => Ok(true),
        (_, 1) if last => Err(Refusal::CodingUnknown),
        _ => Err(Refusal::Coding),
    }
}
