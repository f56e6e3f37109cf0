//! Servers behind the proxy, with real processes: kept connections, balancing, retries, failures, limits.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufReader, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use support::client::{Client, End, get, read_message};
use support::origin::{Origin, ok};
use support::{PATIENCE, Port, Site};

const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello";

/// An origin that says these bytes after each request's head and body, then closes.
fn saying(bytes: &'static [u8]) -> Origin {
    Origin::new(move |mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()), false);
        // A proxy that has heard enough may have closed.
        let _ = stream.write_all(bytes);
    })
}

/// An origin whose connections answer `answers` requests and close upon reading one more; tells of every request.
fn tiring(answers: usize) -> (Origin, mpsc::Receiver<String>) {
    let (sender, lines) = mpsc::channel();
    let origin = Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut answered = 0;
        while let Some(request) = read_message(&mut reader, false) {
            sender.send(request.line).unwrap();
            if answered == answers {
                return;
            }
            stream.write_all(&ok("served")).unwrap();
            answered += 1;
        }
    });
    (origin, lines)
}

fn status_of(site: &Site) -> u16 {
    let mut client = Client::connect(site.address());
    let answer = client.ask(GET);
    assert!(answer.complete, "{answer:?}");
    if answer.status() >= 500 {
        assert_eq!(answer.field("connection"), Some("close"));
        assert!(client.at_end());
    }
    answer.status()
}

#[test]
fn many_requests_share_one_connection_on_both_sides() {
    let origin = Origin::named("one");
    let site = Site::proxying(&[origin.address], "connection-mode = \"keep-alive\"");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for _ in 0..50 {
        let answer = client.get("/");
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("one", None));
    }
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn a_servers_connection_outlives_the_client_it_was_opened_for() {
    let origin = Origin::named("one");
    // Idle connections belong to a thread.
    let site = Site::proxying(&[origin.address], "[global]\nthreads = 1");
    let _daemon = site.start();
    for _ in 0..10 {
        let mut client = Client::connect(site.address());
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").text(), "one");
        assert!(client.at_end());
    }
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn what_a_burst_opened_serves_the_next_one() {
    const AT_ONCE: usize = 150;
    let all = Barrier::new(AT_ONCE);
    let origin = Origin::answering(move |_request| {
        all.wait();
        ok("served")
    });
    let site = Site::proxying(&[origin.address], "connection-mode = \"keep-alive\"");
    let _daemon = site.start();
    let mut clients: Vec<_> = (0..AT_ONCE).map(|_| Client::connect(site.address())).collect();
    for _ in 0..3 {
        clients.iter_mut().for_each(|client| client.send(GET));
        for client in &mut clients {
            assert_eq!(client.response().unwrap().text(), "served");
        }
    }
    assert_eq!(origin.accepted(), AT_ONCE);
}

#[test]
fn connections_of_a_burst_to_one_server_make_room_for_those_to_another() {
    const AT_ONCE: usize = 60;
    let all = Barrier::new(AT_ONCE);
    let busy = Origin::answering(move |_request| {
        all.wait();
        ok("busy")
    });
    let quiet = Origin::named("quiet");
    let second = Port::new();
    let site = Site::new(&format!(
        "[global]\nthreads = 1\nmaxconn = {}\n[frontend.busy]\nbind = \"{{port}}\"\nbackend = \"busy\"\n\
         [frontend.quiet]\nbind = \"{}\"\nbackend = \"quiet\"\n\
         [backend.busy]\nservers = [\"{}\"]\n[backend.quiet]\nservers = [\"{}\"]",
        AT_ONCE, second.address, busy.address, quiet.address
    ));
    let _daemon = site.start();
    let mut clients: Vec<_> = (0..AT_ONCE).map(|_| Client::connect(site.address())).collect();
    clients.iter_mut().for_each(|client| client.send(GET));
    clients.iter_mut().for_each(|client| assert_eq!(client.response().unwrap().text(), "busy"));
    drop(clients);
    let mut client = Client::connect(second.address);
    for _ in 0..10 {
        assert_eq!(client.get("/").text(), "quiet");
    }
    assert_eq!(quiet.accepted(), 1);
}

#[test]
fn server_close_keeps_the_client_and_closes_the_server() {
    let (origin, requests) = Origin::recording(|_| ok("one"));
    let site = Site::proxying(&[origin.address], "connection-mode = \"server-close\"");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for _ in 0..5 {
        let answer = client.get("/");
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("one", None));
        assert_eq!(requests.next().field("connection"), Some("close"));
    }
    assert_eq!(origin.accepted(), 5);
}

#[test]
fn close_closes_both_sides_even_when_only_one_section_says_so() {
    let (origin, requests) = Origin::recording(|_| ok("one"));
    let backend = "connection-mode = \"close\"";
    let defaults = "[defaults]\nconnection-mode = \"close\"";
    for extra in [backend, defaults] {
        let site = Site::proxying(&[origin.address], extra);
        let _daemon = site.start();
        let mut client = Client::connect(site.address());
        let answer = client.get("/");
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("one", Some("close")));
        assert!(client.at_end());
        assert_eq!(requests.next().field("connection"), Some("close"));
    }
    assert_eq!(origin.accepted(), 2);
}

#[test]
fn a_server_that_announces_its_close_is_not_asked_again_on_that_connection() {
    // The connections stay open: only the announcement tells.
    let origin = Origin::answering(|request| match request.path() {
        "/close" => b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi".to_vec(),
        "/old" => b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_vec(),
        _ => b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi".to_vec(),
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for (path, accepted) in [("/close", 1), ("/old", 2), ("/kept", 3), ("/kept", 3)] {
        let answer = client.get(path);
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("hi", None), "{path}");
        assert_eq!(origin.accepted(), accepted, "{path}");
    }
}

#[test]
fn a_server_that_speaks_no_http_is_a_bad_gateway() {
    for said in [
        &b""[..],
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nA bad name: x\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 99 Low\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let origin = saying(said);
        let site = Site::proxying(&[origin.address], "");
        let _daemon = site.start();
        assert_eq!(status_of(&site), 502, "{:?}", support::text(said));
        assert_eq!(origin.accepted(), 1, "asked again after {:?}", support::text(said));
    }
}

#[test]
fn an_endless_response_head_is_a_bad_gateway() {
    let origin = Origin::new(|mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()), false);
        let mut bytes = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        // Until the proxy has had enough.
        while stream.write_all(&bytes).is_ok() {
            bytes = vec![b'x'; 4096];
        }
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    assert_eq!(status_of(&site), 502);
}

#[test]
fn a_server_that_never_answers_is_a_gateway_timeout() {
    let (sender, held) = mpsc::channel();
    let origin = Origin::new(move |stream| sender.send(stream).unwrap());
    let site = Site::proxying(&[origin.address], "[backend.pool.timeout]\nserver = \"200ms\"");
    let _daemon = site.start();
    assert_eq!(status_of(&site), 504);
    // It was asked, once.
    let mut stream = BufReader::new(held.recv_timeout(PATIENCE).unwrap());
    assert_eq!(read_message(&mut stream, false).unwrap().line, "GET / HTTP/1.1");
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn a_server_that_falls_silent_inside_a_body_ends_in_a_reset() {
    let (sender, held) = mpsc::channel();
    let origin = Origin::new(move |mut stream| {
        read_message(&mut BufReader::new(stream.try_clone().unwrap()), false);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").unwrap();
        sender.send(stream).unwrap();
    });
    let site = Site::proxying(&[origin.address], "[backend.pool.timeout]\nserver = \"200ms\"");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send(GET);
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.end().1, End::Reset);
    drop(held);
}

#[test]
fn a_dead_server_among_others_costs_no_request() {
    let (dead, origin) = (Port::new(), Origin::named("alive"));
    for retries in ["retries = 1", "retries = 3\ntimeout.connect = \"10ms\""] {
        let site = Site::proxying(&[dead.address, origin.address], retries);
        let _daemon = site.start();
        for _ in 0..10 {
            assert_eq!(get(site.address(), "/").text(), "alive");
        }
        // A body is as safe: a server that cannot be connected has not seen it.
        for _ in 0..2 {
            assert_eq!(Client::connect(site.address()).ask(POST).text(), "alive");
        }
    }
}

#[test]
fn without_redispatch_a_dead_servers_requests_fail() {
    let (dead, origin) = (Port::new(), Origin::named("alive"));
    let site =
        Site::proxying(&[dead.address, origin.address], "retries = 1\nredispatch = false\ntimeout.connect = \"10ms\"");
    let _daemon = site.start();
    let statuses: Vec<_> = (0..4).map(|_| status_of(&site)).collect();
    assert_eq!(statuses, [503, 200, 503, 200]);
}

#[test]
fn a_server_that_comes_back_between_two_attempts_serves_the_request() {
    // Bound without listening refuses connections; listening later is the restart of a server.
    let port = Port::new();
    let site = Site::proxying(&[port.address], "retries = 100\ntimeout.connect = \"10ms\"");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send(GET);
    assert!(client.silent_for(Duration::from_millis(100)), "it gave up at once");
    let listener = port.listen();
    let (mut stream, _) = listener.accept().unwrap();
    read_message(&mut BufReader::new(stream.try_clone().unwrap()), false).unwrap();
    stream.write_all(&ok("back")).unwrap();
    assert_eq!(client.response().unwrap().text(), "back");
}

#[test]
fn when_all_servers_are_dead_the_service_is_unavailable() {
    let dead = [Port::new(), Port::new()];
    let site = Site::proxying(&dead.each_ref().map(|port| port.address), "retries = 1");
    let _daemon = site.start();
    for _ in 0..3 {
        assert_eq!(status_of(&site), 503);
    }
}

#[test]
fn round_robin_is_one_order_over_all_threads() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let addresses = origins.each_ref().map(|origin| origin.address);
    let site = Site::proxying(&addresses, "[global]\nthreads = 4");
    let _daemon = site.start();
    let address = site.address();
    let clients: Vec<_> = (0..30).map(|number| std::thread::spawn(move || ask_ten(address, number % 2 == 0))).collect();
    let mut counts = BTreeMap::new();
    for name in clients.into_iter().flat_map(|client| client.join().unwrap()) {
        *counts.entry(name).or_insert(0) += 1;
    }
    assert_eq!(
        counts.into_iter().collect::<Vec<_>>(),
        [("a", 100), ("b", 100), ("c", 100)].map(|(n, c)| (n.into(), c))
    );
    // And in that very order, whatever connection and thread asks.
    let row: String = (0..9).map(|_| get(address, "/").text()).collect();
    assert_eq!(row, "abcabcabc");
}

/// Ten answers, over one connection or over ten.
fn ask_ten(address: SocketAddr, kept: bool) -> Vec<String> {
    let mut client = Client::connect(address);
    (0..10)
        .map(|_| {
            if !kept {
                client = Client::connect(address);
            }
            client.get("/").text()
        })
        .collect()
}

#[test]
fn a_pooled_connection_that_the_server_closed_meanwhile_is_not_used() {
    let (close, told) = mpsc::channel::<()>();
    let (done, closed) = mpsc::channel();
    let told = Arc::new(Mutex::new(told));
    let origin = Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let request = read_message(&mut reader, false).unwrap();
        stream.write_all(&ok(&request.line)).unwrap();
        told.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        drop((reader, stream));
        done.send(()).unwrap();
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for (number, request) in [GET, POST, POST, GET, POST].into_iter().enumerate() {
        let answer = client.ask(request);
        assert_eq!((answer.status(), answer.text().as_str()), (200, request.lines().next().unwrap()));
        close.send(()).unwrap();
        closed.recv_timeout(PATIENCE).unwrap();
        assert_eq!(origin.accepted(), number + 1);
    }
}

#[test]
fn a_get_lost_with_a_pooled_connection_is_asked_again() {
    let (origin, lines) = tiring(1);
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    assert_eq!(client.get("/").text(), "served");
    assert_eq!(client.get("/").text(), "served");
    assert_eq!((lines.try_iter().count(), origin.accepted()), (3, 2));
}

#[test]
fn a_lost_get_is_asked_again_over_a_fresh_connection_not_another_pooled_one() {
    let (sender, lines) = mpsc::channel();
    // The first two requests meet here, so that there are two connections to keep.
    let (both, count) = (Barrier::new(2), AtomicUsize::new(0));
    let origin = Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        read_message(&mut reader, false).unwrap();
        sender.send("answered").unwrap();
        if count.fetch_add(1, Ordering::SeqCst) < 2 {
            both.wait();
        }
        stream.write_all(&ok("served")).unwrap();
        if read_message(&mut reader, false).is_some() {
            sender.send("lost").unwrap();
        }
    });
    let site = Site::proxying(&[origin.address], "[global]\nthreads = 1");
    let _daemon = site.start();
    let mut clients = [Client::connect(site.address()), Client::connect(site.address())];
    for client in &mut clients {
        client.send(GET);
    }
    for client in &mut clients {
        assert_eq!(client.response().unwrap().text(), "served");
    }
    assert_eq!(clients[0].ask(GET).text(), "served");
    assert_eq!(lines.try_iter().collect::<Vec<_>>(), ["answered", "answered", "lost", "answered"]);
}

#[test]
fn a_post_lost_with_a_pooled_connection_is_never_sent_twice() {
    let (origin, lines) = tiring(1);
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    // A body cannot be repeated, and a POST without one must not be.
    for post in [POST, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"] {
        let mut client = Client::connect(site.address());
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: test\r\n\r\n").text(), "served");
        assert_eq!(client.ask(post).status(), 502);
        assert!(client.at_end());
        let posts = lines.try_iter().filter(|line| line.starts_with("POST")).count();
        assert_eq!(posts, 1, "{post:?}");
    }
}

#[test]
fn a_get_lost_with_a_fresh_connection_is_not_asked_again() {
    let (origin, lines) = tiring(0);
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    assert_eq!(status_of(&site), 502);
    assert_eq!((lines.try_iter().count(), origin.accepted()), (1, 1));
}

#[test]
fn beyond_maxconn_clients_wait_in_the_kernels_queue_and_none_is_reset() {
    let origin = Origin::named("one");
    let whole = format!(
        "[frontend.web]\nbind = \"{{port}}\"\nmaxconn = 2\nbackend = \"pool\"\n[backend.pool]\nservers = [\"{}\"]",
        origin.address
    );
    for text in [whole, Site::text(&[origin.address], "[global]\nmaxconn = 2")] {
        let site = Site::new(&text);
        let _daemon = site.start();
        let mut held: Vec<_> = (0..2).map(|_| Client::connect(site.address())).collect();
        for client in &mut held {
            assert_eq!(client.get("/").text(), "one");
        }
        let mut waiting: Vec<_> = (0..3).map(|_| Client::connect(site.address())).collect();
        for client in &mut waiting {
            client.send(GET);
        }
        for client in &mut waiting {
            assert!(client.silent_for(Duration::from_millis(100)), "served beyond the limit");
        }
        // Every end lets exactly one in; who was in is still served.
        for mut client in waiting {
            drop(held.remove(0));
            assert_eq!(client.response().unwrap().text(), "one");
            assert_eq!(held[0].get("/").text(), "one");
            held.push(client);
        }
    }
}
