//! Heads written anew for the other side: hop-by-hop fields dropped, framing rebuilt, edits applied.
//! Called by `proxy` with a head the parsers accepted.
//! Never copies a framing field: what is written follows from the checked value alone.

use std::io::Write as _;
use std::net::IpAddr;

use super::chunked::write_field;
use super::framing::tokens;
use super::request::split_absolute;
use super::upgrade::protocols;
use super::{Body, Field, Method, Name, RequestHead, ResponseHead, Version};
use crate::config::HeaderEdits;

/// Where fields are written: the text of an HTTP/1 head, or the list of an HTTP/2 one.
pub(super) trait Fields {
    /// Adds a field that was checked before.
    fn put(&mut self, name: &[u8], value: &[u8]);
}

impl Fields for Vec<u8> {
    fn put(&mut self, name: &[u8], value: &[u8]) {
        write_field(self, name, value);
    }
}

impl Fields for http::HeaderMap {
    fn put(&mut self, name: &[u8], value: &[u8]) {
        // Neither fails for what the parsers let through.
        if let (Ok(name), Ok(value)) = (http::HeaderName::from_bytes(name), http::HeaderValue::from_bytes(value)) {
            self.append(name, value);
        }
    }
}

/// How a request changes on its way to the server.
#[derive(Clone, Copy, Debug)]
pub struct RequestRewrite<'a> {
    /// Edits of the frontend.
    pub edits: &'a HeaderEdits,
    /// Client address for X-Forwarded-For.
    pub forwarded_for: Option<IpAddr>,
    /// Ask the server to close afterwards.
    pub close: bool,
}

/// What a client is told about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// HTTP/1.1: nothing need be said.
    KeepAliveImplicit,
    /// HTTP/1.0 client that asked: `Connection: keep-alive`.
    KeepAliveExplicit,
    /// `Connection: close`.
    Close,
}

/// How a response changes on its way to the client.
#[derive(Clone, Copy, Debug)]
pub struct ResponseRewrite<'a> {
    /// Edits of the frontend.
    pub edits: &'a HeaderEdits,
    /// Fate of the client's connection.
    pub persistence: Persistence,
    /// Framing towards the client; `None` keeps the Content-Length of a response to HEAD or of a 304.
    pub body: Body,
}

/// Path and query a server is asked for, as prefix and rest: `*` and origin-form as they are, absolute-form cut.
pub(super) fn origin_form(method: Method, target: &[u8]) -> (&'static [u8], &[u8]) {
    match split_absolute(target) {
        None => (b"", target),
        Some((_, b"")) if method == Method::Options => (b"*", b""),
        Some((_, rest)) if rest.starts_with(b"/") => (b"", rest),
        Some((_, rest)) => (b"/", rest),
    }
}

/// Writes the head of `head` for the server, always HTTP/1.1 with an origin-form target.
pub fn rebuild_request(
    out: &mut Vec<u8>,
    buf: &[u8],
    head: &RequestHead,
    fields: &[Field],
    rewrite: &RequestRewrite<'_>,
) {
    let (prefix, path) = origin_form(head.method, head.target.of(buf));
    out.extend_from_slice(head.method_text.of(buf));
    out.push(b' ');
    out.extend_from_slice(prefix);
    out.extend_from_slice(path);
    out.extend_from_slice(b" HTTP/1.1\r\n");

    if !sets(rewrite.edits, b"host") {
        match head.host {
            Some(host) if !deletes(rewrite.edits, b"host") => write_field(out, b"Host", host.of(buf)),
            // RFC 9112 section 3.2: HTTP/1.1 has a Host field even when there is nothing to put in.
            _ => out.extend_from_slice(b"Host:\r\n"),
        }
    }
    let framing = head.framing();
    let kept = |field: &Field| match field.id {
        Name::Other => true,
        // An expectation in HTTP/1.0 is ignored (RFC 9110 section 10.1.1); passed on as HTTP/1.1 it would count.
        Name::Expect => head.version != Version::Http10,
        Name::Trailer => framing == Body::Chunked,
        _ => false,
    };
    copy_fields(out, buf, fields, rewrite.edits, kept);
    write_edits(out, rewrite.edits);
    rewrite.write_own(out);
    let te = head.takes_trailers(buf, fields);
    if let Some(protocols) = head.upgrade {
        write_field(out, b"Upgrade", protocols.of(buf));
    }
    out.extend_from_slice(match (te, rewrite.close) {
        (true, _) if head.upgrade.is_some() => b"TE: trailers\r\nConnection: Upgrade, TE\r\n",
        (false, _) if head.upgrade.is_some() => b"Connection: Upgrade\r\n",
        (true, true) => b"TE: trailers\r\nConnection: close, TE\r\n",
        (true, false) => b"TE: trailers\r\nConnection: TE\r\n",
        (false, true) => b"Connection: close\r\n",
        (false, false) => b"",
    });
    write_framing(out, framing);
    out.extend_from_slice(b"\r\n");
}

impl RequestRewrite<'_> {
    /// Writes what is ours to say.
    pub(super) fn write_own(&self, out: &mut impl Fields) {
        if let Some(address) = self.forwarded_for {
            out.put(b"X-Forwarded-For", address.to_canonical().to_string().as_bytes());
        }
    }
}

impl RequestHead {
    /// Framing of the body towards a server that speaks HTTP/1: one that ends with its stream is chunked there.
    #[must_use]
    pub fn framing(&self) -> Body {
        if self.body == Body::UntilClose { Body::Chunked } else { self.body }
    }

    /// Whether the client wants to know about trailers.
    pub(super) fn takes_trailers(&self, buf: &[u8], fields: &[Field]) -> bool {
        let named = |value: &[u8]| tokens(value).any(|token| token.eq_ignore_ascii_case(b"trailers"));
        fields.iter().any(|field| field.id == Name::Te && named(field.value.of(buf)))
    }
}

/// Writes the head of `head` for the client; interim responses get neither Connection nor framing.
pub fn rebuild_response(
    out: &mut Vec<u8>,
    buf: &[u8],
    head: &ResponseHead,
    fields: &[Field],
    rewrite: &ResponseRewrite<'_>,
) {
    let _ = write!(out, "HTTP/1.1 {} ", head.status);
    out.extend_from_slice(head.reason.of(buf));
    out.extend_from_slice(b"\r\n");
    let interim = head.status < 200;
    copy_fields(out, buf, fields, rewrite.edits, |field| rewrite.keeps(head, field.id));
    write_edits(out, rewrite.edits);
    // A 426 has to say what to upgrade to (RFC 9110 section 15.5.22).
    let named = if head.status == 426 { protocols(buf, fields) } else { head.upgrade };
    if let Some(protocols) = named {
        write_field(out, b"Upgrade", protocols.of(buf));
        out.extend_from_slice(b"Connection: Upgrade\r\n");
    }
    if !interim {
        write_persistence(out, rewrite.persistence);
        write_framing(out, rewrite.body);
    }
    out.extend_from_slice(b"\r\n");
}

impl ResponseRewrite<'_> {
    /// Whether a field of a response is passed on.
    pub(super) fn keeps(&self, head: &ResponseHead, name: Name) -> bool {
        match name {
            Name::Other | Name::Host | Name::Expect => true,
            Name::ContentLength => self.body == Body::None && head.status >= 200 && head.status != 204,
            Name::Trailer => self.body == Body::Chunked,
            _ => false,
        }
    }
}

pub(super) fn write_persistence(out: &mut Vec<u8>, persistence: Persistence) {
    out.extend_from_slice(match persistence {
        Persistence::KeepAliveImplicit => b"",
        Persistence::KeepAliveExplicit => b"Connection: keep-alive\r\n",
        Persistence::Close => b"Connection: close\r\n",
    });
}

fn write_framing(out: &mut Vec<u8>, body: Body) {
    match body {
        Body::None | Body::UntilClose => {}
        Body::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Body::Length(length) => {
            write_field(out, b"Content-Length", itoa::Buffer::new().format(length).as_bytes());
        }
    }
}

/// Copies what passes `kept`, is not nominated by Connection and is not removed or replaced by an edit.
pub(super) fn copy_fields(
    out: &mut impl Fields,
    buf: &[u8],
    fields: &[Field],
    edits: &HeaderEdits,
    kept: impl Fn(&Field) -> bool,
) {
    let nominations = fields.iter().any(|field| field.id == Name::Connection && nominates(field.value.of(buf)));
    for field in fields.iter().filter(|field| kept(field)) {
        let name = field.name.of(buf);
        let hop = nominations && field.id == Name::Other && is_nominated(name, buf, fields);
        if !hop && !deletes(edits, name) && !sets(edits, name) {
            out.put(name, field.value.of(buf));
        }
    }
}

fn nominates(connection: &[u8]) -> bool {
    tokens(connection).any(|token| !token.eq_ignore_ascii_case(b"close") && !token.eq_ignore_ascii_case(b"keep-alive"))
}

fn is_nominated(name: &[u8], buf: &[u8], fields: &[Field]) -> bool {
    let nominates = |field: &Field| tokens(field.value.of(buf)).any(|token| token.eq_ignore_ascii_case(name));
    fields.iter().any(|field| field.id == Name::Connection && nominates(field))
}

fn deletes(edits: &HeaderEdits, name: &[u8]) -> bool {
    edits.del.iter().any(|del| name.eq_ignore_ascii_case(del.as_bytes()))
}

fn sets(edits: &HeaderEdits, name: &[u8]) -> bool {
    edits.set.iter().any(|(set, _)| name.eq_ignore_ascii_case(set.as_bytes()))
}

/// Writes replacements, then additions. Framing and hop-by-hop names are this module's alone; control bytes are left
/// out, so that no configured value can end its line.
pub(super) fn write_edits(out: &mut impl Fields, edits: &HeaderEdits) {
    for (name, value) in edits.set.iter().chain(&edits.add) {
        if Name::of(name.as_bytes()).is_connection_level() {
            continue;
        }
        let (name, value) = (name.as_bytes(), value.as_bytes());
        if name.iter().all(|&b| super::line::is_token(b)) && value.iter().all(|&b| super::line::is_value(b)) {
            out.put(name, value);
            continue;
        }
        let name: Vec<u8> = name.iter().copied().filter(|&b| super::line::is_token(b)).collect();
        let value: Vec<u8> = value.iter().copied().filter(|&b| super::line::is_value(b)).collect();
        out.put(&name, &value);
    }
}
