//! Request heads (RFC 9112 section 3).
//! Called by `proxy` with everything a client has sent since its last request.
//! Never reads beyond the head and never allocates beyond the reused list of fields.

use std::net::Ipv6Addr;

use super::framing::declared;
use super::line::{head_end, is_target, is_token, parse_fields};
use super::rebuild::origin_form;
use super::upgrade::protocols;
use super::{Body, Field, HeadLimits, Name, Refusal, Span};

/// Request methods with a meaning to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the method of that name")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Trace,
    Connect,
    Patch,
    Other,
}

impl Method {
    /// Whether a request may be repeated without harm (RFC 9110 section 9.2.2).
    #[must_use]
    pub fn is_idempotent(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Put | Self::Delete | Self::Options | Self::Trace)
    }

    pub(super) fn of(text: &[u8]) -> Self {
        match text {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"TRACE" => Self::Trace,
            b"CONNECT" => Self::Connect,
            b"PATCH" => Self::Patch,
            _ => Self::Other,
        }
    }
}

/// Protocol versions understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// Reads `HTTP/1.0` or `HTTP/1.1`; anything else of that shape is [`Refusal::Version`].
    pub(super) fn parse(text: &[u8], otherwise: Refusal) -> Result<Self, Refusal> {
        match text {
            b"HTTP/1.1" => Ok(Self::Http11),
            b"HTTP/1.0" => Ok(Self::Http10),
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                Err(Refusal::Version)
            }
            _ => Err(otherwise),
        }
    }
}

/// A complete, checked request head.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead {
    /// Bytes of the head, a leading CRLF and the empty line included.
    pub len: usize,
    /// Request line without CRLF.
    pub line: Span,
    /// Method.
    pub method: Method,
    /// Method as received.
    pub method_text: Span,
    /// Request target as received.
    pub target: Span,
    /// Version of the client.
    pub version: Version,
    /// Host, or the authority of an absolute target.
    pub host: Option<Span>,
    /// Framing; `UntilClose` is a body of HTTP/2 that ends with its stream.
    pub body: Body,
    /// Whether the client wants the connection kept.
    pub keep_alive: bool,
    /// Whether the client waits for a 100 before it sends the body.
    pub expect_continue: bool,
    /// Protocols the client would switch to, where they may be passed on.
    pub upgrade: Option<Span>,
}

impl RequestHead {
    /// Path without query; `*` of an OPTIONS stays that.
    #[must_use]
    pub fn path<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        let (prefix, rest) = origin_form(self.method, self.target.of(buf));
        let end = memchr::memchr(b'?', rest).unwrap_or(rest.len());
        if rest[..end].is_empty() { prefix } else { &rest[..end] }
    }

    /// Host without port.
    #[must_use]
    pub fn host_name<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        let host = self.host.map_or(&b""[..], |host| host.of(buf));
        let address = if host.first() == Some(&b'[') { memchr::memchr(b']', host).map(|end| end + 1) } else { None };
        &host[..address.or_else(|| memchr::memchr(b':', host)).unwrap_or(host.len())]
    }
}

/// Parses a request head; `None` when more bytes are needed. One leading CRLF is skipped (RFC 9112 section 2.2).
///
/// # Errors
/// Every violation, see [`Refusal`]; limits are enforced on incomplete heads too.
pub fn parse_request(buf: &[u8], limits: &HeadLimits, fields: &mut Vec<Field>) -> Result<Option<RequestHead>, Refusal> {
    fields.clear();
    let start = if buf.starts_with(b"\r\n") { 2 } else { 0 };
    if buf == b"\r" {
        return Ok(None);
    }
    check_beginning(&buf[start..], limits)?;
    let end = head_end(buf, start)?;
    if end.map_or(buf.len() >= limits.size, |end| end > limits.size) {
        return Err(Refusal::HeadTooLarge);
    }
    let Some(end) = end else { return Ok(None) };
    let buf = &buf[..end];
    let line_len = memchr::memchr(b'\r', &buf[start..]).ok_or(Refusal::BareLineEnd)?;
    let line = Span::new(start, start + line_len);
    if buf.get(start + line_len + 1) != Some(&b'\n') {
        return Err(Refusal::BareLineEnd);
    }
    let (method_text, target, version) = parse_line(buf, line)?;
    let method = Method::of(method_text.of(buf));
    parse_fields(buf, start + line_len + 2, limits.fields, fields)?;
    let authority = check_target(method, target, buf)?;
    let host = find_host(buf, fields, version, authority)?;
    let declared = declared(buf, fields, version)?;
    let body = declared.body.unwrap_or(Body::None);
    let expects = |f: &Field| f.id == Name::Expect && f.value.of(buf).eq_ignore_ascii_case(b"100-continue");
    let waits = version == Version::Http11 && !matches!(body, Body::None | Body::Length(0));
    let expect_continue = waits && fields.iter().any(expects);
    let keep_alive = declared.keep_alive;
    // A body would have to end before the other protocol begins; nobody who means it sends one.
    let may_switch = version == Version::Http11 && matches!(body, Body::None | Body::Length(0));
    let upgrade = if may_switch { protocols(buf, fields) } else { None };
    let len = end;
    Ok(Some(RequestHead {
        len,
        line,
        method,
        method_text,
        target,
        version,
        host,
        body,
        keep_alive,
        expect_continue,
        upgrade,
    }))
}

/// Refuses at once what no further byte can mend: a TLS hello on a plain port, a target beyond its limit.
fn check_beginning(rest: &[u8], limits: &HeadLimits) -> Result<(), Refusal> {
    let method = rest.iter().take_while(|&&b| is_token(b)).count();
    match rest.get(method) {
        None => return Ok(()),
        Some(b' ') if method > 0 => {}
        Some(_) => return Err(Refusal::Method),
    }
    let target = &rest[method + 1..];
    let window = &target[..target.len().min(limits.target.saturating_add(1))];
    if window.len() > limits.target && memchr::memchr3(b' ', b'\r', b'\n', window).is_none() {
        return Err(Refusal::TargetTooLong);
    }
    Ok(())
}

fn parse_line(buf: &[u8], line: Span) -> Result<(Span, Span, Version), Refusal> {
    let text = line.of(buf);
    let start = line.start as usize;
    let first = memchr::memchr(b' ', text).ok_or(Refusal::RequestLine)?;
    let last = memchr::memrchr(b' ', text).filter(|&last| last > first + 1).ok_or(Refusal::RequestLine)?;
    if !text[first + 1..last].iter().all(|&b| is_target(b)) {
        return Err(Refusal::Target);
    }
    let version = Version::parse(&text[last + 1..], Refusal::RequestLine)?;
    Ok((Span::new(start, start + first), Span::new(start + first + 1, start + last), version))
}

/// Checks the form of the target and returns the authority of an absolute one.
fn check_target(method: Method, target: Span, buf: &[u8]) -> Result<Option<Span>, Refusal> {
    let text = target.of(buf);
    if method == Method::Connect {
        return Err(Refusal::ConnectRefused);
    }
    if text.starts_with(b"/") || (text == b"*" && method == Method::Options) {
        return Ok(None);
    }
    let (authority, _) = split_absolute(text).ok_or(Refusal::Target)?;
    if authority.is_empty() || !is_host(authority) {
        return Err(Refusal::HostInvalid);
    }
    let start = target.start as usize + text.len() - after_scheme(text).map_or(0, <[u8]>::len);
    Ok(Some(Span::new(start, start + authority.len())))
}

fn after_scheme(target: &[u8]) -> Option<&[u8]> {
    let colon = target.iter().take(6).position(|&b| b == b':')?;
    let known = target[..colon].eq_ignore_ascii_case(b"http") || target[..colon].eq_ignore_ascii_case(b"https");
    if known { target[colon..].strip_prefix(b"://") } else { None }
}

/// Splits an absolute http(s) target into authority and what follows; `None` for the other forms.
pub(super) fn split_absolute(target: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = after_scheme(target)?;
    let end = rest.iter().position(|&b| b == b'/' || b == b'?').unwrap_or(rest.len());
    Some(rest.split_at(end))
}

fn find_host(buf: &[u8], fields: &[Field], version: Version, authority: Option<Span>) -> Result<Option<Span>, Refusal> {
    let mut hosts = fields.iter().filter(|field| field.id == Name::Host).map(|field| field.value);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::HostRepeated);
    }
    let Some(host) = host else {
        return if version == Version::Http11 { Err(Refusal::HostMissing) } else { Ok(authority) };
    };
    if !is_host(host.of(buf)) {
        return Err(Refusal::HostInvalid);
    }
    if authority.is_some_and(|authority| !authority.of(buf).eq_ignore_ascii_case(host.of(buf))) {
        return Err(Refusal::HostContradicts);
    }
    Ok(Some(host))
}

/// `uri-host [":" port]` of RFC 9110 section 7.2; may be empty.
pub(super) fn is_host(text: &[u8]) -> bool {
    if text.is_empty() {
        return true;
    }
    let (name_ok, rest) = if let Some(inner) = text.strip_prefix(b"[") {
        let Some(end) = memchr::memchr(b']', inner) else { return false };
        let literal = std::str::from_utf8(&inner[..end]);
        (literal.is_ok_and(|literal| literal.parse::<Ipv6Addr>().is_ok()), &inner[end + 1..])
    } else {
        let end = memchr::memchr(b':', text).unwrap_or(text.len());
        (end > 0 && is_name(&text[..end]), &text[end..])
    };
    let port_ok = rest.is_empty() || rest.strip_prefix(b":").is_some_and(|port| port.iter().all(u8::is_ascii_digit));
    name_ok && port_ok
}

/// `reg-name` of RFC 3986 section 3.2.2, where every `%` begins two hexadecimal digits.
fn is_name(text: &[u8]) -> bool {
    text.iter().enumerate().all(|(at, &byte)| match byte {
        b'%' => matches!(text.get(at + 1..at + 3), Some([a, b]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()),
        _ => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte),
    })
}
