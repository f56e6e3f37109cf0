//! Clients that speak TLS badly, late, in crumbs or not to the end: each is told what is told, counted once and forgotten.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConnection, SupportedProtocolVersion};
use support::client::{get, read_message};
use support::kernel::descriptors;
use support::origin::{Origin, ok};
use support::syslog::Syslog;
use support::tls::{Pair, TlsClient};
use support::{Daemon, PATIENCE, Port, Site, reset, serving, until};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const PROTOCOL_VERSION: u8 = 70;
/// A handshake takes no longer.
const LIMIT: Duration = Duration::from_secs(1);

/// A site with a certificate for `localhost`, whose counters can be asked for.
struct Running {
    site: Site,
    metrics: Port,
    worker: u32,
    /// Descriptors of the worker that nobody is connected to.
    idle: usize,
    _daemon: Daemon,
}

impl Running {
    fn new(settings: &str) -> Self {
        let (origin, metrics) = (Origin::named("one"), Port::new());
        let site = Site::proxying(
            &[origin.address],
            &format!(
                "connection-mode = \"server-close\"\n[frontend.web.tls]\ncertificates = [\"a.pem\"]\n{settings}\n[frontend.web.timeout]\n\
                 http-request = \"{}ms\"\n[metrics]\nbind = \"{}\"\n",
                LIMIT.as_millis(),
                metrics.address
            ),
        );
        Pair::written(site.folder.path(), "a.pem", "localhost");
        let daemon = site.start();
        let worker = serving(&site.status());
        let mut running = Self { site, metrics, worker, idle: 0, _daemon: daemon };
        running.errors();
        running.idle = descriptors(worker);
        running
    }

    fn address(&self) -> SocketAddr {
        self.site.address()
    }

    /// Handshakes that have failed.
    fn errors(&self) -> usize {
        let text = get(self.metrics.address, "/metrics").text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("proxy_frontend_tls_handshake_errors_total{proxy=\"web\"} "));
        line.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
    }

    /// So many handshakes have failed, nothing of them is left, and everybody else is served by the same worker.
    fn is_well_after(&self, errors: usize) {
        until("a failed handshake is counted", || self.errors() >= errors);
        until("a connection is let go", || descriptors(self.worker) <= self.idle);
        assert_eq!(self.errors(), errors, "each is counted once");
        for version in VERSIONS {
            assert_eq!(TlsClient::new(&[version]).get(self.address(), "localhost").response.text(), "one");
        }
        assert_eq!(serving(&self.site.status()), self.worker);
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// What comes until the other side ends the connection, in order or not.
fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the connection does not end");
    }
    bytes
}

/// A handshake message in one record, as a client of this version begins.
fn record(version: [u8; 2], message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    [&[HANDSHAKE][..], &version, &length, message].concat()
}

/// The ClientHello of a client that knows nothing newer than this version.
fn old_hello(version: [u8; 2]) -> Vec<u8> {
    let suites = [0xC0, 0x13, 0xC0, 0x14, 0x00, 0x2F, 0x00, 0x35];
    let body = [&version[..], &[7; 32], &[0, 0, 8], &suites, &[1, 0]].concat();
    record([3, 1], &[&[1, 0, 0, u8::try_from(body.len()).unwrap()][..], &body].concat())
}

/// A client's session and the first bytes it wants to send.
fn hello(client: &TlsClient) -> (ClientConnection, Vec<u8>) {
    let mut session =
        ClientConnection::new(Arc::new(client.config.clone()), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut bytes = Vec::new();
    session.write_tls(&mut bytes).unwrap();
    (session, bytes)
}

#[test]
fn what_is_no_hello_ends_at_once_and_is_counted_once() {
    // A strict frontend reads the hello by another part of the library.
    for settings in ["", "strict-sni = true"] {
        let running = Running::new(settings);
        let cases: [(&str, Vec<u8>); 9] = [
            ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
            ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
            ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
            ("nothing but zeros", vec![0; 600]),
            ("SSL 2.0", vec![0x80, 0x2E, 1, 0, 2, 0, 0x15, 0, 0, 0, 16, 1, 0, 0x80, 7, 0, 0xC0]),
            ("a record longer than any", [&[HANDSHAKE, 3, 1, 0xFF, 0xFF][..], &[1; 600]].concat()),
            ("a message longer than any", record([3, 1], &[&[1, 2, 0, 0][..], &[1; 600]].concat())),
            ("the server's hello", record([3, 3], &[&[2, 0, 0, 40][..], &[3; 40]].concat())),
            ("a hello that contradicts itself", record([3, 1], &[&[1, 0, 0, 38][..], &[0xFF; 38]].concat())),
        ];
        for (number, (what, bytes)) in cases.iter().enumerate() {
            let began = Instant::now();
            let mut stream = connect(running.address());
            stream.write_all(bytes).unwrap();
            let answer = rest(&stream);
            assert!(began.elapsed() < LIMIT, "{what}: it took {:?}", began.elapsed());
            assert!(answer.is_empty() || (answer[0], answer.len()) == (ALERT, 7), "{what}: {answer:?}");
            running.is_well_after(number + 1);
        }
    }
}

#[test]
fn who_gets_no_session_is_in_the_log_with_the_reason_unless_nothing_was_said() {
    // A strict frontend reads the hello by another part of the library.
    for settings in ["", "strict-sni = true"] {
        let syslog = Syslog::new();
        let running = Running::new(&format!("{settings}\n{}[global]\nthreads = 1", syslog.section()));
        let half = hello(&TlsClient::new(&VERSIONS)).1[..40].to_vec();
        let cases: [(&[u8], _, _); 5] = [
            (b"", true, None),
            (b"GET / HTTP/1.1\r\n\r\n", false, Some("received corrupt message of type InvalidContentType")),
            (&old_hello([3, 1]), false, Some("nothing newer than TLS 1.1")),
            (&half, true, Some("the client has ended it")),
            (&half, false, Some("timed out")),
        ];
        for (number, (bytes, ends, reason)) in cases.iter().enumerate() {
            let mut stream = connect(running.address());
            stream.write_all(bytes).unwrap();
            if *ends {
                stream.shutdown(Shutdown::Write).unwrap();
            }
            until("it is counted", || running.errors() > number);
            // A line about nothing would be in front of the next one.
            let Some(reason) = reason else { continue };
            let line = syslog.line();
            let who = format!("{} [", stream.local_addr().unwrap());
            let what = format!("] web/1: SSL handshake failure ({reason})");
            assert!(line.starts_with(&who) && line.ends_with(&what), "{reason}: {line}");
        }
        assert_eq!(syslog.left(), 0);
    }
}

#[test]
fn a_version_that_is_spoken_no_more_is_refused_by_name() {
    for settings in ["", "strict-sni = true", "min-version = \"1.3\""] {
        let running = Running::new(settings);
        for (number, version) in [[3, 0], [3, 1], [3, 2]].into_iter().enumerate() {
            let mut stream = connect(running.address());
            stream.write_all(&old_hello(version)).unwrap();
            let answer = rest(&stream);
            assert!(answer[0] == ALERT && answer[5..] == [2, PROTOCOL_VERSION], "{version:?}: {answer:?}");
            until("it is counted", || running.errors() > number);
            assert_eq!(running.errors(), number + 1);
        }
    }
}

#[test]
fn a_hello_may_come_in_single_bytes_and_records_of_one_byte() {
    for settings in ["", "strict-sni = true"] {
        let running = Running::new(settings);
        for version in VERSIONS {
            let client = TlsClient::new(&[version]);
            for in_records in [false, true] {
                let (mut session, bytes) = hello(&client);
                let mut stream = connect(running.address());
                let crumbs: Vec<Vec<u8>> = match in_records {
                    false => bytes.iter().map(|byte| vec![*byte]).collect(),
                    true => bytes[5..].iter().map(|byte| record([3, 1], &[*byte])).collect(),
                };
                for crumb in crumbs {
                    stream.write_all(&crumb).unwrap();
                }
                while session.is_handshaking() {
                    session.complete_io(&mut stream).unwrap();
                }
                let mut stream = rustls::StreamOwned::new(session, stream);
                stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
                assert_eq!(read_message(&mut BufReader::new(stream), true).unwrap().text(), "one");
            }
        }
        running.is_well_after(0);
    }
}

#[test]
fn a_hello_of_more_than_one_record_is_understood() {
    for settings in ["", "strict-sni = true"] {
        let running = Running::new(settings);
        for version in VERSIONS {
            let mut client = TlsClient::new(&[version]);
            // 40 KB of protocols that nobody speaks, and one.
            client.config.alpn_protocols = (0..200).map(|number| vec![b'a' + number % 20; 200]).collect();
            client.config.alpn_protocols.push(b"http/1.1".to_vec());
            assert!(hello(&client).1.len() > 40_000);
            let answer = client.get(running.address(), "localhost");
            assert_eq!(
                (answer.response.text().as_str(), answer.session().alpn_protocol()),
                ("one", Some(&b"http/1.1"[..]))
            );
        }
        running.is_well_after(0);
    }
}

#[test]
fn a_client_that_stops_inside_the_handshake_is_let_go_in_time() {
    let running = Running::new("");
    let mut failed = 0;
    for version in VERSIONS {
        for leaving in ["silent", "gone", "reset"] {
            let (_session, bytes) = hello(&TlsClient::new(&[version]));
            let mut stream = connect(running.address());
            stream.write_all(&bytes).unwrap();
            // The server has said its part.
            let mut first = [0; 6];
            stream.read_exact(&mut first).unwrap();
            assert_eq!((first[0], first[5]), (HANDSHAKE, 2));
            let began = Instant::now();
            match leaving {
                "gone" => drop(stream),
                "reset" => reset(stream),
                _ => {
                    rest(&stream);
                    assert!(began.elapsed() > LIMIT / 2, "{:?}", began.elapsed());
                }
            }
            failed += 1;
            running.is_well_after(failed);
        }
    }
    // Many at once, none of whom ever says anything.
    let silent: Vec<_> = (0..50).map(|_| connect(running.address())).collect();
    for stream in &silent {
        rest(stream);
    }
    running.is_well_after(failed + silent.len());
}

#[test]
fn an_end_without_a_goodbye_is_no_error_between_requests_and_no_whole_body_inside_one() {
    let (tell, told) = mpsc::channel();
    let origin = Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read_message(&mut reader, false) {
            tell.send(request.complete).unwrap();
            if stream.write_all(&ok("one")).is_err() {
                return;
            }
        }
    });
    let running = Running::new("");
    let text = std::fs::read_to_string(running.site.config()).unwrap();
    let server = text.split("address = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    std::fs::write(running.site.config(), text.replace(&server, &origin.address.to_string())).unwrap();
    assert!(running.site.proxy(&["reload"]).status.success());
    for version in VERSIONS {
        let client = TlsClient::new(&[version]);
        let mut answer = client.get(running.address(), "localhost");
        assert!(told.recv_timeout(PATIENCE).unwrap());
        answer.reader.get_ref().sock.shutdown(Shutdown::Write).unwrap();
        let mut more = Vec::new();
        answer.reader.read_to_end(&mut more).unwrap();
        assert!(more.is_empty(), "{more:?}");
        let mut stream = client.shake(running.address(), "localhost").unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf,").unwrap();
        stream.flush().unwrap();
        stream.sock.shutdown(Shutdown::Write).unwrap();
        assert!(!told.recv_timeout(PATIENCE).unwrap(), "half a body is no whole one");
        let mut answer = Vec::new();
        // Whatever it is told, it is not that all is well.
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
    }
    assert_eq!(running.errors(), 0);
}

#[test]
#[ignore = "needs openssl; .ci/run runs it"]
fn openssl_may_not_renegotiate_but_may_renew_its_keys() {
    let running = Running::new("");
    for (version, command, answer) in [("-tls1_2", "R", "no renegotiation"), ("-tls1_3", "K", "KEYUPDATE")] {
        let mut client = Command::new("sh");
        client.args(["-c", &format!("exec openssl s_client {version} -connect {} 2>&1", running.address())]);
        let mut child = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut orders, mut said) =
            (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
        let mut hear = |part: &str| {
            let heard = said.find(|line| line.as_ref().is_ok_and(|line| line.contains(part)));
            assert!(heard.is_some(), "{version}: never said: {part}");
        };
        // It obeys once it is connected, and takes what begins with another letter for what is to be sent.
        writeln!(orders, "{command}").unwrap();
        hear(answer);
        if command == "K" {
            orders.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
            hear("HTTP/1.1 200 OK");
        }
        drop(orders);
        child.wait().unwrap();
    }
    running.is_well_after(0);
}
