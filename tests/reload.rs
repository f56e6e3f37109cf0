//! Reloads of every kind that succeed, under load, with real processes: no client notices, nothing is left behind.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use support::client::{Client, get};
use support::load::{self, Load};
use support::origin::Origin;
use support::{PATIENCE, Port, Site, children, code, generation, pid, serving, text};

/// Waits until new connections get an answer: the old worker may take a few before it reads its order to drain.
fn await_answer(address: SocketAddr, wanted: &str) {
    let deadline = Instant::now() + PATIENCE;
    while get(address, "/").text() != wanted {
        assert!(Instant::now() < deadline, "nobody answers {wanted}");
    }
}

/// States of all generations, oldest first.
fn states(status: &Value) -> Vec<&str> {
    status["generations"].as_array().unwrap().iter().map(|worker| worker["state"].as_str().unwrap()).collect()
}

#[test]
fn a_reload_by_handover_brings_a_new_worker_and_keeps_the_master() {
    let origin = Origin::named("one");
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    let before = site.status();
    assert_eq!(get(site.address(), "/").text(), "one");
    let output = site.proxy(&["reload-socket"]);
    assert_eq!(code(&output), 0, "{output:?}");
    let after = site.status();
    assert_eq!(after["pid"], u64::from(daemon.pid()));
    assert_eq!(before["pid"], after["pid"]);
    assert_ne!(serving(&before), serving(&after));
    assert_eq!(get(site.address(), "/").text(), "one");
}

#[test]
fn a_reload_applies_the_new_configuration() {
    let (one, two) = (Origin::named("one"), Origin::named("two"));
    let site = Site::proxying(&[one.address], "");
    let _daemon = site.start();
    assert_eq!(get(site.address(), "/").text(), "one");
    let before = site.status();
    let second_port = Port::new();
    let extra = format!("[frontend.second]\nbind = \"{}\"\nbackend = \"pool\"\n", second_port.address);
    site.configure(&Site::text(&[two.address], &extra));
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    await_answer(site.address(), "two");
    assert_eq!(get(second_port.address, "/").text(), "two");
    let after = site.status();
    assert_ne!(before["config_sha256"], after["config_sha256"]);
    assert_eq!(after["listeners"].as_array().unwrap().len(), 2);

    // Its listener goes at once, although the old worker still has a connection from it.
    let mut kept = Client::connect(second_port.address);
    assert_eq!(kept.get("/").text(), "two");
    site.configure(&Site::text(&[two.address], ""));
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    support::await_refusal(second_port.address);
    assert_eq!(states(&site.status()).last(), Some(&"serving"));
    assert_eq!(kept.get("/").text(), "two");
}

#[test]
fn a_kept_connection_moves_to_the_new_worker_and_the_old_one_is_gone() {
    let origin = Origin::named("one");
    // Each thread has a pool of its own: with one thread the client finds its server's connection again.
    let site = Site::proxying(&[origin.address], "[global]\nthreads = 1\n");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for _ in 0..5 {
        assert_eq!(client.get("/").field("connection"), None);
        assert_eq!(code(&site.proxy(&["reload"])), 0);
        site.await_status("only one worker is left", |status| states(status) == ["serving"]);
    }
    assert_eq!(client.get("/").text(), "one");
    let status = site.status();
    assert_eq!(status["generations"][0]["connections"], 1, "it is counted where it is: {status:#}");
    assert_eq!(origin.accepted(), 1, "the connection to the server moved as well");
}

#[test]
fn who_asks_without_pause_moves_too_and_loses_nothing() {
    let origin = Origin::named("one");
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    let mut stream = client.reader.get_ref().try_clone().unwrap();
    let enough = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&enough);
    // Ten batches are under way at a time.
    let (begin, done) = mpsc::sync_channel(10);
    let asking = thread::spawn(move || {
        let mut asked = 1;
        while !until.load(Ordering::SeqCst) && begin.send(()).is_ok() {
            stream.write_all("GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(20).as_bytes()).unwrap();
            asked += 20;
        }
        stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        asked
    });
    let reading = thread::spawn(move || {
        let mut answered = 0;
        while let Some(answer) = client.response() {
            assert_eq!(answer.text(), "one");
            answered += 1;
            if answered % 20 == 0 {
                done.recv().unwrap();
            }
        }
        answered
    });
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    site.await_status("only one worker is left", |status| states(status) == ["serving"]);
    enough.store(true, Ordering::SeqCst);
    assert_eq!(reading.join().unwrap(), asking.join().unwrap());
}

#[test]
fn half_a_request_head_travels_along() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    for piece in ["POST /x HTT", "P/1.1\r\nHo", "st: test\r\nContent-Length: 3\r\n"] {
        client.send(piece);
        site.await_status("it is there", |status| status["generations"][0]["connections"] == 1);
        assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
        site.await_status("only one worker is left", |status| states(status) == ["serving"]);
    }
    client.send("\r\nabc");
    let answer = client.response().unwrap();
    assert_eq!((answer.text().as_str(), answer.field("connection")), ("POST /x HTTP/1.1\nabc", None));
}

#[test]
fn twenty_reloads_under_load_cost_no_request() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    let load = Load::start(site.address(), &[load::ALL, load::ALL].concat());
    for _ in 0..20 {
        load.more(50);
        let output = site.proxy(&["reload-socket"]);
        assert_eq!(code(&output), 0, "{output:?}");
    }
    load.more(50);
    load.must_have_succeeded(1000);
    let status = site.status();
    assert_eq!((generation(&status), status["pid"].as_u64()), (21, Some(u64::from(daemon.pid()))));
    assert_eq!(status["reloads"]["applied"], 20);
}

#[test]
fn reloads_leave_no_descriptor_and_no_process_behind() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let mut after_each = Vec::new();
    for mode in ["handover", "rebind", "handover", "rebind", "handover", "rebind"] {
        assert_eq!(code(&site.proxy(&["reload", "--mode", mode])), 0);
        let status = site.await_status("the old worker ends", |status| states(status) == ["serving"]);
        assert_eq!(children(daemon.pid()), [serving(&status)]);
        after_each.push(open());
    }
    // One more may be open while a caller's connection is being closed.
    assert!(after_each[5] <= after_each[0] + 1, "descriptors of the master after each reload: {after_each:?}");
}

#[test]
fn the_admin_socket_and_the_pid_file_move_with_a_reload() {
    let origin = Origin::echo();
    let text = |name: &str| Site::text(&[origin.address], &format!("[global]\npid-file = \"{{dir}}/{name}.pid\"\n"));
    let site = Site::new(&text("old"));
    let daemon = site.start();
    let old = site.socket();
    site.configure(&text("new"));
    let moved = std::fs::read_to_string(site.config()).unwrap().replace("admin.sock", "moved.sock");
    std::fs::write(site.config(), moved).unwrap();
    // The file names a socket that is not there yet; the daemon that runs with this file is found all the same.
    let output = site.proxy(&["reload"]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert_eq!(site.status()["pid"], u64::from(daemon.pid()));
    assert!(!old.exists() && !site.path("old.pid").exists());
    assert_eq!(std::fs::read_to_string(site.path("new.pid")).unwrap(), format!("{}\n", daemon.pid()));
}

#[test]
fn reloads_by_signal_under_load_cost_no_request() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    let load = Load::start(site.address(), &load::ALL);
    for (count, signal) in [(1, Signal::SIGHUP), (2, Signal::SIGUSR2)] {
        load.more(100);
        daemon.signal(signal);
        site.await_status("the signal reloads", |status| status["reloads"]["applied"] == count);
    }
    load.more(100);
    load.must_have_succeeded(300);
}

/// Inode of the socket that listens on an address, as the kernel shows it (proc_net_tcp(5)).
fn listening_inodes(address: SocketAddr) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X}", address.port());
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[1].ends_with(&port) && row[3] == "0A").map(|row| row[9].to_owned()).collect()
}

#[test]
fn rebinding_makes_new_sockets_and_handing_over_keeps_them() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let first = listening_inodes(site.address());
    assert_eq!(first.len(), 1);
    assert_eq!(code(&site.proxy(&["reload", "--mode", "handover"])), 0);
    assert_eq!(listening_inodes(site.address()), first);
    let load = Load::start(site.address(), &load::ALL);
    load.more(50);
    let output = site.proxy(&["reload", "--mode", "rebind"]);
    assert_eq!(code(&output), 0, "{output:?}");
    load.more(50);
    let (requests, failures) = load.stop();
    // Rebinding may reset who arrives between the last accept and the close; it must not be more than that.
    assert!(failures.len() * 20 < requests, "{} of {requests} failed, first: {}", failures.len(), failures[0]);
    site.await_status("the old worker ends", |status| states(status) == ["serving"]);
    let second = listening_inodes(site.address());
    assert!(second.len() == 1 && second != first, "{first:?} {second:?}");
    assert_eq!(get(site.address(), "/").status(), 200);
}

#[test]
fn what_is_in_flight_is_finished_by_the_old_worker() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let old = serving(&site.status());
    let (mut slow, mut half) = (Client::connect(site.address()), Client::connect(site.address()));
    let mut head = Client::connect(site.address());
    head.send("GET /head HTTP/1.1\r\nHo");
    slow.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    gate.arrived();
    half.send("POST /half HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\nabc");
    site.await_status("the worker has all three", |status| status["generations"][0]["connections"] == 3);
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    let status = site.status();
    let draining = status["generations"].as_array().unwrap().iter().find(|worker| worker["pid"] == old).unwrap();
    let held = "the two requests stay, the half head has moved on";
    assert_eq!((draining["state"].as_str(), draining["connections"].as_u64()), (Some("draining"), Some(2)), "{held}");
    half.send("def");
    let answer = half.response().unwrap();
    assert_eq!((answer.text().as_str(), answer.complete), ("POST /half HTTP/1.1\nabcdef", true));
    head.send("st: test\r\n\r\n");
    let answer = head.response().unwrap();
    assert_eq!((answer.text().as_str(), answer.field("connection")), ("GET /head HTTP/1.1\n", None));
    gate.release();
    let answer = slow.response().unwrap();
    assert_eq!((answer.text().as_str(), answer.complete), ("first half, second half", true));
    // Idle now, both move on at once: nobody has to end them first.
    site.await_status("the old worker ends", |status| states(status) == ["serving"]);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn concurrent_reloads_are_all_answered_and_the_waiting_ones_share_a_generation() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start_faulty();
    let before = serving(&site.status());
    let load = Load::start(site.address(), &load::ALL);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..10).map(|_| scope.spawn(|| site.proxy(&["reload-socket"]))).collect();
        for reload in all {
            let output = reload.join().unwrap();
            assert_eq!(code(&output), 0, "{output:?}");
        }
    });
    load.more(50);
    load.must_have_succeeded(50);
    let grown = generation(&site.status()) - 1;
    assert!((1..=10).contains(&grown), "{grown} generations for ten reloads");

    // While one is under way, everybody else waits for the same next one.
    site.fault("start hang");
    let known = [children(daemon.pid()), vec![before]].concat();
    let busy = UnixStream::connect(site.socket()).unwrap();
    (&busy).write_all(b"reload\n").unwrap();
    let child = site.await_fault(&daemon, &known);
    let waiting: Vec<_> = (0..10).map(|_| UnixStream::connect(site.socket()).unwrap()).collect();
    waiting.iter().for_each(|mut stream| stream.write_all(b"reload handover\n").unwrap());
    let applied = site.status()["reloads"]["applied"].as_u64().unwrap();
    kill(pid(child), Signal::SIGKILL).unwrap();
    for stream in waiting {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let answer: Value = serde_json::from_str(&std::io::read_to_string(stream).unwrap()).unwrap();
        assert_eq!(answer["outcome"], "applied", "{answer}");
    }
    let now = site.status()["reloads"]["applied"].as_u64().unwrap();
    assert_eq!(now - applied, 1, "ten waiting reloads are one generation");
}

#[test]
fn promise_40_a_rebind_says_what_it_may_cost_on_this_kernel() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let said = |mode: &str| text(&site.proxy(&["reload", "--mode", mode]).stderr);
    let migrates = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").is_ok_and(|value| value.trim() == "1");
    assert_eq!(said("rebind").contains("net.ipv4.tcp_migrate_req"), !migrates);
    assert_eq!(said("handover"), "");
}

#[test]
fn an_admin_socket_takes_the_place_of_nothing_that_is_no_socket() {
    let site = Site::proxying(&[Origin::echo().address], "");
    let good = fs::read_to_string(site.config()).unwrap();
    let _daemon = site.start();
    let (file, folder) = (site.path("precious"), site.path("folder"));
    fs::write(&file, "precious").unwrap();
    fs::create_dir(&folder).unwrap();
    for place in [&file, &folder] {
        fs::write(site.config(), good.replace(&*site.socket().to_string_lossy(), &place.to_string_lossy())).unwrap();
        let output = site.proxy(&["reload"]);
        let said = text(&output.stderr);
        assert_eq!(code(&output), 2, "{said}");
        assert!(
            said.contains(&*place.to_string_lossy()) && said.contains("there is something that is no socket"),
            "{said}"
        );
    }
    assert!(folder.is_dir());
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    fs::write(site.config(), good.replace("admin.sock", "moved.sock")).unwrap();
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    assert!(site.path("moved.sock").exists() && !site.socket().exists());
}
