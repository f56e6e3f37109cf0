//! TCP mode: bytes both ways whatever they are, ends passed on, time-outs, tcplog, counters, what is refused.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use support::client::get;
use support::origin::{Origin, download};
use support::syslog::Syslog;
use support::tls::TlsClient;
use support::{PATIENCE, Port, Site, certificate, code, reset, text};

/// A site in TCP mode.
fn text_of(servers: &[SocketAddr], extra: &str) -> String {
    format!("[defaults]\nmode = \"tcp\"\n{extra}\n{}", Site::text(servers, ""))
}

fn tcp(servers: &[SocketAddr], extra: &str) -> Site {
    Site::new(&text_of(servers, extra))
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends back what it gets, until the end, and then ends.
fn echo() -> Origin {
    Origin::new(|mut stream| {
        let mut buffer = [0; 65_536];
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..read]).is_err() {
                return;
            }
        }
    })
}

/// Reads all there is, then answers with its length and ends.
fn counting() -> Origin {
    Origin::new(|mut stream| {
        let mut bytes = Vec::new();
        if stream.read_to_end(&mut bytes).is_ok() {
            let _ = stream.write_all(format!("{}", bytes.len()).as_bytes());
        }
    })
}

fn read_exactly(stream: &mut impl std::io::Read, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn bytes_that_are_no_http_pass_both_ways() {
    let site = tcp(&[echo().address], "");
    let _daemon = site.start();
    let mut client = connect(site.address());
    for message in [&b"\0\xff\n"[..], b"GET", b"\r\n\r\n"] {
        client.write_all(message).unwrap();
        assert_eq!(read_exactly(&mut client, message.len()), message);
    }
}

#[test]
fn a_large_stream_arrives_byte_for_byte_both_ways() {
    let site = tcp(&[echo().address], "");
    let _daemon = site.start();
    let mut client = connect(site.address());
    let bytes = download(32 << 20);
    let mut writer = client.try_clone().unwrap();
    let sent = bytes.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    writing.join().unwrap();
    assert!(received == bytes, "{} of {} bytes, or not the same", received.len(), bytes.len());
}

#[test]
fn an_end_is_passed_on_and_the_other_direction_stays_open() {
    let site = tcp(&[counting().address], "");
    let _daemon = site.start();
    let mut client = connect(site.address());
    client.write_all(b"twelve bytes").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), b"12");
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let origin = Origin::new(|mut stream| {
        stream.write_all(b"220 ready\r\n").unwrap();
        let _ = stream.read(&mut [0; 1]);
    });
    let site = tcp(&[origin.address], "");
    let _daemon = site.start();
    assert_eq!(read_exactly(&mut connect(site.address()), 11), b"220 ready\r\n");
}

#[test]
fn tls_is_taken_off_and_the_rest_passes() {
    let site = tcp(&[echo().address], "");
    certificate(site.folder.path(), "a.pem", &["localhost"]);
    site.configure(&text_of(&[echo().address], "[frontend.web.tls]\ncertificates = [\"a.pem\"]\n"));
    let _daemon = site.start();
    let client = TlsClient::new(rustls::ALL_VERSIONS);
    let mut stream = client.shake(site.address(), "localhost").unwrap();
    // As much as a read of the client's side can give at a time, and no more than one direction can hold.
    let bytes = download(4 << 20);
    for piece in bytes.chunks(32 * 1024) {
        stream.write_all(piece).unwrap();
        assert!(read_exactly(&mut stream, piece.len()) == piece);
    }
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the server's end, after the client's, is a proper one");
}

#[test]
fn a_client_may_name_any_protocol_and_gets_the_one_that_is_offered() {
    let site = tcp(&[echo().address], "");
    certificate(site.folder.path(), "a.pem", &["localhost"]);
    let configure = |alpn: &str| {
        let tls = format!("[frontend.web.tls]\ncertificates = [\"a.pem\"]\n{alpn}\n");
        site.configure(&text_of(&[echo().address], &tls));
    };
    let agreed = |offered: &[&[u8]]| {
        let mut client = TlsClient::new(rustls::ALL_VERSIONS);
        client.config.alpn_protocols = offered.iter().map(|protocol| protocol.to_vec()).collect();
        let mut stream = client.shake(site.address(), "localhost").ok()?;
        stream.write_all(b"x").unwrap();
        assert_eq!(read_exactly(&mut stream, 1), b"x");
        Some(stream.conn.alpn_protocol().map(<[u8]>::to_vec))
    };
    configure("");
    let _daemon = site.start();
    // Nobody here knows what the server speaks.
    for offered in [&[&b"mqtt"[..]][..], &[b"h2"], &[b"h2", b"http/1.1"], &[]] {
        assert_eq!(agreed(offered), Some(None), "{offered:?}");
    }
    configure("alpn = [\"mqtt\", \"x-amzn-mqtt-ca\"]");
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    assert_eq!(agreed(&[b"x-amzn-mqtt-ca", b"mqtt"]), Some(Some(b"mqtt".to_vec())));
    assert_eq!(agreed(&[]), Some(None));
    assert_eq!(agreed(&[b"h2"]), None, "RFC 7301 section 3.2");
    for (wrong, problem) in [("alpn = []", "no protocol at all"), ("alpn = [\"\"]", "1 to 255 bytes")] {
        configure(wrong);
        let output = site.proxy(&["check"]);
        assert!(code(&output) == 1 && text(&output.stderr).contains(problem), "{wrong}: {}", text(&output.stderr));
    }
}

#[test]
fn a_break_is_no_end() {
    let (tell, told) = std::sync::mpsc::channel();
    let origin = Origin::new(move |mut stream| {
        let mut bytes = Vec::new();
        stream.write_all(b"hello").unwrap();
        tell.send(stream.read_to_end(&mut bytes).map_err(|error| error.kind())).unwrap();
    });
    let log = Syslog::new();
    let site = tcp(&[origin.address], &log.section());
    let _daemon = site.start();
    let mut client = connect(site.address());
    assert_eq!(read_exactly(&mut client, 5), b"hello");
    client.write_all(b"half of it").unwrap();
    reset(client);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Err(std::io::ErrorKind::ConnectionReset));
    assert_eq!(log.words()[6], "CD");

    let breaking = Origin::new(|mut stream| {
        stream.read_exact(&mut [0; 4]).unwrap();
        stream.write_all(b"part").unwrap();
        reset(stream);
    });
    let site = tcp(&[breaking.address], &log.section());
    let _daemon = site.start();
    let mut client = connect(site.address());
    client.write_all(b"more").unwrap();
    let error = client.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(log.words()[6], "SD");
}

#[test]
fn tcplog_is_written_at_the_end_of_the_connection() {
    let log = Syslog::new();
    let origin = echo();
    let site = tcp(&[origin.address], &log.section());
    let _daemon = site.start();
    let mut client = connect(site.address());
    let from = client.local_addr().unwrap();
    client.write_all(b"ping").unwrap();
    assert_eq!(read_exactly(&mut client, 4), b"ping");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut client), b"");
    let words = log.words();
    assert_eq!((&words[0], &words[2], &words[3]), (&from.to_string(), &"web".into(), &"pool/s1".into()));
    let times: Vec<i64> = words[4].split('/').map(|time| time.parse().unwrap()).collect();
    assert!(times.len() == 3 && times[0] == 0 && times.iter().all(|time| *time >= 0), "{words:?}");
    assert_eq!(words[5..], ["4", "--", "1/1/0/0/0", "0/0"], "bytes, state, connections, queues");
}

#[test]
fn a_server_that_cannot_be_reached_is_told_apart_in_the_log() {
    let log = Syslog::new();
    let dead = Port::new();
    let site = tcp(&[dead.address], &format!("retries = 0\n{}", log.section()));
    let _daemon = site.start();
    assert_eq!(read_to_end(&mut connect(site.address())), b"");
    let words = log.words();
    assert_eq!((words[3].as_str(), words[6].as_str()), ("pool/s1", "SC"), "{words:?}");
    assert!(words[4].starts_with("0/-1/"), "never connected: {words:?}");
}

#[test]
fn the_last_retry_goes_to_another_server() {
    let log = Syslog::new();
    let (dead, alive) = (Port::new(), echo());
    let site =
        tcp(&[dead.address, alive.address], &format!("retries = 1\ntimeout.connect = \"50ms\"\n{}", log.section()));
    let _daemon = site.start();
    for _ in 0..2 {
        let mut client = connect(site.address());
        client.write_all(b"x").unwrap();
        assert_eq!(read_exactly(&mut client, 1), b"x");
    }
    let mut ends: Vec<_> = (0..2).map(|_| log.words()).map(|words| (words[3].clone(), words[7].clone())).collect();
    ends.sort();
    assert_eq!(ends[0].0, "pool/s2");
    assert!(ends.iter().any(|(_, counts)| counts.ends_with("/+1")), "{ends:?}");
}

#[test]
fn who_is_silent_for_too_long_is_let_go_and_named() {
    let log = Syslog::new();
    for (timeouts, state) in [
        ("timeout.client = \"150ms\"", "cD"),
        ("timeout.server = \"150ms\"", "sD"),
        // Once data has flown both ways this one counts alone.
        ("timeout = { client = \"60s\", server = \"60s\", tunnel = \"150ms\" }", "cD"),
    ] {
        let site = tcp(&[echo().address], &format!("{timeouts}\n{}", log.section()));
        let _daemon = site.start();
        let began = Instant::now();
        let mut client = connect(site.address());
        if timeouts.contains("tunnel") {
            client.write_all(b"x").unwrap();
            read_exactly(&mut client, 1);
        }
        assert_eq!(read_to_end(&mut client), b"");
        assert!(began.elapsed().as_millis() >= 100);
        assert_eq!(log.words()[6], state, "{timeouts}");
    }
}

#[test]
fn a_tunnel_outlives_the_time_outs_of_its_sides() {
    let site = tcp(&[echo().address], "timeout = { client = \"500ms\", server = \"500ms\" }");
    let _daemon = site.start();
    let mut client = connect(site.address());
    client.write_all(b"x").unwrap();
    read_exactly(&mut client, 1);
    // Others come and time out meanwhile: by then this one's time would have been up as well.
    for _ in 0..3 {
        assert_eq!(read_to_end(&mut connect(site.address())), b"");
    }
    client.write_all(b"y").unwrap();
    assert_eq!(read_exactly(&mut client, 1), b"y");
}

#[test]
fn a_receiver_that_does_not_read_holds_the_sender_back() {
    let origin = Origin::new(|stream| {
        // Reads nothing until the test is over.
        std::thread::park();
        drop(stream);
    });
    let log = Syslog::new();
    let site = tcp(&[origin.address], &format!("timeout.server = \"500ms\"\n{}", log.section()));
    let _daemon = site.start();
    let mut client = connect(site.address());
    let piece = vec![0; 1 << 20];
    let written = std::iter::repeat_with(|| client.write(&piece)).map_while(Result::ok).take(1024).sum::<usize>();
    assert!(written < 256 << 20, "{written} bytes went where nobody reads");
    assert_eq!(log.words()[6], "sD");
}

#[test]
fn sessions_and_bytes_are_counted_and_no_requests() {
    let page = Port::new();
    let origin = echo();
    let site = tcp(&[origin.address], &format!("[stats]\nbind = \"{}\"\nuri = \"/stats\"\n", page.address));
    let _daemon = site.start();
    for _ in 0..3 {
        let mut client = connect(site.address());
        client.write_all(b"12345").unwrap();
        read_exactly(&mut client, 5);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut client), b"");
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&get(page.address, "/stats;json").body).unwrap();
        let all =
            rows.iter().all(|row| (&row["stot"], &row["bin"], &row["bout"]) == (&3.into(), &15.into(), &15.into()));
        if all {
            assert!(rows.len() == 3 && rows.iter().all(|row| row["mode"] == "tcp" && row.get("hrsp_2xx").is_none()));
            return;
        }
        assert!(Instant::now() < deadline, "{rows:#?}");
    }
}

#[test]
fn what_speaks_of_requests_is_refused_in_tcp_mode() {
    let site = tcp(&[echo().address], "");
    for (extra, problem) in [
        ("[frontend.web.request-headers]\ndel = [\"X\"]", "`request-headers` means nothing"),
        ("[frontend.web.limit]\nheaders = 5", "`limit` means nothing"),
        ("[frontend.web.timeout]\nhttp-request = \"1s\"", "unknown key `http-request`"),
        (
            "[frontend.h]\nmode = \"http\"\nbind = \"127.0.0.1:1\"\nbackend = \"pool\"",
            "has mode \"http\", [backend.pool] \"tcp\"",
        ),
        ("[backend.b]\nservers = \"127.0.0.1:1\"\nconnection-mode = \"close\"", "`connection-mode` means nothing"),
        (
            "[frontend.i]\naccess-format = \"httplog\"\nbind = \"127.0.0.1:1\"\nbackend = \"pool\"",
            "`httplog` shows requests",
        ),
    ] {
        site.configure(&format!("{}\n{extra}\n", text_of(&[echo().address], "")));
        let output = site.proxy(&["check"]);
        assert_eq!(code(&output), 1, "{extra}");
        assert!(text(&output.stderr).contains(problem), "{extra}: {}", text(&output.stderr));
    }
}
