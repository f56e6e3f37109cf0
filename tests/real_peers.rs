//! Programs that other people wrote on both sides: Python's `websockets`, Node, nginx, openssl. What they take for
//! granted has to be so with this proxy between them.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]
#![allow(clippy::print_stdout, reason = "what was measured is shown")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use support::client::Client;
use support::load::{Habit, Load};
use support::origin::download;
use support::peer::{Peer, nginx, peer, python};
use support::{Port, Site, certificate, code, output, text};

fn reload(site: &Site) {
    let output = site.proxy(&["reload", "--mode", "handover"]);
    assert_eq!(code(&output), 0, "{output:?}");
}

#[test]
#[ignore = "needs Python's websockets; .ci/run runs it"]
fn websockets_work_and_live_through_reloads() {
    let python = python("websockets");
    let (_server, address) = Peer::server(Command::new(&python).arg(peer("websocket.py")).arg("server"));
    let secure = Port::new();
    let site = Site::new("");
    certificate(site.folder.path(), "a.pem", &["localhost"]);
    let tls = "backend = \"pool\"\ntls.certificates = [\"a.pem\"]";
    site.configure(&Site::text(&[address], &format!("[frontend.secure]\nbind = \"{}\"\n{tls}\n", secure.address)));
    let _daemon = site.start();
    for (url, reloads) in [(format!("ws://{}/", site.address()), 30), (format!("wss://{}/", secure.address), 3)] {
        let mut client = Command::new(&python);
        client.arg(peer("websocket.py")).args(["client", &url, "3"]);
        let mut child = client.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "talking", "{url}");
        for _ in 0..reloads {
            reload(&site);
        }
        let count: u32 = said.next().unwrap().unwrap().parse().unwrap();
        assert!(child.wait().unwrap().success() && count > 10, "{url}: {count} messages");
        println!("{url}: {count} messages over {reloads} reloads");
    }
}

#[test]
#[ignore = "needs node; .ci/run runs it"]
fn node_on_both_sides_understands_itself() {
    let (_server, address) = Peer::server(Command::new("node").arg(peer("server.js")).arg("60000"));
    let site = Site::proxying(&[address], "");
    let _daemon = site.start();
    let mut client = Command::new("node");
    client.arg(peer("client.js")).arg(site.address().port().to_string());
    let output = output(client);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
#[ignore = "needs node; .ci/run runs it"]
fn a_server_that_closes_idle_connections_at_once_costs_no_get() {
    const CLOSES_AFTER: u64 = 5;
    let (_server, address) = Peer::server(Command::new("node").arg(peer("server.js")).arg(CLOSES_AFTER.to_string()));
    let site = Site::proxying(&[address], "[global]\nthreads = 1\n");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    // The next request comes just before, at, and just after the moment at which the server closes.
    for number in 0..400_u64 {
        let answer = client.get(&format!("/{number}"));
        assert_eq!((answer.status(), answer.text()), (200, format!("GET /{number}\n")));
        assert!(client.silent_for(Duration::from_micros(CLOSES_AFTER * 1000 - 2000 + number * 10)));
    }
}

#[test]
#[ignore = "needs nginx; .ci/run runs it"]
fn nginx_behind_it_may_refuse_hang_up_and_reload() {
    let folder = tempfile::tempdir().unwrap();
    let file = download(10_000_000);
    fs::write(folder.path().join("file"), &file).unwrap();
    let locations = "client_max_body_size 1k; location /silent { return 444; } location /teapot { return 418 short; }\n\
        location /slow { limit_rate 4m; alias FOLDER/file; }\n\
        location = /echo { if ($request_method = POST) { return 200 posted; } return 200 got; }";
    let (nginx, address) = nginx(folder.path(), "", &locations.replace("FOLDER", &folder.path().display().to_string()));
    let site = Site::proxying(&[address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    // Every fifth answer says that it is the connection's last.
    for number in 0..40 {
        let post = "POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nhi";
        let answer = if number % 2 == 0 { client.get("/echo") } else { client.ask(post) };
        assert_eq!(answer.text(), ["got", "posted"][number % 2]);
    }
    assert_eq!((client.get("/teapot").status(), client.get("/none").status()), (418, 404));
    for path in ["/file", "/slow"] {
        assert!(client.get(path).body == file, "{path} is not what it was");
    }
    client.send("POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 20000000\r\n\r\n");
    let _ = std::io::Write::write_all(client.reader.get_mut(), &vec![0; 20_000_000]);
    let answer = client.response().unwrap();
    assert_eq!((answer.status(), answer.complete), (413, true));
    assert_eq!(Client::connect(site.address()).get("/silent").status(), 502);

    // At a reload nginx closes idle connections without a word.
    let mut asked = 0;
    let mut client = Client::connect(site.address());
    for _ in 0..10 {
        kill(nginx.pid(), Signal::SIGHUP).unwrap();
        for _ in 0..20 {
            assert_eq!(client.get("/echo").status(), 200, "request {asked}");
            asked += 1;
        }
    }
}

/// A TLS server of openssl's that shows its certificate's name in what it answers.
fn s_server(folder: &Path, name: &str) -> (Peer, SocketAddr) {
    let (pem, port) = (certificate(folder, &format!("{name}.pem"), &[name]), Port::new());
    let mut command = Command::new("openssl");
    command.args(["s_server", "-www", "-quiet", "-accept", &port.address.port().to_string(), "-cert"]).arg(&pem);
    command.arg("-key").arg(&pem).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    (Peer::listening(&mut command, port.address), port.address)
}

#[test]
#[ignore = "needs openssl; .ci/run runs it"]
fn openssl_reaches_the_server_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let servers = ["a.test", "b.test", "rest.test"].map(|name| s_server(folder.path(), name));
    let backends: String = ["a", "b", "rest"]
        .iter()
        .zip(&servers)
        .map(|(name, (_, at))| format!("[backend.{name}]\nmode = \"tcp\"\nservers = \"{at}\"\n"))
        .collect();
    let routes = "route = [{ when = { sni = \"a.test\" }, backend = \"a\" }, { when = { sni = \"*.b.test\" }, backend = \"b\" }]";
    let site = Site::new(&format!(
        "[frontend.web]\nmode = \"tcp\"\nbind = \"{{port}}\"\nbackend = \"rest\"\ninspect = {{ tls-hello = true }}\n{routes}\n{backends}"
    ));
    let _daemon = site.start();
    for version in ["-tls1_2", "-tls1_3"] {
        for (asked, answered) in
            [("a.test", "a.test"), ("x.b.test", "b.test"), ("c.test", "rest.test"), ("", "rest.test")]
        {
            let mut client = Command::new("sh");
            let names = if asked.is_empty() { String::from("-noservername") } else { format!("-servername {asked}") };
            let at = site.address();
            client.args([
                "-c",
                &format!(
                    "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | openssl s_client {version} {names} -connect {at} -ign_eof | openssl x509 -noout -ext subjectAltName"
                ),
            ]);
            let said = output(client);
            assert!(text(&said.stdout).contains(&format!("DNS:{answered}")), "{version} {asked}: {said:?}");
        }
    }
}

#[test]
#[ignore = "needs nginx; .ci/run runs it"]
fn a_load_over_nginx_that_reloads_loses_only_what_nginx_had_just_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let (nginx, address) = nginx(folder.path(), "", "location / { return 200 \"$request\\n\"; }");
    let site = Site::proxying(&[address], "");
    let _daemon = site.start();
    let load = Load::start(site.address(), &[Habit::Fresh, Habit::KeepGet, Habit::KeepGet]);
    for _ in 0..10 {
        kill(nginx.pid(), Signal::SIGHUP).unwrap();
        load.more(300);
    }
    let (requests, failures) = load.stop();
    // An old worker of nginx closes what it has accepted and not yet read, which no proxy can tell from a server that
    // died of the request: a first use of a connection is not repeated, as in HAProxy.
    assert!(failures.iter().all(|failure| failure.contains("502 Bad Gateway")), "{failures:?}");
    assert!(requests >= 3000 && failures.len() <= 10, "{} of {requests}: {failures:?}", failures.len());
}
