//! Exchanges that end early, late or half: nobody gets another one's answer, nobody takes a part for the whole,
//! and nothing that may have been done is done twice.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use support::client::{Client, End, Message, get, read_head, read_message};
use support::origin::{Full, Origin, download, ok};
use support::syslog::Syslog;
use support::{PATIENCE, Site, reset, until};

/// An origin whose connections answer their first request, and are then given to `then` with the second one.
fn second(then: impl Fn(Message, TcpStream) + Send + Sync + 'static) -> (Origin, mpsc::Receiver<String>) {
    let (sender, lines) = mpsc::channel();
    let origin = Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let Some(first) = read_message(&mut reader, false) else { return };
        sender.send(first.line).unwrap();
        stream.write_all(&ok("first")).unwrap();
        let Some(next) = read_message(&mut reader, false) else { return };
        sender.send(next.line.clone()).unwrap();
        then(next, stream);
    });
    (origin, lines)
}

#[test]
fn a_client_that_ends_its_side_after_a_request_still_gets_its_answer() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    for request in ["GET /a HTTP/1.1\r\nHost: t\r\n\r\n", "POST /a HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc"]
    {
        let mut client = Client::connect(site.address());
        client.send(request);
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        let answer = client.response().unwrap();
        assert!(answer.complete && answer.text().ends_with(if request.contains("abc") { "abc" } else { "1\n" }));
        assert!(client.at_end());
    }
}

#[test]
fn two_requests_and_then_an_end_are_both_answered() {
    let site = Site::proxying(&[Origin::echo().address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET /1 HTTP/1.1\r\nHost: t\r\n\r\nGET /2 HTTP/1.1\r\nHost: t\r\n\r\n");
    client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
    for number in 1..=2 {
        assert_eq!(client.response().unwrap().text(), format!("GET /{number} HTTP/1.1\n"));
    }
    assert!(client.at_end());
}

#[test]
fn a_get_whose_pooled_connection_is_reset_under_it_is_asked_again() {
    let (origin, lines) = second(|_, stream| reset(stream));
    let site = Site::proxying(&[origin.address], "[global]\nthreads = 1\n");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    assert_eq!(client.get("/").text(), "first");
    assert_eq!(client.get("/").text(), "first");
    assert_eq!((lines.try_iter().count(), origin.accepted()), (3, 2));
}

#[test]
fn a_get_whose_answer_had_begun_is_not_asked_again() {
    for beginning in ["HTTP/1.1 200 OK\r\nContent-", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"] {
        let (origin, lines) = second(move |_, mut stream| stream.write_all(beginning.as_bytes()).unwrap());
        let site = Site::proxying(&[origin.address], "[global]\nthreads = 1\n");
        let _daemon = site.start();
        let mut client = Client::connect(site.address());
        assert_eq!(client.get("/").text(), "first");
        let mut answer = client.get("/");
        if answer.status() == 103 {
            answer = client.response().unwrap();
        }
        assert_eq!(answer.status(), 502, "{beginning:?}");
        assert_eq!((lines.try_iter().count(), origin.accepted()), (2, 1), "{beginning:?}");
    }
}

#[test]
fn what_a_server_says_unasked_is_nobodys_answer() {
    let count = AtomicUsize::new(0);
    let origin = Origin::answering(move |request| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        let wanted = ok(&format!("{number} {}", request.line));
        if number == 0 { [wanted, ok("unasked")].concat() } else { wanted }
    });
    let site = Site::proxying(&[origin.address], "[global]\nthreads = 1\n");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    assert_eq!(client.get("/a").text(), "0 GET /a HTTP/1.1");
    for number in 1..4 {
        assert_eq!(client.get("/b").text(), format!("{number} GET /b HTTP/1.1"));
    }
    assert_eq!(origin.accepted(), 2, "the connection with the rest was not used again");
}

#[test]
fn a_server_that_breaks_off_inside_an_upload_is_a_bad_gateway_and_asked_once() {
    let (sender, heads) = mpsc::channel();
    let origin = Origin::new(move |mut stream| {
        let head = read_head(&mut BufReader::with_capacity(1, stream.try_clone().unwrap())).unwrap();
        stream.read_exact(&mut [0; 1000]).unwrap();
        sender.send(head.line).unwrap();
        reset(stream);
    });
    let log = Syslog::new();
    let site = Site::proxying(&[origin.address], &log.section());
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("PUT /x HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000\r\n\r\n");
    client.send(vec![0; 1000]);
    let answer = client.response().unwrap();
    assert_eq!((answer.status(), answer.field("connection")), (502, Some("close")));
    assert_eq!(log.words()[9], "SH--");
    assert_eq!(heads.iter().take(1).collect::<Vec<_>>(), ["PUT /x HTTP/1.1"]);
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn a_connection_whose_request_was_cut_short_is_not_used_again() {
    let (sender, rest) = mpsc::channel();
    let origin = Origin::new(move |mut stream| {
        let mut reader = BufReader::with_capacity(1, stream.try_clone().unwrap());
        let Some(head) = read_head(&mut reader) else { return };
        if head.line.starts_with("POST") {
            // It answers before it has the body, and would take whatever comes for the rest of it.
            stream.write_all(&ok("early")).unwrap();
            let mut bytes = Vec::new();
            let _ = reader.read_to_end(&mut bytes);
            sender.send(bytes).unwrap();
        } else {
            stream.write_all(&ok("other")).unwrap();
        }
    });
    let site = Site::proxying(&[origin.address], "[global]\nthreads = 1\n");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n12345");
    let answer = client.response().unwrap();
    assert_eq!((answer.text().as_str(), answer.field("connection")), ("early", Some("close")));
    assert_eq!(get(site.address(), "/").text(), "other");
    client.send([b'x'; 95]);
    let body = rest.recv_timeout(PATIENCE).unwrap();
    assert!(body.len() < 100 && !body.windows(3).any(|bytes| bytes == b"GET"), "{}", support::text(&body));
}

#[test]
fn an_answer_without_length_is_whole_when_the_server_ends_its_side() {
    // It answers, says that it has nothing more to say, and reads on: an answer until the end of the connection.
    let origin = Origin::new(|mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        read_message(&mut reader, false).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nwithout length").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = reader.read_to_end(&mut Vec::new());
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for _ in 0..2 {
        let answer = client.ask("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!((answer.text().as_str(), answer.complete), ("without length", true));
    }
    assert_eq!(origin.accepted(), 2);
    let mut old = Client::connect(site.address());
    old.send("GET / HTTP/1.0\r\n\r\n");
    let (bytes, end) = old.end();
    assert!(bytes.ends_with(b"\r\n\r\nwithout length") && end == End::Closed);
}

#[test]
fn a_head_and_a_body_in_single_bytes_are_a_whole_message_both_ways() {
    let origin = Origin::new(|mut stream| {
        stream.set_nodelay(true).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read_message(&mut reader, false) {
            for byte in ok(&request.text()) {
                stream.write_all(&[byte]).unwrap();
            }
        }
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for framing in
        ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"]
    {
        for byte in format!("POST / HTTP/1.1\r\nHost: t\r\n{framing}").bytes() {
            client.send([byte]);
        }
        assert_eq!(client.response().unwrap().text(), "hello");
    }
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn a_slow_reader_gets_every_byte_of_an_answer_whose_server_is_gone() {
    let body = download(300_000);
    let (tell, told) = mpsc::channel();
    let sent = body.clone();
    let origin = Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        read_message(&mut reader, false).unwrap();
        // No length: the end of the connection is the end of the body.
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        stream.write_all(&sent).unwrap();
        drop((stream, reader));
        tell.send(()).unwrap();
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    for version in ["1.0", "1.1"] {
        let mut client = Client::connect(site.address());
        client.send(format!("GET / HTTP/{version}\r\nHost: t\r\n\r\n"));
        told.recv_timeout(PATIENCE).unwrap();
        let answer = client.response().unwrap();
        assert!(answer.complete && answer.body == body, "{version}: {} bytes", answer.body.len());
    }
}

#[test]
fn a_client_that_reads_only_after_its_whole_slow_upload_finds_an_early_answer() {
    let origin = Origin::new(|mut stream| {
        read_head(&mut BufReader::with_capacity(1, stream.try_clone().unwrap())).unwrap();
        stream.write_all(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 3\r\n\r\nbig").unwrap();
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 20000\r\n\r\n");
    // Longer than the answer's sender would wait for somebody who is silent.
    let (_alive, never) = mpsc::channel::<()>();
    for _ in 0..20 {
        client.send([0; 1000]);
        never.recv_timeout(Duration::from_millis(100)).unwrap_err();
    }
    let answer = client.response().unwrap();
    assert_eq!((answer.status(), answer.text().as_str(), answer.complete), (413, "big", true));
    assert!(client.at_end());
}

/// In front of a server that does not answer a connection; what becomes of a request is in the log.
fn unanswered(syslog: &Syslog) -> (Site, Full) {
    let full = Full::new();
    let timeouts = "retries = 3\ntimeout.connect = \"60s\"\n";
    let site = Site::proxying(&[full.address], &format!("{timeouts}{}", syslog.section()));
    let text = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), text.replace("backend = \"pool\"", "backend = \"pool\"\nproto = \"auto\"")).unwrap();
    (site, full)
}

/// Waits until a request waits for its connection.
fn await_connecting(server: SocketAddr) {
    let port = format!(":{:04X}", server.port());
    until("a connection that is not answered", || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        // In the state SYN_SENT.
        table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .any(|words| words.get(2).is_some_and(|remote| remote.ends_with(&port)) && words[3] == "02")
    });
}

#[test]
fn nobody_goes_on_connecting_for_a_client_that_is_gone() {
    let syslog = Syslog::new();
    let (site, full) = unanswered(&syslog);
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET /gone HTTP/1.1\r\nHost: t\r\n\r\n");
    await_connecting(full.address);
    let began = Instant::now();
    reset(client.reader.into_inner());
    let line = syslog.line();
    assert!(line.contains("\"GET /gone HTTP/1.1\"") && line.contains(" CC-- "), "{line}");
    support::h2::run(async {
        let (client, _) = support::h2::H2Client::connect(site.address()).await;
        let (response, mut stream) = client.send.clone().send_request(client.request("POST", "/back"), false).unwrap();
        let server = full.address;
        tokio::task::spawn_blocking(move || await_connecting(server)).await.unwrap();
        stream.send_reset(h2::Reason::CANCEL);
        drop((response, stream));
        // The connection itself lives on, and is driven meanwhile.
        let line = tokio::task::spawn_blocking(move || syslog.line()).await.unwrap();
        assert!(line.contains("/back ") && line.contains(" CC-- "), "{line}");
    });
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[test]
fn an_ending_worker_tells_of_those_for_whom_it_still_connects() {
    let syslog = Syslog::new();
    let (site, full) = unanswered(&syslog);
    let mut daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET /late HTTP/1.1\r\nHost: t\r\n\r\n");
    await_connecting(full.address);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let line = syslog.line();
    assert!(line.contains("\"GET /late HTTP/1.1\"") && line.contains(" KC-- "), "{line}");
    daemon.wait();
}
