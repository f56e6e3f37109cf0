//! HTTP/2 to servers: connections that requests share, streaming both ways, and what a server has not touched asked again.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::Response;
use support::authority::{Authority, settings};
use support::client::{Client, get};
use support::h2::{self as http2, END_HEADERS, END_STREAM, GOAWAY, H2Client, H2Origin, HEADERS, Raw, SETTINGS, echo};
use support::origin::{Origin, download};
use support::{Port, Site, counted};

/// A site in front of a server without TLS.
fn site(origin: &H2Origin, rest: &str) -> Site {
    http2::site(&origin.address.to_string(), &format!("protocol = \"h2c\"\n{rest}"))
}

/// Status and body of so many requests that are sent at once.
async fn at_once(client: &H2Client, count: usize, request: (&'static str, &'static str, &[u8])) -> Vec<(u16, String)> {
    let (method, path, body) = request;
    let asking: Vec<_> = (0..count)
        .map(|_| {
            let (client, body) = (client.clone(), body.to_vec());
            tokio::spawn(async move { client.ask(client.request(method, path), &body).await.unwrap() })
        })
        .collect();
    let mut answers = Vec::new();
    for one in asking {
        let answer = one.await.unwrap();
        answers.push((answer.status, answer.text()));
    }
    answers
}

#[test]
fn requests_of_both_protocols_share_a_connection() {
    http2::run(async {
        let authority = Authority::new("Test CA");
        for (protocol, scheme) in [("h2c", "http"), ("h2", "https"), ("auto", "https")] {
            let (origin, tls) = if scheme == "https" {
                let settings = settings(&authority.issue("localhost", &["localhost"]), None);
                (H2Origin::secured(settings, echo).await, "tls = { ca-file = \"ca.pem\" }")
            } else {
                (H2Origin::new(echo).await, "")
            };
            let server = format!("localhost:{}", origin.address.port());
            let site = http2::site(&server, &format!("protocol = \"{protocol}\"\n{tls}"));
            std::fs::write(site.path("ca.pem"), authority.pem()).unwrap();
            let _daemon = site.start();
            let (client, _) = H2Client::connect(site.address()).await;
            let big = download(500_000);
            let asked = (0..20).map(|number| {
                let (client, big) = (client.clone(), big.clone());
                tokio::spawn(async move {
                    let answer = client.ask(client.request("POST", &format!("/{number}")), &big).await.unwrap();
                    assert!(answer.body == big, "{} bytes", answer.body.len());
                    let uri = format!("{scheme}://{}/{number}", client.address);
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
fn a_conversation_goes_both_ways_at_once() {
    http2::run(async {
        // Each message is answered before the next one is sent.
        let origin = H2Origin::new(|request, mut respond| async move {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            let mut body: RecvStream = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
                stream.send_data(data, false).unwrap();
            }
            stream.send_trailers(http2::grpc_status("0")).unwrap();
        })
        .await;
        let site = site(&origin, "");
        let _daemon = site.start();
        let (client, _) = H2Client::connect(site.address()).await;
        let (response, mut stream) = client.send.clone().send_request(client.request("POST", "/chat"), false).unwrap();
        let mut answers = response.await.unwrap().into_body();
        for number in 0..100 {
            let message = Bytes::from(format!("message {number}"));
            stream.send_data(message.clone(), false).unwrap();
            assert_eq!(answers.data().await.unwrap().unwrap(), message);
            answers.flow_control().release_capacity(message.len()).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
        assert_eq!(http2::read(&mut answers).await.unwrap(), b"");
        assert_eq!(answers.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    });
}

#[test]
fn a_server_gets_no_more_requests_at_a_time_than_it_takes() {
    http2::run(async {
        // Ten have to be there at the same time before any of them is answered: three on each connection.
        let (together, asked) = (Arc::new(tokio::sync::Barrier::new(10)), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let origin = H2Origin::limited(3, move |request, respond| {
            let together = Arc::clone(&together);
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                if request.uri().path() == "/together" {
                    together.wait().await;
                }
                echo(request, respond).await;
            }
        })
        .await;
        let site = site(&origin, "");
        let _daemon = site.start();
        let (client, _) = H2Client::connect(site.address()).await;
        // The limit is known from the first answer on.
        assert_eq!(client.ask(client.request("POST", "/"), b"hi").await.unwrap().text(), "hi");
        let answers = at_once(&client, 10, ("POST", "/together", b"hi")).await;
        assert_eq!(answers, vec![(200, String::from("hi")); 10]);
        assert!(origin.accepted() >= 4, "{} connections", origin.accepted());
        assert_eq!(asked.load(Ordering::SeqCst), 11, "none was refused and asked again");
    });
}

#[test]
fn many_that_wait_for_a_connection_open_no_more_than_they_need() {
    http2::run(async {
        // A hundred at a time, ten on each connection, and none is answered before all are there.
        let together = Arc::new(tokio::sync::Barrier::new(100));
        let origin = H2Origin::limited(10, move |request, respond| {
            let together = Arc::clone(&together);
            async move {
                together.wait().await;
                echo(request, respond).await;
            }
        })
        .await;
        let site = site(&origin, "");
        let _daemon = site.start();
        let (client, _) = H2Client::connect(site.address()).await;
        assert_eq!(at_once(&client, 100, ("POST", "/", b"hi")).await, vec![(200, String::from("hi")); 100]);
        assert_eq!(origin.accepted(), 10);
    });
}

#[test]
fn connections_that_many_wait_for_are_opened_at_the_same_time() {
    http2::run(async {
        // One request on each connection; of all but the first none is ready before nine are there.
        let (ready, together) = (Arc::new(tokio::sync::Barrier::new(9)), Arc::new(tokio::sync::Barrier::new(10)));
        let first = AtomicUsize::new(0);
        let shake = move |stream| {
            let (ready, later) = (Arc::clone(&ready), first.fetch_add(1, Ordering::SeqCst) > 0);
            async move {
                if later {
                    ready.wait().await;
                }
                Some(stream)
            }
        };
        let origin = H2Origin::accepting(1, shake, move |request, respond| {
            let together = Arc::clone(&together);
            async move {
                if request.uri().path() == "/together" {
                    together.wait().await;
                }
                echo(request, respond).await;
            }
        })
        .await;
        let site = site(&origin, "retries = 0");
        let _daemon = site.start();
        let (client, _) = H2Client::connect(site.address()).await;
        // The limit is known from the first answer on.
        assert_eq!(client.get("/").await.status, 200);
        assert_eq!(at_once(&client, 10, ("GET", "/together", b"")).await, vec![(200, String::new()); 10]);
        assert_eq!(origin.accepted(), 10);
    });
}

#[test]
fn where_a_connection_cannot_be_had_those_who_wait_for_it_fail_together() {
    http2::run(async {
        // Nobody ever answers here.
        let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = H2Origin { address: deaf.local_addr().unwrap(), connections: Arc::default() };
        let site = site(&origin, "retries = 0\ntimeout.connect = \"1s\"");
        let _daemon = site.start();
        let (client, _) = H2Client::connect(site.address()).await;
        let began = Instant::now();
        let answers = at_once(&client, 50, ("GET", "/", b"")).await;
        assert_eq!(answers.iter().filter(|(status, _)| *status == 503).count(), 50, "{answers:?}");
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    });
}

#[test]
fn what_a_server_has_not_touched_is_asked_again_whatever_it_is() {
    http2::run(async {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let origin = H2Origin::new(move |request, mut respond| {
            let first = count.fetch_add(1, Ordering::SeqCst) == 0;
            async move { if first { respond.send_reset(Reason::REFUSED_STREAM) } else { echo(request, respond).await } }
        })
        .await;
        let stats = Port::new();
        let site = site(&origin, &format!("[stats]\nbind = \"{}\"\nuri = \"/s\"", stats.address));
        let _daemon = site.start();
        let (client, _) = H2Client::connect(site.address()).await;
        let answer = client.ask(client.request("POST", "/once"), b"").await.unwrap();
        assert_eq!((answer.status, asked.load(Ordering::SeqCst)), (200, 2));
        let table = tokio::task::spawn_blocking(move || get(stats.address, "/s;csv").text()).await.unwrap();
        for proxy in ["pool,s1", "pool,BACKEND"] {
            assert_eq!(["wretr", "econ"].map(|column| counted(&table, proxy, column)), [1, 0], "{proxy}: {table}");
        }
    });
}

#[test]
fn a_server_of_one_request_a_connection_serves_them_all() {
    const REQUESTS: usize = 8;
    let origin = Origin::new(|mut stream| {
        let mut preface = [0; 24];
        if stream.read_exact(&mut preface).is_err() {
            return;
        }
        let mut raw = Raw(stream);
        raw.send(SETTINGS, 0, 0, b"");
        raw.send(SETTINGS, 1, 0, b"");
        raw.expect(HEADERS);
        // Status 200, and the goodbye: whatever else has come was for nothing.
        raw.send(HEADERS, END_STREAM | END_HEADERS, 1, &[0x88]);
        raw.send(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
        while raw.read().is_some() {}
    });
    http2::run(async {
        let site = http2::site(&origin.address.to_string(), "protocol = \"h2c\"");
        let _daemon = site.start();
        let (client, _) = H2Client::connect(site.address()).await;
        for (status, _) in at_once(&client, REQUESTS, ("POST", "/once", b"")).await {
            assert_eq!(status, 200);
        }
    });
}

#[test]
fn what_a_server_may_have_touched_is_not_asked_again() {
    http2::run(async {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let origin = H2Origin::new(move |_request, mut respond| {
            count.fetch_add(1, Ordering::SeqCst);
            async move { respond.send_reset(Reason::INTERNAL_ERROR) }
        })
        .await;
        let site = site(&origin, "");
        let _daemon = site.start();
        let (client, _) = H2Client::connect(site.address()).await;
        let answer = client.ask(client.request("POST", "/once"), b"").await.unwrap();
        assert_eq!((answer.status, asked.load(Ordering::SeqCst)), (502, 1));
    });
}

#[test]
fn a_request_that_a_server_resets_is_asked_again_only_where_that_is_wanted_and_as_often() {
    http2::run(async {
        for (settings, attempts) in [("", 1), ("retries = 2\nretry-on = \"empty-response\"", 3)] {
            for reason in [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::NO_ERROR] {
                let asked = Arc::new(AtomicUsize::new(0));
                let count = Arc::clone(&asked);
                let origin = H2Origin::new(move |request, mut respond| {
                    let good = request.uri().path() == "/good";
                    // Whoever is asked without end says so by this answer.
                    let good = good || count.fetch_add(1, Ordering::SeqCst) > 20;
                    async move { if good { echo(request, respond).await } else { respond.send_reset(reason) } }
                })
                .await;
                let site = site(&origin, settings);
                let _daemon = site.start();
                let (client, _) = H2Client::connect(site.address()).await;
                // The connection has proven itself.
                assert_eq!(client.get("/good").await.status, 200);
                assert_eq!(
                    (client.get("/bad").await.status, asked.load(Ordering::SeqCst)),
                    (502, attempts),
                    "{reason}"
                );
                assert_eq!((client.get("/good").await.status, origin.accepted()), (200, 1), "the connection goes on");
            }
        }
    });
}

#[test]
fn a_request_taken_back_by_its_client_is_taken_back_from_the_server() {
    http2::run(async {
        let (told, mut tell) = tokio::sync::mpsc::unbounded_channel();
        let origin = H2Origin::new(move |_request, mut respond| {
            let told = told.clone();
            async move {
                told.send(None).unwrap();
                let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
                told.send(Some(reason)).unwrap();
            }
        })
        .await;
        let site = site(&origin, "");
        let _daemon = site.start();
        let (client, _) = H2Client::connect(site.address()).await;
        let (response, mut stream) = client.send.clone().send_request(client.request("POST", "/"), false).unwrap();
        assert_eq!(tell.recv().await.unwrap(), None);
        stream.send_reset(Reason::CANCEL);
        drop(response);
        assert_eq!(tell.recv().await.unwrap(), Some(Reason::CANCEL));
    });
}

#[test]
fn clients_that_do_not_read_keep_nobody_from_the_server_they_share() {
    http2::run(async {
        let origin = H2Origin::new(|request, mut respond| async move {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            let piece = vec![b'x'; 64 * 1024];
            let pieces = if request.uri().path() == "/endless" { usize::MAX } else { 1 };
            for _ in 0..pieces {
                if http2::write(&mut stream, &piece, false).await.is_err() {
                    return;
                }
            }
            stream.send_data(Bytes::new(), true).unwrap();
        })
        .await;
        let site = site(&origin, "");
        let _daemon = site.start();
        let mut silent = Vec::new();
        for _ in 0..16 {
            let (client, _) = H2Client::connect(site.address()).await;
            let (response, _) = client.send.clone().send_request(client.request("GET", "/endless"), true).unwrap();
            silent.push((response.await.unwrap().into_body(), client));
        }
        // Each of them holds as much of the connection as it can get.
        let (client, _) = H2Client::connect(site.address()).await;
        for _ in 0..50 {
            assert_eq!(client.get("/short").await.body.len(), 64 * 1024);
        }
        assert_eq!(origin.accepted(), 1, "one connection for all");
    });
}
