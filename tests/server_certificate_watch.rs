//! Files that TLS to servers depends on and that change without a reload: authorities, revocation lists, our own
//! certificate. New connections go by them at once, those that are open serve no further request.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::io::{BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use rcgen::{CertificateParams, SerialNumber};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::TLS13;
use support::authority::{Authority, Learnt, origin, recording, settings};
use support::client::{Client, get, read_message};
use support::h2::{self as http2, H2Origin};
use support::origin::{Origin, ok};
use support::peer::Peer;
use support::tls::{Pair, TlsClient};
use support::{Daemon, PATIENCE, Port, Site, code, generation, output, pid, put, serving, text};

/// One server, addressed as `localhost`, and one thread, so that idle connections can be counted.
fn configure(site: &Site, server: SocketAddr, tls: &str, extra: &str) {
    let text = Site::text(&[server], &format!("retries = 0\ntls = {tls}\n{extra}\n[global]\nthreads = 1\n"));
    site.configure(&text.replace("address = \"127.0.0.1", "address = \"localhost"));
}

/// A certificate for `localhost` with this serial number.
fn numbered(authority: &Authority, serial: u8) -> String {
    let change = |params: &mut CertificateParams| params.serial_number = Some(SerialNumber::from_slice(&[serial]));
    authority.issue_as("localhost", &["localhost"], change)
}

fn leaf(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

fn status(site: &Site) -> u16 {
    get(site.address(), "/").status()
}

fn await_status(site: &Site, wanted: u16) {
    support::until(&format!("the answer is {wanted}"), || status(site) == wanted);
}

/// The worker that serves dies, and another one serves.
fn replace_worker(site: &Site) {
    let before = serving(&site.status());
    kill(pid(before), Signal::SIGKILL).unwrap();
    site.await_status("a new worker", |status| {
        let all = status["generations"].as_array().unwrap();
        all.iter().any(|one| one["state"] == "serving" && one["pid"] != before)
    });
}

#[test]
fn a_new_authority_is_believed_without_a_reload_and_by_everybody_to_come() {
    let site = Site::new("");
    Authority::written(site.folder.path(), "ca.pem");
    let new = Authority::new("New CA");
    let (server, _learnt) = recording(settings(&new.issue("localhost", &["localhost"]), None));
    configure(&site, server.address, "{ ca-file = \"ca.pem\", watch = true }", "connection-mode = \"server-close\"");
    let daemon = site.start();
    let before = (generation(&site.status()), serving(&site.status()));
    assert_eq!(status(&site), 503);
    put(&site, "ca.pem", &new.pem());
    await_status(&site, 200);
    daemon.hear("backend pool: other authorities for servers");
    assert_eq!((generation(&site.status()), serving(&site.status())), before);

    // A worker that replaces a dead one has its configuration from the master, the others read the file.
    replace_worker(&site);
    assert_eq!(status(&site), 200);
    for command in ["reload", "upgrade"] {
        assert_eq!(code(&site.proxy(&[command])), 0);
        assert_eq!(status(&site), 200, "{command}");
    }
    // The watch goes on with the worker that serves now; this one writes into the file itself.
    fs::write(site.path("ca.pem"), Authority::new("Third CA").pem()).unwrap();
    await_status(&site, 503);
}

#[test]
fn a_revoked_server_is_refused_at_once_over_idle_connections_and_resumed_sessions_too() {
    for mode in ["keep-alive", "server-close"] {
        let site = Site::new("");
        let authority = Authority::written(site.folder.path(), "ca.pem");
        put(&site, "revoked.pem", &authority.revoke(&[66], 2101));
        let (closed, ends) = mpsc::channel();
        let server = origin(settings(&numbered(&authority, 7), None), move |stream| {
            let mut reader = BufReader::new(stream);
            while read_message(&mut reader, false).is_some() {
                reader.get_mut().write_all(&ok("one")).unwrap();
            }
            // The test may be over already.
            let _ = closed.send(());
        });
        let tls = "{ ca-file = \"ca.pem\", crl-file = \"revoked.pem\", watch = true }";
        configure(&site, server.address, tls, &format!("connection-mode = \"{mode}\""));
        let daemon = site.start();
        let mut client = Client::connect(site.address());
        for _ in 0..3 {
            assert_eq!(client.get("/").status(), 200);
        }
        let kept = mode == "keep-alive";
        assert_eq!(server.accepted(), if kept { 1 } else { 3 });
        put(&site, "revoked.pem", &authority.revoke(&[66, 7], 2101));
        daemon.hear("backend pool: other revocation lists for servers");
        await_status(&site, 503);
        assert_eq!(client.get("/").status(), 503, "{mode}");
        // Nobody has to ask for what is idle to be closed.
        ends.recv_timeout(PATIENCE).unwrap();
        put(&site, "revoked.pem", &authority.revoke(&[66], 2101));
        await_status(&site, 200);
    }
}

#[test]
fn workers_that_drain_are_told_of_a_revocation_too() {
    type Order = fn(&Site, &Daemon);
    let reload: Order = |site, _daemon| assert_eq!(code(&site.proxy(&["reload"])), 0);
    let stop: Order = |site, daemon| {
        daemon.signal(Signal::SIGUSR1);
        support::await_refusal(site.address());
    };
    for (name, found_later, drain) in
        [("reload", true, reload), ("a reload that found it", false, reload), ("stop", true, stop)]
    {
        let site = Site::new("");
        let authority = Authority::written(site.folder.path(), "ca.pem");
        Pair::written(site.folder.path(), "web.pem", "localhost");
        let revoke = |serials: &[u8]| put(&site, "revoked.pem", &authority.revoke(serials, 2101));
        revoke(&[66]);
        let (server, _learnt) = recording(settings(&numbered(&authority, 7), None));
        let configure = |watch: bool| {
            let tls = format!("{{ ca-file = \"ca.pem\", crl-file = \"revoked.pem\", watch = {watch} }}");
            configure(&site, server.address, &tls, "[frontend.web.tls]\ncertificates = [\"web.pem\"]");
        };
        // Else the watch may be quicker than the reload.
        configure(found_later);
        let daemon = site.start();
        // Connections with TLS cannot move to another worker; each may ask once more.
        let client = TlsClient::new(&[&TLS13]);
        let mut clients: Vec<_> = (0..30).map(|_| client.get(site.address(), "localhost")).collect();
        assert!(clients.iter().all(|client| client.response.status() == 200));
        if !found_later {
            revoke(&[66, 7]);
            configure(true);
        }
        drain(&site, &daemon);
        if found_later {
            revoke(&[66, 7]);
            daemon.hear("backend pool: other revocation lists for servers");
        }
        let mut again = || clients.pop().expect("somebody who has not asked again").again().status();
        support::until(&format!("what is revoked is refused: {name}"), || again() == 503);
        assert_eq!(again(), 503, "{name}");
    }
}

#[test]
fn idle_connections_are_closed_without_a_request_when_the_files_are_others() {
    let site = Site::new("");
    let authority = Authority::written(site.folder.path(), "ca.pem");
    let (closed, ends) = mpsc::channel();
    let server = origin(settings(&authority.issue("localhost", &["localhost"]), None), move |stream| {
        let mut reader = BufReader::new(stream);
        while read_message(&mut reader, false).is_some() {
            reader.get_mut().write_all(&ok("one")).unwrap();
        }
        // The test may be over already.
        let _ = closed.send(Instant::now());
    });
    configure(&site, server.address, "{ ca-file = \"ca.pem\", watch = true }", "");
    let daemon = site.start();
    assert_eq!(status(&site), 200);
    // The old authority is still there: what is new is that another one is.
    put(&site, "ca.pem", &(authority.pem() + &Authority::new("New CA").pem()));
    daemon.hear("backend pool: other authorities for servers");
    let told = Instant::now();
    let after = ends.recv_timeout(PATIENCE).unwrap().saturating_duration_since(told);
    assert!(after < Duration::from_secs(10), "an idle connection lives for 30 s otherwise: {after:?}");
    assert_eq!((status(&site), server.accepted()), (200, 2));
}

#[test]
fn a_request_under_way_ends_on_its_connection_and_is_the_last_one_there() {
    let site = Site::new("");
    let authority = Authority::written(site.folder.path(), "ca.pem");
    let (arrive, arrived) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let server = origin(settings(&authority.issue("localhost", &["localhost"]), None), move |stream| {
        let mut reader = BufReader::new(stream);
        while let Some(request) = read_message(&mut reader, false) {
            if request.line.contains("/slow") {
                arrive.send(()).unwrap();
                released.lock().unwrap().recv().unwrap();
            }
            reader.get_mut().write_all(&ok("one")).unwrap();
        }
    });
    configure(&site, server.address, "{ ca-file = \"ca.pem\", watch = true }", "");
    let daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    arrived.recv_timeout(PATIENCE).unwrap();
    put(&site, "ca.pem", &Authority::new("New CA").pem());
    daemon.hear("backend pool: other authorities for servers");
    // The worker has done it, too, when a request is refused.
    await_status(&site, 503);
    release.send(()).unwrap();
    assert_eq!(client.response().unwrap().status(), 200);
    assert_eq!(client.get("/").status(), 503);
}

#[test]
fn a_connection_that_requests_share_takes_no_more_of_them() {
    http2::run(async {
        let authority = Authority::new("Test CA");
        let server = H2Origin::secured(
            settings(&authority.issue("localhost", &["localhost"]), None),
            |_request, mut respond| async move {
                // The proxy may be gone.
                let _ = respond.send_response(http::Response::new(()), true);
            },
        )
        .await;
        let site = Site::new("");
        put(&site, "ca.pem", &authority.pem());
        configure(&site, server.address, "{ ca-file = \"ca.pem\", watch = true }", "protocol = \"h2\"");
        tokio::task::spawn_blocking(move || {
            let daemon = site.start();
            assert_eq!((status(&site), status(&site), server.accepted()), (200, 200, 1));
            put(&site, "ca.pem", &Authority::new("New CA").pem());
            daemon.hear("backend pool: other authorities for servers");
            await_status(&site, 503);
            put(&site, "ca.pem", &authority.pem());
            await_status(&site, 200);
        })
        .await
        .unwrap();
    });
}

/// A server to which clients have to prove who they are.
fn asking(authority: &Authority) -> (Origin, mpsc::Receiver<Learnt>) {
    recording(settings(&authority.issue("localhost", &["localhost"]), Some(authority)))
}

#[test]
fn a_renewed_client_certificate_is_shown_without_a_reload() {
    for (named, files) in [
        ("\"edge.pem\"", &["edge.pem"][..]),
        ("{ cert = \"edge.crt\", key = \"edge.key\" }", &["edge.crt", "edge.key"]),
    ] {
        let site = Site::new("");
        let authority = Authority::written(site.folder.path(), "ca.pem");
        let renew = || {
            let pem = authority.issue("edge", &["edge.example"]);
            let (certificate, key) = pem.split_at(pem.find("-----BEGIN PRIVATE").unwrap());
            let parts = if files.len() == 1 { vec![pem.as_str()] } else { vec![certificate, key] };
            files.iter().zip(parts).for_each(|(file, content)| put(&site, file, content));
            leaf(&pem)
        };
        let old = renew();
        let (server, learnt) = asking(&authority);
        configure(
            &site,
            server.address,
            &format!("{{ ca-file = \"ca.pem\", client-cert = {named}, watch = true }}"),
            "",
        );
        let daemon = site.start();
        let shown = || {
            assert_eq!(status(&site), 200, "{named}");
            learnt.try_iter().last().map(|learnt| learnt.certificate.unwrap())
        };
        assert!(shown() == Some(old), "{named}");
        assert!(shown().is_none(), "its connection is kept");
        for round in 0..2 {
            let new = renew();
            daemon.hear("backend pool: a new certificate to show servers");
            support::until("the new certificate is shown", || shown().is_some_and(|shown| shown == new));
            assert!(shown().is_none(), "{named} {round}: its connection is kept");
        }
    }
}

#[test]
fn a_file_that_cannot_be_used_keeps_the_old_one_is_told_once_and_holds_up_no_other() {
    let site = Site::new("");
    let authority = Authority::written(site.folder.path(), "ca.pem");
    put(&site, "revoked.pem", &authority.revoke(&[66], 2101));
    put(&site, "edge.pem", &authority.issue("edge", &["edge.example"]));
    let (server, learnt) = asking(&authority);
    let tls = "{ ca-file = \"ca.pem\", crl-file = \"revoked.pem\", client-cert = \"edge.pem\", watch = true }";
    configure(&site, server.address, tls, "connection-mode = \"server-close\"");
    let daemon = site.start();
    assert_eq!(status(&site), 200);
    for (file, broken, said, reason) in [
        ("ca.pem", "", "the authorities for servers stay as they are", "ca.pem` holds no certificate of an authority"),
        (
            "revoked.pem",
            "-----BEGIN X509 CRL-----",
            "the revocation lists for servers stay as they are",
            "revoked.pem` is not PEM",
        ),
        ("edge.pem", "nothing", "the certificate to show servers stays as it is", "edge.pem` holds no certificate"),
    ] {
        put(&site, file, broken);
        let line = daemon.hear(&format!("backend pool: {said}: `"));
        assert!(line.contains(reason), "{line}");
        assert_eq!(status(&site), 200, "{file}");
        // The others are looked at in the same rounds: these are several of them.
        for _ in 0..2 {
            if file != "edge.pem" {
                let pem = authority.issue("edge", &["edge.example"]);
                put(&site, "edge.pem", &pem);
                let lines = daemon.heard_up_to("backend pool: a new certificate to show servers");
                assert_eq!(lines.len(), 1, "what is wrong is told once: {lines:?}");
                support::until("the new certificate is shown", || {
                    assert_eq!(status(&site), 200, "{file}");
                    learnt.try_iter().last().is_some_and(|learnt| learnt.certificate.unwrap() == leaf(&pem))
                });
            }
            if file != "ca.pem" {
                put(&site, "ca.pem", &(authority.pem() + &Authority::new("Another").pem()));
                let lines = daemon.heard_up_to("backend pool: other authorities for servers");
                assert_eq!(lines.len(), 1, "what is wrong is told once: {lines:?}");
            }
        }
        // What was not used is not what the next worker begins with either.
        replace_worker(&site);
        assert_eq!(status(&site), 200, "{file}");
        let (good, news) = match file {
            "ca.pem" => (authority.pem() + &Authority::new("Another").pem(), "other authorities for servers"),
            "revoked.pem" => (authority.revoke(&[66, 67], 2101), "other revocation lists for servers"),
            _ => (authority.issue("edge", &["edge.example"]), "a new certificate to show servers"),
        };
        put(&site, file, &good);
        daemon.hear(&format!("backend pool: {news}"));
        assert_eq!(status(&site), 200, "{file}");
    }
}

#[test]
fn checks_go_by_the_new_files_too() {
    let site = Site::new("");
    let authority = Authority::written(site.folder.path(), "ca.pem");
    put(&site, "revoked.pem", &authority.revoke(&[66], 2101));
    let (server, _learnt) = recording(settings(&numbered(&authority, 7), None));
    let tls = "{ ca-file = \"ca.pem\", crl-file = \"revoked.pem\", watch = true }";
    configure(&site, server.address, tls, "timeout.check = \"10s\"\n[backend.pool.check]\ninterval = \"50ms\"\n");
    let daemon = site.start();
    assert_eq!(status(&site), 200);
    put(&site, "revoked.pem", &authority.revoke(&[7], 2101));
    let line = daemon.hear("Server pool/s1 is DOWN");
    assert!(line.contains("Layer6 invalid response"), "{line}");
    put(&site, "revoked.pem", &authority.revoke(&[66], 2101));
    daemon.hear("Server pool/s1 is UP");
    assert_eq!(status(&site), 200);
}

#[test]
fn without_watch_a_new_file_waits_for_a_reload() {
    let site = Site::new("");
    let authority = Authority::written(site.folder.path(), "ca.pem");
    let (server, _learnt) = recording(settings(&authority.issue("localhost", &["localhost"]), None));
    // The same file once watched and once not.
    let second = Port::new();
    let port = server.address.port();
    configure(
        &site,
        server.address,
        "{ ca-file = \"ca.pem\" }",
        &format!(
            "connection-mode = \"server-close\"\n[frontend.watched]\nbind = \"{}\"\nbackend = \"watched\"\n\
             [backend.watched]\nretries = 0\nservers = [\"localhost:{port}\"]\n\
             tls = {{ ca-file = \"ca.pem\", watch = true }}\n",
            second.address
        ),
    );
    let daemon = site.start();
    put(&site, "ca.pem", &Authority::new("New CA").pem());
    daemon.hear("backend watched: other authorities for servers");
    support::until("the watched one is refused", || get(second.address, "/").status() == 503);
    assert_eq!(status(&site), 200);
    // Nor does a worker that replaces a dead one know better.
    replace_worker(&site);
    assert_eq!((status(&site), get(second.address, "/").status()), (200, 503));
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    assert_eq!(status(&site), 503);
}

#[test]
fn to_watch_nothing_is_an_error() {
    let site = Site::new("");
    configure(&site, "127.0.0.1:9".parse().unwrap(), "{ verify = false, watch = true }", "");
    let check = site.proxy(&["check"]);
    let said = text(&check.stderr);
    assert!(code(&check) == 1 && said.contains("there is no file to watch") && said.contains("proxy.toml:"), "{said}");
}

/// Runs `openssl` in a folder; panics when it fails.
fn openssl(site: &Site, arguments: &str) {
    let mut command = Command::new("openssl");
    command.args(arguments.split(' ')).current_dir(site.folder.path());
    let output = output(command);
    assert!(output.status.success(), "openssl {arguments}: {}", text(&output.stderr));
}

#[test]
#[ignore = "needs openssl; .ci/run runs it"]
fn a_server_of_openssl_that_asks_for_certificates_is_shown_the_new_one() {
    let (site, port) = (Site::new(""), Port::new());
    openssl(&site, "req -x509 -newkey rsa:2048 -nodes -days 30 -keyout ca.key -out ca.pem -subj /CN=Root");
    let issue = |name: &str, common: &str, extra: &str| {
        openssl(&site, &format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={common}"));
        fs::write(site.path("x.ext"), format!("basicConstraints=CA:FALSE\n{extra}")).unwrap();
        openssl(
            &site,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile x.ext -out {name}.crt"
            ),
        );
    };
    issue("server", "localhost", "subjectAltName=DNS:localhost\n");
    issue("edge", "edge-one", "");
    let mut command = Command::new("openssl");
    command.args(["s_server", "-www", "-quiet", "-Verify", "1", "-verify_return_error", "-CAfile", "ca.pem"]);
    command.args(["-cert", "server.crt", "-key", "server.key", "-accept", &port.address.port().to_string()]);
    command.current_dir(site.folder.path()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Peer::listening(&mut command, port.address);
    let tls = "{ ca-file = \"ca.pem\", client-cert = { cert = \"edge.crt\", key = \"edge.key\" }, watch = true }";
    configure(&site, port.address, tls, "");
    let daemon = site.start();
    let page = || get(site.address(), "/").text();
    assert!(page().contains("CN = edge-one") || page().contains("CN=edge-one"), "{}", page());
    issue("edge", "edge-two", "");
    daemon.hear("backend pool: a new certificate to show servers");
    support::until("the new certificate is shown", || {
        let page = page();
        page.contains("CN = edge-two") || page.contains("CN=edge-two")
    });
}

#[test]
#[ignore = "needs openssl; .ci/run runs it"]
fn a_list_that_no_worker_could_begin_with_is_refused_when_it_is_read() {
    let site = Site::new("");
    openssl(&site, "req -x509 -newkey rsa:2048 -nodes -days 30 -keyout root.key -out ca.pem -subj /CN=Root");
    fs::write(site.path("index.txt"), "").unwrap();
    let settings = "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ncertificate=ca.pem\nprivate_key=root.key\n\
                    default_md=sha256\ndefault_crl_days=30\n[whole]\nauthorityKeyIdentifier=keyid\n\
                    [delta]\nauthorityKeyIdentifier=keyid\n2.5.29.27=critical,DER:02:01:01\n";
    fs::write(site.path("ca.cnf"), settings).unwrap();
    openssl(&site, "ca -config ca.cnf -gencrl -crlexts delta -out revoked.pem");
    let tls = "{ ca-file = \"ca.pem\", crl-file = \"revoked.pem\", watch = true }";
    configure(&site, "127.0.0.1:9".parse().unwrap(), tls, "");
    let check = site.proxy(&["check"]);
    let said = text(&check.stderr);
    assert!(
        code(&check) == 1 && said.contains("holds a revocation list of no use") && said.contains("proxy.toml:"),
        "{said}"
    );
    openssl(&site, "ca -config ca.cnf -gencrl -crlexts whole -out revoked.pem");
    let daemon = site.start();
    openssl(&site, "ca -config ca.cnf -gencrl -crlexts delta -out revoked.pem");
    daemon.hear("backend pool: the revocation lists for servers stay as they are: ");
    replace_worker(&site);
}
