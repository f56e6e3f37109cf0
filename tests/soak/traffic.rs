//! Clients of every kind, each until it is told to stop; what they did goes into the ledger.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::ledger::{Done, Outcome};
use crate::support::client::{Message, read_head, read_message};
use crate::support::origin::download;
use crate::support::{PATIENCE, reset};

/// Where the frontends are.
#[derive(Clone)]
pub struct Places {
    pub web: SocketAddr,
    pub tls: SocketAddr,
    pub raw: SocketAddr,
    pub junk: SocketAddr,
    /// HTTP/2 by prior knowledge.
    pub two: SocketAddr,
    pub config: Arc<ClientConfig>,
}

/// What is known while it runs.
#[derive(Clone, Default)]
pub struct Shared {
    over: Arc<AtomicBool>,
    pub done: Done,
    /// Connections in TCP mode that were made.
    pub streams: Arc<AtomicUsize>,
    /// Connections of garbage.
    pub junk: Arc<AtomicUsize>,
    /// Whether workers are killed: then a connection may break without an answer.
    pub ruthless: bool,
}

/// Running clients.
pub struct Traffic {
    pub shared: Shared,
    clients: Vec<JoinHandle<()>>,
}

type Run = fn(&Places, &Shared, &str);

const CLIENTS: &[(&str, Run)] = &[
    ("one", |at, all, name| http(at, all, name, Kind { tls: false, keep: false, size: 0 })),
    ("keep", |at, all, name| http(at, all, name, Kind { tls: false, keep: true, size: 0 })),
    ("post", |at, all, name| http(at, all, name, Kind { tls: false, keep: true, size: 700 })),
    ("upload", |at, all, name| http(at, all, name, Kind { tls: false, keep: true, size: 300_000 })),
    ("tls-one", |at, all, name| http(at, all, name, Kind { tls: true, keep: false, size: 0 })),
    ("tls-keep", |at, all, name| http(at, all, name, Kind { tls: true, keep: true, size: 0 })),
    ("tls-post", |at, all, name| http(at, all, name, Kind { tls: true, keep: true, size: 70_000 })),
    ("down", downloads),
    ("tunnel", tunnels),
    ("raw", streams),
    ("two", crate::streams::run),
    ("junk", garbage),
    ("junk2", garbage),
];

impl Traffic {
    /// Starts all of them; `phase` makes the names of their requests their own.
    pub fn start(places: &Places, phase: &str, ruthless: bool) -> Self {
        let shared = Shared { ruthless, ..Shared::default() };
        let clients = CLIENTS.iter().map(|(kind, run)| {
            let (places, shared, name) = (places.clone(), shared.clone(), format!("/{phase}/{kind}"));
            std::thread::spawn(move || run(&places, &shared, &name))
        });
        Self { clients: clients.collect(), shared }
    }

    /// Ends them and waits for their last answers.
    pub fn stop(self) -> Shared {
        self.shared.over.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().unwrap();
        }
        self.shared
    }
}

impl Shared {
    pub fn over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// A request without an answer: only where workers are killed.
    pub fn broke(&self, what: &str) {
        assert!(self.ruthless, "{what} broke off without an answer");
    }
}

trait Wire: std::io::Read + std::io::Write {}

impl<Stream: std::io::Read + std::io::Write> Wire for Stream {}

type Connection = std::io::BufReader<Box<dyn Wire>>;

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A kind of HTTP client.
#[derive(Clone, Copy)]
struct Kind {
    tls: bool,
    keep: bool,
    /// Bytes of each request's body.
    size: usize,
}

fn open(at: &Places, kind: Kind) -> std::io::Result<Connection> {
    if !kind.tls {
        return Ok(Connection::new(Box::new(connect(at.web))));
    }
    let mut stream = connect(at.tls);
    let name = ServerName::try_from("localhost").unwrap();
    let mut session = ClientConnection::new(Arc::clone(&at.config), name).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    Ok(Connection::new(Box::new(StreamOwned::new(session, stream))))
}

fn http(at: &Places, all: &Shared, name: &str, kind: Kind) {
    let body = download(kind.size).iter().map(|byte| char::from(b'a' + byte % 26)).collect::<String>();
    let method = if kind.size > 0 { "POST" } else { "GET" };
    let (mut number, mut kept) = (0, None);
    while !all.over() {
        number += 1;
        let mut connection = match kept.take().map_or_else(|| open(at, kind), Ok) {
            Ok(connection) => connection,
            Err(_) => {
                all.broke("a handshake");
                continue;
            }
        };
        let line = format!("{method} {name}/{number} HTTP/1.1");
        let head = format!("{line}\r\nHost: soak\r\nContent-Length: {}\r\n\r\n", body.len());
        let sent = connection.get_mut().write_all(format!("{head}{body}").as_bytes());
        // Who is answered before the end of his request may be unable to send the rest.
        let Some(answer) = read_message(&mut connection, true) else {
            all.broke(&format!("{line} ({sent:?})"));
            continue;
        };
        if answer.status() == 200 && answer.complete {
            assert!(answer.text() == format!("{line}\n{body}"), "{line}: somebody else's answer");
        }
        note(all, format!("{name}/{number}"), &answer);
        let again = kind.keep && sent.is_ok() && answer.complete && answer.field("connection") != Some("close");
        kept = again.then_some(connection);
    }
}

fn note(all: &Shared, name: String, answer: &Message) {
    let status = answer.status();
    assert!([200, 502, 503, 504].contains(&status), "{name}: {}", answer.line);
    all.done.note(name, Outcome { status, whole: answer.complete });
}

fn downloads(at: &Places, all: &Shared, name: &str) {
    const SIZE: usize = 2_000_000;
    let whole = download(SIZE);
    for number in 0.. {
        if all.over() {
            return;
        }
        let mut connection = Connection::new(Box::new(connect(at.web)));
        let text = format!("GET {name}/{number}?{SIZE} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n");
        let _ = connection.get_mut().write_all(text.as_bytes());
        match read_message(&mut connection, true) {
            None => all.broke("a download"),
            Some(answer) => {
                let expected = if answer.status() == 200 { &whole[..] } else { &answer.body[..] };
                assert!(
                    expected.starts_with(&answer.body) && (!answer.complete || expected.len() == answer.body.len())
                );
                note(all, format!("{name}/{number}"), &answer);
            }
        }
    }
}

/// A tunnel sends pieces and waits for each to come back; then it ends its side.
fn talk(mut stream: TcpStream, all: &Shared, piece: &[u8]) -> std::io::Result<()> {
    for _ in 0..20 {
        stream.write_all(piece)?;
        let mut back = vec![0; piece.len()];
        stream.read_exact(&mut back)?;
        assert!(back == piece, "a tunnel gave back something else");
        if all.over() {
            break;
        }
    }
    stream.shutdown(Shutdown::Write)?;
    assert_eq!(stream.read(&mut [0; 1])?, 0);
    Ok(())
}

fn tunnels(at: &Places, all: &Shared, name: &str) {
    let piece = download(50_000);
    for number in 0.. {
        if all.over() {
            return;
        }
        let mut stream = connect(at.web);
        let ask = "Host: soak\r\nConnection: Upgrade\r\nUpgrade: soak\r\n\r\n";
        let _ = stream.write_all(format!("GET /tunnel{name}/{number} HTTP/1.1\r\n{ask}").as_bytes());
        let mut reader = std::io::BufReader::with_capacity(1, stream.try_clone().unwrap());
        match read_head(&mut reader).map(|head| head.status()) {
            None => all.broke("an upgrade"),
            Some(101) => {
                // Its server may die at any time.
                let whole = talk(stream, all, &piece).is_ok();
                all.done.note(format!("/tunnel{name}/{number}"), Outcome { status: 101, whole });
            }
            Some(status) => all.done.note(format!("/tunnel{name}/{number}"), Outcome { status, whole: true }),
        }
    }
}

fn streams(at: &Places, all: &Shared, _name: &str) {
    let piece = download(100_000);
    while !all.over() {
        let _ = talk(connect(at.raw), all, &piece);
        all.streams.fetch_add(1, Ordering::SeqCst);
    }
}

/// Everything of the parsers' corpus, whole and half, left alone, ended, or reset.
fn garbage(at: &Places, all: &Shared, name: &str) {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let folders =
        ["request", "chunked", "hello", "response"].map(|folder| std::fs::read_dir(corpus.join(folder)).unwrap());
    let mut pieces: Vec<_> =
        folders.into_iter().flatten().map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    pieces.sort();
    if name.ends_with('2') {
        pieces.reverse();
    }
    for (number, piece) in pieces.iter().cycle().enumerate() {
        if all.over() {
            return;
        }
        let mut stream = connect(if number % 5 == 4 { at.raw } else { at.junk });
        let counted = if number % 5 == 4 { &all.streams } else { &all.junk };
        counted.fetch_add(1, Ordering::SeqCst);
        let piece = if number % 2 == 0 { &piece[..] } else { &piece[..piece.len() / 2] };
        let _ = stream.write_all(piece);
        stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let _ = stream.read(&mut [0; 1024]);
        if number % 3 == 0 {
            reset(stream);
        }
    }
}
