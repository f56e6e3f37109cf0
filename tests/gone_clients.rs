//! Clients that are gone while a server works for them, and clients that have only ended their side: what becomes of the
//! server's connection, the access line and the counters, plain, over TLS and over HTTP/2.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;

use rustls::ALL_VERSIONS;
use serde_json::Value;
use support::client::{Client, get, read_head, read_message};
use support::h2::H2Client;
use support::origin::{Gate, Origin};
use support::syslog::Syslog;
use support::tls::{Pair, TlsClient};
use support::{PATIENCE, Port, Site, reset};

/// What a server sends before it is silent, and tells when it has, and when its connection ends.
fn silent_after(beginning: &'static str) -> (Origin, mpsc::Receiver<&'static str>) {
    let (tell, told) = mpsc::channel();
    let origin = Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        if read_head(&mut reader).is_none() {
            return;
        }
        stream.write_all(beginning.as_bytes()).unwrap();
        tell.send("asked").unwrap();
        while matches!(reader.read(&mut [0; 64]), Ok(1..)) {}
        // The test may be over already.
        let _ = tell.send("ended");
    });
    (origin, told)
}

/// A server's time-out that no test lives to see: whoever ends before has noticed that the client is gone.
const LONG: &str = "timeout = { server = \"10m\", client = \"10m\" }\n";

/// A frontend without TLS, one with, and a statistics page.
struct Doors {
    site: Site,
    secured: Port,
    page: Port,
    log: Syslog,
}

impl Doors {
    fn new(server: SocketAddr) -> Self {
        let (secured, page, log) = (Port::new(), Port::new(), Syslog::new());
        let text = format!(
            "[defaults]\n{LONG}[frontend.secured]\nbind = \"{}\"\nbackend = \"pool\"\ntls = {{ certificates = [\"a.pem\"] }}\n\
             [stats]\nbind = \"{}\"\nuri = \"/stats\"\n{}",
            secured.address,
            page.address,
            log.section()
        );
        let web = Site::text(&[server], &text).replace("bind = \"{port}\"", "bind = \"{port}\"\nproto = \"auto\"");
        let site = Site::new(&web);
        Pair::written(site.folder.path(), "a.pem", "localhost");
        Self { site, secured, page, log }
    }

    /// Errors of requests, then what clients broke off: of frontends, of the backend, of its server.
    fn counted(&self) -> [u64; 3] {
        let rows: Vec<BTreeMap<String, Value>> =
            serde_json::from_slice(&get(self.page.address, "/stats;json").body).unwrap();
        let sum = |service: &str, column: &str| {
            let of = rows.iter().filter(|row| row["svname"] == service);
            of.map(|row| number(&row[column])).sum()
        };
        [sum("FRONTEND", "ereq"), sum("BACKEND", "cli_abrt"), sum("s1", "cli_abrt")]
    }

    fn shake(&self) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
        TlsClient::new(ALL_VERSIONS).shake(self.secured.address, "localhost").unwrap()
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

const ASKED: &[u8] = b"GET /x HTTP/1.1\r\nHost: t\r\n\r\n";
const PHASES: [(&str, &str); 2] = [("", "-1"), ("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome", "200")];

#[test]
fn a_server_is_spared_the_work_for_a_client_whose_connection_is_reset() {
    for (beginning, status) in PHASES {
        let (origin, told) = silent_after(beginning);
        let doors = Doors::new(origin.address);
        let _daemon = doors.site.start();
        for tls in [false, true] {
            let before = doors.counted();
            let socket = if tls {
                let mut stream = doors.shake();
                stream.write_all(ASKED).unwrap();
                stream.sock
            } else {
                let mut client = Client::connect(doors.site.address());
                client.send(ASKED);
                client.reader.into_inner()
            };
            assert_eq!(told.recv_timeout(PATIENCE), Ok("asked"));
            if status == "200" {
                // What has not begun to arrive is none of the answer.
                assert!(socket.peek(&mut [0; 1]).unwrap() > 0);
            }
            reset(socket);
            assert_eq!(told.recv_timeout(PATIENCE), Ok("ended"), "status {status}, TLS {tls}");
            let line = doors.log.line();
            assert!(line.contains(&format!(" {status} ")) && line.contains(" CD-- "), "TLS {tls}: {line}");
            let [requests, backend, server] = before;
            assert_eq!(doors.counted(), [requests, backend + 1, server + 1], "status {status}, TLS {tls}");
        }
    }
}

#[test]
fn a_request_that_is_taken_back_counts_as_broken_off_and_not_as_wrong() {
    support::h2::run(async {
        let (origin, told) = silent_after("");
        let doors = Doors::new(origin.address);
        let (daemon, address) = (doors.site.start(), doors.site.address());
        let (client, _ended) = H2Client::connect(address).await;
        let (response, mut stream) = client.send.clone().send_request(client.request("POST", "/x"), false).unwrap();
        let told = tokio::task::spawn_blocking(move || {
            assert_eq!(told.recv_timeout(PATIENCE), Ok("asked"));
            told
        });
        let told = told.await.unwrap();
        stream.send_reset(h2::Reason::CANCEL);
        drop((response, stream));
        // The connection itself lives on, and is driven meanwhile.
        let looked = tokio::task::spawn_blocking(move || {
            assert_eq!(told.recv_timeout(PATIENCE), Ok("ended"));
            let line = doors.log.line();
            assert!(line.contains(" -1 ") && line.contains(" CD-- "), "{line}");
            assert_eq!(doors.counted(), [0, 1, 1]);
        });
        looked.await.unwrap();
        drop(daemon);
    });
}

#[test]
fn a_client_that_leaves_before_a_server_has_its_request_counts_nowhere() {
    let full = support::origin::Full::new();
    let doors = Doors::new(full.address);
    let _daemon = doors.site.start();
    let mut client = Client::connect(doors.site.address());
    client.send(ASKED);
    support::until("it is being connected", || row_of_sessions(&doors) == 1);
    reset(client.reader.into_inner());
    let line = doors.log.line();
    assert!(line.contains(" -1 ") && line.contains(" CC-- "), "{line}");
    assert_eq!(doors.counted(), [0, 0, 0]);
}

fn row_of_sessions(doors: &Doors) -> u64 {
    let rows: Vec<BTreeMap<String, Value>> =
        serde_json::from_slice(&get(doors.page.address, "/stats;json").body).unwrap();
    number(&rows.iter().find(|row| row["svname"] == "s1").unwrap()["scur"])
}

/// Ends a client's side after its request, lets the server go on once that was looked at, and reads the rest.
fn half(doors: &Doors, gate: &Gate, end: &str) -> String {
    let asked = b"GET /slow HTTP/1.1\r\nHost: t\r\n\r\n";
    if end == "plain" {
        let mut client = Client::connect(doors.site.address());
        client.send(asked);
        gate.arrived();
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        await_look(doors);
        gate.release();
        return client.response().unwrap().text();
    }
    let mut stream = doors.shake();
    stream.write_all(asked).unwrap();
    gate.arrived();
    if end == "goodbye" {
        stream.conn.send_close_notify();
        stream.flush().unwrap();
    }
    stream.sock.shutdown(Shutdown::Write).unwrap();
    await_look(doors);
    gate.release();
    read_message(&mut BufReader::new(stream), true).unwrap().text()
}

/// Until the worker has looked after the client: others that came later have been given up.
fn await_look(doors: &Doors) {
    let before = doors.counted()[1];
    let mut other = Client::connect(doors.site.address());
    other.send(b"GET /slow HTTP/1.1\r\nHost: t\r\n\r\n");
    support::until("the other one is on its way", || row_of_sessions(doors) == 2);
    reset(other.reader.into_inner());
    support::until("the other one is given up", || doors.counted()[1] == before + 1);
    assert!(doors.log.line().contains(" CD-- "));
}

#[test]
fn a_client_that_has_only_ended_its_side_gets_its_answer_however_long_it_takes() {
    for end in ["plain", "bare", "goodbye"] {
        let (origin, gate) = Origin::gated();
        let doors = Doors::new(origin.address);
        let _daemon = doors.site.start();
        assert_eq!(half(&doors, &gate, end), "first half, second half", "{end}");
        let line = doors.log.line();
        assert!(line.contains(" 200 ") && line.contains(" ---- "), "{end}: {line}");
    }
}
