//! The PROXY protocol: whose word is taken, what the client is known by then, and how servers are told.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::io::{BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use proxy::config::SendProxy;
use proxy::socket::{introduce, introduce_self, read_introduction};
use support::client::{Client, read_message};
use support::origin::{Origin, ok};
use support::syslog::Syslog;
use support::tls::{Pair, TlsClient};
use support::{PATIENCE, Port, Site, code, output, text};

#[test]
fn every_header_of_the_corpus_gets_its_verdict_and_no_earlier_one() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/proxy");
    let mut count = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let (name, bytes) = (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
        let whole = read_introduction(&bytes);
        let verdict = match &whole {
            Ok(None) => "more",
            Ok(Some(header)) if header.addresses.is_some() => "ok",
            Ok(Some(_)) => "own",
            Err(_) => "bad",
        };
        assert!(name.starts_with(&format!("{verdict}-")), "{name} is {verdict}: {whole:?}");
        for end in 0..bytes.len() {
            let part = read_introduction(&bytes[..end]);
            assert!(part == Ok(None) || part == whole, "{name} after {end} bytes: {part:?}");
        }
        count += 1;
    }
    assert!(count > 25, "{count}");
}

/// Answers with the address the client is known by.
fn telling() -> Origin {
    Origin::answering(|request| ok(&request.values("x-forwarded-for").join("|")))
}

/// A site that takes the word of these.
fn site(servers: &[SocketAddr], sources: &str, extra: &str) -> Site {
    Site::new(&trusting(&Site::text(servers, extra), sources))
}

fn trusting(text: &str, sources: &str) -> String {
    let text = if text.contains("mode = \"tcp\"") {
        text.to_owned()
    } else {
        text.replace("backend = \"pool\"\n", "backend = \"pool\"\nforwarded-for = true\n")
    };
    text.replace("bind = \"{port}\"", &format!("bind = {{ address = \"{{port}}\", accept-proxy = [{sources}] }}"))
}

const NAMED: &str = "\"127.0.0.0/8\", \"::1\"";
const ANSWERED: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn ends() -> (SocketAddr, SocketAddr) {
    ("192.0.2.1:56324".parse().unwrap(), "198.51.100.7:443".parse().unwrap())
}

#[test]
fn a_client_is_known_by_what_a_named_source_says_of_it() {
    let syslog = Syslog::new();
    let site = site(&[telling().address], NAMED, &syslog.section());
    let _daemon = site.start();
    for version in [SendProxy::V1, SendProxy::V2] {
        let mut client = Client::connect(site.address());
        client.send(introduce(version, ends(), None));
        assert_eq!(client.ask(ANSWERED).text(), "192.0.2.1");
        assert_eq!(client.ask(ANSWERED).text(), "192.0.2.1", "also the second request");
        let line = syslog.line();
        assert!(line.starts_with("192.0.2.1:56324 "), "{line}");
        syslog.line();
        // In one piece with the request, and byte by byte.
        let whole = [introduce(version, ends(), None), ANSWERED.into()].concat();
        assert_eq!(Client::connect(site.address()).ask(&whole).text(), "192.0.2.1");
        let mut slow = Client::connect(site.address());
        for byte in &whole[..whole.len() - 1] {
            slow.send([*byte]);
        }
        assert_eq!(slow.ask(&whole[whole.len() - 1..]).text(), "192.0.2.1");
        // The source's own connection.
        let own = [introduce_self(version), ANSWERED.into()].concat();
        assert_eq!(Client::connect(site.address()).ask(own).text(), "127.0.0.1");
    }
    let six = ("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap());
    let mut client = Client::connect(site.address());
    client.send(introduce(SendProxy::V2, six, None));
    assert_eq!(client.ask(ANSWERED).text(), "2001:db8::1");
}

#[test]
fn who_is_not_named_is_a_client_like_any_other() {
    let site = site(&[telling().address], "\"192.0.2.0/24\", \"::1\"", "");
    let _daemon = site.start();
    assert_eq!(Client::connect(site.address()).ask(ANSWERED).text(), "127.0.0.1");
    let forged = [introduce(SendProxy::V1, ends(), None), ANSWERED.into()].concat();
    assert_eq!(Client::connect(site.address()).ask(forged).status(), 400);
}

#[test]
fn a_named_source_without_a_header_is_refused_and_told_of_once() {
    let syslog = Syslog::new();
    let log = syslog.section().replace("only = [\"access\"]", "only = [\"event\"]");
    let site = site(&[telling().address], NAMED, &format!("[global]\nthreads = 1\n{log}"));
    let _daemon = site.start();
    let mut damaged = introduce(SendProxy::V2, ends(), None);
    damaged[12] = 0x31;
    for bytes in [ANSWERED.as_bytes(), b"PROXY TCP4 a b c d\r\n", &damaged, b"\x16\x03\x01\x00\x05hello"] {
        let mut client = Client::connect(site.address());
        client.send(bytes);
        assert_eq!(client.end().0, b"", "{bytes:?}");
    }
    let mut good = Client::connect(site.address());
    good.send(introduce(SendProxy::V2, ends(), None));
    assert_eq!(good.ask(ANSWERED).status(), 200);
    drop(Client::connect(site.address()));
    let lines: Vec<_> = std::iter::from_fn(|| Some(syslog.line()).filter(|line| !line.contains("in time"))).collect();
    let told = lines.iter().filter(|line| line.contains("a source of accept-proxy is refused: no PROXY header"));
    assert_eq!(told.count(), 1, "{lines:#?}");
}

#[test]
fn a_header_has_to_come_in_the_time_of_a_request() {
    let site = site(&[telling().address], NAMED, "[defaults.timeout]\nhttp-request = \"400ms\"\n");
    let _daemon = site.start();
    for part in [&b""[..], b"PROXY TCP4 192.0.2.1", &introduce(SendProxy::V2, ends(), None)[..20]] {
        let began = Instant::now();
        let mut client = Client::connect(site.address());
        client.send(part);
        assert_eq!(client.end().0, b"");
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    }
}

#[test]
fn a_header_comes_before_tls() {
    let site = site(&[telling().address], NAMED, "[frontend.web.tls]\ncertificates = [\"a.pem\"]\n");
    Pair::written(site.folder.path(), "a.pem", "localhost");
    let _daemon = site.start();
    let mut stream = TcpStream::connect(site.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&introduce(SendProxy::V2, ends(), None)).unwrap();
    let mut secured = TlsClient::new(&[&rustls::version::TLS13]).shake_over(stream, "localhost").unwrap();
    secured.write_all(ANSWERED.as_bytes()).unwrap();
    assert_eq!(read_message(&mut BufReader::new(secured), true).unwrap().text(), "192.0.2.1");
}

#[test]
fn promise_04_a_connection_that_moves_keeps_the_address_it_was_introduced_with() {
    let site = site(&[telling().address], NAMED, "");
    let daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send(introduce(SendProxy::V1, ends(), None));
    assert_eq!(client.ask(ANSWERED).text(), "192.0.2.1");
    for _ in 0..2 {
        let reload = site.proxy(&["reload"]);
        assert_eq!(code(&reload), 0, "{}", text(&reload.stderr));
        site.await_status("one generation", |status| status["generations"].as_array().unwrap().len() == 1);
        assert_eq!(client.ask(ANSWERED).text(), "192.0.2.1");
    }
    drop(daemon);
}

#[test]
fn a_unix_socket_takes_the_word_of_whoever_may_connect() {
    let path = "unix:{dir}/in.sock";
    let server = telling().address;
    let site = Site::new(&trusting(&Site::text(&[server], ""), "\"unix\"").replace("{port}", path));
    let _daemon = site.start();
    let mut stream = std::os::unix::net::UnixStream::connect(site.path("in.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[introduce(SendProxy::V1, ends(), None), ANSWERED.into()].concat()).unwrap();
    assert_eq!(read_message(&mut BufReader::new(stream), true).unwrap().text(), "192.0.2.1");
}

#[test]
fn settings_that_cannot_be_meant_are_errors() {
    let site = Site::new("");
    let text_of = |sources: &str| trusting(&Site::text(&["127.0.0.1:9".parse().unwrap()], ""), sources);
    for (sources, problem) in [
        ("\"10.0.0.1/8\"", "did you mean \"10.0.0.0/8\"?"),
        ("\"unix\"", "names no source"),
        ("\"localhost\"", "write \"10.0.0.0/8\""),
        ("", "nobody is named"),
    ] {
        site.configure(&text_of(sources));
        let check = site.proxy(&["check"]);
        assert!(code(&check) == 1 && text(&check.stderr).contains(problem), "{sources}: {}", text(&check.stderr));
    }
    site.configure(&Site::text(&["127.0.0.1:9".parse().unwrap()], "send-proxy = \"v3\"\n"));
    assert!(text(&site.proxy(&["check"]).stderr).contains("`send-proxy` cannot be `v3`"));
}

/// Reads a header from a stream, and not a byte more.
fn header(stream: &mut impl Read) -> (Vec<u8>, Option<(SocketAddr, SocketAddr)>) {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
        if let Some(header) = read_introduction(&bytes).unwrap() {
            return (bytes, header.addresses);
        }
    }
}

type Heard = mpsc::Receiver<(Vec<u8>, Option<(SocketAddr, SocketAddr)>)>;

/// Wants a header on each connection, tells of it, and answers every request with whom it is for.
fn wanting() -> (Origin, Heard) {
    let (tell, told) = mpsc::channel();
    let origin = Origin::new(move |stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        let (bytes, addresses) = header(&mut reader);
        // The test may be over already.
        let _ = tell.send((bytes, addresses));
        let name = addresses.map(|(source, _)| source.to_string()).unwrap_or_default();
        while read_message(&mut reader, false).is_some() {
            if writer.write_all(&ok(&name)).is_err() {
                return;
            }
        }
    });
    (origin, told)
}

#[test]
fn servers_are_told_whose_a_connection_is_and_it_stays_that_clients() {
    for (word, version) in [("v1", SendProxy::V1), ("v2", SendProxy::V2)] {
        let (origin, heard) = wanting();
        let site = Site::proxying(&[origin.address], &format!("send-proxy = \"{word}\"\n[global]\nthreads = 1\n"));
        let _daemon = site.start();
        let mut clients: Vec<_> = (0..3).map(|_| Client::connect(site.address())).collect();
        for round in 0..3 {
            for client in &mut clients {
                let name = client.reader.get_ref().local_addr().unwrap();
                let request =
                    if round == 1 { "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx" } else { ANSWERED };
                assert_eq!(client.ask(request).text(), name.to_string());
                if round == 0 {
                    let (bytes, addresses) = heard.recv_timeout(PATIENCE).unwrap();
                    assert_eq!(addresses, Some((name, site.address())));
                    assert_eq!(bytes, introduce(version, (name, site.address()), None));
                }
            }
        }
        assert_eq!(origin.accepted(), 3, "each client's own connection is used again, by it alone");
    }
}

#[test]
fn servers_are_told_of_a_clients_tls() {
    let (origin, heard) = wanting();
    let tls = "[frontend.web.tls]\ncertificates = [\"a.pem\"]\n";
    let site = Site::proxying(&[origin.address], &format!("send-proxy = \"v2\"\n{tls}"));
    Pair::written(site.folder.path(), "a.pem", "localhost");
    let _daemon = site.start();
    let answer = TlsClient::new(&[&rustls::version::TLS13]).get(site.address(), "localhost");
    assert_eq!(answer.response.status(), 200);
    let (bytes, _) = heard.recv_timeout(PATIENCE).unwrap();
    let values = &bytes[28..];
    let holds = |part: &[u8]| values.windows(part.len()).any(|window| window == part);
    // Authority, then TLS without a certificate, its version and its cipher.
    assert!(holds(b"\x02\0\x09localhost") && holds(b"\x01\0\0\0\0\x21\0\x07TLSv1.3\x23\0"), "{values:?}");
}

#[test]
fn in_tcp_mode_a_header_is_taken_and_given() {
    let origin = Origin::new(|mut stream| {
        let (bytes, _) = header(&mut stream);
        stream.write_all(&bytes).unwrap();
        let mut rest = [0; 5];
        stream.read_exact(&mut rest).unwrap();
        stream.write_all(&rest).unwrap();
    });
    let site = site(&[origin.address], NAMED, "send-proxy = \"v1\"\n[defaults]\nmode = \"tcp\"\n");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send([introduce(SendProxy::V2, ends(), None), b"hello".into()].concat());
    assert_eq!(text(&client.end().0), "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\nhello");
}

#[test]
fn a_server_may_be_told_in_its_own_way_or_not_at_all() {
    // Each answers with the first byte that it reads.
    let origin = || {
        Origin::new(|mut stream| {
            let mut first = [0; 1];
            stream.read_exact(&mut first).unwrap();
            stream.write_all(&ok(&first[0].to_string())).unwrap();
            let _rest = stream.read(&mut [0; 1024]);
        })
    };
    let origins = [origin(), origin(), origin()];
    let of =
        |name: usize, rest: &str| format!("{{ name = \"s{name}\", address = \"{}\"{rest} }}", origins[name].address);
    let servers = [of(0, ""), of(1, ", send-proxy = \"v2\""), of(2, ", send-proxy = \"off\"")].join(", ");
    for (backend, first) in [("send-proxy = \"v1\"", b'P'), ("", b'G')] {
        let site = Site::new(&format!(
            "[frontend.web]\nbind = \"{{port}}\"\nbackend = \"pool\"\n[backend.pool]\n{backend}\nserver = [{servers}]\n"
        ));
        let _daemon = site.start();
        // A line of text, the signature of version 2, or the request itself.
        let told: Vec<_> = (0..3).map(|_| Client::connect(site.address()).ask(ANSWERED).text()).collect();
        assert_eq!(told, [first, 0x0D, b'G'].map(|byte| byte.to_string()), "{backend}");
    }
    let site = Site::new(&format!(
        "[frontend.web]\nbind = \"{{port}}\"\nbackend = \"pool\"\n[backend.pool]\nprotocol = \"h2c\"\nserver = [{servers}]\n"
    ));
    assert!(text(&site.proxy(&["check"]).stderr).contains("a connection of HTTP/2 is shared by clients"));
}

#[test]
#[ignore = "needs curl"]
fn curl_says_where_it_comes_from() {
    let site = site(&[telling().address], NAMED, "");
    let _daemon = site.start();
    let mut command = Command::new("curl");
    command.args(["-sS", "--haproxy-protocol", "--max-time", "20"]).arg(format!("http://{}/", site.address()));
    let said = output(command);
    assert_eq!(text(&said.stdout), "127.0.0.1", "{}", text(&said.stderr));
}

/// A peer's process, ended with the test.
struct Peer(std::process::Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn peer(mut command: Command, at: SocketAddr) -> Peer {
    let peer = Peer(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(at).is_err() {
        assert!(Instant::now() < deadline, "it never listened at {at}");
        std::thread::yield_now();
    }
    peer
}

#[test]
#[ignore = "needs haproxy"]
fn haproxy_understands_what_we_send_and_is_understood() {
    let (port, origin) = (Port::new().address, telling().address);
    let file = Site::new("");
    let name = file.path("haproxy.cfg").display().to_string();
    let sending = Port::new();
    for (word, theirs) in [("v1", "send-proxy"), ("v2", "send-proxy-v2-ssl-cn crc32c")] {
        let theirs = theirs.replace(" crc32c", " proxy-v2-options crc32c,authority");
        let site = Site::proxying(&[port], &format!("send-proxy = \"{word}\"\n"));
        let both =
            trusting(&fs::read_to_string(site.config()).unwrap().replace(&site.address().to_string(), "{port}"), NAMED);
        fs::write(site.config(), both.replace("{port}", &site.address().to_string())).unwrap();
        fs::write(
            &name,
            format!(
                "defaults\n mode http\n timeout client 5s\n timeout server 5s\n timeout connect 5s\n option forwardfor\n\
                 frontend in\n bind {port} accept-proxy\n default_backend origin\nbackend origin\n server s {origin}\n\
                 frontend out\n bind {}\n default_backend us\nbackend us\n server s {} {theirs}\n",
                sending.address,
                site.address()
            ),
        )
        .unwrap();
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f", &name]);
        let _haproxy = peer(command, port);
        let _daemon = site.start();
        let mut client = Client::connect(site.address());
        client.send(introduce(SendProxy::V2, ends(), None));
        // Our own word of it, and HAProxy's, who heard it from us.
        assert_eq!(client.ask(ANSWERED).text(), "192.0.2.1|192.0.2.1");
        let mut client = Client::connect(sending.address);
        assert_eq!(client.ask(ANSWERED).text(), "127.0.0.1|127.0.0.1|127.0.0.1");
    }
}

#[test]
#[ignore = "needs nginx"]
fn nginx_understands_what_we_send() {
    let port = Port::new().address;
    let folder = Site::new("");
    let dir = folder.folder.path().display().to_string();
    fs::write(
        folder.path("nginx.conf"),
        format!(
            "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error;\nevents {{}}\nhttp {{ access_log off;\n\
             client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
             server {{ listen {port} proxy_protocol; location / {{ return 200 \"$proxy_protocol_addr $proxy_protocol_port\"; }} }} }}\n"
        ),
    )
    .unwrap();
    let mut command = Command::new("nginx");
    command.args(["-p", &dir, "-c", &format!("{dir}/nginx.conf")]);
    let _nginx = peer(command, port);
    for word in ["v1", "v2"] {
        let site = site(&[port], NAMED, &format!("send-proxy = \"{word}\"\n"));
        let _daemon = site.start();
        let mut client = Client::connect(site.address());
        client.send(introduce(SendProxy::V1, ends(), None));
        assert_eq!(client.ask(ANSWERED).text(), "192.0.2.1 56324");
    }
}

#[test]
fn checks_say_that_they_are_our_own() {
    for (word, version) in [("v1", SendProxy::V1), ("v2", SendProxy::V2)] {
        let (origin, heard) = wanting();
        let check = "check = { type = \"http\", path = \"/\", interval = \"100ms\" }\n";
        let site = Site::proxying(&[origin.address], &format!("send-proxy = \"{word}\"\n{check}"));
        let _daemon = site.start();
        assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), (introduce_self(version), None));
    }
}
