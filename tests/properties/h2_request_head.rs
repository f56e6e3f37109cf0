//! Request heads of HTTP/2: what is translated is exactly one request of HTTP/1 that says the same, and leaves with one
//! meaning, whatever is spoken to the server.
//! Input: `method`, `scheme`, `authority`, `path`, `protocol`, `ended` on a line each, then `name: value` lines.

use http::uri::{Authority, Parts, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use proxy::http::h2::{H2Request, read_request};
use proxy::http::{Body, RequestHead, parse_request};

use super::plain::{self, Plain, grouped};
use super::request_head::{LATER, LIMITS, leaves_by_http_2_as_by_http_1, rebuilt};

pub fn holds(bytes: &[u8]) {
    is_translated(bytes);
}

/// Whether the input is a head, and one that is accepted.
pub fn is_translated(bytes: &[u8]) -> bool {
    translate(bytes).is_some()
}

fn uri(scheme: &[u8], authority: &[u8], path: &[u8]) -> Option<Uri> {
    let mut parts = Parts::default();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    if !authority.is_empty() {
        parts.authority = Some(Authority::try_from(authority).ok()?);
        parts.scheme = Some(Scheme::try_from(scheme).ok()?);
    }
    Uri::from_parts(parts).ok()
}

fn translate(bytes: &[u8]) -> Option<()> {
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let method = Method::from_bytes(lines.next()?).ok()?;
    let uri = uri(lines.next()?, lines.next()?, lines.next()?)?;
    let protocol = std::str::from_utf8(lines.next()?).ok()?;
    let ended = lines.next()? == b"ended";
    let mut map = HeaderMap::new();
    for line in lines {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let (name, value) = (HeaderName::from_bytes(&line[..colon]).ok()?, line.get(colon + 2..)?);
        map.append(name, HeaderValue::from_bytes(value).ok()?);
    }
    let protocol = Some(protocol).filter(|protocol| !protocol.is_empty());
    let asked = H2Request { method: &method, uri: &uri, fields: &map, protocol, ended, key: "a2V5" };
    let (mut buf, mut fields) = (Vec::new(), Vec::new());
    let head = read_request(&asked, &LIMITS, &mut buf, &mut fields).ok()?;
    let out = rebuilt((&buf, &head, &fields));
    says_the_same(&asked, &head, &out);
    leaves_by_http_2_as_by_http_1((&buf, &head, &fields), &out);
    Some(())
}

/// What was asked for is what a server of HTTP/1 reads.
fn says_the_same(asked: &H2Request<'_>, head: &RequestHead, out: &[u8]) {
    let one = parse_request(out, &LATER, &mut Vec::new()).expect("never refused").expect("always complete");
    assert_eq!((one.len, one.body, one.method), (out.len(), head.framing(), head.method));
    let read = plain::read(out);
    assert_eq!(read.count(&["content-length", "transfer-encoding"]), usize::from(head.body != Body::None));
    assert_eq!(read.count(&["host"]), 1);
    let method =
        if asked.protocol.is_some() && *asked.method == Method::CONNECT { "GET" } else { asked.method.as_str() };
    let path = asked.uri.path_and_query().expect("a path").as_str();
    assert_eq!(read.line, format!("{method} {path} HTTP/1.1").into_bytes());
    if let Some(authority) = asked.uri.authority() {
        assert!(one.host.expect("a host").of(out).eq_ignore_ascii_case(authority.as_str().as_bytes()));
    }
    let fields = asked.fields.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()));
    let asked = Plain { line: Vec::new(), fields: fields.collect() };
    let ours = ["host", "sec-websocket-key"];
    assert_eq!(grouped(read.own(&ours)), grouped(asked.own(&ours)));
}
