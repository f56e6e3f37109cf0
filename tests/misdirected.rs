//! Requests for hosts that the certificate of their connection is not for (RFC 9110 section 15.5.20).
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{BufReader, Write as _};
use std::sync::Arc;

use http::Request;
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use support::client::read_message;
use support::h2::{self as http2, H2Client};
use support::origin::Origin;
use support::tls::{Pair, TlsClient};
use support::{Site, code, text};

use rcgen::KeyPair;

/// Two certificates, the first one for two names and an address; and what a request for a host gets on a connection for
/// a name.
const FIRST: &[&str] = &["a.example", "*.a.example", "127.0.0.1"];
const CASES: [(Option<&str>, &str, u16); 14] = [
    (Some("a.example"), "a.example", 200),
    (Some("a.example"), "A.Example:443", 200),
    (Some("a.example"), "www.a.example", 200),
    (Some("a.example"), "127.0.0.1", 200),
    (Some("www.a.example"), "other.a.example.", 200),
    (Some("a.example"), "b.example", 421),
    (Some("a.example"), "x.www.a.example", 421),
    (Some("a.example"), "unknown.example", 421),
    (Some("b.example"), "b.example", 200),
    (Some("b.example"), "a.example", 421),
    // Who asks for nobody we know is shown the first one.
    (Some("unknown.example"), "a.example", 200),
    (Some("unknown.example"), "unknown.example", 421),
    (None, "127.0.0.1:8443", 200),
    (None, "b.example", 421),
];

fn site(setting: &str) -> Site {
    let tls = format!("[frontend.web.tls]\ncertificates = [\"a.pem\", \"b.pem\"]\n{setting}\n");
    let site = Site::proxying(&[Origin::named("one").address], &tls);
    let first = Pair::new("a.example", FIRST, &KeyPair::generate().unwrap());
    std::fs::write(site.path("a.pem"), first.text()).unwrap();
    Pair::written(site.folder.path(), "b.pem", "b.example");
    site
}

#[test]
fn a_request_for_a_host_of_another_certificate_is_sent_away_in_http_1() {
    let site = site("host-must-match-sni = true");
    let _daemon = site.start();
    for (name, host, status) in CASES {
        let mut stream = TlsClient::new(&[&TLS13]).shake(site.address(), name.unwrap_or("127.0.0.1")).unwrap();
        write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
        let answer = read_message(&mut BufReader::new(stream), true).unwrap();
        assert_eq!(answer.status(), status, "{name:?}: {host}");
    }
    // Who names no host is for none in particular.
    let mut stream = TlsClient::new(&[&TLS13]).shake(site.address(), "a.example").unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(read_message(&mut BufReader::new(stream), true).unwrap().status(), 200);
}

#[test]
fn a_request_for_a_host_of_another_certificate_is_sent_away_in_http_2_and_the_others_are_not() {
    let site = site("host-must-match-sni = true");
    let _daemon = site.start();
    http2::run(async {
        for (name, host, status) in CASES {
            let mut config = TlsClient::new(&[&TLS13]).config;
            config.alpn_protocols = vec![b"h2".to_vec()];
            let stream = tokio::net::TcpStream::connect(site.address()).await.unwrap();
            let server = ServerName::try_from(name.unwrap_or("127.0.0.1")).unwrap();
            let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(server, stream).await.unwrap();
            let (send, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let client = H2Client { send, address: site.address() };
            let right =
                CASES.iter().find(|(other, _, status)| *other == name && *status == 200).map(|(_, host, _)| host);
            for (host, status) in [(Some(&host), status), (right, 200)] {
                let Some(host) = host else { continue };
                let request = Request::builder().uri(format!("https://{host}/")).body(()).unwrap();
                assert_eq!(client.ask(request, b"").await.unwrap().status, status, "{name:?}: {host}");
            }
        }
    });
}

#[test]
fn nobody_is_sent_away_unless_that_is_wanted_and_where_it_cannot_be_it_is_an_error() {
    let site = site("");
    let mut daemon = site.start();
    let mut stream = TlsClient::new(&[&TLS13]).shake(site.address(), "a.example").unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n").unwrap();
    assert_eq!(read_message(&mut BufReader::new(stream), true).unwrap().status(), 200);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    daemon.wait();
    let tcp = "host-must-match-sni = true\n[defaults]\nmode = \"tcp\"";
    let tls = format!("[frontend.web.tls]\ncertificates = [\"a.pem\"]\n{tcp}\n");
    site.configure(&Site::text(&["127.0.0.1:9".parse().unwrap()], &tls));
    let check = site.proxy(&["check"]);
    assert!(code(&check) == 1 && text(&check.stderr).contains("means nothing where no request"), "{check:?}");
}
