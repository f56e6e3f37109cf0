//! Access lines of HTTP/2 beside HAProxy's own.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::net::TcpStream;
use std::sync::mpsc;

use support::h2::{DATA, END_HEADERS, END_STREAM, Frame, HEADERS, RST_STREAM, Raw, get_block, literal};
use support::reset;
use support::side_by_side::{
    CLIENT_STOPPED, Difference, NO_STATUS, Play, Product, REQUEST_WAS_THERE, Visit, WebServers,
};

const CANCEL: [u8; 4] = 8_u32.to_be_bytes();

/// Begins a request, the first of a connection.
fn begin(product: &Product, frontend: &str, [method, path]: [&str; 2], fields: &[(&str, &str)]) -> Raw {
    let mut client = Raw::connect(product.at(frontend));
    let usual = [(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)];
    let block: Vec<u8> = usual.iter().chain(fields).flat_map(|(name, value)| literal(name, value)).collect();
    let end = if method == "POST" { 0 } else { END_STREAM };
    client.send(HEADERS, end | END_HEADERS, 1, &block);
    client
}

/// Reads until the request's end, whichever that is; the connection stays.
fn ended(mut client: Raw) -> Option<TcpStream> {
    let last = |frame: &Frame| frame.kind == RST_STREAM || frame.kind <= HEADERS && frame.flags & END_STREAM != 0;
    std::iter::from_fn(|| client.read()).find(last);
    Some(client.0)
}

fn get(product: &Product, path: &str) -> Option<TcpStream> {
    ended(begin(product, "web", ["GET", path], &[]))
}

/// Begins a request that its server has, and does not answer.
fn waiting(product: &Product) -> Raw {
    let mut client = begin(product, "web", ["GET", "/welcome"], &[]);
    assert_eq!(client.expect(HEADERS).flags & END_STREAM, 0, "a 100 is no answer");
    client
}

/// Begins an upload to a server that waits for all of it.
fn upload(product: &Product) -> Raw {
    let mut client = begin(product, "web", ["POST", "/welcome"], &[("content-length", "10")]);
    client.send(DATA, 0, 1, b"half");
    assert_eq!(client.expect(HEADERS).stream, 1, "the server has it and says 100");
    client
}

const SCENES: &[(&str, Visit)] = &[
    ("an answer", |at, _| get(at, "/ok")),
    ("a HEAD", |at, _| ended(begin(at, "web", ["HEAD", "/ok"], &[]))),
    ("an upload", |at, _| {
        let mut client = begin(at, "web", ["POST", "/ok"], &[("content-length", "2")]);
        client.send(DATA, END_STREAM, 1, b"hi");
        ended(client)
    }),
    ("an answer with trailers", |at, _| get(at, "/trailers")),
    ("an answer until the end", |at, _| get(at, "/until-close")),
    ("an answer to a question", |at, _| get(at, "/ok?q=1")),
    ("early hints", |at, _| get(at, "/hints")),
    ("what is not there", |at, _| get(at, "/missing")),
    ("a redirect", |at, _| ended(begin(at, "moved", ["GET", "/"], &[]))),
    ("no backend", |at, _| ended(begin(at, "lost", ["GET", "/"], &[]))),
    ("no answer", |at, _| get(at, "/silent")),
    ("an end instead of an answer", |at, _| get(at, "/nothing")),
    ("an answer that is no HTTP", |at, _| get(at, "/ssh")),
    ("half a head", |at, _| get(at, "/half-a-head")),
    ("an answer with two lengths", |at, _| get(at, "/two-lengths")),
    ("a body that ends early", |at, _| get(at, "/short")),
    ("chunks that end early", |at, _| get(at, "/short-chunks")),
    ("chunks that are broken from the start", |at, _| get(at, "/nonsense")),
    ("a body that is reset", |at, _| get(at, "/reset")),
    ("a body that stops", |at, _| get(at, "/stall")),
    ("a server that is not there", |at, _| get(at, "/dead/")),
    ("a server that does not accept", |at, _| get(at, "/deaf/")),
    ("a request taken back before its answer", |at, _| {
        let mut client = waiting(at);
        client.send(RST_STREAM, 0, 1, &CANCEL);
        Some(client.0)
    }),
    ("a client that leaves before its answer", |at, _| {
        reset(waiting(at).0);
        None
    }),
    ("a request taken back inside its answer", |at, _| {
        let mut client = begin(at, "web", ["GET", "/endless"], &[]);
        client.expect(DATA);
        client.send(RST_STREAM, 0, 1, &CANCEL);
        Some(client.0)
    }),
    ("a client that leaves inside its answer", |at, _| {
        let mut client = begin(at, "web", ["GET", "/endless"], &[]);
        client.expect(DATA);
        reset(client.0);
        None
    }),
    ("a client that takes no more", |at, _| {
        let mut client = begin(at, "web", ["GET", "/endless"], &[]);
        client.expect(DATA);
        Some(client.0)
    }),
    ("a head that is too big", |at, _| {
        let mut client = Raw::connect(at.at("web"));
        // Into the table once, then out of it again and again.
        let mut field = literal("x", &"y".repeat(3000));
        field[0] = 0x40;
        let block = [get_block(&[]), field, vec![0x80 | 62; 6]].concat();
        client.send(HEADERS, END_STREAM | END_HEADERS, 1, &block);
        ended(client)
    }),
    ("a head that is malformed", |at, _| ended(begin(at, "web", ["GET", "/ok"], &[("Upper", "case")]))),
    ("two lengths", |at, _| {
        ended(begin(at, "web", ["GET", "/ok"], &[("content-length", "0"), ("content-length", "2")]))
    }),
    ("more than the length says", |at, _| {
        let mut client = upload(at);
        client.send(DATA, END_STREAM, 1, b" is too much");
        ended(client)
    }),
    ("an upload that stops", |at, _| ended(upload(at))),
    ("an upload taken back", |at, _| {
        let mut client = upload(at);
        client.send(RST_STREAM, 0, 1, &CANCEL);
        Some(client.0)
    }),
    ("an upload that is reset", |at, _| {
        reset(upload(at).0);
        None
    }),
];

const LEFT_TO_THE_CLIENT: &str = "HAProxy refuses the stream, so that the client asks again, and does not say so";
const LIBRARY: &str = "the library refuses it by itself, and tells nobody";

#[rustfmt::skip]
const DIFFERENCES: &[Difference] = &[
    (
        "no backend",
        "lost lost/<NOSRV> n/-1/-1/-1/n 503 n - - SC-- n/n/0/0/0 0/0 \"GET http://test/ HTTP/2.0\"",
        &["lost lost/<NOSRV> -1/-1/-1/-1/n 503 n - - SC-- n/n/0/0/0 0/0 \"GET http://test/ HTTP/2.0\""],
        REQUEST_WAS_THERE,
    ),
    (
        "an end instead of an answer",
        "web pool/s1 n/n/n/-1/n 502 n - - SH-- n/n/0/0/0 0/0 \"GET http://test/nothing HTTP/2.0\"",
        &[""],
        LEFT_TO_THE_CLIENT,
    ),
    (
        "half a head",
        "web pool/s1 n/n/n/-1/n 502 n - - SH-- n/n/0/0/0 0/0 \"GET http://test/half-a-head HTTP/2.0\"",
        &[""],
        LEFT_TO_THE_CLIENT,
    ),
    (
        "a server that does not accept",
        "web deaf/s1 n/n/-1/-1/n 503 n - - sC-- n/n/0/0/1 0/0 \"GET http://test/deaf/ HTTP/2.0\"",
        &["web deaf/s1 n/n/-1/-1/n 503 0 - - sC-- n/n/0/0/1 0/0 \"GET http://test/deaf/ HTTP/2.0\""],
        LEFT_TO_THE_CLIENT,
    ),
    (
        "a request taken back before its answer",
        "web pool/s1 n/n/n/-1/n -1 n - - CD-- n/n/0/0/0 0/0 \"GET http://test/welcome HTTP/2.0\"",
        &["web pool/s1 n/n/n/-1/n 0 n - - CD-- n/n/0/0/0 0/0 \"GET http://test/welcome HTTP/2.0\""],
        NO_STATUS,
    ),
    (
        "a client that leaves before its answer",
        "web pool/s1 n/n/n/-1/n -1 n - - CD-- n/n/0/0/0 0/0 \"GET http://test/welcome HTTP/2.0\"",
        &["web pool/s1 n/n/n/-1/n 0 n - - CD-- n/n/0/0/0 0/0 \"GET http://test/welcome HTTP/2.0\""],
        NO_STATUS,
    ),
    (
        "a head that is too big",
        "",
        &["web web/<NOSRV> -1/-1/-1/-1/n 0 0 - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        LIBRARY,
    ),
    (
        "a head that is malformed",
        "web web/<NOSRV> -1/-1/-1/-1/n -1 0 - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\"",
        &["web web/<NOSRV> -1/-1/-1/-1/n 0 0 - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        NO_STATUS,
    ),
    (
        "two lengths",
        "",
        &["web web/<NOSRV> -1/-1/-1/-1/n 0 0 - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        LIBRARY,
    ),
    (
        "an upload that stops",
        "web pool/s1 n/n/n/-1/n 408 n - - cH-- n/n/0/0/0 0/0 \"POST http://test/welcome HTTP/2.0\"",
        &["web pool/s1 n/n/n/-1/n 504 n - - sH-- n/n/0/0/0 0/0 \"POST http://test/welcome HTTP/2.0\""],
        CLIENT_STOPPED,
    ),
    (
        "more than the length says",
        "web pool/s1 n/n/n/-1/n -1 n - - CD-- n/n/0/0/0 0/0 \"POST http://test/welcome HTTP/2.0\"",
        &["web pool/s1 n/n/n/-1/n 0 n - - CD-- n/n/0/0/0 0/0 \"POST http://test/welcome HTTP/2.0\""],
        NO_STATUS,
    ),
    (
        "an upload taken back",
        "web pool/s1 n/n/n/-1/n -1 n - - CD-- n/n/0/0/0 0/0 \"POST http://test/welcome HTTP/2.0\"",
        &["web pool/s1 n/n/n/-1/n 0 n - - CD-- n/n/0/0/0 0/0 \"POST http://test/welcome HTTP/2.0\""],
        NO_STATUS,
    ),
    (
        "an upload that is reset",
        "web pool/s1 n/n/n/-1/n -1 n - - CD-- n/n/0/0/0 0/0 \"POST http://test/welcome HTTP/2.0\"",
        &["web pool/s1 n/n/n/-1/n 0 n - - CD-- n/n/0/0/0 0/0 \"POST http://test/welcome HTTP/2.0\""],
        NO_STATUS,
    ),
];

#[test]
#[ignore = "needs haproxy; .ci/run runs it"]
fn every_line_of_a_request_is_the_one_that_haproxy_writes() {
    let (go, went) = mpsc::channel();
    let servers = WebServers::new(went);
    let play = Play { frontends: WebServers::FRONTENDS, scenes: SCENES, differences: DIFFERENCES };
    play.must_leave_the_same_lines(servers.configurations("h2"), &go);
}
