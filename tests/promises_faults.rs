//! What is promised for the day something breaks in a reload: each step, each fault, both sides of a hand-over.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]
#![allow(clippy::print_stdout, reason = "what was measured is shown")]

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use support::client::{Client, get};
use support::load::{self, Habit, Load};
use support::origin::Origin;
use support::visitor::{Visitor, nobody_was_turned_away};
use support::{Daemon, Site, children, code, generation, pid, serving, text, until};

/// Steps of a new worker until it serves.
const UNTIL_SERVING: [&str; 6] = ["start", "inherited", "privileges", "threads", "ready", "serve"];
/// Steps of an old worker from when it learns of a successor.
const RETIRING: [&str; 5] = ["successor", "drain", "sending", "sent", "drained"];

fn site() -> Site {
    Site::proxying(&[Origin::echo().address], "")
}

/// A reload with a fault: it ends as it should, the old worker is the only one left and goes on.
/// Returns what the caller was told.
fn failing_reload(site: &Site, daemon: &Daemon, fault: &str, expected: i32) -> String {
    let before = serving(&site.status());
    site.fault(fault);
    let output = site.proxy(&["reload-socket"]);
    let said = text(&output.stderr);
    assert!(!site.path("fault").exists(), "{fault}: the step was never reached: {said}");
    assert_eq!(code(&output), expected, "{fault}: {said}");
    until("nothing of the attempt is left", || children(daemon.pid()) == [before]);
    assert_eq!(serving(&site.status()), before, "{fault}");
    said
}

/// Every fault at each of these steps on one daemon under load; between any two a reload that works.
fn matrix(steps: &[&str], expected: i32) {
    let site = site();
    let daemon = site.start_faulty();
    let load = Load::start(site.address(), &load::ALL);
    for step in steps {
        for (fault, reason) in [("crash", ""), ("EMFILE", "Too many open files"), ("ENOSPC", "No space left")] {
            load.more(10);
            let said = failing_reload(&site, &daemon, &format!("{step} {fault}"), expected);
            assert!(said.contains(reason), "{step} {fault}: {said}");
            load.more(10);
            let next = site.proxy(&["reload-socket"]);
            assert_eq!(code(&next), 0, "the reload after {step} {fault}: {next:?}");
        }
    }
    let reloads = &site.status()["reloads"];
    let failed = if expected == 1 { &reloads["rejected"] } else { &reloads["rolled_back"] };
    assert_eq!((failed, &reloads["applied"]), (&Value::from(steps.len() * 3), &Value::from(steps.len() * 3)));
    load.more(10);
    load.must_have_succeeded(steps.len() * 60);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_19_a_new_worker_that_fails_at_any_step_costs_no_request() {
    matrix(&UNTIL_SERVING, 2);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_19_a_master_that_fails_before_it_spawns_rejects_and_costs_no_request() {
    matrix(&["load", "bind"], 1);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_19_a_master_that_fails_after_it_spawned_rolls_back_and_costs_no_request() {
    matrix(&["spawn", "handed-over", "commit"], 2);
}

/// The one that serves is held, so that everybody in the queue is there for the taking.
#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_19_a_worker_that_is_rolled_back_has_touched_nobody_in_the_queue() {
    let site = site();
    let daemon = site.start_faulty();
    let before = serving(&site.status());
    for _ in 0..10 {
        kill(pid(before), Signal::SIGSTOP).unwrap();
        let mut queued: Vec<_> = (0..20).map(|_| Client::connect(site.address())).collect();
        queued.iter_mut().for_each(|client| client.send("GET /queued HTTP/1.1\r\nHost: test\r\n\r\n"));
        failing_reload(&site, &daemon, "commit EMFILE", 2);
        kill(pid(before), Signal::SIGCONT).unwrap();
        for client in &mut queued {
            assert_eq!(client.response().map(|answer| answer.status()), Some(200));
        }
    }
}

/// Each waits as long as the master does, so all steps wait at once.
#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_19_a_new_worker_that_hangs_at_any_step_costs_no_request() {
    std::thread::scope(|scope| {
        for step in UNTIL_SERVING {
            scope.spawn(move || {
                let site = site();
                let daemon = site.start_faulty();
                let load = Load::start(site.address(), &[Habit::KeepPost]);
                let said = failing_reload(&site, &daemon, &format!("{step} hang"), 2);
                let late = if step == "serve" { "did not serve within 10 s" } else { "not ready within 10 s" };
                assert!(said.contains(late), "{step}: {said}");
                let next = site.proxy(&["reload-socket"]);
                assert_eq!(code(&next), 0, "the reload after {step} hang: {next:?}");
                load.more(20);
                load.must_have_succeeded(100);
            });
        }
    });
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_19_the_old_worker_accepts_until_the_new_one_says_that_it_serves() {
    let site = site();
    let daemon = site.start_faulty();
    let load = Load::start(site.address(), &load::ALL);
    let old = serving(&site.status());
    site.fault("serve hang");
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| site.proxy(&["reload-socket"]));
        let hanging = site.await_fault(&daemon, &[old]);
        load.more(300);
        assert!(!reload.is_finished() && !support::has_ended(old));
        assert_eq!(serving(&site.status()), old);
        // A graceful end that is asked for meanwhile would wait; here the one that hangs is killed instead.
        kill(pid(hanging), Signal::SIGKILL).unwrap();
        let output = reload.join().unwrap();
        assert_eq!(code(&output), 2, "{output:?}");
    });
    let status = site.status();
    assert_eq!((&status["reloads"]["respawns"], children(daemon.pid())), (&Value::from(0), vec![old]));
    load.more(10);
    load.must_have_succeeded(310);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn an_end_that_is_asked_for_between_two_workers_waits_for_the_new_one() {
    let site = site();
    let mut daemon = site.start_faulty();
    let old = serving(&site.status());
    site.fault("serve hang");
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| site.proxy(&["reload-socket"]));
        let hanging = site.await_fault(&daemon, &[old]);
        let mut kept = Client::connect(site.address());
        assert_eq!(kept.get("/").status(), 200);
        daemon.signal(Signal::SIGUSR1);
        assert_eq!(kept.get("/").field("connection"), None, "nothing has been decided");
        kill(pid(hanging), Signal::SIGKILL).unwrap();
        assert_eq!(code(&reload.join().unwrap()), 2);
        until("an answer says that it is the last", || kept.get("/").field("connection") == Some("close"));
    });
    assert_eq!(daemon.wait().code(), Some(0));
}

/// Kept connections that have had one answer each.
fn kept(site: &Site, count: usize) -> Vec<Client> {
    let mut clients: Vec<_> = (0..count).map(|_| Client::connect(site.address())).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/before").status(), 200));
    clients
}

/// Kills an old worker at a step of its hand-over.
fn killed_mid_hand_over(step: &str) {
    let site = site();
    let daemon = site.start_faulty();
    let old = serving(&site.status());
    let mut clients = kept(&site, 50);
    let visitor = Visitor::start(site.address());
    site.fault(&format!("{step} crash"));
    let output = site.proxy(&["reload-socket"]);
    assert_eq!(code(&output), 0, "{step}: {output:?}");
    support::await_end(old);
    let dead = Instant::now();
    assert!(!site.path("fault").exists(), "{step}: never reached");
    for number in 0..50 {
        assert_eq!(get(site.address(), &format!("/{number}")).text(), format!("GET /{number} HTTP/1.1\n"));
    }
    nobody_was_turned_away(&visitor.stop(), dead);
    // What the new one took before is served there; what the dead one had ends, and nobody is left hanging.
    let served = clients.iter_mut().filter_map(|client| {
        client.send("GET /after HTTP/1.1\r\nHost: test\r\n\r\n");
        client.response()
    });
    let served = served.inspect(|answer| assert_eq!(answer.text(), "GET /after HTTP/1.1\n")).count();
    println!("{step}: of 50 kept connections {served} had moved, {} ended with the old worker", 50 - served);
    let status = site.status();
    assert_eq!((generation(&status), &status["reloads"]["respawns"]), (2, &Value::from(0)), "{step}");
    assert_eq!(children(daemon.pid()), [serving(&status)], "{step}");
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0, "{step}");
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_20_an_old_worker_killed_at_any_step_leaves_the_new_one_to_finish_alone() {
    RETIRING.into_iter().for_each(killed_mid_hand_over);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_04_who_could_not_move_the_first_time_moves_without_another_reload() {
    let site = site();
    let _daemon = site.start_faulty();
    let old = serving(&site.status());
    let mut clients = kept(&site, 300);
    site.fault("receiving EMFILE");
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    support::await_end(old);
    assert!(!site.path("fault").exists());
    for client in &mut clients {
        let answer = client.get("/after");
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("GET /after HTTP/1.1\n", None));
    }
}

/// Descriptors or memory run out on either side of the hand-over: who cannot move stays, and nobody is owned twice.
#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_20_a_hand_over_that_runs_out_of_something_costs_no_request() {
    let site = site();
    let daemon = site.start_faulty();
    let load = Load::start(site.address(), &load::ALL);
    let mut clients = kept(&site, 20);
    for step in RETIRING.into_iter().chain(["receiving"]) {
        for fault in ["EMFILE", "ENOSPC"] {
            load.more(10);
            site.fault(&format!("{step} {fault}"));
            let output = site.proxy(&["reload-socket"]);
            assert_eq!(code(&output), 0, "{step} {fault}: {output:?}");
            until("the step is reached", || !site.path("fault").exists());
            for client in &mut clients {
                let answer = client.get("/after");
                assert_eq!(answer.text(), "GET /after HTTP/1.1\n", "{step} {fault}");
                if answer.field("connection") == Some("close") {
                    *client = kept(&site, 1).remove(0);
                }
            }
            load.more(10);
            assert_eq!(code(&site.proxy(&["reload-socket"])), 0, "the reload after {step} {fault}");
        }
    }
    drop(clients);
    load.more(10);
    load.must_have_succeeded(200);
    let status = site.await_status("one is left", |status| status["generations"].as_array().unwrap().len() == 1);
    assert_eq!((&status["reloads"]["respawns"], children(daemon.pid())), (&Value::from(0), vec![serving(&status)]));
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_20_a_new_worker_killed_mid_hand_over_takes_no_connection_with_it() {
    let site = site();
    let _daemon = site.start_faulty();
    let mut clients = kept(&site, 50);
    let visitor = Visitor::start(site.address());
    site.fault("receiving crash");
    let output = site.proxy(&["reload-socket"]);
    assert_eq!(code(&output), 0, "{output:?}");
    let status = site.await_status("a respawn serves", |status| status["reloads"]["respawns"] == 1);
    let replaced = Instant::now();
    for client in &mut clients {
        assert_eq!(client.get("/after").text(), "GET /after HTTP/1.1\n", "what was not taken is still served");
    }
    assert_eq!(get(site.address(), "/").status(), 200);
    nobody_was_turned_away(&visitor.stop(), replaced);
    assert_eq!(generation(&status), 3);
    drop(clients);
    site.await_status("the old worker ends", |status| status["generations"].as_array().unwrap().len() == 1);
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_20_a_worker_that_hangs_mid_hand_over_holds_no_new_connection_up() {
    std::thread::scope(|scope| {
        for step in RETIRING.into_iter().chain(["receiving"]) {
            scope.spawn(move || hanging_mid_hand_over(step));
        }
    });
}

/// Hangs a worker at a step of the hand-over; the master ends it when its time is over.
fn hanging_mid_hand_over(step: &str) {
    let site = Site::proxying(&[Origin::echo().address], "[reload]\nhard-stop-after = \"200ms\"\n");
    let daemon = site.start_faulty();
    let old = serving(&site.status());
    let _clients = kept(&site, 50);
    let visitor = Visitor::start(site.address());
    site.fault(&format!("{step} hang"));
    let output = site.proxy(&["reload-socket"]);
    assert_eq!(code(&output), 0, "{step}: {output:?}");
    let decided = Instant::now();
    let alone = |status: &Value| status["generations"].as_array().unwrap().len() == 1;
    site.await_status("the old worker is gone", alone);
    support::await_end(old);
    let gone = Instant::now();
    assert!(!site.path("fault").exists(), "{step}");
    (0..20).for_each(|_| assert_eq!(get(site.address(), "/").status(), 200));
    // Whoever does not hear the order to drain goes on accepting, and is killed with what it has.
    let accepted_by_it = ["successor", "drain"].contains(&step);
    nobody_was_turned_away(&visitor.stop(), if accepted_by_it { gone } else { decided });
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0, "{step}");
    let status = site.await_status("whoever hangs is gone", alone);
    assert_eq!((generation(&status), children(daemon.pid())), (3, vec![serving(&status)]), "{step}");
}

/// More want to leave than may be on their way, and those who are get no answer for five seconds.
#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_31_who_asks_while_others_leave_before_him_does_not_wait_for_them() {
    const MANY: usize = 700;
    const TURNS: usize = 506;
    support::kernel::allow_descriptors(2 * MANY as u64);
    let site = site();
    let _daemon = site.start_faulty();
    let mut clients = kept(&site, MANY);
    let began = Instant::now();
    site.fault("receiving hang");
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    until("somebody is on his way", || !site.path("fault").exists());
    for client in &mut clients {
        client.send("GET /after HTTP/1.1\r\nHost: test\r\n\r\n");
        client.reader.get_ref().set_nonblocking(true).unwrap();
    }
    let is_answered = |client: &&Client| client.reader.get_ref().peek(&mut [0; 1]).is_ok_and(|count| count == 1);
    until("the others are answered", || clients.iter().filter(is_answered).count() >= MANY - TURNS);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for client in &mut clients {
        client.reader.get_ref().set_nonblocking(false).unwrap();
        assert_eq!(client.response().map(|answer| answer.text()).as_deref(), Some("GET /after HTTP/1.1\n"));
    }
}

/// It would give clients the old configuration for as long as it may finish what it has.
#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn an_old_worker_that_goes_on_accepting_is_ended_and_the_log_says_what_that_costs() {
    std::thread::scope(|scope| {
        for step in ["successor", "drain"] {
            scope.spawn(move || {
                let site = site();
                let daemon = site.start_faulty();
                let old = serving(&site.status());
                site.fault(&format!("{step} hang"));
                assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
                let said = daemon.hear(&format!("worker {old} of generation 1 still accepts 10 s after"));
                assert!(said.contains("killed with what it was answering"), "{said}");
                support::await_end(old);
                (0..20).for_each(|_| assert_eq!(get(site.address(), "/").status(), 200));
                let status =
                    site.await_status("one is left", |status| status["generations"].as_array().unwrap().len() == 1);
                assert_eq!((generation(&status), &status["reloads"]["respawns"]), (2, &Value::from(0)), "{step}");
            });
        }
    });
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds announce another version")]
fn promise_28_a_worker_refuses_another_protocol_version_and_the_old_one_goes_on() {
    let site = site();
    let daemon = site.start_faulty();
    let load = Load::start(site.address(), &load::ALL);
    load.more(10);
    let said = failing_reload(&site, &daemon, "handed-over version", 2);
    assert!(said.contains("the master speaks protocol 2, this worker 1"), "{said}");
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    load.more(10);
    load.must_have_succeeded(20);
}
