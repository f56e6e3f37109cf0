//! HTTP/2 to servers over TLS: what is agreed on by ALPN, who is believed, what a reload leaves alone.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;

use bytes::Bytes;
use http::Response;
use support::authority::{Authority, recording, settings};
use support::client::get;
use support::h2::{self as http2, H2Client, H2Origin, echo};
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
    for (protocol, expected) in [("auto", 200), ("h2", 503)] {
        // It offers nothing but http/1.1.
        let (origin, learnt) = recording(settings(&authority.issue("localhost", &["localhost"]), None));
        let tls = format!("protocol = \"{protocol}\"\ntls = {{ ca-file = \"ca.pem\" }}");
        let site = site(origin.address, &authority, &tls);
        let _daemon = site.start();
        for _ in 0..3 {
            assert_eq!(get(site.address(), "/").status(), expected, "{protocol}");
        }
        if expected == 200 {
            assert_eq!(learnt.recv_timeout(PATIENCE).unwrap().alpn.as_deref(), Some(&b"http/1.1"[..]));
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
