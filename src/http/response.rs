//! Response heads (RFC 9112 section 4).
//! Called by `proxy` with everything a server has sent since the last response.
//! Never trusts a server more than a client.

use super::framing::declared;
use super::line::{head_end, is_value, parse_fields};
use super::upgrade::protocols;
use super::{Asked, Body, Field, HeadLimits, Method, Refusal, Span, Version};

/// A complete, checked response head.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead {
    /// Bytes of the head, empty line included.
    pub len: usize,
    /// Status, 100 to 599.
    pub status: u16,
    /// Reason phrase, may be empty.
    pub reason: Span,
    /// Version of the server.
    pub version: Version,
    /// Framing of what follows.
    pub body: Body,
    /// Whether the connection may serve another request afterwards.
    pub keep_alive: bool,
    /// The protocol of a 101, with which this connection's HTTP ends.
    pub upgrade: Option<Span>,
}

/// Parses a response head to what was `asked`; `None` when more bytes are needed.
///
/// # Errors
/// Every violation, see [`Refusal`]; limits are enforced on incomplete heads too.
pub fn parse_response(
    buf: &[u8],
    asked: impl Into<Asked>,
    limits: &HeadLimits,
    fields: &mut Vec<Field>,
) -> Result<Option<ResponseHead>, Refusal> {
    let asked = asked.into();
    fields.clear();
    let known = buf.len().min(5);
    if buf[..known] != b"HTTP/"[..known] {
        return Err(Refusal::StatusLine);
    }
    let end = head_end(buf, 0)?;
    if end.map_or(buf.len() >= limits.size, |end| end > limits.size) {
        return Err(Refusal::HeadTooLarge);
    }
    let Some(len) = end else { return Ok(None) };
    let buf = &buf[..len];
    let line = memchr::memchr(b'\r', buf).ok_or(Refusal::BareLineEnd)?;
    if buf.get(line + 1) != Some(&b'\n') {
        return Err(Refusal::BareLineEnd);
    }
    let (version, status, reason) = parse_line(&buf[..line])?;
    parse_fields(buf, line + 2, limits.fields, fields)?;
    let upgrade = if status == 101 { protocols(buf, fields) } else { None };
    if status == 101 && !(asked.upgrade && upgrade.is_some()) {
        return Err(Refusal::SwitchedProtocols);
    }
    let declared = declared(buf, fields, version)?;
    let interim_or_empty = status < 200 || status == 204;
    let body = if interim_or_empty || status == 304 || asked.method == Method::Head {
        Body::None
    } else {
        declared.body.unwrap_or(Body::UntilClose)
    };
    // A server that announces a body where none may be could well send it: nothing after it can be believed.
    let suspicious = interim_or_empty && !matches!(declared.body, None | Some(Body::Length(0)));
    let keep_alive = declared.keep_alive && body != Body::UntilClose && !suspicious;
    Ok(Some(ResponseHead { len, status, reason, version, body, keep_alive, upgrade }))
}

fn parse_line(line: &[u8]) -> Result<(Version, u16, Span), Refusal> {
    let version = Version::parse(line.get(..8).ok_or(Refusal::StatusLine)?, Refusal::StatusLine)?;
    let [b' ', hundreds @ b'1'..=b'5', tens @ b'0'..=b'9', ones @ b'0'..=b'9', rest @ ..] = &line[8..] else {
        return Err(Refusal::StatusLine);
    };
    // The space is part of the grammar even before an empty reason, yet servers leave both out.
    let reason = match rest {
        [] => Span::new(line.len(), line.len()),
        [b' ', reason @ ..] if reason.iter().all(|&b| is_value(b)) => Span::new(13, line.len()),
        _ => return Err(Refusal::StatusLine),
    };
    let digit = |byte: &u8| u16::from(byte - b'0');
    Ok((version, digit(hundreds) * 100 + digit(tens) * 10 + digit(ones), reason))
}
