//! HTTP/2 to servers over TLS: what is agreed on by ALPN, who is believed, what a reload leaves alone.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;

use bytes::Bytes;
use http::Response;
use support::authority::{Authority, recording, settings};
use support::client::get;
use support::h2::{self as http2, H2Client, H2Origin, echo};
use support::syslog::Syslog;
use support::{PATIENCE, Site, code, text};

/// A site in front of one server, which is addressed as `localhost`.
fn site(address: std::net::SocketAddr, authority: &Authority, backend: &str) -> Site {
    let site = http2::site(&format!("localhost:{}", address.port()), &format!("retries = 0\n{backend}"));
    fs::write(site.path("ca.pem"), authority.pem()).unwrap();
    site
}

/// Asks beside the runtime, which the server needs.
async fn status(site: &Site) -> u16 {
    let address = site.address();
    tokio::task::spawn_blocking(move || get(address, "/").status()).await.unwrap()
}

#[test]
fn a_server_of_http_2_has_to_prove_its_name() {
    http2::run(async {
        let (authority, stranger) = (Authority::new("Test CA"), Authority::new("Stranger"));
        for (issuer, name, tls, expected) in [
            (&authority, "localhost", "{ ca-file = \"ca.pem\" }", 200),
            (&authority, "other.example", "{ ca-file = \"ca.pem\" }", 503),
            (&stranger, "localhost", "{ ca-file = \"ca.pem\" }", 503),
            (&authority, "other.example", "{ ca-file = \"ca.pem\", sni = \"other.example\" }", 200),
            (&stranger, "other.example", "{ verify = false }", 200),
        ] {
            let origin = H2Origin::secured(settings(&issuer.issue(name, &[name]), None), echo).await;
            for protocol in ["h2", "auto"] {
                let site = site(origin.address, &authority, &format!("protocol = \"{protocol}\"\ntls = {tls}"));
                let _daemon = site.start();
                assert_eq!(status(&site).await, expected, "{protocol} {tls}: {name}");
            }
        }
    });
}

#[test]
fn a_server_that_speaks_no_http_2_is_asked_in_http_1_where_either_is_right() {
    let authority = Authority::new("Test CA");
    // One that says so when it hears of HTTP/2 alone, and one that goes on as if it had not.
    for (protocol, offered, reason) in [
        ("auto", Some("http/1.1"), None),
        ("auto", None, None),
        ("h2", Some("http/1.1"), Some("received fatal alert: NoApplicationProtocol")),
        ("h2", None, Some("the server does not speak HTTP/2")),
    ] {
        let mut settings = settings(&authority.issue("localhost", &["localhost"]), None);
        settings.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let (origin, learnt) = recording(settings);
        let syslog = Syslog::new();
        let log = syslog.section().replace("[\"access\"]", "[\"event\"]");
        let tls = format!("protocol = \"{protocol}\"\ntls = {{ ca-file = \"ca.pem\" }}\n{log}");
        let site = site(origin.address, &authority, &tls);
        let _daemon = site.start();
        for _ in 0..3 {
            let expected = if reason.is_none() { 200 } else { 503 };
            assert_eq!(get(site.address(), "/").status(), expected, "{protocol} {offered:?}");
        }
        if let Some(reason) = reason {
            assert!(syslog.line().contains(" serves"));
            assert_eq!(syslog.line(), format!("Server pool/s1: TLS handshake failed: {reason}"));
            assert_eq!(syslog.left(), 0, "it is told once");
        } else {
            assert_eq!(learnt.recv_timeout(PATIENCE).unwrap().alpn.as_deref(), offered.map(str::as_bytes));
            assert_eq!(origin.accepted(), 1, "its connection is kept as any other");
        }
    }
}

#[test]
fn a_reload_leaves_a_request_on_a_connection_of_tls_alone() {
    http2::run(async {
        let authority = Authority::new("Test CA");
        let (arrive, mut arrived) = tokio::sync::mpsc::unbounded_channel();
        let gate = tokio::sync::broadcast::Sender::new(1);
        let opened = gate.clone();
        let settings = settings(&authority.issue("localhost", &["localhost"]), None);
        let origin = H2Origin::secured(settings, move |request, mut respond| {
            let mut gate = opened.subscribe();
            arrive.send(()).unwrap();
            async move {
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream.send_data(Bytes::from("first half, "), false).unwrap();
                if request.uri().path() == "/slow" {
                    let _opened: () = gate.recv().await.unwrap();
                }
                stream.send_data(Bytes::from("second half"), true).unwrap();
            }
        })
        .await;
        let site = site(origin.address, &authority, "protocol = \"h2\"\ntls = { ca-file = \"ca.pem\" }");
        let _daemon = site.start();
        let (client, _) = H2Client::connect(site.address()).await;
        let slow = tokio::spawn(async move { client.get("/slow").await.text() });
        arrived.recv().await.unwrap();
        let site = tokio::task::spawn_blocking(move || {
            let output = site.proxy(&["reload"]);
            assert_eq!(code(&output), 0, "{}", text(&output.stderr));
            site
        });
        let site = site.await.unwrap();
        let (client, _) = H2Client::connect(site.address()).await;
        assert_eq!(client.get("/").await.text(), "first half, second half");
        gate.send(()).unwrap();
        assert_eq!(slow.await.unwrap(), "first half, second half");
        assert_eq!(origin.accepted(), 2, "each worker has its own");
    });
}
