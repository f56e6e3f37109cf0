//! Holds the verdict on every file of `tests/corpus`: raw bytes, named after what they are and must come to.
//!
//! `.ok` is accepted, `.more` wants more bytes, `.bad` is refused, a number is the status a refusal is answered with.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send};
use proxy::config::HeaderEdits;
use proxy::handoff::Channel;
use proxy::handoff::messages::{FromWorker, ToWorker};
use proxy::http::{
    Body, Chunked, Field, HeadLimits, Method, Persistence, Refusal, RequestHead, RequestRewrite, ResponseHead,
    ResponseRewrite, parse_request, parse_response, rebuild_request, rebuild_response, write_chunk_header,
    write_last_chunk,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What the daemon allows unless it is told otherwise.
const LIMITS: HeadLimits = HeadLimits { size: 16 * 1024, fields: 100, target: 8 * 1024 };

struct Case {
    name: String,
    bytes: Vec<u8>,
    verdict: String,
}

/// The cases of a folder; each of the verdicts must occur, and no other.
fn cases(folder: &str, verdicts: &[&str]) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(folder);
    let mut cases: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let verdict = path.extension().unwrap().to_str().unwrap().to_owned();
            Case { name: path.display().to_string(), bytes: fs::read(&path).unwrap(), verdict }
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    for verdict in verdicts {
        assert!(cases.iter().any(|case| case.verdict == *verdict), "{folder} holds no .{verdict}");
    }
    for case in &cases {
        assert!(verdicts.contains(&case.verdict.as_str()), "{}: .{} is no verdict here", case.name, case.verdict);
    }
    cases
}

/// Parses growing prefixes: the first verdict that is final must be that of the whole, and stay.
fn grown<T: std::fmt::Debug>(
    case: &Case,
    parse: impl Fn(&[u8]) -> Result<Option<T>, Refusal>,
    status: fn(Refusal) -> String,
) -> Option<T> {
    let word = |verdict: &Result<Option<T>, Refusal>| match verdict {
        Ok(Some(head)) => format!("ok {head:?}"),
        Ok(None) => String::from("more"),
        Err(refusal) => status(*refusal),
    };
    let whole = parse(&case.bytes);
    let last = word(&whole);
    assert_eq!(last.split(' ').next().unwrap(), case.verdict, "{}: {whole:?}", case.name);
    for end in 0..case.bytes.len() {
        let verdict = word(&parse(&case.bytes[..end]));
        if verdict != "more" {
            assert_eq!(verdict, last, "{} after {end} bytes", case.name);
            if !verdict.starts_with("ok") {
                break;
            }
        }
    }
    whole.ok().flatten()
}

/// Names of the fields of a head, lower case, found without the parsers under test.
fn names(head: &[u8]) -> Vec<String> {
    let text: String = head.iter().map(|&byte| char::from(byte)).collect();
    let (lines, rest) = text.split_once("\r\n\r\n").unwrap();
    assert_eq!(rest, "", "bytes behind the head");
    lines.split("\r\n").skip(1).map(|line| line.split_once(':').unwrap().0.to_ascii_lowercase()).collect()
}

fn count(names: &[String], wanted: &[&str]) -> usize {
    names.iter().filter(|name| wanted.contains(&name.as_str())).count()
}

const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

#[test]
fn requests_get_their_verdict_whole_and_byte_by_byte() {
    let verdicts = ["ok", "more", "400", "405", "414", "431", "501", "505"];
    for case in cases("request", &verdicts) {
        let parse = |bytes: &[u8]| parse_request(bytes, &LIMITS, &mut Vec::new());
        if let Some(head) = grown(&case, parse, |refusal| refusal.status().to_string()) {
            ends_where_the_empty_line_is(&case, head.len);
            rebuilt_request_is_unambiguous(&case);
        }
    }
}

/// Finds the end of the head without the parser under test.
fn ends_where_the_empty_line_is(case: &Case, len: usize) {
    let start = if case.bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let end = case.bytes[start..].windows(4).position(|four| four == b"\r\n\r\n").unwrap() + start + 4;
    assert_eq!(len, end, "{}", case.name);
}

fn rebuild(bytes: &[u8], close: bool) -> (Vec<u8>, RequestHead) {
    let mut fields = Vec::new();
    let limits = HeadLimits { size: 64 * 1024, ..LIMITS };
    let head = parse_request(bytes, &limits, &mut fields).unwrap().unwrap();
    let mut out = Vec::new();
    let rewrite = RequestRewrite { edits: &HeaderEdits::default(), forwarded_for: None, close };
    rebuild_request(&mut out, bytes, &head, &fields, &rewrite);
    (out, head)
}

fn rebuilt_request_is_unambiguous(case: &Case) {
    for close in [false, true] {
        let (first, head) = rebuild(&case.bytes, close);
        let (second, again) = rebuild(&first, close);
        let name = &case.name;
        assert_eq!((again.len, again.body), (first.len(), head.body), "{name}");
        assert_eq!(again.keep_alive, !close, "{name}");
        assert_eq!(rebuild(&second, close).0, second, "{name}: rebuilding is not stable");
        let names = names(&first);
        assert_eq!(count(&names, &FRAMING), usize::from(head.body != Body::None), "{name}: {names:?}");
        assert_eq!(count(&names, &["host"]), 1, "{name}: {names:?}");
        assert_eq!(count(&names, &["keep-alive", "proxy-connection", "upgrade", "http2-settings"]), 0, "{name}");
        let line: Vec<_> = first.split(|&byte| byte == b'\r').next().unwrap().split(|&byte| byte == b' ').collect();
        assert!(matches!(line[..], [_, [b'/', ..] | b"*", b"HTTP/1.1"]), "{name}: {line:?}");
    }
}

#[test]
fn responses_get_their_verdict_whole_and_byte_by_byte() {
    for case in cases("response", &["ok", "more", "502"]) {
        for method in [Method::Get, Method::Head] {
            let parse = |bytes: &[u8]| parse_response(bytes, method, &LIMITS, &mut Vec::new());
            let Some(head) = grown(&case, parse, |_refusal| String::from("502")) else { continue };
            ends_where_the_empty_line_is(&case, head.len);
            rebuilt_response_is_unambiguous(&case, method, head.body);
            if head.body == Body::UntilClose {
                rebuilt_response_is_unambiguous(&case, method, Body::Chunked);
            }
        }
    }
}

fn parsed_response(bytes: &[u8], method: Method) -> (ResponseHead, Vec<Field>) {
    let mut fields = Vec::new();
    let head = parse_response(bytes, method, &LIMITS, &mut fields).unwrap().unwrap();
    (head, fields)
}

fn rebuilt_response_is_unambiguous(case: &Case, method: Method, body: Body) {
    let name = &case.name;
    let (head, fields) = parsed_response(&case.bytes, method);
    for persistence in [Persistence::KeepAliveImplicit, Persistence::KeepAliveExplicit, Persistence::Close] {
        let mut out = Vec::new();
        let rewrite = ResponseRewrite { edits: &HeaderEdits::default(), persistence, body };
        rebuild_response(&mut out, &case.bytes, &head, &fields, &rewrite);
        let (again, _) = parsed_response(&out, method);
        assert_eq!((again.len, again.status, again.body), (out.len(), head.status, body), "{name}");
        let names = names(&out);
        let framings = count(&names, &FRAMING);
        match body {
            Body::Length(_) | Body::Chunked => assert_eq!(framings, 1, "{name}: {names:?}"),
            Body::UntilClose => assert_eq!(framings, 0, "{name}: {names:?}"),
            // Only a response to HEAD and a 304 may say how long the body would have been.
            Body::None => assert!(framings <= usize::from(head.status >= 200 && head.status != 204), "{name}"),
        }
        assert_eq!(count(&names, &["keep-alive", "proxy-connection", "upgrade", "te", "x-hop"]), 0, "{name}");
        let told = head.status >= 200 && persistence != Persistence::KeepAliveImplicit;
        assert_eq!(count(&names, &["connection"]), usize::from(told), "{name}: {names:?}");
    }
}

/// What became of a chunked body.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unchunked {
    verdict: String,
    body: Vec<u8>,
    trailers: Vec<u8>,
    consumed: usize,
}

fn unchunk<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Unchunked {
    let mut decoder = Chunked::new();
    let mut got = Unchunked { verdict: String::from("more"), body: Vec::new(), trailers: Vec::new(), consumed: 0 };
    for piece in pieces {
        let mut rest = piece;
        while !rest.is_empty() && got.verdict == "more" {
            match decoder.decode(rest) {
                Ok(step) => {
                    assert!(step.consumed <= rest.len() && step.data.end <= step.consumed, "claims too much: {step:?}");
                    assert!(step.consumed > 0 || step.done, "no progress");
                    got.body.extend_from_slice(&rest[step.data]);
                    got.consumed += step.consumed;
                    rest = &rest[step.consumed..];
                    if step.done {
                        got.verdict = String::from("ok");
                    }
                }
                Err(refusal) => {
                    let verdict = refusal.status().to_string();
                    // How much of a refused body was taken before depends on how it arrived.
                    return Unchunked { verdict, body: Vec::new(), trailers: Vec::new(), consumed: 0 };
                }
            }
        }
    }
    got.trailers = decoder.trailers().to_vec();
    got
}

#[test]
fn chunked_bodies_get_their_verdict_whole_and_byte_by_byte() {
    for case in cases("chunked", &["ok", "more", "400", "431"]) {
        let (name, bytes) = (&case.name, case.bytes.as_slice());
        let whole = unchunk([bytes]);
        assert_eq!(whole.verdict, case.verdict, "{name}");
        assert_eq!(unchunk(bytes.chunks(1)), whole, "{name} byte by byte");
        // Every place at which the last bytes arrive late; quadratic, hence not for the long ones.
        for at in 0..bytes.len().min(1024) {
            let (before, after) = bytes.split_at(at);
            assert_eq!(unchunk([before, after]), whole, "{name} split at {at}");
        }
        if whole.verdict == "ok" {
            let rest = &bytes[whole.consumed..];
            assert!(rest.is_empty() || rest.starts_with(b"GET "), "{name} leaves {}", rest.escape_ascii());
            rechunked_body_is_the_same(name, &whole);
        }
    }
}

fn rechunked_body_is_the_same(name: &str, whole: &Unchunked) {
    let forbidden =
        ["content-length", "transfer-encoding", "host", "authorization", "set-cookie", "connection", "content-type"];
    let passed = [b"head\r\n", &whole.trailers[..], b"\r\n"].concat();
    assert_eq!(count(&names(&passed), &forbidden), 0, "{name}");
    let mut out = Vec::new();
    for piece in whole.body.chunks(3) {
        write_chunk_header(&mut out, piece.len());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    write_last_chunk(&mut out, &whole.trailers);
    assert_eq!(unchunk([&out[..]]), Unchunked { consumed: out.len(), ..whole.clone() }, "{name}");
}

#[test]
fn messages_between_master_and_worker_get_their_verdict() {
    for case in cases("handoff", &["ok", "bad"]) {
        let name = Path::new(&case.name).file_name().unwrap().to_str().unwrap();
        if name.starts_with("worker-") {
            message_gets_its_verdict::<FromWorker>(&case);
        } else {
            assert!(name.starts_with("master-"), "{name} does not say who sends it");
            message_gets_its_verdict::<ToWorker>(&case);
        }
    }
}

fn message_gets_its_verdict<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(case: &Case) {
    let (channel, peer) = Channel::pair().unwrap();
    let received = receive::<T>(&channel, &peer, &case.bytes);
    assert_eq!(received.is_some(), case.verdict == "ok", "{}: {received:?}", case.name);
    let Some(message) = received else { return };
    let again = receive::<T>(&channel, &peer, &serde_json::to_vec(&message).unwrap());
    assert_eq!(again, Some(message), "{}", case.name);
    for end in 1..case.bytes.trim_ascii_end().len() {
        let cut = receive::<T>(&channel, &peer, &case.bytes[..end]);
        assert_eq!(cut, None, "{} cut after {end} bytes", case.name);
    }
}

fn receive<T: DeserializeOwned>(channel: &Channel, peer: &OwnedFd, bytes: &[u8]) -> Option<T> {
    send(peer.as_raw_fd(), bytes, MsgFlags::empty()).unwrap();
    let received = channel.recv_blocking::<T>(Duration::from_secs(5));
    received.ok().map(|message| message.unwrap().0)
}
