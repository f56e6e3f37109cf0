//! Connections that switch protocols: the request is rebuilt, the 101 is checked, then bytes flow both ways.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{BufReader, Read as _, Write as _};
use std::net::Shutdown;

use support::client::{Client, End, read_head};
use support::origin::{Origin, Requests, download, ok};
use support::syslog::Syslog;
use support::tls::TlsClient;
use support::{PATIENCE, Site, certificate};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nX-Extra: 1\r\n";

/// Switches, with `first` right behind its head, and then sends back what it gets until the end.
fn switching(
    switch: &'static str,
    first: &'static [u8],
) -> (Origin, std::sync::mpsc::Receiver<support::client::Message>) {
    let (tell, told) = std::sync::mpsc::channel();
    let origin = Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let Some(request) = read_head(&mut reader) else { return };
        let _ = tell.send(request);
        stream.write_all(&[switch.as_bytes(), b"\r\n", first].concat()).unwrap();
        let mut buffer = [0; 65_536];
        while let Ok(read @ 1..) = reader.read(&mut buffer) {
            if stream.write_all(&buffer[..read]).is_err() {
                return;
            }
        }
    });
    (origin, told)
}

fn read_exactly(stream: &mut impl std::io::Read, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn an_upgraded_connection_is_a_tunnel_and_a_line_at_its_end() {
    let (origin, asked) = switching(SWITCH, b"first words");
    let log = Syslog::new();
    let site = Site::proxying(&[origin.address], &log.section());
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    // What the client sends without waiting belongs to the tunnel.
    client.send(format!("{ASK}\r\nimpatient"));
    let answer = client.head().unwrap();
    assert_eq!(answer.status(), 101);
    assert_eq!((answer.field("upgrade"), answer.field("connection")), (Some("WebSocket"), Some("Upgrade")));
    assert_eq!(answer.field("x-extra"), Some("1"));
    assert_eq!(read_exactly(&mut client.reader, 20), b"first wordsimpatient");
    let request = asked.recv_timeout(PATIENCE).unwrap();
    assert_eq!(request.values("connection"), ["Upgrade"]);
    assert_eq!(request.values("upgrade"), ["websocket"]);
    let bytes = download(4 << 20);
    let mut writer = client.reader.get_ref().try_clone().unwrap();
    let sent = bytes.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let (received, end) = client.end();
    writing.join().unwrap();
    assert!(received == bytes && end == End::Closed, "{} of {} bytes, {end:?}", received.len(), bytes.len());
    let words = log.words();
    assert_eq!((words[5].as_str(), words[9].as_str()), ("101", "----"), "{words:?}");
    let whole: usize = words[6].parse().unwrap();
    assert!(whole > bytes.len() + 20 && whole < bytes.len() + 300, "head and tunnel: {words:?}");
}

#[test]
fn an_upgrade_through_tls_is_a_tunnel_too() {
    let (origin, _asked) = switching(SWITCH, b"");
    let site = Site::proxying(&[origin.address], "");
    certificate(site.folder.path(), "a.pem", &["localhost"]);
    site.configure(&Site::text(&[origin.address], "[frontend.web.tls]\ncertificates = [\"a.pem\"]\n"));
    let _daemon = site.start();
    let mut stream = TlsClient::new(rustls::ALL_VERSIONS).shake(site.address(), "localhost").unwrap();
    stream.write_all(format!("{ASK}\r\n").as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    assert_eq!(read_head(&mut reader).unwrap().status(), 101);
    for message in [&b"ping"[..], b"\x81\x05hello"] {
        reader.get_mut().write_all(message).unwrap();
        assert_eq!(read_exactly(&mut reader, message.len()), message);
    }
}

#[test]
fn an_upgrade_that_is_declined_is_an_ordinary_exchange() {
    let (origin, requests): (Origin, Requests) = Origin::recording(|_| ok("no"));
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for _ in 0..2 {
        assert_eq!(client.ask(format!("{ASK}\r\n")).text(), "no");
        assert_eq!(requests.next().values("upgrade"), ["websocket"]);
    }
    assert_eq!(client.get("/").text(), "no");
    assert_eq!(requests.next().field("upgrade"), None);
}

#[test]
fn a_server_that_demands_an_upgrade_says_to_what() {
    let demand = |named: &str| {
        let head = "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nContent-Length: 0\r\nUpgrade: ";
        format!("{head}{named}\r\n\r\n").into_bytes()
    };
    // As what would carry requests past us is not asked for, nobody is told to.
    for (named, passed) in [("websocket", Some("websocket")), ("foo/2, bar", Some("foo/2, bar")), ("h2c", None)] {
        let origin = Origin::answering(move |_| demand(named));
        let site = Site::proxying(&[origin.address], "");
        let _daemon = site.start();
        let mut client = Client::connect(site.address());
        let answer = client.get("/");
        assert_eq!((answer.status(), answer.field("upgrade")), (426, passed), "{named}");
        assert_eq!(answer.field("connection"), passed.map(|_| "Upgrade"), "{named}");
        assert_eq!(client.get("/").status(), 426, "the connection goes on");
    }
}

#[test]
fn what_would_carry_requests_past_us_is_not_asked_for() {
    let (origin, requests) = Origin::recording(|_| ok("plain"));
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    for fields in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n",
        "Upgrade: websocket\r\n",
        "Connection: Upgrade\r\n",
    ] {
        let answer = Client::connect(site.address()).ask(format!(
            "GET / HTTP/1.1\r\nHost: t\r\n{fields}\r\n{}",
            if fields.contains("Length") { "hi" } else { "" }
        ));
        assert_eq!(answer.text(), "plain");
        let request = requests.next();
        assert_eq!((request.field("upgrade"), request.field("connection")), (None, None), "{fields}");
        assert_eq!(request.field("http2-settings"), None, "{fields}");
    }
    let old = Client::connect(site.address()).ask(ASK.replace("HTTP/1.1", "HTTP/1.0") + "\r\n");
    assert_eq!((old.text().as_str(), requests.next().field("upgrade")), ("plain", None));
}

#[test]
fn a_server_switches_only_to_what_it_was_asked_for() {
    for switch in [
        "HTTP/1.1 101 S\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n",
        "HTTP/1.1 101 S\r\nUpgrade: other\r\nConnection: Upgrade\r\n",
        "HTTP/1.1 101 S\r\nUpgrade: websocket\r\n",
        "HTTP/1.1 101 S\r\nConnection: Upgrade\r\n",
        "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
    ] {
        let (origin, _asked) = switching(switch, b"smuggled");
        let site = Site::proxying(&[origin.address], "");
        let _daemon = site.start();
        assert_eq!(Client::connect(site.address()).ask(format!("{ASK}\r\n")).status(), 502, "{switch}");
    }
}

#[test]
fn after_the_switch_the_time_out_of_tunnels_counts() {
    let (origin, _asked) = switching(SWITCH, b"");
    let log = Syslog::new();
    let timeouts = "[defaults.timeout]\nclient = \"60s\"\nserver = \"60s\"\ntunnel = \"150ms\"\n";
    let site = Site::proxying(&[origin.address], &format!("{timeouts}{}", log.section()));
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send(format!("{ASK}\r\n"));
    assert_eq!(client.head().unwrap().status(), 101);
    assert_eq!(client.end(), (Vec::new(), End::Closed));
    assert_eq!(log.words()[9], "cD--");
}

#[test]
fn a_tunnel_is_refused_to_who_asks_by_connect() {
    let site = Site::proxying(&[Origin::echo().address], "");
    let _daemon = site.start();
    let ask = "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n";
    assert_eq!(Client::connect(site.address()).ask(ask).status(), 405);
}
