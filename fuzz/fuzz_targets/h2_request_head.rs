//! Request heads of HTTP/2: what is translated is exactly one request of HTTP/1, and leaves with one meaning.
//! Input: `method`, `scheme`, `authority`, `path`, `protocol`, `ended` on a line each, then `name: value` lines.
#![no_main]

use http::uri::{Authority, PathAndQuery, Parts, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use libfuzzer_sys::fuzz_target;
use proxy::config::HeaderEdits;
use proxy::http::h2::{Budget, H2Request, Watch, read_request};
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
    let one = parse_request(&out, &LATER, &mut again).expect("never refused").expect("always complete");
    assert_eq!((one.len, one.body, one.method), (out.len(), head.framing(), head.method));
    let count = |wanted: &[Name]| again.iter().filter(|field| wanted.contains(&field.id)).count();
    assert_eq!(count(&[Name::ContentLength, Name::TransferEncoding]), usize::from(head.body != Body::None));
    assert_eq!(count(&[Name::Host]), 1);
    Some(())
}

fuzz_target!(|bytes: &[u8]| {
    translate(bytes);
    // However frames are cut, a flood is one or it is none.
    let now = std::time::Instant::now();
    let budget = Budget { burst: 3, per_second: 0 };
    let (mut whole, mut cut) = (Watch::new(budget, now), Watch::new(budget, now));
    let at_once = whole.read(bytes, now);
    let piecemeal = bytes.iter().all(|byte| cut.read(std::slice::from_ref(byte), now));
    assert!(!piecemeal || at_once);
});
