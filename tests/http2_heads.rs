//! Holds the verdict on every head of `tests/corpus/h2`, which the fuzz target `h2_request_head` begins with:
//! `.ok` becomes exactly one request of HTTP/1, `.bad` none.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::fs;
use std::path::Path;

use http::uri::{Authority, Parts, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use proxy::config::HeaderEdits;
use proxy::http::h2::{H2Request, read_request};
use proxy::http::{Body, HeadLimits, Name, RequestRewrite, parse_request, rebuild_request};

const LIMITS: HeadLimits = HeadLimits { size: 1024, fields: 16, target: 256 };
/// A rebuilt head may be a little longer than the one it was made from.
const LATER: HeadLimits = HeadLimits { size: 8192, fields: 32, target: 512 };

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
    let mut out = Vec::new();
    let rewrite = RequestRewrite { edits: &HeaderEdits::default(), forwarded_for: None, close: false };
    rebuild_request(&mut out, &buf, &head, &fields, &rewrite);
    let mut again = Vec::new();
    let one = parse_request(&out, &LATER, &mut again).unwrap().unwrap();
    assert_eq!((one.len, one.body, one.method), (out.len(), head.framing(), head.method));
    let count = |wanted: &[Name]| again.iter().filter(|field| wanted.contains(&field.id)).count();
    assert_eq!(count(&[Name::ContentLength, Name::TransferEncoding]), usize::from(head.body != Body::None));
    assert_eq!(count(&[Name::Host]), 1);
    Some(())
}

#[test]
fn every_head_of_http_2_in_the_corpus_gets_its_verdict() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/h2");
    let mut seen = [0, 0];
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let wanted = path.extension().unwrap() == "ok";
        assert_eq!(translate(&fs::read(&path).unwrap()).is_some(), wanted, "{}", path.display());
        seen[usize::from(wanted)] += 1;
    }
    assert!(seen.iter().all(|count| *count > 5), "{seen:?}");
}
