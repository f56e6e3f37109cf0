//! Health checks of servers that speak HTTP/2, over TLS and without.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use support::authority::{Authority, recording, settings};
use support::client::get;
use support::h2::{self as http2, H2Origin};
use support::origin::Origin;
use support::{Port, Site};

/// What a server answers its checks; 0 takes the request back.
type Says = Arc<AtomicU16>;

/// Answers `/health` as it is told to, and counts what it is asked.
fn answering(
    says: &Says,
    asked: &Arc<AtomicUsize>,
) -> impl Fn(Request<RecvStream>, h2::server::SendResponse<Bytes>) -> Answering + use<> {
    let (says, asked) = (Arc::clone(says), Arc::clone(asked));
    move |request, mut respond| {
        let status = if request.uri().path() == "/health" { says.load(Ordering::SeqCst) } else { 200 };
        let authority = request.uri().authority().unwrap().to_string();
        asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if status == 0 {
                return respond.send_reset(Reason::INTERNAL_ERROR);
            }
            let response = Response::builder().status(status).body(()).unwrap();
            let mut stream = respond.send_response(response, false).unwrap();
            let body = format!("I am well, {authority}");
            // The check may have heard enough.
            let _ = http2::write(&mut stream, body.as_bytes(), true).await;
        })
    }
}

type Answering = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn site(address: std::net::SocketAddr, authority: &Authority, backend: &str) -> Site {
    let site = Site::new(&format!(
        "[frontend.web]\nbind = \"{{port}}\"\nbackend = \"pool\"\n[backend.pool]\nretries = 0\n\
         servers = [\"localhost:{}\"]\n{backend}\n[backend.pool.check]\ntype = \"http\"\npath = \"/health\"\n\
         host = \"check.example\"\nexpect = {{ status = \"200\", body = \"I am well, check.example\" }}\n\
         interval = \"50ms\"\nfall = 1\nrise = 1\n",
        address.port()
    ));
    std::fs::write(site.path("ca.pem"), authority.pem()).unwrap();
    site
}

/// Waits beside the runtime, which the server needs.
async fn until_answers(site: &Arc<Site>, status: u16) {
    let site = Arc::clone(site);
    let waiting = move || support::until("the check takes effect", || get(site.address(), "/").status() == status);
    tokio::task::spawn_blocking(waiting).await.unwrap();
}

#[test]
fn a_server_of_http_2_is_asked_in_http_2_how_it_is() {
    http2::run(async {
        let authority = Authority::new("Test CA");
        let tls = "tls = { ca-file = \"ca.pem\" }";
        for (protocol, tls) in [("h2c", ""), ("h2", tls), ("auto", tls)] {
            let (says, asked) = (Says::new(AtomicU16::new(200)), Arc::default());
            let serve = answering(&says, &asked);
            let origin = match tls {
                "" => H2Origin::new(serve).await,
                _ => H2Origin::secured(settings(&authority.issue("localhost", &["localhost"]), None), serve).await,
            };
            let site = Arc::new(site(origin.address, &authority, &format!("protocol = \"{protocol}\"\n{tls}")));
            let _daemon = site.start();
            until_answers(&site, 200).await;
            for (said, status) in [(503, 503), (200, 200), (0, 503), (200, 200)] {
                says.store(said, Ordering::SeqCst);
                until_answers(&site, status).await;
            }
            assert!(asked.load(Ordering::SeqCst) > 4, "{protocol}");
        }
    });
}

/// What becomes of a server that answers its gRPC check so: with these bytes, and this status behind them.
async fn checked_by_grpc(message: &'static [u8], code: &'static str, service: &str) -> String {
    let origin = H2Origin::new(move |request, mut respond| async move {
        let path = request.uri().path().to_owned();
        let asked = http2::read(&mut request.into_body()).await.unwrap();
        let (message, code) = match (path.as_str(), &asked[..]) {
            ("/grpc.health.v1.Health/Check", [0, 0, 0, 0, 3, 0x0A, 1, b'S'] | [0, 0, 0, 0, 0]) => (message, code),
            _ => (&b""[..], "3"),
        };
        let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut stream = respond.send_response(response, false).unwrap();
        http2::write(&mut stream, message, false).await.unwrap();
        stream.send_trailers(http2::grpc_status(code)).unwrap();
    })
    .await;
    let check = format!("type = \"grpc\"\n{service}\ninterval = \"50ms\"\nfall = 1\nrise = 1");
    let page = Port::new();
    let site = Site::new(&format!(
        "[frontend.web]\nbind = \"{{port}}\"\nbackend = \"pool\"\n[backend.pool]\nprotocol = \"h2c\"\ntimeout.check = \"10s\"\n\
         servers = [\"{}\"]\n[backend.pool.check]\n{check}\n[stats]\nbind = \"{}\"\nuri = \"/s\"\n",
        origin.address, page.address
    ));
    let _daemon = site.start();
    let told = move || {
        let mut told = String::new();
        support::until("a check's result", || {
            let rows: Vec<serde_json::Value> = serde_json::from_slice(&get(page.address, "/s;json").body).unwrap();
            let row = rows.iter().find(|row| row["svname"] == "s1").unwrap();
            told = row["check_status"].as_str().unwrap_or_default().to_owned();
            told.starts_with("L7")
        });
        told
    };
    tokio::task::spawn_blocking(told).await.unwrap()
}

#[test]
fn a_service_is_asked_by_grpc_how_it_is() {
    http2::run(async {
        let serving = &[0, 0, 0, 0, 2, 8, 1][..];
        for (message, code, service, expected) in [
            (serving, "0", "service = \"S\"", "L7OK"),
            (serving, "0", "", "L7OK"),
            (serving, "0", "service = \"T\"", "L7STS"),
            (&[0, 0, 0, 0, 2, 8, 2], "0", "", "L7STS"),
            (b"", "5", "", "L7STS"),
            (b"what", "0", "", "L7RSP"),
        ] {
            assert_eq!(checked_by_grpc(message, code, service).await, expected, "{message:?} {code} {service}");
        }
    });
    let site = Site::proxying(&["127.0.0.1:9".parse().unwrap()], "check = { type = \"grpc\" }");
    let check = site.proxy(&["check"]);
    assert!(support::text(&check.stderr).contains("gRPC is spoken over HTTP/2"), "{check:?}");
}

#[test]
fn a_server_that_speaks_no_http_2_is_down_where_it_has_to() {
    let authority = Authority::new("Test CA");
    let (secure, _learnt) = recording(settings(&authority.issue("localhost", &["localhost"]), None));
    for (address, backend) in [
        (Origin::named("one").address, "protocol = \"h2c\""),
        (secure.address, "protocol = \"h2\"\ntls = { ca-file = \"ca.pem\" }"),
    ] {
        let site = site(address, &authority, backend);
        let daemon = site.start();
        daemon.hear("Server pool/s1 is DOWN");
    }
    // Where either is right it is asked in HTTP/1, and says something else than is expected.
    let site = site(secure.address, &authority, "protocol = \"auto\"\ntls = { ca-file = \"ca.pem\" }");
    let daemon = site.start();
    let line = daemon.hear("Server pool/s1 is DOWN");
    assert!(line.contains("the body does not hold what is expected"), "{line}");
}
