//! Clients that are slow on purpose: none holds a place for longer than its time-out, in whatever phase.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use support::client::Client;
use support::origin::Origin;
use support::{PATIENCE, Site, certificate};

/// Sends a byte now and then until the other side ends the connection; returns how long that took.
fn drip(mut stream: TcpStream, bytes: &[u8]) -> Duration {
    let began = Instant::now();
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    for byte in bytes.iter().cycle() {
        // The end may show in the write first.
        let _ = stream.write_all(&[*byte]);
        match stream.read(&mut [0; 64]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => return began.elapsed(),
        }
        assert!(began.elapsed() < PATIENCE, "every byte buys time");
    }
    unreachable!("it goes round and round")
}

#[test]
fn a_handshake_that_never_completes_is_ended_however_it_drips() {
    let site = Site::new("");
    certificate(site.folder.path(), "a.pem", &["localhost"]);
    let tls = "[frontend.web.tls]\ncertificates = [\"a.pem\"]\n[frontend.web.timeout]\nhttp-request = \"300ms\"\n";
    site.configure(&Site::text(&[Origin::echo().address], tls));
    let _daemon = site.start();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/hello/openssl-1.3.name");
    let hello = std::fs::read(corpus).unwrap();
    let took = drip(TcpStream::connect(site.address()).unwrap(), &hello[..hello.len() - 1]);
    assert!(took >= Duration::from_millis(200), "{took:?}");
}

#[test]
fn who_waits_for_a_place_gets_it_when_the_slow_ones_time_is_up() {
    let timeouts = "[frontend.web.timeout]\nhttp-request = \"500ms\"\n[global]\nmaxconn = 3\n";
    let site = Site::proxying(&[Origin::named("one").address], timeouts);
    let _daemon = site.start();
    let mut slow: Vec<_> = (0..3).map(|_| Client::connect(site.address())).collect();
    for client in &mut slow {
        client.send("GET / HTTP/1.1\r\nHost: te");
    }
    let mut waiting = Client::connect(site.address());
    waiting.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(waiting.silent_for(Duration::from_millis(100)), "served beyond the limit");
    for client in &mut slow {
        assert_eq!(client.response().unwrap().status(), 408);
    }
    // They do not even end their side.
    assert_eq!(waiting.response().unwrap().text(), "one");
}
