//! Access lines beside HAProxy's own: the same exchange through both, well-ended and failing in every way, and every
//! field that neither measures time nor counts bytes of heads is the same, or the difference is named here.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Mutex, mpsc};

use support::client::{Client, Message, read_head};
use support::haproxy::Haproxy;
use support::origin::{Full, Origin, ok};
use support::syslog::Syslog;
use support::{PATIENCE, Port, Site, reset};

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Reads whatever still comes, until the end.
fn until_end(mut stream: impl std::io::Read) -> Option<TcpStream> {
    let mut buffer = [0; 65_536];
    while matches!(stream.read(&mut buffer), Ok(1..)) {}
    None
}

/// A server that fails as its request's path says; what has to wait until the client has seen something waits for `go`.
fn faulty(go: mpsc::Receiver<()>) -> Origin {
    let go = Mutex::new(go);
    Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(head) = read_head(&mut reader) {
            let length: u64 = head.field("content-length").map_or(0, |length| length.parse().unwrap());
            if head.path() == "/ok" {
                let _ = reader.by_ref().take(length).read_to_end(&mut Vec::new());
            }
            stream.write_all(said(&head).as_bytes()).unwrap();
            match head.path() {
                "/ok" | "/hints" | "/continue" => continue,
                "/reset" => reset(stream),
                "/endless" => while stream.write_all(&[0; 65_536]).is_ok() {},
                "/silent" | "/stall" | "/early" | "/upgrade" | "/upload" | "/welcome" => drop(until_end(&mut reader)),
                "/late-nonsense" => {
                    go.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                    stream.write_all(b"nonsense\r\n").unwrap();
                    until_end(&mut reader);
                }
                "/late" => {
                    go.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                    let _ = stream.write_all(&ok("late"));
                }
                _ => {}
            }
            return;
        }
    })
}

fn said(head: &Message) -> &'static str {
    match head.path() {
        "/ok" if head.line.starts_with("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        "/ok" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "/early" => "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n",
        "/hints" => "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "/continue" => "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "/welcome" => "HTTP/1.1 100 Continue\r\n\r\n",
        "/until-close" => "HTTP/1.1 200 OK\r\n\r\nto the end",
        "/ssh" => "SSH-2.0-OpenSSH_9.9\r\n\r\n",
        "/half-a-head" => "HTTP/1.1 200 OK\r\nContent-",
        "/two-lengths" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        "/short" | "/reset" | "/stall" => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "/short-chunks" | "/late-nonsense" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "/nonsense" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        "/more" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi and more",
        "/upgrade" => {
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        }
        "/endless" => "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n",
        _ => "",
    }
}

/// A server of streams that does what their first four bytes say.
fn faulty_stream() -> Origin {
    Origin::new(|mut stream| {
        let mut word = [0; 4];
        if stream.read_exact(&mut word).is_err() {
            return;
        }
        match &word {
            b"echo" => {
                stream.write_all(&word).unwrap();
                until_end(stream);
            }
            b"kill" => {
                stream.write_all(b"part").unwrap();
                reset(stream);
            }
            b"floo" => while stream.write_all(&[0; 65_536]).is_ok() {},
            b"none" => drop(until_end(stream)),
            _ => {}
        }
    })
}

fn connect(address: SocketAddr, word: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(word).unwrap();
    stream
}

/// What a client does, told where; a connection it still has when its line is awaited.
type Visit = fn(&Product, &mpsc::Sender<()>) -> Option<TcpStream>;

fn request(product: &Product, text: &str) -> Client {
    request_at(product.at("web"), text)
}

fn request_at(address: SocketAddr, text: &str) -> Client {
    let mut client = Client::connect(address);
    client.send(text.replace("HTTP/1.1\r\n", "HTTP/1.1\r\nHost: test\r\n"));
    client
}

/// Sends a request and takes what comes until the end, whatever it is.
fn visit(product: &Product, text: &str) -> Option<TcpStream> {
    until_end(request(product, text).reader)
}

fn get(product: &Product, path: &str) -> Option<TcpStream> {
    visit(product, &format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n"))
}

const SCENES: &[(&str, Visit)] = &[
    ("an answer", |at, _| get(at, "/ok")),
    ("an upload", |at, _| visit(at, "POST /ok HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")),
    ("a HEAD", |at, _| visit(at, "HEAD /ok HTTP/1.1\r\nConnection: close\r\n\r\n")),
    ("an answer to HTTP/1.0", |at, _| visit(at, "GET /ok HTTP/1.0\r\n\r\n")),
    ("an answer on a connection that ends later", |at, _| {
        let mut client = request(at, "GET /ok HTTP/1.1\r\n\r\n");
        assert_eq!(client.response().unwrap().status(), 200);
        None
    }),
    ("early hints", |at, _| get(at, "/hints")),
    ("an unasked 100", |at, _| get(at, "/continue")),
    ("an answer until the end", |at, _| get(at, "/until-close")),
    ("an answer with more behind it", |at, _| get(at, "/more")),
    ("a redirect", |at, _| until_end(request_at(at.at("moved"), "GET / HTTP/1.1\r\nConnection: close\r\n\r\n").reader)),
    ("no backend", |at, _| until_end(request_at(at.at("lost"), "GET / HTTP/1.1\r\n\r\n").reader)),
    ("a switch of protocols", |at, _| {
        let mut client = request(at, &format!("GET /upgrade HTTP/1.1\r\n{UPGRADE}\r\n"));
        assert_eq!(client.head().unwrap().status(), 101);
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        until_end(client.reader)
    }),
    ("a refusal before the upload's end", |at, _| {
        let mut client = request(at, "POST /early HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf");
        assert_eq!(client.response().unwrap().status(), 413);
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        until_end(client.reader)
    }),
    ("no HTTP", |at, _| visit(at, "\u{16}\u{3}\u{1}\0\u{5}hello\r\n\r\n")),
    ("two lengths", |at, _| visit(at, "GET /ok HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx")),
    ("a head that is not finished", |at, _| visit(at, "GET /ok HTTP/1.1\r\nHost: t")),
    ("a head that is cut off", |at, _| {
        let client = request(at, "GET /ok HTTP/1.1\r\nHost: t");
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        until_end(client.reader)
    }),
    ("a head that is reset", |at, _| {
        reset(request(at, "GET /ok HTTP/1.1\r\nHost: t").reader.into_inner());
        None
    }),
    ("an upload that stops", |at, _| visit(at, "POST /upload HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf")),
    ("an upload that is cut off", |at, _| {
        let mut client = request(at, "POST /welcome HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf");
        assert_eq!(client.head().unwrap().status(), 100);
        client.reader.get_ref().shutdown(Shutdown::Write).unwrap();
        until_end(client.reader)
    }),
    ("an upload that is reset", |at, _| {
        let mut client = request(at, "POST /welcome HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf");
        assert_eq!(client.head().unwrap().status(), 100);
        reset(client.reader.into_inner());
        None
    }),
    ("an upload in broken chunks", |at, _| {
        visit(at, "POST /upload HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n");
        None
    }),
    ("a client that leaves before its answer", |at, go| {
        drop(request(at, "GET /late HTTP/1.1\r\n\r\n"));
        go.send(()).unwrap();
        None
    }),
    ("no answer", |at, _| get(at, "/silent")),
    ("an end instead of an answer", |at, _| get(at, "/nothing")),
    ("an answer that is no HTTP", |at, _| get(at, "/ssh")),
    ("half a head", |at, _| get(at, "/half-a-head")),
    ("an answer with two lengths", |at, _| get(at, "/two-lengths")),
    ("a body that ends early", |at, _| get(at, "/short")),
    ("chunks that end early", |at, _| get(at, "/short-chunks")),
    ("chunks that are broken from the start", |at, _| get(at, "/nonsense")),
    ("chunks that break", |at, go| {
        let mut client = request(at, "GET /late-nonsense HTTP/1.1\r\n\r\n");
        client.head().unwrap();
        go.send(()).unwrap();
        until_end(client.reader)
    }),
    ("a body that is reset", |at, _| get(at, "/reset")),
    ("a body that stops", |at, _| get(at, "/stall")),
    ("a client that stops reading", |at, _| {
        let mut client = request(at, "GET /endless HTTP/1.1\r\n\r\n");
        client.head().unwrap();
        Some(client.reader.into_inner())
    }),
    ("a client that leaves inside its answer", |at, _| {
        let mut client = request(at, "GET /endless HTTP/1.1\r\n\r\n");
        client.head().unwrap();
        reset(client.reader.into_inner());
        None
    }),
    ("a server that is not there", |at, _| get(at, "/dead/")),
    ("a server that does not accept", |at, _| get(at, "/deaf/")),
    ("a stream", |at, _| {
        let mut stream = connect(at.at("raw"), b"echo");
        stream.read_exact(&mut [0; 4]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        until_end(stream)
    }),
    ("a stream the server ends", |at, _| {
        let mut stream = connect(at.at("raw"), b"quit");
        let _ = stream.read_to_end(&mut Vec::new());
        None
    }),
    ("a stream in which both are silent", |at, _| until_end(connect(at.at("raw"), b"none"))),
    ("a stream that falls silent", |at, _| until_end(connect(at.at("raw"), b"echo"))),
    ("a stream the client resets", |at, _| {
        let mut stream = connect(at.at("raw"), b"echo");
        stream.read_exact(&mut [0; 4]).unwrap();
        reset(stream);
        None
    }),
    ("a stream the server resets", |at, _| until_end(connect(at.at("raw"), b"kill"))),
    ("a stream nobody reads", |at, _| {
        let mut stream = connect(at.at("raw"), b"flood");
        stream.read_exact(&mut [0; 4]).unwrap();
        Some(stream)
    }),
    ("a stream to a server that is not there", |at, _| until_end(connect(at.at("raw-dead"), b"none"))),
];

const FRONTENDS: [&str; 5] = ["web", "moved", "lost", "raw", "raw-dead"];

/// One of the two: its lines, and the ports of its frontends.
struct Product {
    log: Syslog,
    ports: [Port; FRONTENDS.len()],
}

impl Product {
    fn new() -> Self {
        Self { log: Syslog::new(), ports: FRONTENDS.map(|_| Port::new()) }
    }

    fn at(&self, frontend: &str) -> SocketAddr {
        self.ports[FRONTENDS.iter().position(|name| *name == frontend).unwrap()].address
    }

    /// A configuration in which the names of frontends in pointed brackets stand for their ports.
    fn configured(&self, text: &str) -> String {
        FRONTENDS
            .iter()
            .fold(text.to_owned(), |text, name| text.replace(&format!("<{name}>"), &self.at(name).to_string()))
    }
}

/// Where both find the servers.
struct Servers {
    web: SocketAddr,
    raw: SocketAddr,
    dead: SocketAddr,
    deaf: SocketAddr,
}

/// Lines that differ: the scene, ours, HAProxy's (more than one where it depends on what it notices first), and why
/// that is left so.
type Difference = (&'static str, &'static str, &'static [&'static str], &'static str);

const NO_STATUS: &str = "-1 is what its manual writes where no answer has begun; an interim one is none";
const NO_BYTES: &str = "HAProxy does not count what its multiplexer answers";

#[rustfmt::skip]
const DIFFERENCES: &[Difference] = &[
    (
        "no backend",
        "lost lost/<NOSRV> n/-1/-1/-1/n 503 n - - SC-- n/n/0/0/0 0/0 \"GET / HTTP/1.1\"",
        &["lost lost/<NOSRV> -1/-1/-1/-1/n 503 n - - SC-- n/n/0/0/0 0/0 \"GET / HTTP/1.1\""],
        "the request was there, however briefly it took",
    ),
    (
        "a refusal before the upload's end",
        "web pool/s1 n/n/n/n/n 413 n - - ---- n/n/0/0/0 0/0 \"POST /early HTTP/1.1\"",
        &["web pool/s1 n/n/n/n/n 413 n - - CD-- n/n/0/0/0 0/0 \"POST /early HTTP/1.1\""],
        "the answer has arrived, the client owes nothing, and its line is written when it has",
    ),
    (
        "no HTTP",
        "web web/<NOSRV> -1/-1/-1/-1/n 400 n - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\"",
        &["web web/<NOSRV> -1/-1/-1/-1/n 400 0 - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        NO_BYTES,
    ),
    (
        "two lengths",
        "web web/<NOSRV> -1/-1/-1/-1/n 400 n - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\"",
        &["web web/<NOSRV> -1/-1/-1/-1/n 400 0 - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        NO_BYTES,
    ),
    (
        "a head that is not finished",
        "web web/<NOSRV> -1/-1/-1/-1/n 408 n - - cR-- n/n/0/0/0 0/0 \"<BADREQ>\"",
        &["web web/<NOSRV> -1/-1/-1/-1/n 408 0 - - cR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        NO_BYTES,
    ),
    (
        "a head that is cut off",
        "web web/<NOSRV> -1/-1/-1/-1/n 400 n - - CR-- n/n/0/0/0 0/0 \"<BADREQ>\"",
        &["web web/<NOSRV> -1/-1/-1/-1/n 400 0 - - CR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        NO_BYTES,
    ),
    (
        "an upload that stops",
        "web pool/s1 n/n/n/-1/n 408 n - - cH-- n/n/0/0/0 0/0 \"POST /upload HTTP/1.1\"",
        &["web pool/s1 n/n/n/-1/n 504 n - - sH-- n/n/0/0/0 0/0 \"POST /upload HTTP/1.1\""],
        "the client is to blame, and HAProxy has the server wait for it",
    ),
    (
        "an upload that is cut off",
        "web pool/s1 n/n/n/-1/n -1 n - - CD-- n/n/0/0/0 0/0 \"POST /welcome HTTP/1.1\"",
        &["web pool/s1 n/n/n/-1/n 0 n - - CD-- n/n/0/0/0 0/0 \"POST /welcome HTTP/1.1\""],
        NO_STATUS,
    ),
    (
        "an upload that is reset",
        "web pool/s1 n/n/n/-1/n -1 n - - CD-- n/n/0/0/0 0/0 \"POST /welcome HTTP/1.1\"",
        &["web pool/s1 n/n/n/-1/n 0 n - - CD-- n/n/0/0/0 0/0 \"POST /welcome HTTP/1.1\""],
        NO_STATUS,
    ),
    (
        "an upload in broken chunks",
        "web pool/s1 n/n/n/-1/n 400 n - - PR-- n/n/0/0/0 0/0 \"POST /upload HTTP/1.1\"",
        &["web web/<NOSRV> -1/-1/-1/-1/n 400 0 - - PR-- n/n/0/0/0 0/0 \"<BADREQ>\""],
        "HAProxy looks at the first chunk together with the head, and forgets both",
    ),
    (
        "a stream the server resets",
        "raw raw-pool/s1 n/n/n 4 SD n/n/0/0/0 0/0",
        &["raw raw-pool/s1 n/n/n 4 -- n/n/0/0/0 0/0", "raw raw-pool/s1 n/n/n 4 SD n/n/0/0/0 0/0"],
        "a reset is no end, whatever came before it",
    ),
];

fn ours(servers: &Servers, log: &Syslog) -> String {
    let Servers { web, raw, dead, deaf } = servers;
    format!(
        r#"{}
[global]
threads = 1
[defaults]
retries = 1
timeout = {{ connect = "200ms", server = "800ms", client = "400ms", http-request = "600ms", http-keep-alive = "600ms", tunnel = "400ms" }}
[frontend.web]
bind = "<web>"
route = [
  {{ when = {{ path-prefix = "/dead/" }}, backend = "dead" }},
  {{ when = {{ path-prefix = "/deaf/" }}, backend = "deaf" }},
]
backend = "pool"
[frontend.moved]
bind = "<moved>"
rule = [{{ redirect = {{ scheme = "https" }} }}]
[frontend.lost]
bind = "<lost>"
route = [{{ when = {{ path = "/never" }}, backend = "pool" }}]
[frontend.raw]
mode = "tcp"
bind = "<raw>"
backend = "raw-pool"
[frontend.raw-dead]
mode = "tcp"
bind = "<raw-dead>"
backend = "raw-none"
[backend.pool]
server = [{{ name = "s1", address = "{web}" }}]
[backend.dead]
server = [{{ name = "s1", address = "{dead}" }}]
[backend.deaf]
server = [{{ name = "s1", address = "{deaf}" }}]
[backend.raw-pool]
mode = "tcp"
server = [{{ name = "s1", address = "{raw}" }}]
[backend.raw-none]
mode = "tcp"
server = [{{ name = "s1", address = "{dead}" }}]
"#,
        log.section(),
    )
}

fn theirs(servers: &Servers, log: &Syslog) -> String {
    let Servers { web, raw, dead, deaf } = servers;
    format!(
        "global\n  log {} local0\n  nbthread 1\n\
         defaults\n  log global\n  mode http\n  option httplog\n  option dontlognull\n  retries 1\n  option redispatch\n  \
         timeout connect 200ms\n  timeout server 800ms\n  timeout client 400ms\n  timeout http-request 600ms\n  \
         timeout http-keep-alive 600ms\n  timeout tunnel 400ms\n\
         frontend web\n  bind <web>\n  use_backend dead if {{ path_beg /dead/ }}\n  use_backend deaf if {{ path_beg /deaf/ }}\n  \
         default_backend pool\n\
         frontend moved\n  bind <moved>\n  http-request redirect scheme https\n\
         frontend lost\n  bind <lost>\n  use_backend pool if {{ path /never }}\n\
         frontend raw\n  mode tcp\n  option tcplog\n  bind <raw>\n  default_backend raw-pool\n\
         frontend raw-dead\n  mode tcp\n  option tcplog\n  bind <raw-dead>\n  default_backend raw-none\n\
         backend pool\n  server s1 {web}\nbackend dead\n  server s1 {dead}\nbackend deaf\n  server s1 {deaf}\n\
         backend raw-pool\n  mode tcp\n  server s1 {raw}\nbackend raw-none\n  mode tcp\n  server s1 {dead}\n",
        log.address(),
    )
}

/// Of a line, what must be the same: times as whether they were measured, bytes as whether there were any.
fn essence(line: &str) -> String {
    let mut words = line.trim_end().split(' ').skip(2);
    let (frontend, server, times) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let times: Vec<_> = times.split('/').map(|time| if time == "-1" { "-1" } else { "n" }).collect();
    let mut rest: Vec<_> = words.map(str::to_owned).collect();
    let (place, most) = if times.len() == 5 { (1, 0) } else { (0, 1000) };
    if rest[place].parse::<u64>().unwrap() > most {
        rest[place] = String::from("n");
    }
    // How many others are there depends on when the end of the one before is noticed.
    let counts = rest.iter_mut().find(|word| word.matches('/').count() == 4).unwrap();
    *counts = format!("n/n/{}", counts.splitn(3, '/').last().unwrap());
    format!("{frontend} {server} {} {}", times.join("/"), rest.join(" "))
}

#[test]
#[ignore = "needs haproxy; .ci/run runs it"]
fn every_line_is_the_one_that_haproxy_writes() {
    let (go, went) = mpsc::channel();
    let (web, raw, dead, deaf) = (faulty(went), faulty_stream(), Port::new(), Full::new());
    let servers = Servers { web: web.address, raw: raw.address, dead: dead.address, deaf: deaf.address };
    let (our, their) = (Product::new(), Product::new());
    let site = Site::new(&our.configured(&ours(&servers, &our.log)));
    let _daemon = site.start();
    let text = their.configured(&theirs(&servers, &their.log));
    let _haproxy = Haproxy::start(site.folder.path(), &text, &[], (their.at("raw-dead"), || true));
    let mut wrong = Vec::new();
    for (name, visit) in SCENES {
        let [our, their] = [&our, &their].map(|product| {
            let held = visit(product, &go);
            let line = essence(&product.log.line());
            drop(held);
            line
        });
        let known = DIFFERENCES.iter().find(|known| known.0 == *name);
        println!("{name}\n  ours   {our}\n  theirs {their}  {}", known.map_or("", |known| known.3));
        let right = match known {
            Some(known) => known.1 == our && known.2.contains(&their.as_str()),
            None => our == their,
        };
        if !right {
            wrong.push(*name);
        }
    }
    assert_eq!(wrong, [""; 0]);
}
