//! Exchanges of HTTP/2 clients that end early, late or half: nobody takes a part for the whole, nothing is done twice, and
//! the other requests of a connection go on.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use support::client::{read_head, read_message};
use support::h2::{
    self as http2, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, H2Client, HEADERS, PING, Raw, WINDOW_UPDATE,
    get_block,
};
use support::origin::{Origin, download, ok};
use support::syslog::Syslog;
use support::{Site, reset};

fn site(origin: &Origin, rest: &str) -> Site {
    Site::new(&format!(
        "[global]\nthreads = 1\n[frontend.web]\nbind = \"{{port}}\"\nproto = \"h2\"\nbackend = \"pool\"\n\
         [backend.pool]\nservers = [\"{}\"]\n{rest}\n",
        origin.address
    ))
}

/// A server that reads a head and does what the path says; with an error it breaks the connection off. It tells what it
/// was asked.
fn scripted(
    serve: impl Fn(&str, &mut BufReader<TcpStream>, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> (Origin, mpsc::Receiver<String>) {
    let (tell, told) = mpsc::channel();
    let origin = Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(head) = read_head(&mut reader) {
            // The test may be over already.
            let _ = tell.send(head.line.clone());
            if serve(head.path(), &mut reader, &mut stream).is_err() {
                return reset(stream);
            }
        }
    });
    (origin, told)
}

#[test]
fn an_early_answer_is_whole_although_most_of_the_body_is_still_to_come() {
    let (origin, _told) = scripted(|path, _reader, stream| match path {
        // Refused unread, by a server that keeps the connection open as well as by one that does not.
        "/kept" => stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"),
        "/closed" => {
            stream.write_all(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\n\r\nbig")?;
            stream.shutdown(Shutdown::Write)
        }
        _ => stream.write_all(&ok("fine")),
    });
    let site = site(&origin, "");
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        let big = download(5_000_000);
        for path in ["/kept", "/closed"] {
            let answer = client.ask(client.request("POST", path), &big).await.unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (413, "big"), "{path}");
            assert_eq!(client.get("/other").await.text(), "fine", "the connection goes on after {path}");
        }
    });
}

#[test]
fn what_is_lost_with_a_pooled_connection_is_asked_again_if_it_may_be() {
    // Each connection answers one request and is broken by the second.
    let (origin, told) = scripted(|path, _reader, stream| match path {
        "/first" => stream.write_all(&ok("first")),
        _ => Err(ErrorKind::ConnectionReset.into()),
    });
    let site = site(&origin, "");
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        assert_eq!(client.get("/first").await.text(), "first");
        let lost = client.ask(client.request("POST", "/lost"), b"hi").await.unwrap();
        assert_eq!(lost.status, 502);
        assert_eq!(client.get("/first").await.text(), "first");
        // Once over a pooled connection, once over a fresh one; that is enough.
        assert_eq!(client.get("/again").await.status, 502);
        assert_eq!(client.get("/first").await.text(), "first");
    });
    let asked: Vec<_> = told.try_iter().collect();
    let count = |line: &str| asked.iter().filter(|asked| asked.starts_with(line)).count();
    assert_eq!((count("POST /lost "), count("GET /again ")), (1, 2), "{asked:?}");
}

#[test]
fn an_answer_without_length_is_whole_when_the_server_ends_its_side_and_cut_when_it_breaks_off() {
    let body = download(300_000);
    let sent = body.clone();
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let (origin, _told) = scripted(move |path, _reader, stream| {
        let head = if path == "/old" { "HTTP/1.0 200 OK\r\n\r\n" } else { "HTTP/1.1 200 OK\r\n\r\n" };
        stream.write_all(head.as_bytes())?;
        if path == "/cut" {
            stream.write_all(b"half")?;
            gone.lock().unwrap().recv().unwrap();
            return Err(ErrorKind::ConnectionReset.into());
        }
        stream.write_all(&sent)?;
        stream.shutdown(Shutdown::Write)
    });
    let site = site(&origin, "");
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        for path in ["/new", "/old"] {
            assert!(client.get(path).await.body == body, "{path}");
        }
        let (response, _) = client.send.clone().send_request(client.request("GET", "/cut"), true).unwrap();
        let mut cut = response.await.unwrap().into_body();
        assert_eq!(cut.data().await.unwrap().unwrap(), "half");
        go.send(()).unwrap();
        let error = cut.data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    });
}

#[test]
fn a_broken_chunked_answer_is_reset_and_not_ended() {
    let (origin, _told) = scripted(|path, _reader, stream| {
        let head: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n";
        let rest: &[u8] = match path {
            "/inside" => b"5\r\nhal",
            "/between" => b"",
            "/size" => b"5z\r\nwrong\r\n0\r\n\r\n",
            _ => b"0\r\nTrailer: cut",
        };
        stream.write_all(&[head, rest].concat())?;
        stream.shutdown(Shutdown::Both)
    });
    let site = site(&origin, "");
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        // Before anything of it has been passed on, there is a better answer.
        assert_eq!(client.get("/size").await.status, 502);
        for path in ["/inside", "/between", "/trailer"] {
            let error = client.ask(client.request("GET", path), b"").await.unwrap_err();
            assert_eq!((error.is_reset(), error.reason()), (true, Some(Reason::INTERNAL_ERROR)), "{path}");
        }
    });
}

#[test]
fn the_client_is_told_to_continue_before_it_sends_its_body() {
    let (origin, _told) = scripted(|_path, reader, stream| {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        let mut body = [0; 5];
        reader.read_exact(&mut body)?;
        stream.write_all(&ok(&String::from_utf8_lossy(&body)))
    });
    let site = site(&origin, "");
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        let mut request = client.request("POST", "/");
        request.headers_mut().insert("expect", "100-continue".parse().unwrap());
        request.headers_mut().insert("content-length", "5".parse().unwrap());
        let (mut response, mut stream) = client.send.clone().send_request(request, false).unwrap();
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!(interim.status(), 100);
        stream.send_data(Bytes::from("later"), true).unwrap();
        assert_eq!(http2::whole(response.await.unwrap()).await.unwrap().text(), "later");
    });
}

#[test]
fn a_body_that_its_client_takes_back_is_never_whole_at_the_server() {
    let (tell, told) = mpsc::channel();
    let origin = Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(request) = read_message(&mut reader, false) {
            tell.send((request.path().to_owned(), request.complete)).unwrap();
            if stream.write_all(&ok("fine")).is_err() {
                return;
            }
        }
    });
    let site = site(&origin, "");
    let _daemon = site.start();
    http2::run(async {
        let (client, ended) = H2Client::connect(site.address()).await;
        for (path, length) in [("/length", Some("10")), ("/chunks", None)] {
            let mut request = client.request("POST", path);
            if let Some(length) = length {
                request.headers_mut().insert("content-length", length.parse().unwrap());
            }
            let (response, mut stream) = client.send.clone().send_request(request, false).unwrap();
            http2::write(&mut stream, b"half,", false).await.unwrap();
            // What follows on the connection has been read behind it.
            assert_eq!(client.get("/other").await.text(), "fine");
            stream.send_reset(Reason::CANCEL);
            drop(response);
        }
        let (_response, mut stream) = client.send.clone().send_request(client.request("POST", "/gone"), false).unwrap();
        http2::write(&mut stream, b"half,", false).await.unwrap();
        assert_eq!(client.get("/other").await.text(), "fine");
        ended.abort();
    });
    let mut seen: Vec<_> = std::iter::from_fn(|| told.recv_timeout(Duration::from_secs(5)).ok()).take(6).collect();
    seen.sort_unstable();
    let cut = ["/chunks", "/gone", "/length"].map(|path| (path.to_owned(), false));
    assert_eq!(seen, [&cut[..], &vec![(String::from("/other"), true); 3]].concat());
}

#[test]
fn slow_ones_on_either_side_are_told_and_the_others_on_the_connection_are_not_kept() {
    let (origin, _told) = scripted(|path, reader, stream| match path {
        "/silent" => reader.read(&mut [0; 1]).map(drop),
        "/stalls" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf,")?;
            reader.read(&mut [0; 1]).map(drop)
        }
        "/upload" => reader.read_to_end(&mut Vec::new()).map(drop),
        _ => stream.write_all(&ok("fine")),
    });
    let timeouts = "timeout.server = \"1s\"\n[defaults.timeout]\nclient = \"1s\"\n";
    let site = site(&origin, timeouts);
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        let (silent, stalls) = (client.clone(), client.clone());
        let silent = tokio::spawn(async move { silent.get("/silent").await.status });
        let stalls = tokio::spawn(async move { stalls.ask(stalls.request("GET", "/stalls"), b"").await });
        // Of this body only the first bytes ever come.
        let (upload, mut stream) = client.send.clone().send_request(client.request("POST", "/upload"), false).unwrap();
        stream.send_data(Bytes::from("some"), false).unwrap();
        for _ in 0..20 {
            assert_eq!(client.get("/other").await.text(), "fine");
        }
        assert_eq!(silent.await.unwrap(), 504);
        assert_eq!(stalls.await.unwrap().unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
        assert_eq!(upload.await.unwrap().status(), 408);
        assert_eq!(client.get("/other").await.text(), "fine");
    });
}

#[test]
fn a_connection_that_is_given_up_for_what_came_over_it_has_a_line_of_its_own() {
    let (origin, _told) = scripted(|_, _reader, stream| stream.write_all(&ok("fine")));
    let syslog = Syslog::new();
    let site = site(&origin, &syslog.section());
    let _daemon = site.start();
    let request = Raw::frame(HEADERS, END_STREAM | END_HEADERS, 1, &get_block(&[]));
    let endless = [vec![0; 3], vec![HEADERS, 0], 1_u32.to_be_bytes().to_vec()].concat();
    let continued: Vec<_> = (0..200).flat_map(|_| Raw::frame(CONTINUATION, 0, 1, b"")).collect();
    for (what, bytes) in [
        ("data of no request", Raw::frame(DATA, 0, 0, b"x")),
        ("a window of nothing", Raw::frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a field with a line end", Raw::frame(HEADERS, END_STREAM | END_HEADERS, 1, &get_block(&[("x", "a\nb")]))),
        ("a flood", Raw::frame(PING, 0, 0, b"12345678").repeat(4000)),
        ("a head without end", [endless, continued].concat()),
    ] {
        let mut raw = Raw::connect(site.address());
        // Whoever is given up may not be able to send it all.
        let _ = raw.0.write_all(&bytes);
        while raw.read().is_some() {}
        let line = syslog.line();
        assert!(line.contains(" -1 0 - - PR-- ") && line.ends_with("\"<BADREQ>\""), "{what}: {line}");
    }
    let mut plain = TcpStream::connect(site.address()).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    plain.read_to_end(&mut Vec::new()).ok();
    assert!(syslog.line().ends_with("\"<BADREQ>\""), "no preface");
    // Neither one that says goodbye nor one that is cut off after its request has more than the line of that.
    for cut in [false, true] {
        let mut raw = Raw::connect(site.address());
        raw.0.write_all(&request).unwrap();
        raw.expect(DATA);
        if cut {
            reset(raw.0);
        } else {
            raw.send(GOAWAY, 0, 0, &[0; 8]);
            while raw.read().is_some() {}
        }
        assert!(syslog.line().contains(" 200 "), "{cut}");
    }
    assert_eq!(syslog.left(), 0);
}
