//! Upgrades that something stands in the way of: what was asked for, what clients find and who waits is not forgotten.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use nix::sys::signal::{Signal, kill};
use support::client::{Client, get};
use support::kernel::await_queued;
use support::origin::Origin;
use support::program::{install_next, launch, launch_faulty, stays, upgraded};
use support::supervisor::Supervisor;
use support::{Port, Site, await_end, code, generation, pid, serving, text};

/// A frontend with a Unix socket, and another one for one client at a time.
fn text_of(origin: &Origin, other: Option<&Port>) -> String {
    let other = other.map_or_else(String::new, |port| {
        format!("[frontend.other]\nbind = \"{}\"\nmaxconn = 1\nbackend = \"pool\"\n", port.address)
    });
    format!(
        "[frontend.web]\nbind = [\"unix:{{dir}}/www.sock\", \"{{port}}\"]\nbackend = \"pool\"\n{other}\
         [backend.pool]\nservers = \"{}\"\n",
        origin.address
    )
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn a_program_that_fails_while_it_takes_over_leaves_every_path_where_it_is() {
    let site = Site::new(&text_of(&Origin::echo(), None));
    let daemon = launch_faulty(&site);
    let inode = || fs::symlink_metadata(site.path("www.sock")).unwrap().ino();
    let before = inode();
    for _ in 0..2 {
        install_next(&site);
        site.fault("adopted EMFILE");
        stays(&site, &daemon, 2, "could not take over");
        assert!(!site.path("fault").exists());
        assert_eq!(inode(), before);
        assert_eq!(Client::connect_unix(&site.path("www.sock")).get("/").status(), 200);
    }
    upgraded(&site);
    assert_eq!(inode(), before);
    // And they go when the daemon does.
    drop(daemon);
    assert!(!site.path("www.sock").exists() && !site.socket().exists());
}

#[test]
fn a_queue_that_is_given_up_is_served_although_a_path_was_removed_by_hand() {
    let ((origin, gate), other) = (Origin::gated(), Port::new());
    let site = Site::new(&text_of(&origin, Some(&other)));
    let _daemon = launch(&site, &[], &[]);
    let ask = |target: &str| {
        let mut client = Client::connect(other.address);
        client.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"));
        client
    };
    // The one that may come in stays, and so the others are not accepted.
    let mut first = ask("/slow");
    gate.arrived();
    let mut queued: Vec<_> = (0..20).map(|number| ask(&format!("/{number}"))).collect();
    await_queued(other.address, queued.len());
    fs::remove_file(site.path("www.sock")).unwrap();
    site.configure(&text_of(&origin, None));
    install_next(&site);
    upgraded(&site);
    for (number, client) in queued.iter_mut().enumerate() {
        let answer = client.response().unwrap_or_else(|| panic!("client {number} of the queue got no answer"));
        assert_eq!(answer.text(), format!("GET /{number} HTTP/1.1\n"));
    }
    support::await_refusal(other.address);
    gate.release();
    assert!(first.response().is_some_and(|answer| answer.complete));
    assert_eq!(Client::connect_unix(&site.path("www.sock")).get("/").status(), 200, "there is another one");
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn a_reload_that_a_signal_asks_for_during_an_upgrade_outlives_its_failure() {
    let site = Site::proxying(&[Origin::echo().address], "");
    let daemon = launch_faulty(&site);
    let old = serving(&site.status());
    install_next(&site);
    site.fault("ready hang");
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| site.proxy(&["upgrade"]));
        let hanging = site.await_fault(&daemon, &[old]);
        daemon.signal(Signal::SIGHUP);
        // Answered after the signal was heard.
        site.status();
        kill(pid(hanging), Signal::SIGKILL).unwrap();
        let output = upgrade.join().unwrap();
        assert_eq!(code(&output), 2, "{output:?}");
    });
    let status = site.await_status("the reload", |status| status["reloads"]["applied"] == 1);
    assert_ne!(serving(&status), old);
    assert_eq!(get(site.address(), "/").status(), 200);
}

/// More than a master can have at a time, by workers of a killed one that still finish what they have.
#[test]
#[ignore = "sixty-four workers at a time; .ci/run runs it"]
fn an_upgrade_for_whose_worker_there_is_no_room_is_refused_before_it_begins() {
    let (origin, pace) = Origin::paced(2, 4096);
    let site = Site::proxying(&[origin.address], "[global]\nthreads = 1\n[reload]\nmax-old = 60\n");
    let mut supervisor = Supervisor::new(&site);
    supervisor.start(&site, &[]);
    pace.allow();
    let mut held = Vec::new();
    let mut hold = || {
        let mut client = Client::connect(site.address());
        client.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        assert_eq!(client.head().unwrap().status(), 200);
        held.push(client);
    };
    for _ in 0..3 {
        supervisor.catch_up();
        hold();
        assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    }
    hold();
    // Only the master: its four workers finish their downloads.
    let mut master = supervisor.child.take().unwrap();
    master.kill().unwrap();
    master.wait().unwrap();
    let master = supervisor.start(&site, &[]);
    for _ in 0..59 {
        supervisor.catch_up();
        hold();
        assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    }
    supervisor.catch_up();
    let before = generation(&site.status());
    let output = site.proxy(&["upgrade"]);
    assert_eq!((code(&output), text(&output.stderr).contains("too many workers")), (3, true), "{output:?}");
    let resumed = || fs::read_to_string(format!("/proc/{master}/cmdline")).unwrap().contains("--resume");
    assert!(!resumed(), "it has become another program, and has no worker");
    assert_eq!(generation(&site.status()), before);
    pace.allow();
    let old = serving(&site.status());
    site.await_status("room", |status| status["generations"].as_array().unwrap().len() == 1);
    assert_eq!(code(&site.proxy(&["upgrade"])), 0);
    assert!(resumed());
    await_end(old);
}
