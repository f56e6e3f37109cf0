//! Reloads of every kind, under load, with real processes: no client notices, nothing is half applied.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use support::client::{Client, get};
use support::load::{self, Habit, Load};
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
fn a_kept_connection_survives_and_is_told_to_close_with_its_next_answer() {
    let origin = Origin::named("one");
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    assert_eq!(client.get("/").field("connection"), None);
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    let answer = client.get("/");
    assert_eq!((answer.status(), answer.field("connection")), (200, Some("close")));
    assert!(client.at_end());
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
    assert_eq!(code(&site.proxy(&["reload"])), 4, "the file names a socket that is not there yet");
    let output = site.proxy(&["reload", "-s", &old.to_string_lossy()]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert_eq!(site.status()["pid"], u64::from(daemon.pid()));
    assert!(!old.exists() && !site.path("old.pid").exists());
    assert_eq!(std::fs::read_to_string(site.path("new.pid")).unwrap(), format!("{}\n", daemon.pid()));
}

#[test]
fn a_reload_that_fails_at_its_last_step_leaves_no_worker_behind() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    let before = serving(&site.status());
    let extra = "[global]\npid-file = \"/proc/no/such.pid\"\n";
    site.configure(&Site::text(&[origin.address], extra));
    let output = site.proxy(&["reload-socket"]);
    assert_eq!(code(&output), 2, "{output:?}");
    assert!(text(&output.stderr).contains("cannot write /proc/no/such.pid"), "{output:?}");
    let deadline = Instant::now() + PATIENCE;
    while children(daemon.pid()) != [before] {
        assert!(Instant::now() < deadline, "the new worker is still there");
    }
    assert_eq!(serving(&site.status()), before);
    assert_eq!(get(site.address(), "/").status(), 200);
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
    slow.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    gate.arrived();
    half.send("POST /half HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\nabc");
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    let status = site.status();
    let draining = status["generations"].as_array().unwrap().iter().find(|worker| worker["pid"] == old).unwrap();
    assert_eq!((draining["state"].as_str(), draining["connections"].as_u64()), (Some("draining"), Some(2)));
    half.send("def");
    let answer = half.response().unwrap();
    assert_eq!((answer.text().as_str(), answer.complete), ("POST /half HTTP/1.1\nabcdef", true));
    gate.release();
    let answer = slow.response().unwrap();
    assert_eq!((answer.text().as_str(), answer.complete), ("first half, second half", true));
    // It was promised another request before the reload, so only its client may end it.
    drop((slow, half));
    site.await_status("the old worker ends", |status| states(status) == ["serving"]);
}

#[test]
fn a_broken_configuration_is_refused_with_its_place_and_nobody_notices() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    let before = site.status();
    let load = Load::start(site.address(), &load::ALL);
    load.more(50);
    site.configure(&Site::text(&[origin.address], "").replace("backend = \"pool\"", "backendd = \"pool\""));
    let output = site.proxy(&["reload-socket"]);
    let said = text(&output.stderr);
    assert_eq!(code(&output), 1, "{said}");
    assert!(said.contains(&format!("{}:8:1", site.config().display())), "{said}");
    assert!(said.contains("^^^^^^^^ did you mean `backend`?"), "{said}");
    load.more(50);
    load.must_have_succeeded(100);
    let after = site.status();
    assert_eq!((serving(&before), children(daemon.pid())), (serving(&after), vec![serving(&after)]));
    assert_eq!(before["config_sha256"], after["config_sha256"]);
    assert_eq!((&after["reloads"]["rejected"], &after["reloads"]["applied"]), (&Value::from(1), &Value::from(0)));
}

#[test]
fn a_foreign_socket_in_the_way_is_named_with_its_holder_and_its_place() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let before = serving(&site.status());
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = foreign.local_addr().unwrap();
    let extra = format!("[frontend.second]\nbind = \"{taken}\"\nbackend = \"pool\"\n");
    site.configure(&Site::text(&[origin.address], &extra));
    for mode in ["handover", "rebind"] {
        let load = Load::start(site.address(), &load::ALL);
        let output = site.proxy(&["reload", "--mode", mode]);
        let said = text(&output.stderr);
        assert_eq!(code(&output), 1, "{said}");
        assert!(said.contains(&taken.to_string()), "{said}");
        assert!(said.contains(&format!("pid {} (", std::process::id())), "{said}");
        assert!(said.contains(&format!("{}:", site.config().display())), "{said}");
        load.more(50);
        load.must_have_succeeded(50);
    }
    assert_eq!(serving(&site.status()), before);
}

#[test]
fn a_file_that_is_no_toml_still_leads_to_the_daemon_which_explains_it() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let good = std::fs::read_to_string(site.config()).unwrap();
    let broken = [format!("{good}\n[defaults\nretries = = 3"), format!("retries = = 3\n{good}"), format!("]]\n{good}")];
    for (count, bad) in (1..).zip(broken) {
        std::fs::write(site.config(), bad).unwrap();
        let output = site.proxy(&["reload"]);
        let said = text(&output.stderr);
        assert_eq!(code(&output), 1, "{said}");
        assert!(said.contains("not TOML") && said.contains(&format!("{}:", site.config().display())), "{said}");
        assert_eq!(site.status()["reloads"]["rejected"], count, "status finds the socket too");
    }
    assert_eq!(get(site.address(), "/").status(), 200);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn a_new_worker_that_dies_leaves_the_old_one_serving() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start_faulty();
    let before = serving(&site.status());
    let load = Load::start(site.address(), &load::ALL);
    load.more(50);
    site.fault("die");
    let output = site.proxy(&["reload-socket"]);
    assert_eq!(code(&output), 2, "{output:?}");
    assert!(text(&output.stderr).contains("ended before it was ready"), "{output:?}");
    load.more(50);
    let status = site.status();
    assert_eq!((serving(&status), &status["reloads"]["rolled_back"]), (before, &Value::from(1)));
    assert_eq!(children(daemon.pid()), [before], "nothing of the attempt is left");
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0, "the next reload is not hampered");
    load.more(50);
    load.must_have_succeeded(150);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn a_new_worker_that_is_killed_leaves_the_old_one_serving() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start_faulty();
    let before = serving(&site.status());
    let load = Load::start(site.address(), &load::ALL);
    site.fault("silent");
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| site.proxy(&["reload-socket"]));
        let child = site.await_fault(&daemon, &[before]);
        load.more(50);
        assert_eq!(serving(&site.status()), before, "status is answered while a reload is under way");
        kill(pid(child), Signal::SIGKILL).unwrap();
        let output = reload.join().unwrap();
        assert_eq!(code(&output), 2, "{output:?}");
    });
    load.more(50);
    load.must_have_succeeded(100);
    assert_eq!(serving(&site.status()), before);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn a_silent_new_worker_leaves_the_old_one_serving() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start_faulty();
    let before = serving(&site.status());
    // One client only: this lasts as long as the master is patient.
    let load = Load::start(site.address(), &[Habit::KeepPost]);
    site.fault("silent");
    let output = site.proxy(&["reload-socket"]);
    assert_eq!(code(&output), 2, "{output:?}");
    assert!(text(&output.stderr).contains("not ready within 10 s"), "{output:?}");
    load.more(50);
    load.must_have_succeeded(100);
    assert_eq!(serving(&site.status()), before);
    assert_eq!(children(daemon.pid()), [before], "the silent worker is gone");
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn a_caller_that_cannot_wait_is_told_that_the_daemon_is_busy() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start_faulty();
    let before = serving(&site.status());
    site.fault("silent");
    let output = site.proxy(&["reload-socket", "--timeout", "0.2"]);
    assert_eq!(code(&output), 3, "{output:?}");
    assert!(text(&output.stderr).contains("no answer within 200ms"), "{output:?}");
    kill(pid(site.await_fault(&daemon, &[before])), Signal::SIGKILL).unwrap();
    site.await_status("the reload is rolled back", |status| status["reloads"]["rolled_back"] == 1);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn stopping_does_not_wait_for_a_reload_and_its_caller_is_told() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let mut daemon = site.start_faulty();
    let before = serving(&site.status());
    site.fault("silent");
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| site.proxy(&["reload-socket"]));
        let child = site.await_fault(&daemon, &[before]);
        assert_eq!(code(&site.proxy(&["stop"])), 0);
        let output = reload.join().unwrap();
        assert_eq!((code(&output), text(&output.stderr).trim()), (3, "the daemon is stopping"), "{output:?}");
        support::await_end(child);
    });
    assert_eq!(daemon.wait().code(), Some(0));
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
    site.fault("silent");
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
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn a_crash_of_the_serving_worker_during_a_failing_reload_is_repaired() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start_faulty();
    let before = serving(&site.status());
    site.fault("silent");
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| site.proxy(&["reload-socket"]));
        let child = site.await_fault(&daemon, &[before]);
        kill(pid(before), Signal::SIGKILL).unwrap();
        support::await_end(before);
        // Nobody accepts now, but the master still holds the socket: the client waits, it is not refused.
        let mut client = Client::connect(site.address());
        client.send("GET /queued HTTP/1.1\r\nHost: test\r\n\r\n");
        kill(pid(child), Signal::SIGKILL).unwrap();
        assert_eq!(code(&reload.join().unwrap()), 2);
        assert_eq!(client.response().unwrap().status(), 200);
    });
    let status = site.status();
    assert_eq!((&status["reloads"]["respawns"], states(&status)), (&Value::from(1), vec!["serving"]));
    assert_eq!(status["pid"], u64::from(daemon.pid()));
}
