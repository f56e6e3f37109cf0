//! Access lines of TCP mode beside HAProxy's own.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;

use support::faulty::{faulty_stream, until_end};
use support::origin::Full;
use support::side_by_side::{Difference, Play, Product, Visit};
use support::{PATIENCE, Port, reset};

const FRONTENDS: &[&str] = &["raw", "idle", "patient", "dead", "deaf", "half-dead", "crowd"];

fn connect(product: &Product, frontend: &str, word: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(product.at(frontend)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(word).unwrap();
    stream
}

/// A stream that has been through the server and back.
fn echoed(product: &Product, frontend: &str) -> TcpStream {
    let mut stream = connect(product, frontend, b"echo");
    stream.read_exact(&mut [0; 4]).unwrap();
    stream
}

/// Ends a stream from the client's side, and waits for the server's end.
fn end(stream: TcpStream) -> Option<TcpStream> {
    stream.shutdown(Shutdown::Write).unwrap();
    until_end(stream)
}

const SCENES: &[(&str, Visit)] = &[
    ("a stream", |at, _| end(echoed(at, "raw"))),
    ("a stream the server ends", |at, _| until_end(connect(at, "raw", b"quit"))),
    ("a stream that ends before its server has said anything", |at, _| end(connect(at, "raw", b"none"))),
    ("a server that is done before its client", |at, _| {
        let mut stream = connect(at, "raw", b"half");
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        stream.write_all(b"more").unwrap();
        end(stream)
    }),
    ("a stream in which both are silent", |at, _| until_end(connect(at, "raw", b"none"))),
    ("a stream that falls silent", |at, _| until_end(echoed(at, "raw"))),
    ("a client that is silent for too long", |at, _| until_end(connect(at, "idle", b"none"))),
    ("a server that is silent for too long", |at, _| until_end(connect(at, "patient", b"none"))),
    ("a server that does not end after its client", |at, _| end(connect(at, "patient", b"hold"))),
    ("a client that does not end after its server", |at, _| {
        let mut stream = connect(at, "idle", b"half");
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        Some(stream)
    }),
    ("a stream the client resets", |at, _| {
        reset(echoed(at, "raw"));
        None
    }),
    ("a stream the server resets", |at, _| until_end(connect(at, "raw", b"kill"))),
    ("a stream the server resets before a word", |at, _| until_end(connect(at, "raw", b"gone"))),
    ("a stream nobody reads", |at, _| {
        let mut stream = connect(at, "raw", b"flood");
        stream.read_exact(&mut [0; 4]).unwrap();
        Some(stream)
    }),
    ("a server that is not there", |at, _| until_end(connect(at, "dead", b"none"))),
    ("a server that does not accept", |at, _| until_end(connect(at, "deaf", b"none"))),
    ("a client that leaves before its server is there", |at, _| end(connect(at, "deaf", b"none"))),
    ("a client that is reset before its server is there", |at, _| {
        reset(connect(at, "deaf", b"none"));
        None
    }),
    ("another server in the place of one that is not there", |at, _| end(echoed(at, "half-dead"))),
    ("one of two", |at, _| {
        let first = echoed(at, "crowd");
        end(echoed(at, "crowd"));
        Some(first)
    }),
    // Its client has left by now.
    ("the other of them", |_, _| None),
];

#[rustfmt::skip]
const DIFFERENCES: &[Difference] = &[
    (
        "a client that is reset before its server is there",
        "deaf deaf/s1 n/-1/n 0 CC n/n/0/0/0 0/0",
        &["deaf deaf/s1 n/-1/n 0 sC n/n/0/0/1 0/0", "deaf deaf/s1 n/-1/n 0 CD n/n/0/0/0 0/0"],
        "CC is what its manual calls it; HAProxy either does not notice, or takes it for the end of an exchange",
    ),
    (
        "a stream the server resets",
        "raw pool/s1 n/n/n 4 SD n/n/0/0/0 0/0",
        &["raw pool/s1 n/n/n 4 -- n/n/0/0/0 0/0", "raw pool/s1 n/n/n 4 SD n/n/0/0/0 0/0"],
        "a reset is no end, whatever came before it",
    ),
];

fn ours([raw, dead, deaf]: [SocketAddr; 3]) -> String {
    format!(
        r#"[global]
threads = 1
[defaults]
mode = "tcp"
retries = 1
timeout = {{ connect = "200ms", server = "800ms", client = "400ms" }}
[frontend.raw]
bind = "<raw>"
backend = "pool"
[frontend.idle]
bind = "<idle>"
backend = "slow"
[frontend.patient]
bind = "<patient>"
timeout.client = "5s"
backend = "slow"
[frontend.dead]
bind = "<dead>"
backend = "dead"
[frontend.deaf]
bind = "<deaf>"
backend = "deaf"
[frontend.half-dead]
bind = "<half-dead>"
backend = "half-dead"
[frontend.crowd]
bind = "<crowd>"
timeout.client = "5s"
backend = "crowd"
[backend.pool]
timeout.tunnel = "400ms"
server = [{{ name = "s1", address = "{raw}" }}]
[backend.slow]
server = [{{ name = "s1", address = "{raw}" }}]
[backend.dead]
server = [{{ name = "s1", address = "{dead}" }}]
[backend.deaf]
server = [{{ name = "s1", address = "{deaf}" }}]
[backend.half-dead]
server = [{{ name = "s1", address = "{dead}" }}, {{ name = "s2", address = "{raw}" }}]
[backend.crowd]
timeout.server = "5s"
server = [{{ name = "s1", address = "{raw}" }}]
"#
    )
}

fn theirs([raw, dead, deaf]: [SocketAddr; 3]) -> String {
    format!(
        "global\n  log <log> local0\n  nbthread 1\n\
         defaults\n  log global\n  mode tcp\n  option tcplog\n  option dontlognull\n  retries 1\n  option redispatch\n  \
         timeout connect 200ms\n  timeout server 800ms\n  timeout client 400ms\n\
         frontend raw\n  bind <raw>\n  default_backend pool\n\
         frontend idle\n  bind <idle>\n  default_backend slow\n\
         frontend patient\n  bind <patient>\n  timeout client 5s\n  default_backend slow\n\
         frontend dead\n  bind <dead>\n  default_backend dead\n\
         frontend deaf\n  bind <deaf>\n  default_backend deaf\n\
         frontend half-dead\n  bind <half-dead>\n  default_backend half-dead\n\
         frontend crowd\n  bind <crowd>\n  timeout client 5s\n  default_backend crowd\n\
         backend pool\n  timeout tunnel 400ms\n  server s1 {raw}\nbackend slow\n  server s1 {raw}\n\
         backend dead\n  server s1 {dead}\nbackend deaf\n  server s1 {deaf}\n\
         backend half-dead\n  server s1 {dead}\n  server s2 {raw}\n\
         backend crowd\n  timeout server 5s\n  server s1 {raw}\n"
    )
}

#[test]
#[ignore = "needs haproxy; .ci/run runs it"]
fn every_line_of_a_stream_is_the_one_that_haproxy_writes() {
    let (raw, dead, deaf) = (faulty_stream(), Port::new(), Full::new());
    let servers = [raw.address, dead.address, deaf.address];
    let (go, _) = mpsc::channel();
    let play = Play { frontends: FRONTENDS, scenes: SCENES, differences: DIFFERENCES };
    play.must_leave_the_same_lines([ours(servers), theirs(servers)], &go);
}
