//! How daemons end, are replaced and are repaired: signals, take-over, crashes, limits on draining.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use support::client::{Client, get};
use support::load::{self, Load};
use support::origin::{Gate, Origin};
use support::{Daemon, Site, code, generation, pid, serving, text};

/// A client that has half of its answer; the gate holds the rest.
fn half_served(site: &Site, gate: &Gate) -> Client {
    let mut client = Client::connect(site.address());
    client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    gate.arrived();
    client
}

/// Whether a client got the whole of a gated answer.
fn is_served(client: &mut Client) -> bool {
    client.response().is_some_and(|answer| answer.complete && answer.text() == "first half, second half")
}

fn draining(status: &Value) -> usize {
    status["generations"].as_array().unwrap().iter().filter(|worker| worker["state"] != "serving").count()
}

/// Connections of the serving worker.
fn in_serving_worker(status: &Value) -> u64 {
    let workers = status["generations"].as_array().unwrap();
    workers.iter().find(|worker| worker["state"] == "serving").unwrap()["connections"].as_u64().unwrap()
}

#[test]
fn a_killed_worker_is_replaced_and_the_master_stays() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    let mut dead = Vec::new();
    for count in 1..=2 {
        let worker = serving(&site.status());
        kill(pid(worker), Signal::SIGKILL).unwrap();
        support::await_end(worker);
        assert_eq!(get(site.address(), "/").status(), 200, "who comes in between waits, but is served");
        dead.push(worker);
        let status = site.await_status("a new worker serves", |status| {
            status["reloads"]["respawns"] == count && !status["generations"].as_array().unwrap().is_empty()
        });
        assert!(!dead.contains(&serving(&status)));
        assert_eq!(status["pid"], u64::from(daemon.pid()));
        assert_eq!(get(site.address(), "/").status(), 200);
    }
    assert!(daemon.hear("died").contains(&dead[0].to_string()));
    assert!(text(&site.proxy(&["status"]).stdout).contains("workers replaced after a crash: 2"));
}

#[test]
fn a_replaced_worker_serves_what_served_not_what_the_file_says_by_now() {
    let (one, two) = (Origin::named("one"), Origin::named("two"));
    let site = Site::proxying(&[one.address], "");
    let _daemon = site.start();
    site.configure(&Site::text(&[two.address], ""));
    kill(pid(serving(&site.status())), Signal::SIGKILL).unwrap();
    site.await_status("a new worker serves", |status| status["reloads"]["respawns"] == 1);
    assert_eq!(get(site.address(), "/").text(), "one");
}

#[test]
fn a_worker_without_its_master_finishes_what_is_open_and_ends() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "");
    let mut daemon = site.start();
    let worker = serving(&site.status());
    let mut slow = half_served(&site, &gate);
    daemon.signal(Signal::SIGKILL);
    daemon.wait();
    // Its successor needs neither the port nor the admin socket to be cleaned up by anybody.
    let successor = site.start();
    assert_eq!(get(site.address(), "/").status(), 200);
    assert_ne!(site.status()["pid"], u64::from(daemon.pid()));
    assert!(!support::has_ended(worker), "a response is still open");
    gate.release();
    assert!(is_served(&mut slow));
    drop(slow);
    support::await_end(worker);
    drop(successor);
}

#[test]
fn stop_ends_it_at_once_and_returns_when_it_is_gone() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "");
    let mut daemon = site.start();
    let worker = serving(&site.status());
    let mut slow = half_served(&site, &gate);
    let output = site.proxy(&["stop"]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(support::has_ended(worker) && support::refuses(site.address()) && !site.socket().exists());
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!is_served(&mut slow), "nobody waits for an open response");
}

#[test]
fn a_graceful_stop_lets_open_responses_finish_and_then_ends() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "");
    let mut daemon = site.start();
    let worker = serving(&site.status());
    let mut slow = half_served(&site, &gate);
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| site.proxy(&["stop", "--graceful"]));
        support::await_refusal(site.address());
        assert!(!stop.is_finished() && !support::has_ended(worker), "a response is still open");
        gate.release();
        assert!(is_served(&mut slow));
        drop(slow);
        let output = stop.join().unwrap();
        assert_eq!(code(&output), 0, "{output:?}");
    });
    assert!(support::has_ended(worker));
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn the_signals_that_let_finish_let_finish() {
    for signal in [Signal::SIGUSR1, Signal::SIGQUIT] {
        let (origin, gate) = Origin::gated();
        let site = Site::proxying(&[origin.address], "");
        let mut daemon = site.start();
        let mut slow = half_served(&site, &gate);
        daemon.signal(signal);
        support::await_refusal(site.address());
        gate.release();
        assert!(is_served(&mut slow), "{signal}");
        drop(slow);
        assert_eq!(daemon.wait().code(), Some(0), "{signal}");
    }
}

#[test]
fn the_signals_that_end_it_end_it() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (origin, gate) = Origin::gated();
        let site = Site::proxying(&[origin.address], "");
        let mut daemon = site.start();
        let worker = serving(&site.status());
        let mut slow = half_served(&site, &gate);
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0), "{signal}");
        assert!(support::has_ended(worker) && support::refuses(site.address()), "{signal}");
        assert!(!is_served(&mut slow), "{signal}");
    }
}

#[test]
fn a_graceful_stop_can_be_cut_short() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "");
    let mut daemon = site.start();
    let _slow = half_served(&site, &gate);
    daemon.signal(Signal::SIGUSR1);
    support::await_refusal(site.address());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn no_more_old_workers_drain_than_max_old_allows() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "[reload]\nmax-old = 2\n");
    let _daemon = site.start();
    let (mut held, mut opened) = (Vec::new(), 0);
    while held.len() < 3 {
        let client = half_served(&site, &gate);
        opened += 1;
        // The worker before it may still have taken it, which had not read its order to drain yet.
        if in_serving_worker(&site.status()) == 1 {
            held.push(client);
            assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
        }
    }
    let status = site.await_status("the oldest is gone", |status| draining(status) == 2);
    let generations: Vec<_> =
        status["generations"].as_array().unwrap().iter().map(|worker| worker["generation"].as_u64().unwrap()).collect();
    assert_eq!(generations, [2, 3, 4]);
    (0..opened).for_each(|_| gate.release());
    let served: Vec<_> = held.iter_mut().map(is_served).collect();
    assert_eq!(served, [false, true, true], "only the oldest was cut");
}

#[test]
fn hard_stop_after_ends_a_draining_worker_whose_client_never_does() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "[reload]\nhard-stop-after = \"700ms\"\n");
    let _daemon = site.start();
    let (mut slow, mut idle) = (half_served(&site, &gate), Client::connect(site.address()));
    assert_eq!(idle.get("/").status(), 200);
    let began = Instant::now();
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    assert_eq!(draining(&site.status()), 1, "it may still finish");
    site.await_status("the old worker has ended", |status| draining(status) == 0);
    assert!(began.elapsed() >= Duration::from_millis(700), "{:?}", began.elapsed());
    assert!(!is_served(&mut slow));
    assert_eq!(idle.get("/").status(), 200, "what was idle had moved on");
    assert_eq!(get(site.address(), "/").status(), 200);
}

#[test]
fn a_draining_worker_that_hangs_is_killed_after_its_time() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "[reload]\nhard-stop-after = \"200ms\"\n");
    let daemon = site.start();
    let worker = serving(&site.status());
    kill(pid(worker), Signal::SIGSTOP).unwrap();
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    assert_eq!(get(site.address(), "/").status(), 200, "the new worker does not depend on the old one");
    site.await_status("the old worker is gone", |status| draining(status) == 0);
    assert!(support::has_ended(worker));
    daemon.hear(&format!("worker {worker} did not end in time and is killed"));
}

#[test]
fn a_worker_that_hangs_does_not_keep_the_daemon_from_stopping() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let mut daemon = site.start();
    let worker = serving(&site.status());
    kill(pid(worker), Signal::SIGSTOP).unwrap();
    assert_eq!(code(&site.proxy(&["stop"])), 0);
    assert!(support::has_ended(worker));
    assert_eq!(daemon.wait().code(), Some(0));
}

/// `killall -USR2 proxy` reaches the workers, too.
#[test]
fn signals_meant_for_the_master_do_not_hurt_a_worker() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let worker = serving(&site.status());
    let mut slow = half_served(&site, &gate);
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGINT, Signal::SIGQUIT] {
        kill(pid(worker), signal).unwrap();
    }
    gate.release();
    assert!(is_served(&mut slow));
    assert_eq!(get(site.address(), "/").status(), 200);
    assert_eq!(serving(&site.status()), worker);
}

/// A second installation with its own folder and admin socket on the ports of the first.
fn twin(site: &Site, text: &str) -> Site {
    Site::new(&text.replace("{port}", &site.address().to_string()))
}

#[test]
fn a_second_daemon_takes_over_under_load_and_the_first_one_ends() {
    let origin = Origin::echo();
    let config = Site::text(&[origin.address], "");
    let first = Site::new(&config);
    let pid_file = first.path("proxy.pid");
    let pid_text = pid_file.to_string_lossy();
    let mut old = first.start_with(&["-p", &pid_text]);
    let load = Load::start(first.address(), &[load::ALL, load::ALL].concat());
    load.more(100);
    let second = twin(&first, &config);
    let socket = first.socket();
    let new = second.start_with(&["-p", &pid_text, "-x", &socket.to_string_lossy(), "-sf", &old.pid().to_string()]);
    assert_eq!(old.wait().code(), Some(0));
    load.more(100);
    load.must_have_succeeded(200);
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), format!("{}\n", new.pid()));
    assert!(!first.socket().exists(), "the first one's own socket goes with it");
    assert_eq!(second.status()["pid"], u64::from(new.pid()));
    assert_eq!(code(&first.proxy(&["status"])), 4);
    drop(new);
    assert!(!pid_file.exists());
}

#[test]
fn haproxys_old_way_without_x_binds_beside_the_predecessor() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let mut old = site.start();
    let load = Load::start(site.address(), &load::ALL);
    load.more(50);
    let new = site.start_with(&["-sf", &old.pid().to_string()]);
    assert_eq!(old.wait().code(), Some(0));
    load.more(50);
    let (requests, failures) = load.stop();
    // Who arrives between the old one's last accept and its close is reset; that is why there is -x.
    assert!(failures.len() * 20 < requests, "{} of {requests} failed, first: {}", failures.len(), failures[0]);
    assert_eq!(site.status()["pid"], u64::from(new.pid()));

    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = foreign.local_addr().unwrap().to_string();
    site.configure(&Site::text(&[origin.address], "").replace("{port}", &taken));
    let said = site.launch(&["-sf", &new.pid().to_string()], &[]).err().unwrap();
    assert!(said.contains(&format!("cannot listen on {taken}")), "{said}");
    assert_eq!(get(site.address(), "/").status(), 200, "nobody was told to finish");
}

#[test]
fn a_successor_on_the_same_file_keeps_the_admin_socket_and_pid_file_it_took() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "[global]\npid-file = \"{dir}/proxy.pid\"\n");
    let mut old = site.start();
    let mut slow = half_served(&site, &gate);
    let load = Load::start(site.address(), &load::ALL);
    load.more(50);
    let socket = site.socket();
    let new = site.start_with(&["-x", &socket.to_string_lossy(), "-sf", &old.pid().to_string()]);
    let owner = |site: &Site| (site.status()["pid"].clone(), fs::read_to_string(site.path("proxy.pid")).unwrap());
    let expected = (Value::from(new.pid()), format!("{}\n", new.pid()));
    assert_eq!(owner(&site), expected);
    load.more(50);
    gate.release();
    assert!(is_served(&mut slow), "the old daemon finishes");
    drop(slow);
    load.must_have_succeeded(100);
    assert_eq!(old.wait().code(), Some(0));
    assert_eq!(owner(&site), expected, "the end of the old one changes nothing");
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
}

#[test]
fn terminating_the_predecessor_does_not_let_it_finish() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "");
    let mut old = site.start();
    let mut slow = half_served(&site, &gate);
    let socket = site.socket();
    let _new = site.start_with(&["-x", &socket.to_string_lossy(), "-st", &old.pid().to_string()]);
    assert_eq!(old.wait().code(), Some(0));
    assert!(!is_served(&mut slow));
    assert_eq!(get(site.address(), "/").status(), 200);
}

#[test]
fn a_take_over_that_fails_leaves_the_predecessor_as_it_was() {
    let origin = Origin::echo();
    let config = Site::text(&[origin.address], "");
    let first = Site::new(&config);
    let old = first.start();
    let second = twin(&first, &config.replace("backend = \"pool\"", "backend = \"fool\""));
    let (socket, finish) = (first.socket(), old.pid().to_string());
    let arguments = ["-x", &socket.to_string_lossy(), "-sf", &finish];
    let said = second.launch(&arguments, &[]).err().unwrap();
    assert!(said.contains("there is no [backend.fool]"), "{said}");
    let nowhere = first.path("nobody.sock");
    let said = first.launch(&["-x", &nowhere.to_string_lossy(), "-sf", &finish], &[]).err().unwrap();
    assert!(said.contains("no sockets from") && said.contains("nobody.sock"), "{said}");
    let status = first.status();
    assert_eq!((status["pid"].clone(), generation(&status)), (Value::from(old.pid()), 1));
    assert_eq!(get(first.address(), "/").status(), 200);
}

#[test]
fn a_second_daemon_on_the_same_admin_socket_is_refused() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    let said = site.launch(&[], &[]).err().unwrap();
    assert!(said.contains(&format!("already running with pid {}", daemon.pid())), "{said}");
    assert_eq!(site.status()["pid"], u64::from(daemon.pid()));
    assert_eq!(get(site.address(), "/").status(), 200);
}

#[test]
fn an_admin_socket_that_nobody_answers_on_is_replaced() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    drop(std::os::unix::net::UnixListener::bind(site.socket()).unwrap());
    assert!(site.socket().exists());
    let daemon: Daemon = site.start();
    assert_eq!(site.status()["pid"], u64::from(daemon.pid()));
}
