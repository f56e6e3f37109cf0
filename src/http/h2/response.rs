//! Response heads between HTTP/2 and the text of an HTTP/1 head.
//! Called by `proxy` with a server's head for a client, and with what the library read from a server.
//! Never lets a field through that belongs to one connection.

use std::io::Write as _;

use http::{HeaderMap, Response, StatusCode, header};

use super::super::chunked::write_field;
use super::super::rebuild::{Fields as _, copy_fields, write_edits};
use super::super::{
    Asked, Body, Field, HeadLimits, Name, Refusal, ResponseHead, ResponseRewrite, Span, Version, parse_response,
};

/// The head of `head` for a client that speaks HTTP/2, and how many bytes it would have as text; the framing and
/// persistence of HTTP/1 have no place in it. A 101 becomes the 200 of RFC 8441.
///
/// # Errors
/// A status that the library cannot express.
pub fn write_response(
    buf: &[u8],
    head: &ResponseHead,
    fields: &[Field],
    rewrite: &ResponseRewrite<'_>,
) -> Result<(Response<()>, u64), Refusal> {
    let mut response = Response::new(());
    let status = if head.upgrade.is_some() { 200 } else { head.status };
    *response.status_mut() = StatusCode::from_u16(status).map_err(|_| Refusal::StatusLine)?;
    let map = response.headers_mut();
    map.reserve(fields.len() + 2);
    // The end of a stream has room for trailers as a last chunk has.
    let streamed = rewrite.body == Body::UntilClose;
    let kept = |field: &Field| rewrite.keeps(head, field.id) || (field.id == Name::Trailer && streamed);
    copy_fields(map, buf, fields, rewrite.edits, kept);
    write_edits(map, rewrite.edits);
    // The end of a stream says as much as a length of nought; what a server did not say, nobody says: to gRPC, the fields of
    // an answer that is all head are metadata.
    let said = fields.iter().any(|field| field.id == Name::ContentLength);
    if let Body::Length(length) = rewrite.body
        && said
    {
        map.insert(header::CONTENT_LENGTH, http::HeaderValue::from(length));
    }
    if head.upgrade.is_some() {
        map.remove(header::SEC_WEBSOCKET_ACCEPT);
    }
    let size = 2 + map.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    Ok((response, "HTTP/2.0 200 \r\n".len() as u64 + size as u64))
}

/// The head of a whole response of ours, a page or a redirect, and where its body begins. Its lines may end in a bare LF.
///
/// # Errors
/// Text without a status line.
pub fn write_page(raw: &[u8]) -> Result<(Response<()>, usize), Refusal> {
    let mut response = Response::new(());
    let status = raw.get(9..12).ok_or(Refusal::StatusLine)?;
    *response.status_mut() = StatusCode::from_bytes(status).map_err(|_| Refusal::StatusLine)?;
    let mut at = 0;
    for line in raw.split_inclusive(|&byte| byte == b'\n') {
        let first = at == 0;
        at += line.len();
        let line = line.trim_ascii_end();
        if line.is_empty() {
            break;
        }
        let Some(colon) = memchr::memchr(b':', line).filter(|_| !first) else { continue };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        let id = Name::of(name);
        if !id.is_connection_level() || id == Name::ContentLength {
            response.headers_mut().put(name, value);
        }
    }
    Ok((response, at))
}

/// A server's head as text at the end of `buf`, and what it says. `ended`: nothing follows it.
///
/// # Errors
/// Whatever an HTTP/1 server's head would be refused for.
pub fn read_response(
    (status, map, ended): (u16, &HeaderMap, bool),
    asked: Asked,
    limits: &HeadLimits,
    (buf, fields): (&mut Vec<u8>, &mut Vec<Field>),
) -> Result<ResponseHead, Refusal> {
    buf.clear();
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    // Writing to a Vec cannot fail.
    let _ = write!(buf, "HTTP/1.1 {status} {reason}\r\n");
    for (name, value) in map {
        let special = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE];
        if special.contains(name) {
            return Err(Refusal::ConnectionField);
        }
        write_field(buf, name.as_str().as_bytes(), value.as_bytes());
    }
    buf.extend_from_slice(b"\r\n");
    let mut head = parse_response(buf, asked, limits, fields)?.ok_or(Refusal::StatusLine)?;
    head.body = match head.body {
        Body::Length(length) if ended && length > 0 => return Err(Refusal::ContentLength),
        Body::UntilClose if ended => Body::Length(0),
        body => body,
    };
    (head.version, head.keep_alive, head.reason) = (Version::Http2, true, Span::new(13, 13 + reason.len()));
    Ok(head)
}
