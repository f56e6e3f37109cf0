//! Programs that other people wrote and that speak HTTP/2: Google's gRPC on both sides, Node and nginx as servers.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]
#![allow(clippy::print_stdout, reason = "what was measured is shown")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use support::authority::Authority;
use support::client::Client;
use support::h2::{self as http2, H2Client};
use support::load::{Habit, Load};
use support::origin::download;
use support::peer::{Peer, nginx, peer, python};
use support::{Port, Site, code};

use nix::sys::signal::{Signal, kill};

/// A site in front of a server that `ca.pem` vouches for, which is addressed as `localhost`.
fn site(server: SocketAddr, frontend: &str, backend: &str) -> Site {
    Site::new(&format!(
        "[reload]\nmax-old = 20\n[frontend.web]\nbind = \"{{port}}\"\nproto = \"auto\"\nbackend = \"pool\"\n{frontend}\n\
         [backend.pool]\nservers = [\"localhost:{}\"]\n{backend}\n",
        server.port()
    ))
}

/// Somebody's certificate for `localhost` in `server.pem`, vouched for by `ca.pem`.
fn issue(folder: &std::path::Path, name: &str) {
    let authority = Authority::written(folder, "ca.pem");
    fs::write(folder.join("server.pem"), authority.issue(name, &[name])).unwrap();
}

#[test]
#[ignore = "needs Python's grpcio; .ci/run runs it"]
fn grpc_works_and_no_call_fails_over_reloads() {
    const RELOADS: u64 = 10;
    let (python, files) = (python("grpc"), tempfile::tempdir().unwrap());
    issue(files.path(), "localhost");
    let file = |name: &str| files.path().join(name).display().to_string();
    let secure = Port::new();
    let frontend = format!(
        "[frontend.secure]\nbind = \"{}\"\nbackend = \"pool\"\ntls.certificates = [\"{}\"]\n",
        secure.address,
        file("server.pem")
    );
    for (tls, backend) in [
        (false, String::from("protocol = \"h2c\"")),
        (true, format!("protocol = \"h2\"\ntls = {{ ca-file = \"{}\" }}", file("ca.pem"))),
    ] {
        let mut command = Command::new(&python);
        command.arg(peer("rpc.py")).arg("server").args(tls.then(|| file("server.pem")));
        let (_server, address) = Peer::server(&mut command);
        // A server that is not well gets no call.
        let check = "[backend.pool.check]\ntype = \"grpc\"\nservice = \"test\"\ninterval = \"100ms\"\nfall = 1\n";
        let site = site(address, &frontend, &format!("{backend}\n{check}"));
        let _daemon = site.start();
        for (at, authority) in [(site.address(), None), (secure.address, Some(file("ca.pem")))] {
            let mut client = Command::new(&python);
            client.arg(peer("rpc.py")).arg("client").arg(at.to_string()).args(&authority);
            let mut child = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
            let what = format!("TLS from clients {}, to servers {tls}", authority.is_some());
            assert_eq!(said.next().and_then(Result::ok).as_deref(), Some("calling"), "{what}");
            for _ in 0..RELOADS {
                let output = site.proxy(&["reload", "--mode", "handover"]);
                assert_eq!(code(&output), 0, "{output:?}");
            }
            drop(child.stdin.take());
            let calls: u64 = said.next().unwrap_or_else(|| panic!("{what}: a call failed")).unwrap().parse().unwrap();
            assert!(child.wait().unwrap().success() && calls >= RELOADS, "{what}: {calls} calls");
            println!("{what}: {calls} calls over {RELOADS} reloads");
        }
    }
}

#[test]
#[ignore = "needs node; .ci/run runs it"]
fn node_over_tls_is_asked_in_http_2_with_all_it_has() {
    let files = tempfile::tempdir().unwrap();
    issue(files.path(), "localhost");
    let mut command = Command::new("node");
    let (_server, address) = Peer::server(command.arg(peer("h2_server.js")).arg(files.path().join("server.pem")));
    let tls = format!("protocol = \"auto\"\ntls = {{ ca-file = \"{}\" }}", files.path().join("ca.pem").display());
    let site = site(address, "", &tls);
    let _daemon = site.start();
    http2::run(async {
        let (client, _) = H2Client::connect(site.address()).await;
        let big = download(3_000_000);
        for number in 0..50 {
            // Every third request is the last on its connection.
            let path = if number % 3 == 0 { "/leave" } else { "/any" };
            let body = &big[..number * 50_000];
            let answer = client.ask(client.request("PUT", path), body).await.unwrap();
            let expected = [format!("PUT {path}\n").as_bytes(), body].concat();
            assert!(answer.status == 200 && answer.body == expected, "{number}: {} bytes", answer.body.len());
            assert_eq!((answer.field("x-version"), answer.field("x-scheme")), (Some("2.0"), Some("https")));
            assert_eq!(answer.trailers.unwrap()["x-length"], body.len().to_string());
        }
        // The early answer reaches the client though most of its body is on the way.
        let answer = client.ask(client.request("POST", "/early"), &big).await.unwrap();
        assert_eq!((answer.status, answer.text()), (413, String::from("too much")));
        let cut = client.ask(client.request("GET", "/reset"), b"").await;
        assert!(cut.is_err(), "a body that stops in the middle is an error, never an end: {cut:?}");
        assert_eq!(client.get("/after").await.text(), "GET /after\n");
    });
    let mut old = Client::connect(site.address());
    let chunked = "PUT /old HTTP/1.1\r\nHost: t\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                   4\r\none \r\n3\r\ntwo\r\n0\r\nX-Sum: 7\r\n\r\n";
    let answer = old.ask(chunked);
    assert_eq!(answer.text(), "PUT /old\none two");
    assert_eq!(answer.trailers, [("x-length", "7"), ("x-got", "7")].map(|(name, value)| (name.into(), value.into())));
    old.send("GET /hints HTTP/1.1\r\nHost: t\r\n\r\n");
    let hint = old.response().unwrap();
    assert_eq!((hint.status(), hint.field("link")), (103, Some("</style.css>; rel=preload")));
    assert_eq!(old.response().unwrap().text(), "GET /hints\n");
}

/// nginx with HTTP/2 over TLS for this name; it ends a connection after five requests.
fn secure_nginx(folder: &std::path::Path, name: &str) -> (Peer, SocketAddr) {
    issue(folder, name);
    let pem = folder.join("server.pem");
    let rest = format!(
        "ssl_certificate {0}; ssl_certificate_key {0}; client_max_body_size 1k;\n\
         location = /told {{ return 200 \"$server_protocol $request_method $ssl_server_name\"; }}\n\
         location / {{ return 200 \"$request_method $request_uri HTTP/1.1\\n\"; }}\n\
         location = /file {{ limit_rate_after 1m; limit_rate 20m; }} location /silent {{ return 444; }}",
        pem.display()
    );
    nginx(folder, "ssl http2", &rest)
}

#[test]
#[ignore = "needs nginx; .ci/run runs it"]
fn nginx_over_tls_is_asked_in_http_2_and_may_say_goodbye() {
    for protocol in ["h2", "auto"] {
        let folder = tempfile::tempdir().unwrap();
        let file = download(5_000_000);
        fs::write(folder.path().join("file"), &file).unwrap();
        let (nginx, address) = secure_nginx(folder.path(), "localhost");
        let ca = folder.path().join("ca.pem");
        let site = site(address, "", &format!("protocol = \"{protocol}\"\ntls = {{ ca-file = \"{}\" }}", ca.display()));
        let _daemon = site.start();
        let mut client = Client::connect(site.address());
        for number in 0..40 {
            let post = "POST /told HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\n\r\nhi";
            let (answer, method) =
                if number % 2 == 0 { (client.get("/told"), "GET") } else { (client.ask(post), "POST") };
            assert_eq!(answer.text(), format!("HTTP/2.0 {method} localhost"), "request {number}");
        }
        assert!(client.get("/file").body == file, "the file is not what it was");
        let answer = client
            .ask("POST /told HTTP/1.1\r\nHost: t\r\nContent-Length: 20000\r\n\r\n".to_owned() + &"x".repeat(20_000));
        assert_eq!((answer.status(), answer.complete), (413, true));
        assert_eq!(Client::connect(site.address()).get("/silent").status(), 502);
        // Many at once, over connections that end all the time and workers that are replaced.
        let load = Load::start(site.address(), &[Habit::Fresh, Habit::KeepGet, Habit::KeepGet]);
        for _ in 0..5 {
            kill(nginx.pid(), Signal::SIGHUP).unwrap();
            load.more(300);
        }
        let (requests, failures) = load.stop();
        println!("{protocol}: {} of {requests}", failures.len());
        let of_nginx = failures.len() <= 10 && failures.iter().all(|failure| failure.contains("502 Bad Gateway"));
        assert!(requests >= 1500 && of_nginx, "{} of {requests}: {:?}", failures.len(), failures.first());
    }
}

#[test]
#[ignore = "needs nginx; .ci/run runs it"]
fn nginx_with_the_certificate_of_another_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_nginx, address) = secure_nginx(folder.path(), "other.example");
    let ca = folder.path().join("ca.pem");
    for (name, status) in [("localhost", 503), ("other.example", 200)] {
        let tls = format!("tls = {{ ca-file = \"{}\", sni = \"{name}\" }}", ca.display());
        let site = site(address, "", &format!("retries = 0\nprotocol = \"h2\"\n{tls}"));
        let _daemon = site.start();
        assert_eq!(Client::connect(site.address()).get("/").status(), status, "{name}");
    }
}
