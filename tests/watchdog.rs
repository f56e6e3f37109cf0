//! Serving threads that turn no more: the master sees it by their heartbeats, replaces the worker, and tells systemd.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use support::client::{Client, get};
use support::kernel::Stopped;
use support::origin::Origin;
use support::visitor::{Fate, Visitor, nobody_was_turned_away};
use support::{Daemon, PATIENCE, Site, pid, serving, text};

/// What systemd would act on; a quarter of it lies between two pings.
const LIMIT: &str = "2000000";

fn site(extra: &str) -> Site {
    Site::proxying(&[Origin::echo().address], extra)
}

/// Waits until another worker than this one serves.
fn replaced(site: &Site, stalled: u32) {
    site.await_status("another worker serves", |status| {
        status["reloads"]["respawns"] == 1 && serving(status) != stalled
    });
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_38_a_serving_thread_that_stalls_costs_its_worker_and_nobody_is_refused() {
    let site = site("[global]\nthreads = 2");
    let daemon = site.start_faulty();
    let visitors: Vec<_> = (0..4).map(|_| Visitor::start(site.address())).collect();
    let worker = serving(&site.status());
    site.fault("beat hang");
    site.await_fault(&daemon, &[]);
    let stalled = Instant::now();
    let said = daemon.hear("has not turned for 3 s");
    assert!(said.contains(&worker.to_string()), "{said}");
    replaced(&site, worker);
    // Who was being served by the stalled thread waits in vain, and for a bounded time.
    support::await_end(worker);
    let visits: Vec<_> = visitors.into_iter().flat_map(Visitor::stop).collect();
    nobody_was_turned_away(&visits, stalled);
    assert!(visits.iter().filter(|visit| visit.fate == Fate::Broken).count() <= 4, "one request of each visitor");
    assert_eq!(get(site.address(), "/").status(), 200);
}

#[test]
fn promise_38_a_worker_that_stalls_as_a_whole_is_replaced_and_nobody_is_refused() {
    let site = site("");
    let daemon = site.start();
    let worker = serving(&site.status());
    let held = Stopped::new(worker);
    // Its queue is nobody's for now.
    let waiting: Vec<_> = (0..20).map(|_| Client::connect(site.address())).collect();
    let visitor = Visitor::start(site.address());
    replaced(&site, worker);
    for mut client in waiting {
        assert_eq!(client.get("/").status(), 200);
    }
    daemon.hear("did not end in time and is killed");
    support::await_end(worker);
    let visits = visitor.stop();
    nobody_was_turned_away(&visits, visits[0].began);
    drop(held);
}

#[test]
fn a_worker_that_was_only_held_up_ends_as_any_other_that_is_relieved() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    gate.arrived();
    let worker = serving(&site.status());
    let held = Stopped::new(worker);
    replaced(&site, worker);
    drop(held);
    daemon.hear(&format!("every thread of worker {worker} turns again"));
    gate.release();
    assert_eq!(client.response().unwrap().status(), 200);
    support::await_end(worker);
    assert!(!daemon.said.try_iter().any(|line| line.contains("killed")));
}

/// A daemon whose watchdog systemd would be, and the socket it tells it by.
fn watched(site: &Site) -> (Daemon, UnixDatagram) {
    let (daemon, told) = site.launch_heard(&[("WATCHDOG_USEC", LIMIT)]);
    told.set_read_timeout(Some(PATIENCE)).unwrap();
    (daemon, told)
}

/// The next message that contains this.
fn next(told: &UnixDatagram, part: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 4096];
    while Instant::now() < deadline {
        let length = told.recv(&mut buffer).unwrap();
        let message = text(&buffer[..length]);
        if message.contains(part) {
            return message;
        }
    }
    panic!("systemd was never told {part}");
}

#[test]
fn promise_38_systemd_hears_of_the_serving_threads_not_of_a_timer() {
    let site = site("");
    let (_daemon, told) = watched(&site);
    assert!(next(&told, "READY=1").contains("STATUS=generation 1 serves"));
    (0..3).for_each(|_| drop(next(&told, "WATCHDOG=1")));
    let worker = serving(&site.status());
    let held = Stopped::new(worker);
    let stopped = Instant::now();
    // One ping may still be due for beats that came before.
    let late = next(&told, "");
    if late.contains("WATCHDOG=1") {
        assert!(stopped.elapsed() < Duration::from_secs(2), "nobody turned");
    }
    let message = if late.contains("STATUS=") { late } else { next(&told, "") };
    assert!(message.contains("STATUS=generation 2 serves"), "no ping before the next worker turns: {message}");
    next(&told, "WATCHDOG=1");
    drop(held);
}

#[test]
fn without_the_watchdog_setting_the_master_answers_for_itself() {
    let site = site("[systemd]\nwatchdog = false");
    let (_daemon, told) = watched(&site);
    next(&told, "WATCHDOG=1");
    let held = Stopped::new(serving(&site.status()));
    (0..4).for_each(|_| drop(next(&told, "WATCHDOG=1")));
    drop(held);
}

#[test]
fn systemd_sees_in_its_status_how_a_reload_went() {
    let site = site("");
    let (daemon, told) = watched(&site);
    next(&told, "READY=1");
    site.proxy(&["reload"]);
    next(&told, "RELOADING=1");
    let ready = next(&told, "READY=1");
    assert!(ready.contains("STATUS=generation 2 serves after"), "{ready}");
    site.configure("[frontend.web]\nbind = 7");
    site.proxy(&["reload"]);
    next(&told, "RELOADING=1");
    let ready = next(&told, "READY=1");
    assert!(ready.contains("STATUS=reload failed, the old configuration goes on:"), "{ready}");
    kill(pid(daemon.pid()), Signal::SIGTERM).unwrap();
    next(&told, "STOPPING=1");
}
