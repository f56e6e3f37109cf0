//! Verdicts of the codec, table-driven, each also with the input split at every byte.
//! Run by `cargo test --lib http`.
//! Never touches a socket.

mod written;

use super::*;
use crate::config::{HeaderEdits, Redirect};

const LIMITS: HeadLimits = HeadLimits { size: 512, fields: 5, target: 64 };

/// Feeds growing prefixes until there is a verdict, which must be that of the whole input.
fn request(input: &[u8]) -> Result<Option<(RequestHead, Vec<Field>)>, Refusal> {
    let mut fields = Vec::new();
    let whole = parse_request(input, &LIMITS, &mut fields);
    let grown = (0..=input.len()).map(|end| parse_request(&input[..end], &LIMITS, &mut Vec::new()));
    let first = grown.into_iter().find(|verdict| !matches!(verdict, Ok(None)));
    match (&whole, first) {
        (Err(a), Some(Err(b))) => assert_eq!(a.status(), b.status(), "{}", input.escape_ascii()),
        (Ok(Some(a)), Some(Ok(Some(b)))) => assert_eq!((a.len, a.body), (b.len, b.body)),
        (Ok(None), None) => {}
        (a, b) => panic!("{a:?} against {b:?}: {}", input.escape_ascii()),
    }
    whole.map(|head| head.map(|head| (head, fields)))
}

#[test]
fn refused_requests() {
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(64));
    let long_head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(512));
    let cases: &[(u16, &str)] = &[
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n"),
        (501, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
        (501, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n"),
        (400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (400, "GET / HTTP/1.1\nHost: a\n\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
        (400, "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n"),
        (400, "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /#f HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /\r\n\r\n"),
        (400, "G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "\u{16}\u{3}\u{1}"),
        (405, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
        (414, &long_target),
        (431, &long_head),
        (431, "GET / HTTP/1.1\r\nHost: a\r\nA:\r\nB:\r\nC:\r\nD:\r\nE:\r\n\r\n"),
        (505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (505, "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    ];
    for (status, input) in cases {
        let verdict = request(input.as_bytes());
        assert_eq!(verdict.as_ref().err().map(Refusal::status), Some(*status), "{input:?}: {verdict:?}");
    }
}

fn rebuilt(input: &str, edits: &HeaderEdits, close: bool) -> String {
    let (head, fields) = request(input.as_bytes()).unwrap().unwrap();
    let mut out = Vec::new();
    let rewrite = RequestRewrite { edits, forwarded_for: Some([127, 0, 0, 1].into()), close };
    rebuild_request(&mut out, input.as_bytes(), &head, &fields, &rewrite);
    // Our own fields do not count against the client's limit.
    let limits = HeadLimits { fields: 20, ..LIMITS };
    let again = parse_request(&out, &limits, &mut Vec::new()).unwrap().unwrap();
    assert_eq!((again.body, again.len), (head.body, out.len()));
    String::from_utf8(out).unwrap()
}

#[test]
fn rebuilt_requests() {
    let edits = HeaderEdits {
        made: Vec::new(),
        del: vec!["x-del".into()],
        set: vec![("X-Set".into(), "new\r\nEvil: 1".into())],
        add: vec![("X-Add".into(), "1".into())],
    };
    let none = HeaderEdits::default();
    let xff = "X-Forwarded-For: 127.0.0.1\r\n";
    assert_eq!(
        rebuilt(
            "\r\nGET http://a:80?q HTTP/1.1\r\nHost: A:80\r\nConnection: x-hop, host\r\nX-Hop: 1\r\n\r\n",
            &none,
            true
        ),
        format!("GET /?q HTTP/1.1\r\nHost: A:80\r\n{xff}Connection: close\r\n\r\n")
    );
    assert_eq!(
        rebuilt(
            "POST / HTTP/1.1\r\nHost: a\r\nX-Del: 1\r\nx-set: 2\r\nTE: trailers\r\nContent-Length: 005\r\n\r\n",
            &edits,
            false
        ),
        format!(
            "POST / HTTP/1.1\r\nHost: a\r\nX-Set: newEvil: 1\r\nX-Add: 1\r\n{xff}TE: trailers\r\nConnection: TE\r\nContent-Length: 5\r\n\r\n"
        )
    );
    for (version, expect) in [("1.1", "Expect: 100-continue\r\n"), ("1.0", "")] {
        let input = format!("PUT / HTTP/{version}\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n");
        let want = format!("PUT / HTTP/1.1\r\nHost: a\r\n{expect}{xff}Content-Length: 1\r\n\r\n");
        assert_eq!(rebuilt(&input, &none, false), want);
    }
    assert_eq!(rebuilt("GET / HTTP/1.0\r\n\r\n", &none, false), format!("GET / HTTP/1.1\r\nHost:\r\n{xff}\r\n"));
}

#[test]
fn persistence_and_expectation() {
    for (input, keep, expect) in [
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true, false),
        ("GET / HTTP/1.0\r\n\r\n", false, false),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n", false, false),
        ("POST / HTTP/1.1\r\nHost: [::1]:80\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n", true, true),
    ] {
        let (head, _) = request(input.as_bytes()).unwrap().unwrap();
        assert_eq!((head.keep_alive, head.expect_continue), (keep, expect), "{input:?}");
    }
}

#[test]
fn responses() {
    type Verdict = Result<(Body, bool), u16>;
    let cases: &[(&str, Method, Verdict)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Method::Get, Ok((Body::Length(3), true))),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Method::Head, Ok((Body::None, true))),
        ("HTTP/1.1 200\r\nTransfer-Encoding: Chunked\r\n\r\n", Method::Get, Ok((Body::Chunked, true))),
        ("HTTP/1.0 200 OK\r\n\r\n", Method::Get, Ok((Body::UntilClose, false))),
        ("HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n", Method::Get, Ok((Body::None, false))),
        ("HTTP/1.1 304 N\r\nContent-Length: 3\r\n\r\n", Method::Get, Ok((Body::None, true))),
        ("HTTP/1.1 100 C\r\n\r\n", Method::Post, Ok((Body::None, true))),
        ("HTTP/1.1 101 S\r\n\r\n", Method::Get, Err(502)),
        ("HTTP/1.1 600 X\r\n\r\n", Method::Get, Err(400)),
        ("HTTP/1.1 20 X\r\n\r\n", Method::Get, Err(400)),
        ("ICY 200 OK\r\n\r\n", Method::Get, Err(400)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", Method::Head, Err(400)),
        ("HTTP/1.1 200 O\rK\r\n\r\n", Method::Get, Err(400)),
    ];
    for (input, method, verdict) in cases {
        let parsed = parse_response(input.as_bytes(), *method, &LIMITS, &mut Vec::new());
        let got = parsed.map(|head| head.map(|h| (h.body, h.keep_alive)).unwrap()).map_err(|r| r.status());
        assert_eq!(got, *verdict, "{input:?}");
    }
}

fn dechunk(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, Vec<u8>, usize), Refusal> {
    let (mut decoder, mut body, mut done, mut used) = (Chunked::new(), Vec::new(), false, 0);
    for piece in pieces {
        let mut rest = *piece;
        while !done && !rest.is_empty() {
            let step = decoder.decode(rest)?;
            body.extend_from_slice(&rest[step.data.clone()]);
            (rest, done, used) = (&rest[step.consumed..], step.done, used + step.consumed);
        }
    }
    Ok((body, done, decoder.trailers().to_vec(), used))
}

#[test]
fn chunked_bodies() {
    let good = b"5;a=\"b\"\r\nhello\r\n0006\r\n world\r\n0\r\nX-T:  1\r\nHost: evil\r\n\r\nGET";
    let want = (b"hello world".to_vec(), true, b"X-T: 1\r\n".to_vec(), good.len() - 3);
    for at in 0..=good.len() {
        assert_eq!(dechunk(&[&good[..at], &good[at..]]), Ok(want.clone()), "split at {at}");
    }
    for bad in [
        "\r\n",
        "g\r\n",
        " 5\r\n",
        "5 \r\n",
        "0x5\r\n",
        "5\n",
        "5\r\nhelloX",
        "5\r\nhello\n",
        "00000000000000005\r\n",
        "5;\r\n",
        "5;a\nb\r\n",
        "0\r\nX: 1\n\r\n",
        "0\r\n X: 1\r\n",
        "0\r\nX : 1\r\n",
        "-1\r\n",
    ] {
        assert!(dechunk(&[bad.as_bytes()]).is_err(), "{bad:?}");
    }
    assert!(dechunk(&[format!("1;{}\r\n", "a".repeat(257)).as_bytes()]).is_err());
    assert!(dechunk(&[format!("0\r\nX: {}\r\n", "a".repeat(9000)).as_bytes()]).is_err());
}

#[test]
fn redirects_and_pages() {
    let input = b"GET /p?q HTTP/1.1\r\nHost: a:8080\r\n\r\n";
    let (head, _) = request(input).unwrap().unwrap();
    let rule = |scheme: Option<&str>, prefix: Option<&str>| Redirect {
        scheme: scheme.map(Into::into),
        prefix: prefix.map(Into::into),
        ..Redirect::default()
    };
    for (rule, want) in [
        (rule(Some("https"), None), "https://a/p?q"),
        (rule(Some("http"), None), "http://a:8080/p?q"),
        (rule(None, Some("/x")), "/x/p?q"),
    ] {
        let mut out = Vec::new();
        redirect_location(&rule, false, input, &head, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }
    let mut page = Vec::new();
    write_error_response(&mut page, 503, None, false);
    let head = parse_response(&page, Method::Get, &LIMITS, &mut Vec::new()).unwrap().unwrap();
    assert_eq!(head.body, Body::Length((page.len() - head.len) as u64));
}
