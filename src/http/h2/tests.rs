//! Table tests of the translation between HTTP/2 and HTTP/1, and of the frames a flood is made of.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method as Verb, Request, Uri, uri};

use super::super::{
    Asked, Body, Field, HeadLimits, Method, Persistence, Refusal, RequestHead, RequestRewrite, ResponseRewrite,
    parse_request, parse_response, rebuild_request,
};
use super::*;
use crate::config::HeaderEdits;

const LIMITS: HeadLimits = HeadLimits { size: 16 * 1024, fields: 16, target: 256 };

struct Asking {
    method: Verb,
    uri: Uri,
    fields: HeaderMap,
    protocol: Option<&'static str>,
    ended: bool,
}

fn uri(scheme: &str, authority: Option<&str>, path: &str) -> Uri {
    let mut parts = uri::Parts::default();
    parts.path_and_query = Some(path.parse().unwrap());
    if let Some(authority) = authority {
        (parts.scheme, parts.authority) = (Some(scheme.parse().unwrap()), Some(authority.parse().unwrap()));
    }
    Uri::from_parts(parts).unwrap()
}

fn asking(method: &str, path: &str, fields: &[(&str, &str)]) -> Asking {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    let method = Verb::from_bytes(method.as_bytes()).unwrap();
    Asking { method, uri: uri("https", Some("a.test"), path), fields: map, protocol: None, ended: true }
}

impl Asking {
    fn read(&self) -> Result<(RequestHead, Vec<u8>, Vec<Field>), Refusal> {
        let (mut buf, mut fields) = (Vec::new(), Vec::new());
        let request = H2Request {
            method: &self.method,
            uri: &self.uri,
            fields: &self.fields,
            protocol: self.protocol,
            ended: self.ended,
            key: "a2V5",
        };
        read_request(&request, &LIMITS, &mut buf, &mut fields).map(|head| (head, buf, fields))
    }

    fn as_http1(&self) -> String {
        let (head, buf, fields) = self.read().unwrap();
        let mut out = Vec::new();
        let rewrite = RequestRewrite { edits: &HeaderEdits::default(), forwarded_for: None, close: false };
        rebuild_request(&mut out, &buf, &head, &fields, &rewrite);
        let mut again = Vec::new();
        assert!(parse_request(&out, &LIMITS, &mut again).unwrap().is_some(), "our own parser takes it");
        String::from_utf8(out).unwrap()
    }
}

#[test]
fn a_request_reaches_a_server_of_http_1_as_that_one_would_have_got_it() {
    let get = asking("GET", "/x?y=1", &[("cookie", "a=1"), ("accept", "*/*"), ("cookie", "b=2"), ("te", "trailers")]);
    let expected = "GET /x?y=1 HTTP/1.1\r\nHost: a.test\r\ncookie: a=1; b=2\r\naccept: */*\r\n\
                    TE: trailers\r\nConnection: TE\r\n\r\n";
    assert_eq!(get.as_http1(), expected);
    let (head, buf, _) = get.read().unwrap();
    assert_eq!(head.line.of(&buf), b"GET https://a.test/x?y=1 HTTP/2.0");
    assert_eq!((head.path(&buf), head.host_name(&buf)), (&b"/x"[..], &b"a.test"[..]));

    let post = Asking { ended: false, ..asking("POST", "/", &[("content-length", "5")]) };
    assert_eq!(post.as_http1(), "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\n");
    let stream = Asking { ended: false, ..asking("POST", "/", &[("expect", "100-continue")]) };
    let expected = "POST / HTTP/1.1\r\nHost: a.test\r\nexpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(stream.as_http1(), expected);
    let options = asking("OPTIONS", "*", &[]);
    assert_eq!(options.as_http1(), "OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n");
    let by_host = Asking { uri: uri("", None, "/"), ..asking("GET", "/", &[("host", "b.test")]) };
    assert_eq!(by_host.as_http1(), "GET / HTTP/1.1\r\nHost: b.test\r\n\r\n");
}

#[test]
fn an_extended_connect_becomes_a_request_to_switch() {
    let connect = Asking { protocol: Some("websocket"), ended: false, ..asking("CONNECT", "/chat", &[]) };
    let expected = "GET /chat HTTP/1.1\r\nHost: a.test\r\nsec-websocket-key: a2V5\r\nUpgrade: websocket\r\n\
                    Connection: Upgrade\r\n\r\n";
    assert_eq!(connect.as_http1(), expected);
    let (head, buf, _) = connect.read().unwrap();
    assert_eq!((head.method, head.body), (Method::Get, Body::None));
    assert_eq!(head.line.of(&buf), b"CONNECT https://a.test/chat HTTP/2.0");
}

#[test]
fn what_two_parsers_could_read_differently_is_refused() {
    let odd = |name: &str, value: &str| asking("GET", "/", &[(name, value)]).read().map(drop);
    assert_eq!(odd("host", "b.test"), Err(Refusal::HostContradicts));
    assert_eq!(odd("host", "A.test"), Ok(()));
    assert_eq!(odd("content-length", "+1"), Err(Refusal::ContentLength));
    assert_eq!(odd("content-length", "1"), Err(Refusal::ContentLength), "it has ended");
    assert_eq!(odd("x", " padded"), Err(Refusal::FieldValue));
    assert_eq!(odd("x", "padded\t"), Err(Refusal::FieldValue));
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        assert_eq!(odd(name, "x"), Err(Refusal::ConnectionField), "{name}");
    }
    assert_eq!(odd("te", "gzip"), Err(Refusal::ConnectionField));
    let twice = asking("GET", "/", &[("content-length", "0"), ("content-length", "0")]);
    assert_eq!(twice.read().map(drop), Err(Refusal::ContentLengthRepeated));
    let hosts = Asking { uri: uri("", None, "/"), ..asking("GET", "/", &[("host", "a"), ("host", "a")]) };
    assert_eq!(hosts.read().map(drop), Err(Refusal::HostRepeated));
    let nobody = Asking { uri: uri("", None, "/"), ..asking("GET", "/", &[]) };
    assert_eq!(nobody.read().map(drop), Err(Refusal::HostMissing));
    let user = Asking { uri: uri("https", Some("user@a.test"), "/"), ..asking("GET", "/", &[]) };
    assert_eq!(user.read().map(drop), Err(Refusal::HostInvalid));
    let scheme = Asking { uri: uri("ftp", Some("a.test"), "/"), ..asking("GET", "/", &[]) };
    assert_eq!(scheme.read().map(drop), Err(Refusal::Target));
    assert_eq!(asking("CONNECT", "/", &[]).read().map(drop), Err(Refusal::ConnectRefused));
    let smuggled = Asking { protocol: Some("h2c"), ..asking("CONNECT", "/", &[]) };
    assert_eq!(smuggled.read().map(drop), Err(Refusal::ConnectRefused));
}

#[test]
fn limits_hold_in_both_protocols() {
    let path = format!("/{}", "x".repeat(256));
    assert_eq!(asking("GET", &path, &[]).read().map(drop), Err(Refusal::TargetTooLong));
    let names: Vec<_> = (0..17).map(|number| format!("x{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    assert_eq!(asking("GET", "/", &many).read().map(drop), Err(Refusal::TooManyFields));
    let long = "x".repeat(16 * 1024);
    assert_eq!(asking("GET", "/", &[("x", &long)]).read().map(drop), Err(Refusal::HeadTooLarge));
}

fn written(request: &[u8]) -> Result<Request<()>, Refusal> {
    let mut fields = Vec::new();
    let head = parse_request(request, &LIMITS, &mut fields).unwrap().unwrap();
    let rewrite = RequestRewrite { edits: &HeaderEdits::default(), forwarded_for: None, close: true };
    write_request(request, &head, &fields, &rewrite, false)
}

#[test]
fn a_request_of_http_1_becomes_one_without_a_connection() {
    let text =
        b"POST /x?y HTTP/1.1\r\nHost: a.test:81\r\nX-One: 1\r\nConnection: x-hop, TE, Upgrade\r\nUpgrade: foo\r\n\
                 TE: trailers, gzip\r\nX-Hop: 2\r\nKeep-Alive: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let request = written(text).unwrap();
    assert_eq!(request.uri(), "http://a.test:81/x?y");
    let fields: Vec<_> = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(fields, [("x-one", &b"1"[..]), ("te", b"trailers")]);
    let old = written(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!((old.uri().authority(), old.version()), (None, http::Version::HTTP_11));
    assert_eq!(written(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().uri().path(), "*");
}

#[test]
fn a_response_loses_what_belongs_to_its_connection() {
    let text = b"HTTP/1.1 200 Fine\r\nServer: x\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nContent-Length: 3\r\n\r\n";
    let mut fields = Vec::new();
    let head = parse_response(text, Method::Get, &LIMITS, &mut fields).unwrap().unwrap();
    let edits = HeaderEdits { add: vec![("X-Frame-Options".into(), "DENY".into())], ..HeaderEdits::default() };
    let rewrite = ResponseRewrite { edits: &edits, persistence: Persistence::Close, body: Body::Length(3) };
    let (response, _) = write_response(text, &head, &fields, &rewrite).unwrap();
    let fields: Vec<_> = response.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(fields, [("server", &b"x"[..]), ("x-frame-options", b"DENY"), ("content-length", b"3")]);
}

#[test]
fn an_answer_that_is_all_head_gets_no_length_that_its_server_did_not_give() {
    for (said, length) in [(&[("grpc-status", "5")][..], None), (&[("content-length", "0")], Some("0"))] {
        let map = asking("GET", "/", said).fields;
        let (mut buf, mut fields) = (Vec::new(), Vec::new());
        let asked = Asked::from(Method::Get);
        let head = read_response((200, &map, true), asked, &LIMITS, (&mut buf, &mut fields)).unwrap();
        let edits = HeaderEdits::default();
        let rewrite =
            ResponseRewrite { edits: &edits, persistence: Persistence::KeepAliveImplicit, body: Body::Length(0) };
        let (response, _) = write_response(&buf, &head, &fields, &rewrite).unwrap();
        let written = response.headers().get("content-length").map(|value| value.to_str().unwrap());
        assert_eq!(written, length, "{said:?}");
    }
}

#[test]
fn a_server_of_http_2_is_trusted_no_more_than_one_of_http_1() {
    let read = |fields: &[(&str, &str)], status, ended| {
        let map = asking("GET", "/", fields).fields;
        let (mut buf, mut list) = (Vec::new(), Vec::new());
        let asked = Asked::from(Method::Get);
        read_response((status, &map, ended), asked, &LIMITS, (&mut buf, &mut list)).map(|head| (head.body, head.status))
    };
    assert_eq!(read(&[("content-length", "3")], 200, false), Ok((Body::Length(3), 200)));
    assert_eq!(read(&[], 200, false), Ok((Body::UntilClose, 200)));
    assert_eq!(read(&[], 200, true), Ok((Body::Length(0), 200)));
    assert_eq!(read(&[], 204, true), Ok((Body::None, 204)));
    assert_eq!(read(&[("content-length", "3")], 200, true), Err(Refusal::ContentLength));
    assert_eq!(read(&[("transfer-encoding", "chunked")], 200, false), Err(Refusal::ConnectionField));
    assert_eq!(read(&[("connection", "close")], 200, false), Err(Refusal::ConnectionField));
    assert_eq!(read(&[], 101, false), Err(Refusal::SwitchedProtocols));
    assert_eq!(read(&[], 600, false), Err(Refusal::StatusLine));
}

#[test]
fn trailers_cross_and_only_what_may_trail() {
    let map = asking("GET", "/", &[("grpc-status", "0"), ("content-length", "7"), ("set-cookie", "a")]).fields;
    let lines = read_trailers(&map, &LIMITS);
    assert_eq!(lines, b"grpc-status: 0\r\n");
    assert_eq!(write_trailers(&lines).unwrap().get("grpc-status").unwrap(), "0");
    assert!(write_trailers(b"").is_none());
}

#[test]
fn a_page_of_ours_is_answered_in_frames_too() {
    let page = b"HTTP/1.0 503 Gone\nCache-Control: no-cache\nConnection: close\nContent-Length: 3\n\nabc";
    let (response, at) = write_page(page).unwrap();
    assert_eq!((response.status().as_u16(), &page[at..]), (503, &b"abc"[..]));
    let names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
    assert_eq!(names, ["cache-control", "content-length"]);
    assert!(write_page(b"nothing").is_err());
}

fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
    let size = u32::try_from(length).unwrap().to_be_bytes();
    let mut frame = vec![size[1], size[2], size[3], kind, flags, 0, 0, 0, 1];
    frame.resize(9 + length, 0);
    frame
}

#[test]
fn a_flood_is_noticed_and_work_is_not() {
    let now = Instant::now();
    let budget = Budget { burst: 100, per_second: 10 };
    let begun = || {
        let mut watch = Watch::new(budget, now);
        assert!(watch.read(PREFACE, now));
        watch
    };
    // PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA.
    for (kind, length) in [(6, 8), (4, 0), (2, 5), (8, 4), (0, 0)] {
        let (mut watch, ping) = (begun(), frame(kind, 0, length));
        assert!((0..100).all(|_| watch.read(&ping, now)), "{kind}: the burst is there for that");
        assert!(!watch.read(&ping, now), "{kind}");
        assert!(watch.read(&[], now + Duration::from_secs(1)), "{kind}: time heals");
    }
    let (mut watch, mut taken_back) = (begun(), frame(1, 5, 20));
    taken_back.extend(frame(3, 0, 4));
    assert!((0..101).any(|_| !watch.read(&taken_back, now)), "requests taken back at once");
    let (mut watch, mut request) = (begun(), frame(1, 5, 20));
    request.extend(frame(8, 0, 4));
    assert!((0..10_000).all(|_| watch.read(&request, now)), "a window opened for each answer");
    let mut watch = begun();
    let update = frame(8, 0, 4);
    assert!((0..10_000).all(|_| {
        watch.wrote(1024);
        watch.read(&update, now)
    }));
    // Byte by byte it is the same.
    let mut watch = begun();
    let pings = frame(6, 0, 8).repeat(101);
    assert!(!pings.iter().all(|byte| watch.read(&[*byte], now)));
}
