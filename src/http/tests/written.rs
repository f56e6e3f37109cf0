//! What the codec writes, byte for byte: responses, redirects, error pages, chunks.
//! Run by `cargo test --lib http`.
//! Never touches a socket.

use super::super::*;
use super::{LIMITS, dechunk};
use crate::config::{HeaderEdits, Redirect};

/// Parses a response to `method` and writes it anew.
fn rewritten(input: &str, method: Method, rewrite: &ResponseRewrite<'_>) -> String {
    let mut fields = Vec::new();
    let head = parse_response(input.as_bytes(), method, &LIMITS, &mut fields).unwrap().unwrap();
    let mut out = Vec::new();
    rebuild_response(&mut out, input.as_bytes(), &head, &fields, rewrite);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_response_leaves_with_the_framing_and_persistence_decided_here() {
    use Persistence::{Close, KeepAliveExplicit, KeepAliveImplicit};
    let cases: &[(&str, Method, Persistence, Body, &str)] = &[
        (
            "HTTP/1.0 200 Fine\r\nServer: x\r\nContent-Length: 005\r\nConnection: keep-alive, x-h\r\nX-H: 1\r\n\r\n",
            Method::Get,
            KeepAliveImplicit,
            Body::Length(5),
            "HTTP/1.1 200 Fine\r\nServer: x\r\nContent-Length: 5\r\n\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nTrailer: X-T\r\n\r\n",
            Method::Get,
            KeepAliveExplicit,
            Body::Chunked,
            "HTTP/1.1 200 OK\r\nTrailer: X-T\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nTrailer: X-T\r\nTransfer-Encoding: chunked\r\n\r\n",
            Method::Get,
            Close,
            Body::UntilClose,
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        ),
        (
            "HTTP/1.1 200\r\nContent-Length: 7\r\n\r\n",
            Method::Head,
            KeepAliveImplicit,
            Body::None,
            "HTTP/1.1 200 \r\nContent-Length: 7\r\n\r\n",
        ),
        (
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nTransfer: x\r\n\r\n",
            Method::Get,
            Close,
            Body::None,
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nTransfer: x\r\nConnection: close\r\n\r\n",
        ),
        (
            "HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n",
            Method::Get,
            Close,
            Body::None,
            "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        ),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 7\r\nConnection: close\r\n\r\n",
            Method::Get,
            Close,
            Body::None,
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        ),
    ];
    for (input, method, persistence, body, want) in cases {
        let edits = HeaderEdits::default();
        let rewrite = ResponseRewrite { edits: &edits, persistence: *persistence, body: *body };
        assert_eq!(rewritten(input, *method, &rewrite), *want, "{input:?}");
    }
}

#[test]
fn response_edits_delete_replace_and_add_but_never_frame() {
    let edits = HeaderEdits {
        made: Vec::new(),
        del: vec!["server".into()],
        set: vec![("X-Frame-Options".into(), "DENY\r\nEvil: 1".into()), ("Content-Length".into(), "9".into())],
        add: vec![("Vary".into(), "a".into()), ("Connection".into(), "x".into())],
    };
    let rewrite = ResponseRewrite { edits: &edits, persistence: Persistence::KeepAliveImplicit, body: Body::Length(0) };
    let input = "HTTP/1.1 200 OK\r\nSERVER: x\r\nx-frame-options: a\r\nX-Frame-Options: b\r\nVary: b\r\n\
                 Content-Length: 0\r\n\r\n";
    let want = "HTTP/1.1 200 OK\r\nVary: b\r\nX-Frame-Options: DENYEvil: 1\r\nVary: a\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(rewritten(input, Method::Get, &rewrite), want);
}

#[test]
fn a_redirect_is_a_whole_response_with_the_frontends_edits() {
    let edits = HeaderEdits { add: vec![("X-A".into(), "1".into())], ..HeaderEdits::default() };
    let mut out = Vec::new();
    write_redirect(&mut out, 308, b"https://a/x", Persistence::Close, &edits);
    let want = "HTTP/1.1 308 Permanent Redirect\r\nContent-Length: 0\r\nLocation: https://a/x\r\nX-A: 1\r\n\
                Connection: close\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), want);
    for code in [301, 302, 303, 307, 308] {
        let mut out = Vec::new();
        write_redirect(&mut out, code, b"/", Persistence::KeepAliveImplicit, &HeaderEdits::default());
        let head = parse_response(&out, Method::Get, &LIMITS, &mut Vec::new()).unwrap().unwrap();
        assert_eq!((head.status, head.body, head.len), (code, Body::Length(0), out.len()));
        assert!(!head.reason.of(&out).ends_with(b"Error"), "{code} has no wording of its own");
    }
}

#[test]
fn a_location_keeps_what_the_rule_does_not_name() {
    let rule = |scheme: &str, host: &str, prefix: &str, location: &str| {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Redirect {
            scheme: some(scheme),
            host: some(host),
            prefix: some(prefix),
            location: some(location),
            ..Redirect::default()
        }
    };
    let at_a = "GET /p?q HTTP/1.1\r\nHost: a:8080\r\n\r\n";
    let at_v6 = "GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n";
    let absolute = "GET http://a HTTP/1.1\r\nHost: a\r\n\r\n";
    let asterisk = "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n";
    let nameless = "GET /p HTTP/1.0\r\n\r\n";
    let cases = [
        (rule("", "b", "", ""), false, at_a, Ok("http://b/p?q")),
        (rule("", "b", "", ""), true, at_a, Ok("https://b/p?q")),
        (rule("https", "b:8443", "", ""), false, at_a, Ok("https://b:8443/p?q")),
        (rule("https", "", "", ""), true, at_a, Ok("https://a:8080/p?q")),
        (rule("http", "", "", ""), true, at_a, Ok("http://a/p?q")),
        (rule("https", "", "", ""), false, at_v6, Ok("https://[::1]/")),
        (rule("https", "", "", ""), false, absolute, Ok("https://a/")),
        (rule("https", "", "", ""), false, asterisk, Ok("https://a/")),
        (rule("", "", "https://c/d", ""), false, at_a, Ok("https://c/d/p?q")),
        (rule("", "", "", "https://c/d"), false, at_a, Ok("https://c/d")),
        (rule("", "", "", "/d"), false, nameless, Ok("/d")),
        (rule("https", "", "", ""), false, nameless, Err(Refusal::HostMissing)),
        (rule("", "", "", "/a\r\nEvil: 1"), false, at_a, Err(Refusal::Target)),
        (rule("", "", "/a b", ""), false, at_a, Err(Refusal::Target)),
    ];
    for (rule, tls, input, want) in cases {
        let head = parse_request(input.as_bytes(), &LIMITS, &mut Vec::new()).unwrap().unwrap();
        let mut out = b"kept ".to_vec();
        let result = redirect_location(&rule, tls, input.as_bytes(), &head, &mut out);
        let location = String::from_utf8(out).unwrap();
        let location = location.strip_prefix("kept ").unwrap();
        assert_eq!(result.map(|()| location), want, "{rule:?} {input:?}");
        assert!(want.is_ok() || location.is_empty(), "a refused location leaves bytes behind");
    }
}

#[test]
fn error_pages_announce_exactly_what_they_send() {
    for status in [400, 401, 403, 404, 405, 408, 413, 414, 418, 429, 431, 500, 501, 502, 503, 504, 505, 599] {
        let (mut page, mut head_only) = (Vec::new(), Vec::new());
        write_error_response(&mut page, status, None, false);
        write_error_response(&mut head_only, status, None, true);
        let head = parse_response(&page, Method::Get, &LIMITS, &mut Vec::new()).unwrap().unwrap();
        assert_eq!(head.body, Body::Length((page.len() - head.len) as u64), "{status}");
        assert_eq!((head.status, head.keep_alive), (status, false));
        assert_eq!(head_only, page[..head.len], "{status}");
        let body = String::from_utf8(page[head.len..].to_vec()).unwrap();
        let reason = String::from_utf8(head.reason.of(&page).to_vec()).unwrap();
        assert!(body.contains(&format!("<h1>{status} {reason}</h1>")), "{body}");
    }
}

#[test]
fn every_refusal_has_a_page_with_its_own_wording() {
    for refusal in [
        Refusal::BareLineEnd,
        Refusal::ConnectRefused,
        Refusal::TargetTooLong,
        Refusal::HeadTooLarge,
        Refusal::CodingUnknown,
        Refusal::Version,
        Refusal::SwitchedProtocols,
    ] {
        let mut page = Vec::new();
        write_error_response(&mut page, refusal.status(), None, false);
        let text = String::from_utf8(page).unwrap();
        assert!(!text.contains("Client Error") && !text.contains("Server Error"), "{refusal:?}: {text}");
    }
}

#[test]
fn a_configured_page_is_sent_as_it_is() {
    let page = b"HTTP/1.0 503 Later\r\nX: 1\r\n\r\nbody\r\n\r\nmore";
    for (page, head_only, want) in [
        (&page[..], false, &page[..]),
        (&page[..], true, b"HTTP/1.0 503 Later\r\nX: 1\r\n\r\n"),
        (b"no head at all", true, b"no head at all"),
    ] {
        let mut out = b"before ".to_vec();
        write_error_response(&mut out, 503, Some(page), head_only);
        assert_eq!(out, [b"before ", want].concat());
    }
}

#[test]
fn written_chunks_are_read_back() {
    let mut out = Vec::new();
    let data = vec![b'x'; 0x1f];
    write_chunk_header(&mut out, data.len());
    assert_eq!(out, b"1f\r\n");
    out.extend_from_slice(&data);
    out.extend_from_slice(b"\r\n");
    write_last_chunk(&mut out, b"X-T: 1\r\n");
    assert!(out.ends_with(b"\r\n0\r\nX-T: 1\r\n\r\n"));
    assert_eq!(dechunk(&[&out]), Ok((data, true, b"X-T: 1\r\n".to_vec(), out.len())));
    let mut empty = Vec::new();
    write_last_chunk(&mut empty, b"");
    assert_eq!(empty, b"0\r\n\r\n");
}

#[test]
fn extensions_are_limited_by_the_data_they_come_with() {
    let chunk = |size: usize| format!("{size:x};{}\r\n{}\r\n", "a".repeat(256), "x".repeat(size));
    let many = |size: usize, count: usize| chunk(size).repeat(count) + "0\r\n\r\n";
    // 254 bytes of each extension are paid for by nothing: 64 fit into 16 KiB, 65 do not.
    assert!(dechunk(&[many(1, 64).as_bytes()]).is_ok());
    assert_eq!(dechunk(&[many(1, 65).as_bytes()]), Err(Refusal::ChunkExtension));
    assert!(dechunk(&[many(128, 1000).as_bytes()]).is_ok(), "half as much data pays for an extension");
}
