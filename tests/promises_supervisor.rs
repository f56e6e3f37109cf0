//! What is promised under a supervisor that keeps descriptors: a killed master, a restart and a socket unit refuse nobody.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]
#![allow(clippy::print_stdout, reason = "what was measured is shown")]

mod support;

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use support::client::{Client, get};
use support::origin::Origin;
use support::supervisor::{Supervisor, asking, is_answered};
use support::tls::{Pair, TlsClient};
use support::{PATIENCE, Port, Site, code, counted, generation, pid, refuses};

/// A site with TLS on its main address.
fn encrypted(origin: &Origin) -> Site {
    let site = Site::proxying(&[origin.address], "");
    Pair::written(site.folder.path(), "cert.pem", "localhost");
    let text = Site::text(&[origin.address], "");
    site.configure(&text.replace("backend = \"pool\"", "backend = \"pool\"\ntls.certificates = [\"{dir}/cert.pem\"]"));
    site
}

#[test]
fn promise_25_a_killed_daemon_refuses_nobody_and_its_successor_serves_the_queue() {
    let site = Site::proxying(&[Origin::echo().address], "");
    let mut supervisor = Supervisor::new(&site);
    supervisor.start(&site, &[]);
    assert_eq!((supervisor.count("proxy-listener-"), supervisor.store.len()), (1, 3));
    for round in 2..4 {
        let before = generation(&site.status());
        supervisor.kill_all(&site);
        let queued: Vec<_> = (0..100).map(|_| asking(site.address())).collect();
        let killed = Instant::now();
        supervisor.start(&site, &[]);
        assert!(queued.into_iter().all(is_answered));
        println!(
            "round {round}: 100 queued clients served {} ms after the restart began",
            killed.elapsed().as_millis()
        );
        assert_eq!(generation(&site.status()), before + 1, "generations are counted on");
        supervisor.catch_up();
        assert_eq!(supervisor.store.len(), 3);
    }
    // What is kept is what is used: reloads add nothing.
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    supervisor.catch_up();
    assert_eq!(supervisor.store.len(), 3);
}

#[test]
fn promise_14_and_17_counters_and_tickets_survive_a_kill_of_everything() {
    let (origin, stats) = (Origin::echo(), Port::new());
    let site = encrypted(&origin);
    let page = format!("[stats]\nbind = \"{}\"\nuri = \"/stats\"\n", stats.address);
    fs::write(site.config(), fs::read_to_string(site.config()).unwrap() + &page).unwrap();
    let mut supervisor = Supervisor::new(&site);
    supervisor.start(&site, &[]);
    let client = TlsClient::new(&[&TLS13]);
    assert_eq!(client.get(site.address(), "localhost").kind, HandshakeKind::Full);
    let sessions = || {
        let csv = get(stats.address, "/stats;csv").text();
        (counted(&csv, "web,FRONTEND,", "scur"), counted(&csv, "web,FRONTEND,", "stot"))
    };
    assert_eq!(sessions().1, 1);
    for round in 1..3 {
        supervisor.kill_all(&site);
        supervisor.start(&site, &[]);
        assert_eq!(sessions(), (0, round), "no session is open, and none is forgotten");
        assert_eq!(client.get(site.address(), "localhost").kind, HandshakeKind::Resumed);
    }
    let reloads = site.status()["reloads"].clone();
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    supervisor.kill_all(&site);
    supervisor.start(&site, &[]);
    let applied = |reloads: &serde_json::Value| reloads["applied"].as_u64().unwrap();
    assert_eq!(applied(&site.status()["reloads"]), applied(&reloads) + 1);
    assert!(site.status()["reloads"]["last"]["message"].is_string());
}

#[test]
fn promise_17_sessions_resume_after_a_restart_as_before() {
    let site = encrypted(&Origin::echo());
    let mut supervisor = Supervisor::new(&site);
    supervisor.start(&site, &[]);
    let clients = [TlsClient::new(&[&TLS12]), TlsClient::new(&[&TLS13])];
    let ask = |kind: HandshakeKind| {
        clients.iter().for_each(|client| assert_eq!(client.get(site.address(), "localhost").kind, kind));
    };
    ask(HandshakeKind::Full);
    for _ in 0..2 {
        supervisor.terminate();
        supervisor.start(&site, &[]);
        (0..20).for_each(|_| ask(HandshakeKind::Resumed));
    }
}

#[test]
fn promise_26_a_restart_refuses_nobody() {
    let site = Site::proxying(&[Origin::echo().address], "");
    let mut supervisor = Supervisor::new(&site);
    supervisor.start(&site, &[]);
    for _ in 0..3 {
        supervisor.terminate();
        let queued: Vec<_> = (0..50).map(|_| asking(site.address())).collect();
        supervisor.start(&site, &[]);
        assert!(queued.into_iter().all(is_answered));
    }
    // And a stop: the supervisor lets go, and the port is free.
    supervisor.terminate();
    supervisor.store.clear();
    assert!(refuses(site.address()));
    drop(TcpListener::bind(site.address()).unwrap());
}

#[test]
fn promise_26_what_is_being_answered_at_a_restart_is_answered_whole() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "");
    let mut supervisor = Supervisor::new(&site);
    supervisor.start(&site, &[]);
    let mut client = Client::connect(site.address());
    client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    gate.arrived();
    let mut child = supervisor.child.take().unwrap();
    kill(pid(child.id()), Signal::SIGTERM).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while site.socket().exists() {
        assert!(Instant::now() < deadline, "it never began to end");
        std::thread::yield_now();
    }
    gate.release();
    assert!(client.response().is_some_and(|answer| answer.complete && answer.text() == "first half, second half"));
    assert!(child.wait().unwrap().success());
    // One that takes too long holds nobody up.
    supervisor.start(&site, &[]);
    let mut client = Client::connect(site.address());
    client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    gate.arrived();
    let began = Instant::now();
    supervisor.terminate();
    println!("a stop with an answer under way took {} ms", began.elapsed().as_millis());
    assert!(began.elapsed() < PATIENCE / 2);
}

#[test]
fn promise_11_a_listener_that_is_not_wanted_any_more_is_not_kept() {
    let (origin, other) = (Origin::echo(), Port::new());
    let site = Site::proxying(&[origin.address], "");
    let one = fs::read_to_string(site.config()).unwrap();
    let both = one.replace("bind = ", &format!("bind = [\"{}\", ", other.address));
    let both = both.replacen("\"\nbackend", "\"]\nbackend", 1);
    fs::write(site.config(), &both).unwrap();
    let mut supervisor = Supervisor::new(&site);
    supervisor.start(&site, &[]);
    assert_eq!(supervisor.count("proxy-listener-"), 2);
    fs::write(site.config(), &one).unwrap();
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    supervisor.hear_until(|lines| lines.contains(&"FDSTOREREMOVE=1"));
    assert_eq!(supervisor.count("proxy-listener-"), 1);
    support::await_refusal(other.address);
    supervisor.catch_up();
    fs::write(site.config(), &both).unwrap();
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    supervisor.hear_until(|lines| lines.contains(&"FDSTORE=1"));
    // The same while nobody runs.
    supervisor.kill_all(&site);
    fs::write(site.config(), &one).unwrap();
    supervisor.start(&site, &[]);
    supervisor.catch_up();
    assert_eq!(supervisor.count("proxy-listener-"), 1);
    assert!(refuses(other.address));
    // Nothing is kept that nobody wants kept.
    fs::write(site.config(), one + "[systemd]\nfdstore = false\n").unwrap();
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    while !supervisor.store.is_empty() {
        supervisor.hear_until(|lines| lines.contains(&"FDSTOREREMOVE=1"));
    }
}

/// A site with two listening sockets.
fn doubled(other: &Port) -> Site {
    let site = Site::proxying(&[Origin::echo().address], "");
    let one = fs::read_to_string(site.config()).unwrap();
    let both = one.replace("bind = ", &format!("bind = [\"{}\", ", other.address));
    fs::write(site.config(), both.replacen("\"\nbackend", "\"]\nbackend", 1)).unwrap();
    site
}

#[test]
fn promise_40_a_systemd_that_never_lets_go_keeps_nothing_and_the_reason_is_printed() {
    let other = Port::new();
    let site = doubled(&other);
    // As systemd 235 passes on what the unit sets.
    let unresolved = ("PROXY_SYSTEMD_STATE", "%S");
    let mut supervisor = Supervisor::new(&site);
    supervisor.says = vec![unresolved, ("INVOCATION_ID", "0123456789abcdef0123456789abcdef")];
    supervisor.start(&site, &[]);
    supervisor.catch_up();
    assert!(supervisor.store.is_empty(), "{:?}", supervisor.store.keys());
    supervisor.terminate();
    let daemon = site.launch(&[], &[unresolved]).unwrap();
    let said = daemon.hear("systemd before 236");
    assert!(said.contains("a restart or a killed master refuses clients"), "{said}");
    drop(daemon);
    // And 236.
    supervisor.says = vec![("PROXY_SYSTEMD_STATE", "/var/lib")];
    supervisor.start(&site, &[]);
    supervisor.catch_up();
    assert_eq!(supervisor.store.len(), 4);
}

#[test]
fn promise_25_listeners_that_the_supervisor_has_no_room_for_are_told() {
    let other = Port::new();
    let site = doubled(&other);
    let mut supervisor = Supervisor::new(&site);
    supervisor.says.push(("FDSTORE", "3"));
    supervisor.start(&site, &[]);
    supervisor.catch_up();
    assert_eq!((supervisor.store.len(), supervisor.count("proxy-listener-")), (3, 1));
    supervisor.terminate();
    supervisor.store.clear();
    let daemon = site.launch(&[], &[("SYSTEMD_EXEC_PID", "1"), ("FDSTORE", "3")]).unwrap();
    let said = daemon.hear("FileDescriptorStoreMax=");
    assert!(said.contains("keeps 3 descriptors at most") && said.contains("clients of 1 listening"), "{said}");
}

#[test]
fn a_start_that_is_tried_again_while_clients_wait_says_that_they_do() {
    let site = Site::proxying(&[Origin::echo().address], "");
    let mut supervisor = Supervisor::new(&site);
    supervisor.start(&site, &[]);
    supervisor.kill_all(&site);
    let whole = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), format!("{whole}[defaults.error-pages]\n503 = \"absent.http\"\n")).unwrap();
    let said = supervisor.refused(&site, &[]);
    assert!(said.contains("absent.http") && said.contains("their clients wait until a start succeeds"), "{said}");
    fs::write(site.config(), format!("{whole}[defaults]\nretriez = 3\n")).unwrap();
    let said = supervisor.refused(&site, &[]);
    assert!(said.contains("retriez") && !said.contains("wait"), "systemd closes them: {said}");
}

#[test]
fn what_is_kept_and_is_nothing_of_ours_is_let_go() {
    let site = Site::proxying(&[Origin::echo().address], "");
    let mut supervisor = Supervisor::new(&site);
    let foreign = tempfile::tempfile().unwrap();
    (&foreign).write_all(b"something else").unwrap();
    supervisor.store.insert("proxy-legacy-1".into(), foreign.into());
    supervisor.store.insert("proxy-listener-1".into(), TcpListener::bind("127.0.0.1:0").unwrap().into());
    let stray = supervisor.store["proxy-listener-1"].try_clone().unwrap();
    let stray = TcpListener::from(stray).local_addr().unwrap();
    supervisor.start(&site, &[]);
    assert_eq!(get(site.address(), "/").status(), 200);
    assert_eq!(supervisor.count("proxy-listener-"), 1);
    assert!(refuses(stray), "a socket that nobody accepts from would make clients hang");
    // And what is ours is kept instead of it.
    let before = generation(&site.status());
    supervisor.kill_all(&site);
    supervisor.start(&site, &[]);
    assert_eq!(generation(&site.status()), before + 1);
    supervisor.catch_up();
    assert_eq!(supervisor.store.len(), 3, "{:?}", supervisor.store.keys());
}

#[test]
fn an_upgrade_keeps_what_is_kept() {
    let site = encrypted(&Origin::echo());
    let mut supervisor = Supervisor::new(&site);
    let master = supervisor.start(&site, &[]);
    let names: Vec<_> = supervisor.store.keys().cloned().collect();
    let client = TlsClient::new(&[&TLS13]);
    assert_eq!(client.get(site.address(), "localhost").kind, HandshakeKind::Full);
    for _ in 0..2 {
        assert_eq!(code(&site.proxy(&["upgrade"])), 0);
        assert_eq!(site.status()["pid"], master);
    }
    supervisor.kill_all(&site);
    supervisor.start(&site, &[]);
    assert_eq!(supervisor.store.keys().cloned().collect::<Vec<_>>(), names);
    assert_eq!(client.get(site.address(), "localhost").kind, HandshakeKind::Resumed);
    assert_eq!(generation(&site.status()), 4);
}
