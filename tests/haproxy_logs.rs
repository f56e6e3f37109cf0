//! Access lines of HTTP/1 beside HAProxy's own, of exchanges that end well and that fail in every way.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;

use support::client::Client;
use support::faulty::until_end;
use support::reset;
use support::side_by_side::{
    CLIENT_STOPPED, Difference, NO_STATUS, Play, Product, REQUEST_WAS_THERE, Visit, WebServers,
};

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn request(product: &Product, text: &str) -> Client {
    request_at(product.at("web"), text)
}

fn request_at(address: SocketAddr, text: &str) -> Client {
    let mut client = Client::connect(address);
    client.send(text.replace("HTTP/1.1\r\n", "HTTP/1.1\r\nHost: test\r\n"));
    client
}

/// Sends a request and takes what comes until the end, whatever it is.
fn visit(product: &Product, text: &str) -> Option<TcpStream> {
    until_end(request(product, text).reader)
}

fn get(product: &Product, path: &str) -> Option<TcpStream> {
    visit(product, &format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n"))
}

const SCENES: &[(&str, Visit)] = &[
    ("an answer", |at, _| get(at, "/ok")),
    ("an upload", |at, _| visit(at, "POST /ok HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")),
    ("a HEAD", |at, _| visit(at, "HEAD /ok HTTP/1.1\r\nConnection: close\r\n\r\n")),
    ("an answer to HTTP/1.0", |at, _| visit(at, "GET /ok HTTP/1.0\r\n\r\n")),
    ("an answer on a connection that ends later", |at, _| {
        let mut client = request(at, "GET /ok HTTP/1.1\r\n\r\n");
        assert_eq!(client.response().unwrap().status(), 200);
        None
    }),
    ("early hints", |at, _| get(at, "/hints")),
    ("an unasked 100", |at, _| get(at, "/continue")),
    ("an answer until the end", |at, _| get(at, "/until-close")),
    ("an answer with more behind it", |at, _| get(at, "/more")),
    ("a redirect", |at, _| until_end(request_at(at.at("moved"), "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").reader)),
    ("no backend", |at, _| until_end(request_at(at.at("lost"), "GET / HTTP/1.1\r\n\r\n").reader)),
    ("a switch of protocols", |at, _| {
        let mut client = request(at, &format!("GET /upgrade HTTP/1.1\r\n{UPGRADE}\r\n"));
        assert_eq!(client.head().unwrap().status(), 101);
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        until_end(client.reader)
    }),
    ("a refusal before the upload's end", |at, _| {
        let mut client = request(at, "POST /early HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf");
        assert_eq!(client.response().unwrap().status(), 413);
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        until_end(client.reader)
    }),
    ("no HTTP", |at, _| visit(at, "\u{16}\u{3}\u{1}\0\u{5}hello\r\n\r\n")),
    ("two lengths", |at, _| visit(at, "GET /ok HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx")),
    ("a head that is not finished", |at, _| visit(at, "GET /ok HTTP/1.1\r\nHost: t")),
    ("a head that is cut off", |at, _| {
        let client = request(at, "GET /ok HTTP/1.1\r\nHost: t");
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        until_end(client.reader)
    }),
    ("a head that is reset", |at, _| {
        reset(request(at, "GET /ok HTTP/1.1\r\nHost: t").reader.into_inner());
        None
    }),
    ("an upload that stops", |at, _| visit(at, "POST /upload HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf")),
    ("an upload that is cut off", |at, _| {
        let mut client = request(at, "POST /welcome HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf");
        assert_eq!(client.head().unwrap().status(), 100);
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        until_end(client.reader)
    }),
    ("an upload that is reset", |at, _| {
        let mut client = request(at, "POST /welcome HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf");
        assert_eq!(client.head().unwrap().status(), 100);
        reset(client.reader.into_inner());
        None
    }),
    ("an upload in broken chunks", |at, _| {
        visit(at, "POST /upload HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n");
        None
    }),
    ("a client that leaves before its answer", |at, go| {
        drop(request(at, "GET /late HTTP/1.1\r\n\r\n"));
        go.send(()).unwrap();
        None
    }),
    ("no answer", |at, _| get(at, "/silent")),
    ("an end instead of an answer", |at, _| get(at, "/nothing")),
    ("an answer that is no HTTP", |at, _| get(at, "/ssh")),
    ("half a head", |at, _| get(at, "/half-a-head")),
    ("an answer with two lengths", |at, _| get(at, "/two-lengths")),
    ("a body that ends early", |at, _| get(at, "/short")),
    ("chunks that end early", |at, _| get(at, "/short-chunks")),
    ("chunks that are broken from the start", |at, _| get(at, "/nonsense")),
    ("chunks that break", |at, go| {
        let mut client = request(at, "GET /late-nonsense HTTP/1.1\r\n\r\n");
        client.head().unwrap();
        go.send(()).unwrap();
        until_end(client.reader)
    }),
    ("a body that is reset", |at, _| get(at, "/reset")),
    ("a body that stops", |at, _| get(at, "/stall")),
    ("a client that stops reading", |at, _| {
        let mut client = request(at, "GET /endless HTTP/1.1\r\n\r\n");
        client.head().unwrap();
        Some(client.reader.into_inner())
    }),
    ("a client that leaves inside its answer", |at, _| {
        let mut client = request(at, "GET /endless HTTP/1.1\r\n\r\n");
        client.head().unwrap();
        reset(client.reader.into_inner());
        None
    }),
    ("a server that is not there", |at, _| get(at, "/dead/")),
    ("a server that does not accept", |at, _| get(at, "/deaf/")),
];

const NO_BYTES: &str = "HAProxy does not count what its multiplexer answers";

#[rustfmt::skip]
const DIFFERENCES: &[Difference] = &[
    (
        "no backend",
        "lost lost/<NOSRV> n/-1/-1/-1/n 503 n - - SC-- n/n/0/0/0 0/0 \"GET / HTTP/1.1\"",
        &["lost lost/<NOSRV> -1/-1/-1/-1/n 503 n - - SC-- n/n/0/0/0 0/0 \"GET / HTTP/1.1\""],
        REQUEST_WAS_THERE,
    ),
    (
        "a refusal before the upload's end",
        "web pool/s1 n/n/n/n/n 413 n - - ---- n/n/0/0/0 0/0 \"POST /early HTTP/1.1\"",
        &["web pool/s1 n/n/n/n/n 413 n - - CD-- n/n/0/0/0 0/0 \"POST /early HTTP/1.1\""],
        "the answer has arrived, the client owes nothing, and its line is written when it has",
    ),
    (
        "no HTTP",
        "web web/<NOSRV> -1/-1/-1/-1/n 400 n - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\"",
        &["web web/<NOSRV> -1/-1/-1/-1/n 400 0 - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        NO_BYTES,
    ),
    (
        "two lengths",
        "web web/<NOSRV> -1/-1/-1/-1/n 400 n - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\"",
        &["web web/<NOSRV> -1/-1/-1/-1/n 400 0 - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        NO_BYTES,
    ),
    (
        "a head that is not finished",
        "web web/<NOSRV> -1/-1/-1/-1/n 408 n - - cR-- n/n/0/0/0 0/0 \"<BADREQ>\"",
        &["web web/<NOSRV> -1/-1/-1/-1/n 408 0 - - cR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        NO_BYTES,
    ),
    (
        "a head that is cut off",
        "web web/<NOSRV> -1/-1/-1/-1/n 400 n - - CR-- n/n/0/0/0 0/0 \"<BADREQ>\"",
        &["web web/<NOSRV> -1/-1/-1/-1/n 400 0 - - CR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        NO_BYTES,
    ),
    (
        "an upload that stops",
        "web pool/s1 n/n/n/-1/n 408 n - - cH-- n/n/0/0/0 0/0 \"POST /upload HTTP/1.1\"",
        &["web pool/s1 n/n/n/-1/n 504 n - - sH-- n/n/0/0/0 0/0 \"POST /upload HTTP/1.1\""],
        CLIENT_STOPPED,
    ),
    (
        "an upload that is cut off",
        "web pool/s1 n/n/n/-1/n -1 n - - CD-- n/n/0/0/0 0/0 \"POST /welcome HTTP/1.1\"",
        &["web pool/s1 n/n/n/-1/n 0 n - - CD-- n/n/0/0/0 0/0 \"POST /welcome HTTP/1.1\""],
        NO_STATUS,
    ),
    (
        "an upload that is reset",
        "web pool/s1 n/n/n/-1/n -1 n - - CD-- n/n/0/0/0 0/0 \"POST /welcome HTTP/1.1\"",
        &["web pool/s1 n/n/n/-1/n 0 n - - CD-- n/n/0/0/0 0/0 \"POST /welcome HTTP/1.1\""],
        NO_STATUS,
    ),
    (
        "an upload in broken chunks",
        "web pool/s1 n/n/n/-1/n 400 n - - PR-- n/n/0/0/0 0/0 \"POST /upload HTTP/1.1\"",
        &["web web/<NOSRV> -1/-1/-1/-1/n 400 0 - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        "HAProxy looks at the first chunk together with the head, and forgets both",
    ),
];

#[test]
#[ignore = "needs haproxy; .ci/run runs it"]
fn every_line_is_the_one_that_haproxy_writes() {
    let (go, went) = mpsc::channel();
    let servers = WebServers::new(went);
    let play = Play { frontends: WebServers::FRONTENDS, scenes: SCENES, differences: DIFFERENCES };
    play.must_leave_the_same_lines(servers.configurations("h1"), &go);
}
