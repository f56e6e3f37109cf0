//! Bodies and interim responses, with real processes: framing, trailers, back-pressure, truncation.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Duration;

use support::client::{Client, End, get, read_head, read_message};
use support::origin::{Origin, ok};
use support::{PATIENCE, Site, reset};

/// A connection is stuck when nothing moves for this long.
const STUCK: Duration = Duration::from_millis(500);
/// Most that a worker may own while a body passes through it, in KiB.
const MOST_MEMORY: u64 = 64 * 1024;
const MIB: usize = 1 << 20;

/// An origin whose every connection reads one head and then does what `serve` says.
fn scripted(serve: impl Fn(BufReader<TcpStream>, TcpStream) + Send + Sync + 'static) -> Origin {
    Origin::new(move |stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        if read_head(&mut reader).is_some() {
            serve(reader, stream);
        }
    })
}

/// Resident memory of a process in KiB.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Writes zeros until nothing moves any more or `most` are written; returns how many were.
fn write_until_stuck(stream: &mut TcpStream, most: usize) -> usize {
    stream.set_write_timeout(Some(STUCK)).unwrap();
    let zeros = vec![0; 64 * 1024];
    let mut written = 0;
    while written < most {
        match stream.write(&zeros[..zeros.len().min(most - written)]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("cannot write: {error}"),
        }
    }
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    written
}

/// Reads bytes in small pieces and measures a process all the while; returns the most memory it had.
fn read_measuring(reader: &mut impl std::io::Read, bytes: usize, pid: u32) -> u64 {
    let mut buffer = vec![0; 16 * 1024];
    let (mut most, mut left, mut measure_at) = (0, bytes, bytes);
    while left > 0 {
        let wanted = buffer.len().min(left);
        let read = reader.read(&mut buffer[..wanted]).unwrap();
        assert!(read > 0, "it ended {left} bytes early");
        left -= read;
        if left <= measure_at {
            most = most.max(memory(pid));
            measure_at = left.saturating_sub(8 * MIB);
        }
    }
    most
}

#[test]
fn chunked_bodies_and_their_trailers_pass_both_ways() {
    let (origin, requests) = Origin::recording(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
          4;ext=1\r\nwiki\r\n00005\r\npedia\r\n0\r\nX-Sum: 9\r\nContent-Length: 3\r\n\r\n"
            .to_vec()
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for _ in 0..2 {
        let answer = client.ask(
            "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n\
             3\r\nabc\r\nA;x\r\n0123456789\r\n0\r\nX-End: yes\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        let request = requests.next();
        assert_eq!((request.text().as_str(), request.complete), ("abc0123456789", true));
        assert_eq!((request.field("transfer-encoding"), request.field("trailer")), (Some("chunked"), Some("X-End")));
        // A trailer that would frame or route is no trailer.
        assert_eq!(request.trailers, [("x-end".into(), "yes".into())]);
        assert_eq!((answer.text().as_str(), answer.complete), ("wikipedia", true));
        assert_eq!((answer.field("transfer-encoding"), answer.field("trailer")), (Some("chunked"), Some("X-Sum")));
        assert_eq!(answer.trailers, [("x-sum".into(), "9".into())]);
    }
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn a_field_that_is_removed_or_replaced_does_not_come_back_as_a_trailer() {
    let (origin, requests) = Origin::recording(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nServer-Secret: 1\r\nX-Fine: 2\r\n\r\n".to_vec()
    });
    let edits = "[frontend.web.request-headers]\ndel = [\"X-Admin\"]\nset = { X-User = \"nobody\" }\n\
        [frontend.web.response-headers]\ndel = [\"server-secret\"]\n";
    let site = Site::proxying(&[origin.address], edits);
    let _daemon = site.start();
    let answer = Client::connect(site.address()).ask(
        "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\nX-ADMIN: yes\r\nx-user: root\r\nX-End: 1\r\n\r\n",
    );
    let request = requests.next();
    assert_eq!(request.trailers, [("x-end".into(), "1".into())]);
    assert_eq!(request.values("x-user"), ["nobody"]);
    assert_eq!(answer.trailers, [("x-fine".into(), "2".into())]);
}

#[test]
fn a_chunk_is_passed_on_before_the_next_one_exists() {
    let (permit, permitted) = mpsc::channel();
    let permitted = std::sync::Mutex::new(permitted);
    let origin = scripted(move |_, mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").unwrap();
        permitted.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").unwrap();
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(client.head().unwrap().status(), 200);
    let mut chunk = [0; 8];
    client.reader.read_exact(&mut chunk).unwrap();
    assert_eq!(&chunk, b"3\r\none\r\n");
    permit.send(()).unwrap();
    let mut rest = [0; 13];
    client.reader.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"3\r\ntwo\r\n0\r\n\r\n");
}

#[test]
fn an_http_1_0_client_gets_chunks_as_plain_bytes_until_the_end() {
    let origin = Origin::answering(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n5\r\npedia\r\n0\r\n\r\n".to_vec()
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    for connection in ["", "Connection: keep-alive\r\n"] {
        let mut client = Client::connect(site.address());
        client.send(format!("GET / HTTP/1.0\r\n{connection}\r\n"));
        let head = client.head().unwrap();
        assert_eq!((head.field("transfer-encoding"), head.field("connection")), (None, Some("close")));
        assert_eq!(client.end(), (b"wikipedia".to_vec(), End::Closed));
    }
}

#[test]
fn a_body_that_ends_with_the_servers_connection_is_chunked_and_the_client_kept() {
    let origin = scripted(|_, mut stream| stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nto the end").unwrap());
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for _ in 0..2 {
        let answer = client.get("/");
        assert_eq!((answer.text().as_str(), answer.complete), ("to the end", true));
        assert_eq!((answer.field("transfer-encoding"), answer.field("connection")), (Some("chunked"), None));
    }
}

#[test]
fn a_broken_chunk_is_refused_and_never_completes_at_the_server() {
    let (sender, seen) = mpsc::channel();
    let origin = Origin::new(move |stream| {
        let request = read_message(&mut BufReader::new(stream), false).unwrap();
        sender.send(request.complete).unwrap();
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    for broken in
        ["x\r\n", "5\r\nabcdeX\r\n", "-1\r\n", "5\nabcde\r\n", "11111111111111111\r\n", "0\r\n bad: x\r\n\r\n"]
    {
        let mut client = Client::connect(site.address());
        client.send("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n");
        client.send(broken);
        assert_eq!(client.response().unwrap().status(), 400, "{broken:?}");
        assert_eq!(client.rest(), b"", "{broken:?}");
        // The head may have left before the broken chunk came; then the server must see a break.
        assert!(!seen.recv_timeout(STUCK).unwrap_or(false), "{broken:?}");
    }
}

#[test]
fn the_client_is_told_to_continue_before_it_sends_its_body() {
    let origin = Origin::new(|stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            assert_eq!(head.field("expect"), Some("100-continue"));
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            let mut body = [0; 5];
            reader.read_exact(&mut body).unwrap();
            writer.write_all(&ok(&support::text(&body))).unwrap();
        }
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for _ in 0..2 {
        client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
        let interim = client.response().unwrap();
        assert_eq!((interim.status(), interim.fields.len()), (100, 0));
        assert_eq!(client.ask("hello").text(), "hello");
    }
    assert_eq!(origin.accepted(), 1, "both connections are as good as after any other request");
}

#[test]
fn a_server_that_refuses_a_body_unseen_is_heard_at_once() {
    let origin = scripted(|mut reader, mut stream| {
        stream.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").unwrap();
        // Not one byte of a body may come once the answer is given.
        let _ = reader.read(&mut [0; 1]);
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    let answer = client.ask("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!((answer.status(), answer.text().as_str()), (417, "no"));
    // Whether the body still comes is not known, so nothing else can be.
    assert_eq!(answer.field("connection"), Some("close"));
    // A body that is on its way is taken in: a reset could destroy an answer not read yet.
    assert!(client.at_end());
    // A moment, in which a connection that was simply closed is gone.
    site.status();
    client.send("he");
    client.send("llo");
    client.reader.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.end(), (Vec::new(), End::Closed));
}

#[test]
fn an_answer_to_half_a_body_reaches_a_client_that_sends_it_all_first() {
    const SIZE: usize = 32 * MIB;
    let origin = scripted(|_, mut stream| {
        // Closing with unread bytes is a reset: what was said before must count nevertheless.
        stream.write_all(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 3\r\n\r\nbig").unwrap();
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send(format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {SIZE}\r\n\r\n"));
    client.send(vec![0; SIZE]);
    let answer = client.response().unwrap();
    assert_eq!((answer.status(), answer.text().as_str(), answer.complete), (413, "big", true));
    assert!(client.at_end());
}

#[test]
fn early_hints_pass_before_the_answer_exists_but_not_to_http_1_0() {
    let (permit, permitted) = mpsc::channel();
    let permitted = std::sync::Mutex::new(permitted);
    let origin = scripted(move |_, mut stream| {
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
        stream.write_all(format!("{hints}{hints}").as_bytes()).unwrap();
        permitted.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        stream.write_all(&ok("final")).unwrap();
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    for _ in 0..2 {
        let hints = client.response().unwrap();
        assert_eq!((hints.status(), hints.field("link")), (103, Some("</a.css>; rel=preload")));
        assert_eq!(hints.fields.len(), 1, "an interim response has no fields of ours: {hints:?}");
    }
    permit.send(()).unwrap();
    assert_eq!(client.response().unwrap().text(), "final");

    permit.send(()).unwrap();
    let answer = Client::connect(site.address()).ask("GET / HTTP/1.0\r\n\r\n");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "final"));
}

#[test]
fn a_gigabyte_uploaded_to_a_slow_server_needs_no_memory() {
    const SIZE: usize = 1 << 30;
    let (sender, heads) = mpsc::channel();
    let origin = scripted(move |reader, stream| sender.send((reader, stream)).unwrap());
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let worker = support::serving(&site.status());
    let mut client = Client::connect(site.address());
    client.send(format!("PUT / HTTP/1.1\r\nHost: test\r\nContent-Length: {SIZE}\r\n\r\n"));
    let (mut reader, mut stream) = heads.recv_timeout(PATIENCE).unwrap();

    // Nobody reads: what the kernel's buffers take is all that leaves.
    let mut upload = client.reader.get_ref().try_clone().unwrap();
    let written = write_until_stuck(&mut upload, SIZE);
    assert!(written < 64 * MIB, "{} MiB were taken from the client although nobody reads", written / MIB);
    assert!(memory(worker) < MOST_MEMORY, "{} KiB", memory(worker));

    let writer = std::thread::spawn(move || upload.write_all(&vec![0; SIZE - written]).unwrap());
    let most = read_measuring(&mut reader, SIZE, worker);
    assert!(most < MOST_MEMORY, "{most} KiB");
    writer.join().unwrap();
    stream.write_all(&ok("done")).unwrap();
    assert_eq!(client.response().unwrap().text(), "done");
}

#[test]
fn a_large_download_to_a_slow_client_needs_no_memory() {
    const SIZE: usize = 256 * MIB;
    let (sender, stuck) = mpsc::channel();
    let origin = scripted(move |_, mut stream| {
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes()).unwrap();
        let written = write_until_stuck(&mut stream, SIZE);
        sender.send(written).unwrap();
        stream.write_all(&vec![0; SIZE - written]).unwrap();
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let worker = support::serving(&site.status());
    let mut client = Client::connect(site.address());
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(client.head().unwrap().status(), 200);
    let written = stuck.recv_timeout(PATIENCE).unwrap();
    assert!(written < 64 * MIB, "{} MiB were taken from the server although nobody reads", written / MIB);
    assert!(memory(worker) < MOST_MEMORY, "{} KiB", memory(worker));
    let most = read_measuring(&mut client.reader, SIZE, worker);
    assert!(most < MOST_MEMORY, "{most} KiB");
}

#[test]
fn a_server_may_answer_while_the_request_still_comes() {
    const SIZE: usize = 16 * MIB;
    // An echo: whoever finishes one direction before the other waits forever.
    let origin = scripted(|mut reader, mut stream| {
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes()).unwrap();
        std::io::copy(&mut reader.by_ref().take(SIZE as u64), &mut stream).unwrap();
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send(format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {SIZE}\r\n\r\n"));
    let body: Vec<u8> = (0..SIZE).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let (mut upload, sent) = (client.reader.get_ref().try_clone().unwrap(), body.clone());
    let writer = std::thread::spawn(move || upload.write_all(&sent).unwrap());
    let answer = client.response().unwrap();
    assert!(answer.complete && answer.body == body, "{} of {SIZE} bytes came back right", answer.body.len());
    writer.join().unwrap();
}

#[test]
fn a_client_that_stops_inside_its_body_is_told_so_and_never_completes_it() {
    let (sender, seen) = mpsc::channel();
    let origin = Origin::new(move |stream| {
        let request = read_message(&mut BufReader::new(stream), false).unwrap();
        sender.send((request.text(), request.complete)).unwrap();
    });
    let site = Site::proxying(&[origin.address], "[frontend.web.timeout]\nclient = \"300ms\"");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    let answer = client.ask("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!((answer.status(), answer.field("connection")), (408, Some("close")));
    assert!(client.at_end());
    assert_eq!(seen.recv_timeout(PATIENCE).unwrap(), (String::from("half"), false));
}

#[test]
fn a_client_that_stops_reading_is_let_go_after_its_timeout() {
    let (sender, broken) = mpsc::channel();
    let origin = scripted(move |_, mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        // Far more than every buffer on the way holds.
        let zeros = vec![0; MIB];
        sender.send((0..256).any(|_| stream.write_all(&zeros).is_err())).unwrap();
    });
    let site = Site::proxying(&[origin.address], "[frontend.web.timeout]\nclient = \"300ms\"");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(client.head().unwrap().status(), 200);
    assert!(broken.recv_timeout(PATIENCE).unwrap(), "the server could write everything although nobody reads");
    assert_eq!(client.end().1, End::Reset);
}

#[test]
fn chunks_that_are_broken_from_the_start_are_a_bad_gateway() {
    let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense\r\n";
    let origin = scripted(move |_, mut stream| stream.write_all(response.as_bytes()).unwrap());
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let answer = get(site.address(), "/");
    assert_eq!((answer.status(), answer.complete), (502, true), "nothing had been sent yet: {answer:?}");
}

#[test]
fn a_truncated_response_never_looks_complete() {
    for (head, body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "half"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", ""),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "4\r\nhalf\r\n"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "8\r\nhalf"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "4\r\nhalf\r\n0\r\nX-Trailer: 1\r\n"),
    ] {
        let origin = scripted(move |_, mut stream| stream.write_all(format!("{head}{body}").as_bytes()).unwrap());
        let site = Site::proxying(&[origin.address], "");
        let _daemon = site.start();
        let mut client = Client::connect(site.address());
        client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        if let Some(answer) = client.response() {
            assert!(!answer.complete && answer.status() == 200, "{answer:?} from {head:?} {body:?}");
        }
        // Not a time-out of the reader, a real end.
        client.end();

        // Without framing only a reset tells the end from a break.
        let mut old = Client::connect(site.address());
        old.send("GET / HTTP/1.0\r\n\r\n");
        assert_eq!(old.end().1, End::Reset, "{head:?} {body:?}");
    }
}

#[test]
fn a_server_that_breaks_off_an_endless_body_does_not_make_it_complete() {
    let (sender, streams) = mpsc::channel();
    let origin = scripted(move |_, mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf").unwrap();
        sender.send(stream).unwrap();
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    for (version, expected) in [("1.1", b"4\r\nhalf\r\n".as_slice()), ("1.0", b"half")] {
        let mut client = Client::connect(site.address());
        client.send(format!("GET / HTTP/{version}\r\nHost: test\r\n\r\n"));
        assert_eq!(client.head().unwrap().status(), 200);
        let mut body = vec![0; expected.len()];
        client.reader.read_exact(&mut body).unwrap();
        assert_eq!(body, expected);
        // Closing at once, without the rest of the handshake, is a reset.
        let stream = streams.recv_timeout(PATIENCE).unwrap();
        reset(stream);
        assert_eq!(client.end(), (Vec::new(), End::Reset), "HTTP/{version}");
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_body_never_completes_it() {
    let (sender, seen) = mpsc::channel();
    let origin = Origin::new(move |stream| {
        let request = read_message(&mut BufReader::new(stream), false).unwrap();
        sender.send((request.text(), request.complete)).unwrap();
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    for (framing, body) in [("Content-Length: 10", "half"), ("Transfer-Encoding: chunked", "4\r\nhalf\r\n")] {
        let mut client = Client::connect(site.address());
        client.send(format!("POST / HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n{body}"));
        drop(client);
        assert_eq!(seen.recv_timeout(PATIENCE).unwrap(), (String::from("half"), false), "{framing}");
    }
}
