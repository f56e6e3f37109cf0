//! TLS towards servers: who is believed, names, client certificates, pools, resumption, tunnels, truncation.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use rcgen::KeyPair;
use rustls::{HandshakeKind, ServerConfig};
use support::authority::{Authority, origin, recording, settings};
use support::client::{Client, End, get, read_message};
use support::origin::{Origin, download};
use support::syslog::Syslog;
use support::tls::Pair;
use support::{PATIENCE, Site, code, text};

const HANDSHAKE_FAILED: &str = "Server pool/s1: TLS handshake failed: ";

/// A site whose servers are addressed as `localhost` and believed if `ca.pem` vouches for them.
fn site(servers: &[SocketAddr], tls: &str, extra: &str) -> (Site, Authority) {
    let site = Site::new("");
    let authority = Authority::written(site.folder.path(), "ca.pem");
    configure(&site, servers, tls, extra);
    (site, authority)
}

fn configure(site: &Site, servers: &[SocketAddr], tls: &str, extra: &str) {
    let text = Site::text(servers, &format!("retries = 0\ntls = {tls}\n{extra}"));
    site.configure(&text.replace("127.0.0.1", "localhost"));
}

/// A server with this certificate, and what it learns of its connections.
fn server(authority: &Authority, name: &str) -> (Origin, std::sync::mpsc::Receiver<support::authority::Learnt>) {
    recording(settings(&authority.issue(name, &[name]), None))
}

#[test]
fn a_server_is_believed_if_the_authority_vouches_for_its_name() {
    let (site, authority) = site(&[], "{}", "");
    let (origin, learnt) = server(&authority, "localhost");
    configure(&site, &[origin.address], "{ ca-file = \"ca.pem\" }", "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for _ in 0..3 {
        assert_eq!(client.get("/").text(), "one");
        assert_eq!(client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").text(), "one");
    }
    let first = learnt.recv_timeout(PATIENCE).unwrap();
    assert_eq!((first.sni.as_deref(), first.alpn.as_deref()), (Some("localhost"), Some(&b"http/1.1"[..])));
}

#[test]
fn a_connection_to_a_server_is_used_again() {
    let (site, authority) = site(&[], "{}", "");
    let (origin, _learnt) = server(&authority, "localhost");
    configure(&site, &[origin.address], "{ ca-file = \"ca.pem\" }", "[global]\nthreads = 1\n");
    let _daemon = site.start();
    for number in 0..6 {
        // Neither kind of request finds fault with an idle connection that has nothing to say.
        let request = match number % 2 {
            0 => "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            _ => "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
        };
        assert_eq!(Client::connect(site.address()).ask(request).text(), "one");
    }
    assert_eq!(origin.accepted(), 1);
    // What cannot be handed over is opened anew.
    let output = site.proxy(&["reload"]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    assert_eq!(get(site.address(), "/").text(), "one");
    assert_eq!(origin.accepted(), 2);
}

#[test]
fn sessions_with_a_server_are_resumed() {
    let (site, authority) = site(&[], "{}", "");
    let (origin, learnt) = server(&authority, "localhost");
    let once = "connection-mode = \"server-close\"\n[global]\nthreads = 1\n";
    configure(&site, &[origin.address], "{ ca-file = \"ca.pem\" }", once);
    let _daemon = site.start();
    let kinds: Vec<_> = (0..4)
        .map(|_| {
            assert_eq!(get(site.address(), "/").text(), "one");
            learnt.recv_timeout(PATIENCE).unwrap().kind
        })
        .collect();
    assert!(matches!(kinds[0], HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest), "{kinds:?}");
    assert!(kinds[1..].iter().all(|kind| *kind == HandshakeKind::Resumed), "{kinds:?}");
}

#[test]
fn a_server_that_is_somebody_else_is_refused_and_the_reason_is_told_once() {
    let (site, authority) = site(&[], "{}", "");
    let stranger = Authority::new("Stranger");
    let [right, wrong, foreign] = [(&authority, "localhost"), (&authority, "other.example"), (&stranger, "localhost")]
        .map(|(a, n)| server(a, n).0);
    let syslog = Syslog::new();
    let log = syslog.section().replace("only = [\"access\"]", "only = [\"access\", \"event\"]");
    for (origin, tls, reason) in [
        (&wrong, "{ ca-file = \"ca.pem\" }", "not valid for name"),
        (&foreign, "{ ca-file = \"ca.pem\" }", "UnknownIssuer"),
        (&right, "{ ca-file = \"ca.pem\", sni = \"another.example\" }", "not valid for name"),
        (&right, "{}", "UnknownIssuer"),
    ] {
        configure(&site, &[origin.address], tls, &log);
        let mut daemon = site.start();
        for _ in 0..3 {
            assert_eq!(get(site.address(), "/").status(), 503, "{tls}");
        }
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        daemon.wait();
        let lines: Vec<_> =
            std::iter::from_fn(|| Some(syslog.line()).filter(|line| line != "proxy has ended")).collect();
        let told: Vec<_> = lines.iter().filter(|line| line.contains(HANDSHAKE_FAILED)).collect();
        assert!(told.len() == 1 && told[0].contains(reason), "{tls}: {lines:#?}");
        let accesses: Vec<_> = lines.iter().filter(|line| line.contains("pool/s1 ")).collect();
        assert!(accesses.len() == 3 && accesses.iter().all(|line| line.contains(" SC")), "{tls}: {lines:#?}");
    }
    configure(&site, &[wrong.address], "{ ca-file = \"ca.pem\", sni = \"other.example\" }", "");
    let _daemon = site.start();
    assert_eq!(get(site.address(), "/").text(), "one", "the name that is asked for is the one to prove");
}

#[test]
fn a_certificate_that_a_server_made_itself_is_believed_if_it_is_named() {
    let (site, _authority) = site(&[], "{}", "");
    // Without any alternative name, as older scripts make them.
    for names in [&["localhost"][..], &[]] {
        let pair = Pair::new("localhost", names, &KeyPair::generate().unwrap());
        fs::write(site.path("server.pem"), &pair.certificate).unwrap();
        let (origin, _learnt) = recording(settings(&pair.text(), None));
        configure(&site, &[origin.address], "{ ca-file = \"server.pem\" }", "");
        let mut daemon = site.start();
        assert_eq!(get(site.address(), "/").text(), "one");
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        daemon.wait();
    }
}

#[test]
fn without_verification_anybody_is_believed_and_the_operator_is_warned() {
    let (site, _authority) = site(&[], "{}", "");
    let (origin, _learnt) = server(&Authority::new("Stranger"), "other.example");
    configure(&site, &[origin.address], "{ verify = false }", "");
    let check = site.proxy(&["check"]);
    assert!(code(&check) == 0 && text(&check.stderr).contains("whoever answers is taken for the server"));
    let _daemon = site.start();
    assert_eq!(get(site.address(), "/").text(), "one");
}

#[test]
fn a_server_that_asks_is_shown_the_client_certificate() {
    let (site, authority) = site(&[], "{}", "");
    fs::write(site.path("edge.pem"), authority.issue("edge", &["edge.example"])).unwrap();
    let (origin, learnt) = recording(settings(&authority.issue("localhost", &["localhost"]), Some(&authority)));
    configure(&site, &[origin.address], "{ ca-file = \"ca.pem\", client-cert = \"edge.pem\" }", "");
    let _daemon = site.start();
    assert_eq!(get(site.address(), "/").text(), "one");
    assert!(learnt.recv_timeout(PATIENCE).unwrap().certificate.is_some());
    configure(&site, &[origin.address], "{ ca-file = \"ca.pem\" }", "");
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    // In TLS 1.3 a server refuses a client that believes to be done: the first answer never comes.
    assert_eq!(get(site.address(), "/").status(), 502);
}

#[test]
fn settings_that_cannot_be_meant_are_errors() {
    let (site, authority) = site(&[], "{}", "");
    fs::write(site.path("key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    fs::write(site.path("edge.pem"), authority.issue("edge", &["edge.example"])).unwrap();
    let address = ["127.0.0.1:9".parse().unwrap()];
    for (tls, problem) in [
        ("{ ca-file = \"none.pem\" }", "cannot read"),
        ("{ ca-file = \"key.pem\" }", "holds no certificate of an authority"),
        ("{ ca-file = \"ca.pem\", crl-file = \"ca.pem\" }", "holds no revocation list"),
        ("{ ca-file = \"ca.pem\", client-cert = \"ca.pem\" }", "holds no private key"),
        ("{ ca-file = \"ca.pem\", sni = \"192.0.2.1\" }", "is no name of a host"),
        ("{ ca-file = \"ca.pem\", verify = false }", "means nothing without `verify`"),
        ("{ ca-file = \"ca.pem\", verfy = true }", "unknown key `verfy`"),
        ("{ ca-file = \"ca.pem\", min-version = \"1.0\" }", "cannot be `1.0`"),
        ("true", "true or false where a table belongs"),
    ] {
        configure(&site, &address, tls, "");
        let check = site.proxy(&["check"]);
        let said = text(&check.stderr);
        assert!(code(&check) == 1 && said.contains(problem) && said.contains("proxy.toml:"), "{tls}: {said}");
    }
}

/// Sends `head` and a body without length, and ends the session as told.
fn ending(settings: ServerConfig, orderly: bool) -> Origin {
    origin(settings, move |stream| {
        let mut reader = BufReader::new(stream);
        read_message(&mut reader, false).unwrap();
        let stream = reader.get_mut();
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf of it").unwrap();
        if orderly {
            stream.conn.send_close_notify();
        }
        stream.flush().unwrap();
        stream.sock.shutdown(Shutdown::Write).unwrap();
        // The proxy's own end.
        let _ = stream.sock.read(&mut [0; 64]);
    })
}

#[test]
fn a_body_that_a_server_ends_without_saying_goodbye_is_truncated_for_the_client_too() {
    let (site, authority) = site(&[], "{}", "");
    let issued = authority.issue("localhost", &["localhost"]);
    for orderly in [true, false] {
        let origin = ending(settings(&issued, None), orderly);
        configure(&site, &[origin.address], "{ ca-file = \"ca.pem\" }", "");
        let mut daemon = site.start();
        for request in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"] {
            let mut client = Client::connect(site.address());
            client.send(request);
            let whole = if request.contains("1.1") { &b"\r\n0\r\n\r\n"[..] } else { b"half of it" };
            if orderly {
                client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
                let (bytes, end) = client.end();
                assert!(bytes.ends_with(whole) && matches!(end, End::Closed), "{}", text(&bytes));
            } else {
                assert!(matches!(client.end(), (_, End::Reset)), "{request}");
            }
        }
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        daemon.wait();
    }
}

#[test]
fn bytes_in_tcp_mode_are_encrypted_on_their_way_and_ends_are_passed_on() {
    let (site, authority) = site(&[], "{}", "");
    let issued = settings(&authority.issue("localhost", &["localhost"]), None);
    let origin = origin(issued, |mut stream| {
        let mut bytes = Vec::new();
        if stream.read_to_end(&mut bytes).is_ok() {
            stream.write_all(&bytes).unwrap();
            stream.conn.send_close_notify();
            stream.flush().unwrap();
        }
    });
    configure(&site, &[origin.address], "{ ca-file = \"ca.pem\" }", "[defaults]\nmode = \"tcp\"\n");
    let _daemon = site.start();
    let mut stream = TcpStream::connect(site.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = download(1 << 20);
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn({
        let sent = sent.clone();
        move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        }
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    writing.join().unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

#[test]
fn what_follows_an_upgrade_is_encrypted_too() {
    let (site, authority) = site(&[], "{}", "");
    let issued = settings(&authority.issue("localhost", &["localhost"]), None);
    let origin = origin(issued, |stream| {
        let mut reader = BufReader::new(stream);
        read_message(&mut reader, false).unwrap();
        let switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello";
        reader.get_mut().write_all(switched).unwrap();
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).unwrap();
        reader.get_mut().write_all(&bytes).unwrap();
    });
    configure(&site, &[origin.address], "{ ca-file = \"ca.pem\" }", "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.head().unwrap().status(), 101);
    let mut bytes = [0; 9];
    client.reader.read_exact(&mut bytes[..5]).unwrap();
    client.send("ping");
    client.reader.read_exact(&mut bytes[5..]).unwrap();
    assert_eq!(&bytes, b"helloping");
    // A reload does not take what cannot be handed over.
    assert_eq!(code(&site.proxy(&["reload"])), 0);
}
