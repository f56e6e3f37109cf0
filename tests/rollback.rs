//! Reloads that fail, whatever the reason: the old worker serves on, and the caller learns why.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::net::TcpListener;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use support::client::{Client, get};
use support::load::{self, Habit, Load};
use support::origin::Origin;
use support::{PATIENCE, Site, children, code, pid, serving, text};

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
fn a_reload_that_fails_at_its_last_step_leaves_the_admin_socket_in_place() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    site.configure(&Site::text(&[origin.address], "[global]\npid-file = \"/proc/no/such.pid\"\n"));
    let other_mode = std::fs::read_to_string(site.config()).unwrap().replace("\"0600\"", "\"0660\"");
    std::fs::write(site.config(), other_mode).unwrap();
    let output = site.proxy(&["reload-socket"]);
    assert_eq!(code(&output), 2, "{output:?}");
    assert_eq!(site.status()["pid"], u64::from(daemon.pid()));
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
    site.fault("start crash");
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
    site.fault("start hang");
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
    site.fault("start hang");
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
    site.fault("start hang");
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
    site.fault("start hang");
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
fn a_crash_of_the_serving_worker_during_a_failing_reload_is_repaired() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start_faulty();
    let before = serving(&site.status());
    site.fault("start hang");
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
    assert_eq!((&status["reloads"]["respawns"], children(daemon.pid())), (&Value::from(1), vec![serving(&status)]));
    assert_eq!(status["pid"], u64::from(daemon.pid()));
}

#[test]
fn an_edit_that_moves_the_admin_socket_does_not_hide_the_daemon() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    let good = std::fs::read_to_string(site.config()).unwrap();
    let moved = good.replace("admin.sock", "moved.sock");
    for (bad, problem) in
        [(format!("{moved}\nnonsense = 1\n"), "nonsense"), (good.replace("socket =", "sockett ="), "sockett")]
    {
        std::fs::write(site.config(), bad).unwrap();
        let output = site.proxy(&["reload"]);
        assert_eq!(code(&output), 1, "{output:?}");
        assert!(text(&output.stderr).contains(problem), "{output:?}");
        assert_eq!(site.status()["pid"], u64::from(daemon.pid()));
    }
    std::fs::write(site.config(), moved).unwrap();
    let output = site.proxy(&["reload"]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(!site.socket().exists() && site.path("moved.sock").exists());
    assert_eq!(site.status()["pid"], u64::from(daemon.pid()));
    // Another configuration's daemon is not taken for ours.
    let other = Site::proxying(&[origin.address], "");
    assert_eq!(code(&other.proxy(&["reload"])), 4);
}
