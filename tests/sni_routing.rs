//! TLS passed on by the name a client asks for: nothing is decrypted, nothing is lost, nobody is mistaken.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;

use proxy::tls::{Hello, read_hello};
use support::origin::Origin;
use support::syslog::Syslog;
use support::tls::TlsClient;
use support::{PATIENCE, Port, Site, certificate, code, text};

/// What a case of the corpus is called after.
fn verdict(hello: &Hello) -> &'static str {
    match hello {
        Hello::Incomplete => "incomplete",
        Hello::Alien => "alien",
        Hello::Anonymous => "anonymous",
        Hello::Name(_) => "name",
    }
}

/// Every file of the corpus: its name, its verdict, its bytes.
fn corpus() -> Vec<(String, String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/hello");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|path| {
            let part = |part: Option<&std::ffi::OsStr>| part.unwrap().to_str().unwrap().to_owned();
            (part(path.file_stem()), part(path.extension()), std::fs::read(&path).unwrap())
        })
        .collect()
}

#[test]
fn every_hello_of_the_corpus_gets_its_verdict_and_no_earlier_one() {
    let corpus = corpus();
    for wanted in ["incomplete", "alien", "anonymous", "name"] {
        assert!(corpus.iter().any(|(_, verdict, _)| verdict == wanted), "{wanted} is missing");
    }
    for (name, wanted, bytes) in corpus {
        let whole = read_hello(&bytes);
        assert_eq!(verdict(&whole), wanted, "{name}");
        if let Hello::Name(asked) = &whole {
            assert_eq!(asked, "name.example.com", "{name}");
        }
        for end in 0..bytes.len() {
            let part = read_hello(&bytes[..end]);
            assert!(part == Hello::Incomplete || part == whole, "{name} after {end} bytes: {part:?}");
        }
    }
}

/// Whatever becomes of a hello on its way: no verdict is given before it is certain.
#[test]
fn a_damaged_hello_gets_no_verdict_that_a_later_byte_takes_back() {
    let mut random = support::origin::download(1 << 20).into_iter().map(usize::from).cycle();
    let mut below = |limit: usize| (random.next().unwrap() << 8 | random.next().unwrap()) % limit;
    let mut verdicts = std::collections::BTreeSet::new();
    for (name, _, bytes) in corpus().into_iter().filter(|(_, _, bytes)| (10..400).contains(&bytes.len())) {
        for _ in 0..200 {
            let mut damaged = bytes.clone();
            for _ in 0..=below(3) {
                let place = below(damaged.len());
                match below(4) {
                    0 => drop(damaged.remove(place)),
                    1 => damaged.insert(place, below(256) as u8),
                    2 => damaged[place] ^= 1 << below(8),
                    _ => damaged[place] = [0, 1, 3, 22, 255][below(5)],
                }
            }
            let whole = read_hello(&damaged);
            verdicts.insert(verdict(&whole));
            for end in 0..damaged.len() {
                let part = read_hello(&damaged[..end]);
                assert!(part == Hello::Incomplete || part == whole, "{name}: {part:?} after {end} of {damaged:?}");
            }
        }
    }
    assert_eq!(verdicts.len(), 4, "{verdicts:?}");
}

/// The library that takes TLS off elsewhere reads the same names.
#[test]
fn the_library_reads_the_same_names() {
    let mut compared = 0;
    for (name, verdict, bytes) in corpus().into_iter().filter(|(name, ..)| name.contains("openssl") || name == "curl") {
        let mut acceptor = rustls::server::Acceptor::default();
        acceptor.read_tls(&mut &bytes[..]).unwrap();
        let accepted = acceptor.accept().unwrap_or_else(|_| panic!("{name}")).unwrap();
        let theirs = accepted.client_hello().server_name().map(str::to_owned);
        assert_eq!(theirs.is_some(), verdict == "name", "{name}");
        let ours = if let Hello::Name(name) = read_hello(&bytes) { Some(name) } else { None };
        assert_eq!(ours, theirs, "{name}");
        compared += 1;
    }
    assert_eq!(compared, 4);
}

fn hello(name: &str) -> Vec<u8> {
    let config = TlsClient::new(rustls::ALL_VERSIONS).config;
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut session = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut bytes = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Sends its name, then back what it gets.
fn named(name: &'static str) -> Origin {
    Origin::new(move |mut stream| {
        stream.write_all(name.as_bytes()).unwrap();
        let mut buffer = [0; 65_536];
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..read]).is_err() {
                return;
            }
        }
    })
}

fn section(backend: &str, address: SocketAddr) -> String {
    format!("[backend.{backend}]\nmode = \"tcp\"\nservers = \"{address}\"\n")
}

/// A frontend with two routes, and a default where wanted.
fn routing(default: bool, more: &str) -> Site {
    let (apps, exact, other) = (named("apps "), named("exact"), named("other"));
    let default = if default { "backend = \"other\"\n" } else { "" };
    Site::new(&format!(
        "[frontend.pass]\nmode = \"tcp\"\nbind = \"{{port}}\"\n{default}inspect = {{ tls-hello = true, within = \"300ms\" }}\n\
         [[frontend.pass.route]]\nwhen = {{ sni = \"*.apps.example.com\" }}\nbackend = \"apps\"\n\
         [[frontend.pass.route]]\nwhen = [{{ sni = \"One.example.com\" }}, {{ sni = [\"two.example.com\"] }}]\nbackend = \"exact\"\n\
         {}{}{}{more}",
        section("apps", apps.address),
        section("exact", exact.address),
        section("other", other.address)
    ))
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends these bytes in pieces, then its end; everything that comes back.
fn ask(site: &Site, bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut stream = connect(site.address());
    for piece in bytes.chunks(piece) {
        stream.write_all(piece).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn the_name_chooses_the_backend_and_every_byte_arrives() {
    let site = routing(true, "");
    let _daemon = site.start();
    for (name, wanted) in [
        ("x.apps.example.com", "apps "),
        ("a.b.Apps.Example.COM", "apps "),
        ("apps.example.com", "other"),
        ("one.example.com", "exact"),
        ("two.example.com", "exact"),
        ("three.example.com", "other"),
        // No name: an address is none.
        ("127.0.0.1", "other"),
    ] {
        let bytes = hello(name);
        for piece in [bytes.len(), 100] {
            assert!(ask(&site, &bytes, piece) == [wanted.as_bytes(), &bytes].concat(), "{name} in pieces of {piece}");
        }
    }
    assert_eq!(ask(&site, b"GET / HTTP/1.1\r\n\r\n", 100), b"otherGET / HTTP/1.1\r\n\r\n");
    // Whoever says too little, or nothing for too long, goes where everybody goes.
    assert_eq!(ask(&site, &hello("one.example.com")[..50], 50)[..5], *b"other");
    let mut silent = connect(site.address());
    let mut name = [0; 5];
    silent.read_exact(&mut name).unwrap();
    assert_eq!(&name, b"other");
}

#[test]
fn without_a_default_whoever_no_route_fits_is_let_go() {
    let log = Syslog::new();
    let site = routing(false, &log.section());
    let _daemon = site.start();
    assert!(ask(&site, &hello("one.example.com"), 1000).starts_with(b"exact"));
    assert_eq!(log.words()[3], "exact/s1");
    let mut stream = connect(site.address());
    stream.write_all(&hello("none.example.com")).unwrap();
    // What was not read may make it a reset.
    let _ = stream.read_to_end(&mut Vec::new());
    let words = log.words();
    assert_eq!((words[3].as_str(), words[6].as_str()), ("pass/<NOSRV>", "SC"), "{words:?}");
}

#[test]
fn a_real_handshake_goes_through_to_the_server_behind() {
    let web = Origin::named("behind");
    let (inner, site) = (Port::new(), Site::new(""));
    certificate(site.folder.path(), "a.pem", &["x.apps.example.com"]);
    site.configure(&format!(
        "[frontend.pass]\nmode = \"tcp\"\nbind = \"{{port}}\"\ninspect = {{ tls-hello = true }}\n\
         [[frontend.pass.route]]\nwhen = {{ sni = \"*.apps.example.com\" }}\nbackend = \"tls\"\n{}\
         [frontend.web]\nbind = \"{}\"\nbackend = \"web\"\ntls.certificates = [\"a.pem\"]\n\
         [backend.web]\nservers = \"{}\"\n",
        section("tls", inner.address),
        inner.address,
        web.address
    ));
    let _daemon = site.start();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let answer = TlsClient::new(&[version]).get(site.address(), "x.apps.example.com");
        assert_eq!(answer.response.text(), "behind");
    }
}

#[test]
fn routes_that_cannot_work_are_refused() {
    let site = Site::new("");
    let base = "[backend.b]\nmode = \"tcp\"\nservers = \"127.0.0.1:1\"\n[frontend.f]\nmode = \"tcp\"\nbind = \"127.0.0.1:2\"\n";
    let inspect = "inspect = { tls-hello = true }\n";
    for (more, problem) in [
        ("route = [{ when = { sni = \"a\" }, backend = \"b\" }]".to_owned(), "nobody reads the name"),
        (format!("backend = \"b\"\n{inspect}"), "nothing depends on what is looked at"),
        (format!("{inspect}route = [{{ backend = \"b\" }}]"), "a route without a condition"),
        (format!("{inspect}route = [{{ when = {{ sni = \"a\" }} }}]\nbackend = \"b\""), "a route that leads nowhere"),
        (
            format!("{inspect}route = [{{ when = {{ sni = \"a/b\" }}, backend = \"b\" }}]"),
            "is no name a client can ask for",
        ),
        (
            format!("{inspect}route = [{{ when = {{ sni = \"*\" }}, backend = \"b\" }}]"),
            "is no name a client can ask for",
        ),
        (format!("{inspect}route = [{{ when = {{ sin = \"a\" }}, backend = \"b\" }}]"), "unknown key `sin`"),
        (
            "inspect = { within = \"1s\" }\nroute = [{ when = { sni = \"a\" }, backend = \"b\" }]".to_owned(),
            "nothing to look at",
        ),
        ("backend = \"c\"".to_owned(), "there is no [backend.c]"),
    ] {
        site.configure(&format!("{base}{more}\n"));
        let output = site.proxy(&["check"]);
        assert_eq!(code(&output), 1, "{more}");
        assert!(text(&output.stderr).contains(problem), "{more}: {}", text(&output.stderr));
    }
}
