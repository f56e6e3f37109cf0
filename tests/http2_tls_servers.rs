//! HTTP/2 to servers over TLS: what is agreed on by ALPN, who is believed, connections that requests share.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, Request, Response};
use support::authority::{Authority, recording, settings};
use support::client::{Client, get};
use support::h2::{self as http2, H2Client, H2Origin};
use support::origin::download;
use support::{PATIENCE, Site, code, text};

/// A site in front of one server, which is addressed as `localhost`.
fn site(address: std::net::SocketAddr, authority: &Authority, backend: &str) -> Site {
    let site = Site::new(&format!(
        "[global]\nthreads = 1\n[frontend.web]\nbind = \"{{port}}\"\nproto = \"auto\"\nbackend = \"pool\"\n\
         [backend.pool]\nretries = 0\nservers = [\"localhost:{}\"]\n{backend}\n",
        address.port()
    ));
    fs::write(site.path("ca.pem"), authority.pem()).unwrap();
    site
}

async fn origin(pem: &str) -> H2Origin {
    H2Origin::secured(settings(pem, None), echo).await
}

/// The body back, what was asked for in fields, the status behind it.
async fn echo(request: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let Ok(whole) = http2::read(&mut body).await else { return };
    let uri = parts.uri.to_string();
    let response = Response::builder().header("x-uri", uri).body(()).unwrap();
    let mut stream = respond.send_response(response, false).unwrap();
    if http2::write(&mut stream, &whole, false).await.is_ok() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        // The client may be gone.
        let _ = stream.send_trailers(trailers);
    }
}

/// Asks beside the runtime, which the server needs.
async fn status(site: &Site) -> u16 {
    let address = site.address();
    tokio::task::spawn_blocking(move || get(address, "/").status()).await.unwrap()
}

#[test]
fn requests_of_both_protocols_share_a_connection_of_tls() {
    http2::run(async {
        let authority = Authority::new("Test CA");
        for protocol in ["h2", "auto"] {
            let origin = origin(&authority.issue("localhost", &["localhost"])).await;
            let tls = format!("protocol = \"{protocol}\"\ntls = {{ ca-file = \"ca.pem\" }}");
            let site = site(origin.address, &authority, &tls);
            let _daemon = site.start();
            let (client, _) = H2Client::connect(site.address()).await;
            let big = download(500_000);
            let asked = (0..20).map(|number| {
                let (client, big) = (client.clone(), big.clone());
                tokio::spawn(async move {
                    let answer = client.ask(client.request("POST", &format!("/{number}")), &big).await.unwrap();
                    assert!(answer.body == big, "{} bytes", answer.body.len());
                    let uri = format!("https://{}/{number}", client.address);
                    assert_eq!(answer.field("x-uri"), Some(uri.as_str()));
                    assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
                })
            });
            for one in asked.collect::<Vec<_>>() {
                one.await.unwrap();
            }
            let address = site.address();
            let old = tokio::task::spawn_blocking(move || {
                Client::connect(address)
                    .ask("POST /old HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nContent-Length: 2\r\n\r\nhi")
            });
            let old = old.await.unwrap();
            assert_eq!((old.text().as_str(), old.trailers), ("hi", vec![("grpc-status".into(), "0".into())]));
            assert_eq!(origin.accepted(), 1, "{protocol}: one connection for all");
        }
    });
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
            let origin = origin(&issuer.issue(name, &[name])).await;
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
