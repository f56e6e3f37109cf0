//! Request heads between HTTP/2 and the form the phases work on: the text of an HTTP/1 head and spans into it.
//! Called by `proxy` with what the library made of a HEADERS frame, or with a head for a server.
//! Never lets through what the HTTP/1 parser would refuse, so both protocols are understood in one way.

use std::io::Write as _;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method as Verb, Uri, header};

use super::super::framing::content_length;
use super::super::line::{is_target, is_token, is_value};
use super::super::rebuild::{copy_fields, origin_form, write_edits};
use super::super::request::is_host;
use super::super::upgrade::may_be_tunnelled;
use super::super::{Body, Field, HeadLimits, Method, Name, Refusal, RequestHead, RequestRewrite, Span, Version};

/// A request as the library hands it over.
#[derive(Clone, Copy, Debug)]
pub struct H2Request<'a> {
    /// `:method`.
    pub method: &'a Verb,
    /// `:scheme`, `:authority` and `:path`.
    pub uri: &'a Uri,
    /// The fields.
    pub fields: &'a HeaderMap,
    /// `:protocol` of an extended CONNECT (RFC 8441).
    pub protocol: Option<&'a str>,
    /// Nothing follows the head.
    pub ended: bool,
    /// What a client of HTTP/1 would make up to ask for a WebSocket; used with `:protocol` only.
    pub key: &'a str,
}

/// Writes the head as text into `buf` and describes it; an extended CONNECT becomes a request to switch.
///
/// # Errors
/// Every violation of RFC 9113 section 8.2 and 8.3 that the library lets through, and whatever HTTP/1 would not allow.
pub fn read_request(
    request: &H2Request<'_>,
    limits: &HeadLimits,
    buf: &mut Vec<u8>,
    fields: &mut Vec<Field>,
) -> Result<RequestHead, Refusal> {
    buf.clear();
    fields.clear();
    let tunnelled = request.method == Verb::CONNECT;
    if tunnelled && !request.protocol.is_some_and(|protocol| may_be_tunnelled(protocol.as_bytes())) {
        return Err(Refusal::ConnectRefused);
    }
    let (line, target, authority) = write_line(request, limits, buf)?;
    let declared = write_fields(request.fields, limits, buf, fields)?;
    let upgrade = if tunnelled { Some(write_switch(request, buf, fields)) } else { None };
    buf.extend_from_slice(b"\r\n");
    if buf.len() > limits.size {
        return Err(Refusal::HeadTooLarge);
    }
    let host = host(buf, fields, authority)?;
    let body = match (declared, request.ended || tunnelled) {
        (_, true) if tunnelled => Body::None,
        (Some(0), _) => Body::Length(0),
        (Some(_), true) => return Err(Refusal::ContentLength),
        (Some(length), false) => Body::Length(length),
        (None, true) => Body::None,
        (None, false) => Body::UntilClose,
    };
    let verb = line.start as usize..line.start as usize + request.method.as_str().len();
    let (method, method_text) = if tunnelled {
        // What the server is asked with; it stands behind the head, where no field can be.
        let start = buf.len();
        buf.extend_from_slice(b"GET");
        (Method::Get, Span::new(start, start + 3))
    } else {
        (Method::of(&buf[verb.clone()]), Span::new(verb.start, verb.end))
    };
    Ok(RequestHead {
        len: buf.len(),
        line,
        method,
        method_text,
        target,
        version: Version::Http2,
        host,
        body,
        keep_alive: true,
        expect_continue: false,
        upgrade,
    })
}

/// Method, target and version, as HAProxy logs them; line, target and authority as spans.
fn write_line(
    request: &H2Request<'_>,
    limits: &HeadLimits,
    buf: &mut Vec<u8>,
) -> Result<(Span, Span, Option<Span>), Refusal> {
    let path = request.uri.path_and_query().map_or("", PathAndQuery::as_str);
    if path.len() > limits.target {
        return Err(Refusal::TargetTooLong);
    }
    let asterisk = path == "*" && *request.method == Verb::OPTIONS;
    if !(path.starts_with('/') || asterisk) || !path.bytes().all(is_target) {
        return Err(Refusal::Target);
    }
    buf.extend_from_slice(request.method.as_str().as_bytes());
    buf.push(b' ');
    let start = buf.len();
    let mut authority = None;
    if let Some(host) = request.uri.authority().map(Authority::as_str) {
        let scheme = match request.uri.scheme_str() {
            Some("http") => &b"http://"[..],
            Some("https") => b"https://",
            _ => return Err(Refusal::Target),
        };
        if host.is_empty() || !is_host(host.as_bytes()) {
            return Err(Refusal::HostInvalid);
        }
        buf.extend_from_slice(scheme);
        authority = Some(Span::new(buf.len(), buf.len() + host.len()));
        buf.extend_from_slice(host.as_bytes());
    }
    // An absolute target without a path is how `*` is written in HTTP/1 (RFC 9112 section 3.2.4).
    if !(asterisk && authority.is_some()) {
        buf.extend_from_slice(path.as_bytes());
    }
    let target = Span::new(start, buf.len());
    buf.extend_from_slice(b" HTTP/2.0");
    let line = Span::new(0, buf.len());
    buf.extend_from_slice(b"\r\n");
    Ok((line, target, authority))
}

/// Writes the fields, cookie crumbs joined (RFC 9113 section 8.2.3), and returns the Content-Length.
fn write_fields(
    map: &HeaderMap,
    limits: &HeadLimits,
    buf: &mut Vec<u8>,
    fields: &mut Vec<Field>,
) -> Result<Option<u64>, Refusal> {
    let mut length = None;
    let mut cookie = false;
    for (name, value) in map {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        if name == b"cookie" {
            if std::mem::replace(&mut cookie, true) {
                continue;
            }
            let crumbs: Vec<_> = map.get_all(header::COOKIE).iter().map(http::HeaderValue::as_bytes).collect();
            put(name, &crumbs.join(&b"; "[..]), (buf, fields))?;
        } else {
            match put(name, value, (buf, fields))? {
                Name::ContentLength if length.replace(content_length(value)?).is_some() => {
                    return Err(Refusal::ContentLengthRepeated);
                }
                Name::Connection | Name::KeepAlive | Name::ProxyConnection | Name::TransferEncoding | Name::Upgrade => {
                    return Err(Refusal::ConnectionField);
                }
                Name::Te if !value.eq_ignore_ascii_case(b"trailers") => return Err(Refusal::ConnectionField),
                _ => {}
            }
        }
        if fields.len() > limits.fields {
            return Err(Refusal::TooManyFields);
        }
        if buf.len() > limits.size {
            return Err(Refusal::HeadTooLarge);
        }
    }
    Ok(length)
}

fn put(name: &[u8], value: &[u8], (buf, fields): (&mut Vec<u8>, &mut Vec<Field>)) -> Result<Name, Refusal> {
    if name.is_empty() || !name.iter().all(|&byte| is_token(byte) && !byte.is_ascii_uppercase()) {
        return Err(Refusal::FieldName);
    }
    // RFC 9113 section 8.2.1: no control byte, and no white space around it.
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if blank(value.first()) || blank(value.last()) || !value.iter().all(|&byte| is_value(byte)) {
        return Err(Refusal::FieldValue);
    }
    let start = buf.len();
    let after = start + name.len() + 2;
    super::super::chunked::write_field(buf, name, value);
    let id = Name::of(name);
    fields.push(Field { id, name: Span::new(start, start + name.len()), value: Span::new(after, after + value.len()) });
    Ok(id)
}

/// What RFC 8441 leaves out and RFC 6455 asks for. Returns where the protocol stands.
fn write_switch(request: &H2Request<'_>, buf: &mut Vec<u8>, fields: &mut Vec<Field>) -> Span {
    let protocol = request.protocol.unwrap_or_default().as_bytes();
    if protocol.eq_ignore_ascii_case(b"websocket") && !request.fields.contains_key(header::SEC_WEBSOCKET_KEY) {
        // Made of our own bytes: cannot fail.
        let _ = put(b"sec-websocket-key", request.key.as_bytes(), (buf, fields));
    }
    let _ = write!(buf, "upgrade: ");
    let start = buf.len();
    buf.extend_from_slice(protocol);
    let protocol = Span::new(start, buf.len());
    buf.extend_from_slice(b"\r\n");
    protocol
}

/// RFC 9113 section 8.3.1: Host may only repeat what `:authority` says.
fn host(buf: &[u8], fields: &[Field], authority: Option<Span>) -> Result<Option<Span>, Refusal> {
    let mut hosts = fields.iter().filter(|field| field.id == Name::Host).map(|field| field.value);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::HostRepeated);
    }
    match (host, authority) {
        (None, None) => Err(Refusal::HostMissing),
        (None, authority) => Ok(authority),
        (Some(host), _) if !is_host(host.of(buf)) => Err(Refusal::HostInvalid),
        (Some(host), Some(authority)) if !authority.of(buf).eq_ignore_ascii_case(host.of(buf)) => {
            Err(Refusal::HostContradicts)
        }
        (host, _) => Ok(host),
    }
}

/// The head of `head` for a server that speaks HTTP/2; `tls` says how it is reached.
///
/// # Errors
/// What the library cannot express, such as a path with bytes that no URI may hold.
pub fn write_request(
    buf: &[u8],
    head: &RequestHead,
    fields: &[Field],
    rewrite: &RequestRewrite<'_>,
    tls: bool,
) -> Result<http::Request<()>, Refusal> {
    let (prefix, path) = origin_form(head.method, head.target.of(buf));
    let mut uri = http::uri::Parts::default();
    let path = [prefix, path].concat();
    uri.path_and_query = Some(PathAndQuery::from_maybe_shared(bytes::Bytes::from(path)).map_err(|_| Refusal::Target)?);
    let host = head.host.map(|host| host.of(buf)).filter(|host| !host.is_empty());
    if let Some(host) = host {
        uri.authority = Some(Authority::try_from(host).map_err(|_| Refusal::HostInvalid)?);
        uri.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    }
    let mut request = http::Request::new(());
    // Without an authority the library takes the request only as one that comes from HTTP/1.
    *request.version_mut() = if host.is_some() { http::Version::HTTP_2 } else { http::Version::HTTP_11 };
    *request.method_mut() = Verb::from_bytes(head.method_text.of(buf)).map_err(|_| Refusal::Method)?;
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| Refusal::Target)?;
    let streamed = matches!(head.body, Body::Chunked | Body::UntilClose);
    let kept = |field: &Field| match field.id {
        Name::Other => true,
        Name::Expect => head.version != Version::Http10,
        Name::Trailer => streamed,
        _ => false,
    };
    let map = request.headers_mut();
    map.reserve(fields.len() + 4);
    copy_fields(map, buf, fields, rewrite.edits, kept);
    write_edits(map, rewrite.edits);
    rewrite.write_own(map);
    if head.takes_trailers(buf, fields) {
        map.insert(header::TE, http::HeaderValue::from_static("trailers"));
    }
    if let Body::Length(length) = head.body {
        map.insert(header::CONTENT_LENGTH, http::HeaderValue::from(length));
    }
    Ok(request)
}
