//! Request heads: how they arrive does not matter, a second reader reads the same, and what is accepted leaves with one
//! meaning, whatever is spoken to the server.

use proxy::config::HeaderEdits;
use proxy::http::h2::{H2Request, read_request, write_request};
use proxy::http::{
    Body, Field, HeadLimits, Refusal, RequestHead, RequestRewrite, Version, parse_request, rebuild_request,
};

use super::plain::{self, Plain, grouped};

pub const LIMITS: HeadLimits = HeadLimits { size: 1024, fields: 16, target: 256 };
/// A rebuilt head may be a little longer than the one it was made from.
pub const LATER: HeadLimits = HeadLimits { size: 8192, fields: 32, target: 512 };

pub fn holds(bytes: &[u8]) {
    let whole = parse_request(bytes, &LIMITS, &mut Vec::new());
    for end in 0..bytes.len() {
        match (parse_request(&bytes[..end], &LIMITS, &mut Vec::new()), &whole) {
            (Ok(None), _) => {}
            (Err(_), Err(_)) => return,
            (Ok(Some(part)), Ok(Some(whole))) => assert_eq!(format!("{part:?}"), format!("{whole:?}")),
            (part, whole) => panic!("{part:?} after {end} bytes, {whole:?} after all"),
        }
    }
    let Ok(Some(head)) = whole else { return };
    assert!(head.len <= bytes.len() && head.len <= LIMITS.size);
    let mut fields = Vec::new();
    parse_request(bytes, &LIMITS, &mut fields).expect("accepted before").expect("complete before");
    let plain = plain::read(&bytes[..head.len]);
    reads_the_same(bytes, &head, &fields, &plain);
    let first = rebuilt((bytes, &head, &fields));
    leaves_with_one_meaning((bytes, &head, &plain), &first);
    leaves_by_http_2_as_by_http_1((bytes, &head, &fields), &first);
}

fn reads_the_same(bytes: &[u8], head: &RequestHead, fields: &[Field], plain: &Plain) {
    let (method, target) = (head.method_text.of(bytes), head.target.of(bytes));
    assert_eq!(head.line.of(bytes), plain.line);
    let line: Vec<_> = plain.line.split(|&byte| byte == b' ').collect();
    assert_eq!(line[..2], [method, target]);
    assert!(matches!(line[2..], [b"HTTP/1.1" | b"HTTP/1.0"]));
    let fields: Vec<_> = fields
        .iter()
        .map(|field| (field.name.of(bytes).to_ascii_lowercase(), field.value.of(bytes).to_vec()))
        .map(|(name, value)| (String::from_utf8(name).expect("ASCII"), value))
        .collect();
    assert_eq!(fields, plain.fields);
}

/// Text, what it says, and its fields.
pub type Head<'a> = (&'a [u8], &'a RequestHead, &'a [Field]);

pub fn rebuilt((bytes, head, fields): Head<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let rewrite = RequestRewrite { edits: &HeaderEdits::default(), forwarded_for: None, close: false };
    rebuild_request(&mut out, bytes, head, fields, &rewrite);
    out
}

fn leaves_with_one_meaning((bytes, head, plain): (&[u8], &RequestHead, &Plain), first: &[u8]) {
    let mut fields = Vec::new();
    let again = parse_request(first, &LATER, &mut fields).expect("never refused").expect("always complete");
    assert_eq!((again.len, again.body, again.method), (first.len(), head.body, head.method));
    assert_eq!(again.method_text.of(first), head.method_text.of(bytes));
    assert_eq!(again.path(first), head.path(bytes));
    assert_eq!(again.host.map(|host| host.of(first)).unwrap_or_default(), host(bytes, head));
    let second = rebuilt((first, &again, &fields));
    let again = parse_request(&second, &LATER, &mut fields).expect("never refused").expect("always complete");
    assert_eq!(rebuilt((&second, &again, &fields)), second, "rebuilding is stable");
    let after = plain::read(first);
    assert_eq!(after.count(&["content-length", "transfer-encoding"]), usize::from(head.body != Body::None));
    assert_eq!(after.count(&["host"]), 1);
    assert_eq!(after.own(&["host", "expect"]), plain.own(&["host", "expect"]));
}

fn host<'a>(bytes: &'a [u8], head: &RequestHead) -> &'a [u8] {
    head.host.map(|host| host.of(bytes)).unwrap_or_default()
}

/// What a server of HTTP/2 gets is what one of HTTP/1 would have got.
pub fn leaves_by_http_2_as_by_http_1((bytes, head, fields): Head<'_>, first: &[u8]) {
    if head.upgrade.is_some() || host(bytes, head).is_empty() {
        return;
    }
    let edits = HeaderEdits::default();
    let rewrite = RequestRewrite { edits: &edits, forwarded_for: None, close: false };
    let request = match write_request(bytes, head, fields, &rewrite, true) {
        Ok(request) => request,
        // The library knows no escapes in a host, and fewer bytes of a path than clients of HTTP/1 send.
        Err(Refusal::HostInvalid) if host(bytes, head).contains(&b'%') => return,
        Err(Refusal::Target) if head.version != Version::Http2 => return,
        Err(refusal) => panic!("{refusal}"),
    };
    let (method, uri, map) = (request.method(), request.uri(), request.headers());
    let asked = H2Request { method, uri, fields: map, protocol: None, ended: head.body == Body::None, key: "" };
    let (mut buf, mut fields) = (Vec::new(), Vec::new());
    let head = read_request(&asked, &LATER, &mut buf, &mut fields).expect("we understand ourselves");
    let (again, first) = (plain::read(&rebuilt((&buf, &head, &fields))), plain::read(first));
    assert_eq!((again.line, grouped(again.fields)), (first.line, grouped(first.fields)));
}
