//! Promises about listening sockets of every kind: paths never blink, what is matched is matched exactly.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use support::client::{Client, get};
use support::kernel::{backlog, listening};
use support::origin::{Origin, ok};
use support::syslog::Syslog;
use support::{PATIENCE, Port, Site, await_end, await_refusal, children, code, generation, pid, serving, text};

/// A site whose frontend listens on a Unix socket with these settings.
fn listening_at(origin: SocketAddr, settings: &str, extra: &str) -> Site {
    Site::new(&configuration(origin, settings, extra))
}

fn configuration(origin: SocketAddr, settings: &str, extra: &str) -> String {
    format!(
        "[frontend.web]\nbind = [\"{{port}}\", {{ address = \"unix:{{dir}}/www.sock\"{settings} }}]\nbackend = \"pool\"\n\
         forwarded-for = true\naccess-format = \"%ci:%cp %fi:%fp %ST\"\n\
         [backend.pool]\nservers = [\"{origin}\"]\n{extra}"
    )
}

fn reload(site: &Site, mode: &str) {
    let output = site.proxy(&["reload", "--mode", mode]);
    assert_eq!(code(&output), 0, "{mode}: {}", text(&output.stderr));
}

/// What a visitor sees of a path: inode, mode, owner and group.
fn seen(path: &Path) -> (u64, u32, u32, u32) {
    let found = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (found.ino(), found.mode() & 0o7777, found.uid(), found.gid())
}

/// Names of the sockets in the site's folder beside the admin socket.
fn sockets(site: &Site) -> Vec<String> {
    let all = fs::read_dir(site.folder.path()).unwrap();
    let names = all.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("www")).collect();
    names.sort();
    names
}

#[test]
fn promise_12_path_mode_and_owner_of_a_unix_socket_never_blink() {
    let origin = Origin::echo();
    let root = nix::unistd::geteuid().is_root();
    let owner = if root { ", user = \"nobody\", group = \"nogroup\"" } else { "" };
    let site = listening_at(origin.address, &format!(", mode = \"0620\"{owner}"), "");
    let _daemon = site.start();
    let path = site.path("www.sock");
    let (first, mode, uid, gid) = seen(&path);
    assert_eq!(mode, 0o620);
    assert!(!root || (uid, gid) == (65_534, 65_534), "{uid}:{gid}");
    let (over, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let watcher = std::thread::spawn({
        let (path, over, looks) = (path.clone(), Arc::clone(&over), Arc::clone(&looks));
        move || {
            while !over.load(Ordering::SeqCst) {
                assert_eq!(seen(&path).1, 0o620);
                assert_eq!((seen(&path).2, seen(&path).3), (uid, gid));
                assert_eq!(Client::connect_unix(&path).get("/").status(), 200);
                looks.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    for round in 0..10 {
        reload(&site, "handover");
        assert_eq!(seen(&path).0, first, "the very same socket after hand-over {round}");
    }
    let mut before = first;
    for round in 0..5 {
        reload(&site, "rebind");
        let (now, ..) = seen(&path);
        assert_ne!(now, before, "a fresh socket after rebind {round}");
        before = now;
    }
    let deadline = Instant::now() + PATIENCE;
    while looks.load(Ordering::SeqCst) < 50 && !watcher.is_finished() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    over.store(true, Ordering::SeqCst);
    watcher.join().unwrap();
    assert!(looks.load(Ordering::SeqCst) >= 50, "{looks:?} looks prove little");
    assert_eq!(sockets(&site), ["www.sock"], "nothing is left beside it");
    // Other rights take effect on the same socket.
    site.configure(&configuration(origin.address, ", mode = \"0666\"", ""));
    reload(&site, "handover");
    assert_eq!((seen(&path).0, seen(&path).1), (before, 0o666));
}

#[test]
fn promise_12_a_unix_sockets_path_goes_with_its_listener_and_with_the_daemon_alone() {
    let origin = Origin::echo();
    let site = listening_at(origin.address, "", "");
    let mut daemon = site.start();
    let path = site.path("www.sock");
    let (inode, ..) = seen(&path);
    // An old worker ends, and a worker is killed.
    let old = serving(&site.status());
    reload(&site, "handover");
    await_end(old);
    kill(pid(serving(&site.status())), Signal::SIGKILL).unwrap();
    site.await_status("a respawn", |status| generation_of(status) == Some(3));
    assert_eq!(seen(&path).0, inode);
    assert_eq!(Client::connect_unix(&path).get("/").status(), 200);
    // Somebody removes it: the next reload brings it back.
    fs::remove_file(&path).unwrap();
    reload(&site, "handover");
    assert_eq!(Client::connect_unix(&path).get("/").status(), 200);
    // The listener is removed.
    site.configure(&Site::text(&[origin.address], ""));
    reload(&site, "handover");
    assert!(sockets(&site).is_empty(), "{:?}", sockets(&site));
    site.configure(&configuration(origin.address, "", ""));
    reload(&site, "handover");
    assert_eq!(Client::connect_unix(&path).get("/").status(), 200);
    // The daemon ends.
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    assert!(sockets(&site).is_empty(), "{:?}", sockets(&site));
}

/// The generation that serves, if one does.
fn generation_of(status: &serde_json::Value) -> Option<u64> {
    let serves = status["generations"].as_array().unwrap().iter().any(|worker| worker["state"] == "serving");
    serves.then(|| generation(status))
}

#[test]
fn promise_12_a_stale_path_is_replaced_and_one_that_somebody_listens_at_is_not() {
    let origin = Origin::echo();
    let site = listening_at(origin.address, "", "");
    let path = site.path("www.sock");
    let mut daemon = site.start();
    let workers = children(daemon.pid());
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    workers.into_iter().for_each(await_end);
    assert!(path.exists(), "kill -9 leaves it behind");
    let daemon = site.start();
    assert_eq!(Client::connect_unix(&path).get("/").status(), 200);
    let (inode, ..) = seen(&path);
    // Another daemon wants it; another one still wants something that is no socket.
    let other = Site::new(&configuration(origin.address, "", "").replace("{dir}/www.sock", &path.to_string_lossy()));
    let said = other.launch(&[], &[]).err().unwrap();
    assert!(said.contains(&format!("cannot listen on unix:{}", path.display())), "{said}");
    assert!(said.contains(&format!("held by pid {} (proxy)", daemon.pid())), "{said}");
    fs::write(site.path("plain"), "precious").unwrap();
    other.configure(
        &configuration(origin.address, "", "").replace("{dir}/www.sock", &site.path("plain").to_string_lossy()),
    );
    let said = other.launch(&[], &[]).err().unwrap();
    assert!(said.contains("no socket"), "{said}");
    assert_eq!(fs::read_to_string(site.path("plain")).unwrap(), "precious");
    assert_eq!(seen(&path).0, inode);
    assert_eq!(Client::connect_unix(&path).get("/").status(), 200);
    assert_eq!(sockets(&site), ["www.sock"]);
}

#[test]
fn promise_12_a_rejected_or_failed_reload_leaves_the_path_alone() {
    let origin = Origin::echo();
    let site = listening_at(origin.address, "", "");
    let _daemon = site.start_faulty();
    let path = site.path("www.sock");
    let (inode, ..) = seen(&path);
    for fault in ["spawn EMFILE", "ready crash", "commit ENOSPC", "serve crash"] {
        for mode in ["handover", "rebind"] {
            site.fault(fault);
            let output = site.proxy(&["reload", "--mode", mode]);
            assert_eq!(code(&output), 2, "{fault}, {mode}: {}", text(&output.stderr));
            assert_eq!(seen(&path).0, inode, "{fault}, {mode}");
            assert_eq!(sockets(&site), ["www.sock"], "{fault}, {mode}");
            assert_eq!(Client::connect_unix(&path).get("/").status(), 200, "{fault}, {mode}");
        }
    }
}

#[test]
fn clients_of_a_unix_socket_are_logged_as_haproxy_logs_them_and_have_no_address_to_forward() {
    let origin = Origin::answering(|request| ok(request.field("x-forwarded-for").unwrap_or("nobody")));
    let syslog = Syslog::new();
    let site = listening_at(origin.address, "", &syslog.section());
    let _daemon = site.start();
    let answer = Client::connect_unix(&site.path("www.sock")).get("/");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "nobody"));
    assert_eq!(syslog.line(), "unix:2 unix:2 200");
    assert_eq!(get(site.address(), "/").text(), "127.0.0.1");
}

#[test]
fn promise_04_an_idle_connection_of_a_unix_socket_moves_with_what_it_has_sent() {
    let (origin, syslog) = (Origin::echo(), Syslog::new());
    let site = listening_at(origin.address, "", &syslog.section());
    let _daemon = site.start();
    let mut client = Client::connect_unix(&site.path("www.sock"));
    assert_eq!(client.get("/").status(), 200);
    for _ in 0..5 {
        client.send("GET /half HTTP/1.1\r\nHo");
        let old = serving(&site.status());
        reload(&site, "handover");
        await_end(old);
        let answer = client.ask("st: test\r\n\r\n");
        assert_eq!((answer.status(), answer.field("connection")), (200, None));
        assert_eq!(syslog.line(), "unix:2 unix:2 200");
    }
}

#[test]
fn promise_12_a_unix_socket_passes_from_daemon_to_daemon_and_stays_when_the_first_one_ends() {
    let origin = Origin::echo();
    let site = listening_at(origin.address, "", "");
    let mut first = site.start();
    let path = site.path("www.sock");
    let (inode, ..) = seen(&path);
    let (socket, finish) = (site.socket(), first.pid().to_string());
    let mut second = site.start_with(&["-x", &socket.to_string_lossy(), "-sf", &finish]);
    assert!(first.wait().success());
    assert_eq!(seen(&path).0, inode);
    assert_eq!(Client::connect_unix(&path).get("/").status(), 200);
    second.signal(Signal::SIGTERM);
    second.wait();
    assert!(sockets(&site).is_empty(), "it was the second one's: {:?}", sockets(&site));
}

#[test]
fn promise_12_tls_and_tunnels_work_over_a_unix_socket() {
    let origin = Origin::echo();
    let extra = format!(
        "[frontend.tcp]\nmode = \"tcp\"\nbind = \"unix:{{dir}}/tcp.sock\"\nbackend = \"raw\"\n[backend.raw]\nmode = \"tcp\"\nservers = [\"{}\"]\n",
        origin.address
    );
    let site = listening_at(origin.address, "", &extra);
    let _daemon = site.start();
    let mut client = Client::connect_unix(&site.path("tcp.sock"));
    assert_eq!(client.get("/1").status(), 200);
    reload(&site, "handover");
    assert_eq!(client.get("/2").status(), 200);
    assert_eq!(client.get("/3").text(), "GET /3 HTTP/1.1\n");
}

#[test]
fn promise_12_a_changed_backlog_is_applied_to_the_same_socket() {
    let origin = Origin::echo();
    let port = Port::new();
    let second = |backlog: u32| {
        let bind = format!("bind = {{ address = \"{}\", backlog = {backlog} }}", port.address);
        Site::text(&[origin.address], &format!("[frontend.second]\n{bind}\nbackend = \"pool\"\n"))
    };
    let site = Site::new(&second(7));
    let _daemon = site.start();
    let inode = listening(port.address)[0].inode.clone();
    assert_eq!(backlog(port.address), 7);
    for changed in [100, 3] {
        site.configure(&second(changed));
        reload(&site, "handover");
        assert_eq!(backlog(port.address), changed);
        assert_eq!(listening(port.address)[0].inode, inode);
    }
    // One that is not committed changes nothing.
    site.configure(&second(50).replace("backend = \"pool\"\n\n", "backend = \"nowhere\"\n"));
    assert_eq!(code(&site.proxy(&["reload"])), 1);
    assert_eq!(backlog(port.address), 3);
}

#[test]
fn promise_12_dual_stack_sockets_are_matched_exactly() {
    let origin = Origin::echo();
    let site = Site::new("");
    let port = site.address().port();
    let bind = |settings: &str| {
        format!(
            "[frontend.web]\nbind = {{ address = \"[::]:{port}\"{settings} }}\nbackend = \"pool\"\n\
             [backend.pool]\nservers = [\"{}\"]\n",
            origin.address
        )
    };
    let four = SocketAddr::from(([127, 0, 0, 1], port));
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    site.configure(&bind(""));
    let _daemon = site.start();
    assert_eq!((get(four, "/").status(), get(six, "/").status()), (200, 200));
    // The same address, and yet another socket.
    site.configure(&bind(", v6only = true"));
    reload(&site, "handover");
    await_refusal(four);
    assert_eq!(get(six, "/").status(), 200);
    site.configure(&bind(""));
    reload(&site, "handover");
    assert_eq!((get(four, "/").status(), get(six, "/").status()), (200, 200));
    // One for IPv4 alone instead.
    site.configure(&bind("").replace("[::]", "0.0.0.0"));
    reload(&site, "handover");
    await_refusal(six);
    assert_eq!(get(four, "/").status(), 200);
}

#[test]
fn promise_12_device_bound_sockets_are_matched_exactly() {
    let origin = Origin::echo();
    let site = Site::new("");
    let bind = |interface: &str| {
        format!(
            "[frontend.web]\nbind = {{ address = \"{{port}}\"{interface} }}\nbackend = \"pool\"\n\
             [backend.pool]\nservers = [\"{}\"]\n",
            origin.address
        )
    };
    site.configure(&bind(", interface = \"lo\""));
    let _daemon = site.start();
    let before = listening(site.address());
    reload(&site, "handover");
    assert_eq!(listening(site.address()), before, "it is known again");
    assert_eq!(get(site.address(), "/").status(), 200);
    site.configure(&bind(", interface = \"nosuch0\""));
    let output = site.proxy(&["reload"]);
    assert_eq!(code(&output), 1, "{output:?}");
    assert_eq!(get(site.address(), "/").status(), 200);
}
