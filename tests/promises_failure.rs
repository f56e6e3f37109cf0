//! What is promised for the day something breaks: each step with each fault, killed workers, crowds, strangers.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]
#![allow(clippy::print_stdout, reason = "what was measured is shown")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::geteuid;
use serde_json::Value;
use support::client::{Client, get};
use support::load::{self, Habit, Load};
use support::origin::Origin;
use support::visitor::{Fate, Visitor, nobody_was_turned_away};
use support::{Daemon, PATIENCE, PROXY, Site, children, code, generation, output, pid, serving, text};

/// Steps of a new worker until it serves.
const UNTIL_SERVING: [&str; 6] = ["start", "inherited", "privileges", "threads", "ready", "serve"];
/// Steps of an old worker from when it learns of a successor.
const RETIRING: [&str; 5] = ["successor", "drain", "sending", "sent", "drained"];
/// `nobody` on every system.
const NOBODY: u32 = 65534;

/// Waits for something that no process tells.
fn until(what: &str, happened: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::yield_now();
    }
}

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
        let answer = kept.get("/");
        assert!(answer.field("connection") == Some("close") || kept.get("/").field("connection") == Some("close"));
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

#[test]
fn promise_21_the_exit_code_tells_the_truth() {
    let origin = Origin::echo();
    let good = Site::text(&[origin.address], "");
    let site = Site::new(&good);
    let daemon = site.start();
    for command in ["reload", "reload-socket"] {
        assert_eq!(code(&site.proxy(&[command])), 0);

        site.configure(&good.replace("backend = \"pool\"", "backendd = \"pool\""));
        let rejected = site.proxy(&[command]);
        let (said, place) = (text(&rejected.stderr), format!("{}:8:1\n", site.config().display()));
        assert!(code(&rejected) == 1 && said.contains(&place) && said.contains("unknown key `backendd`"), "{said}");

        site.configure(&Site::text(&[origin.address], "[global]\npid-file = \"/proc/no/such.pid\"\n"));
        let rolled_back = site.proxy(&[command]);
        let reason = "cannot write /proc/no/such.pid: ";
        assert!(code(&rolled_back) == 2 && text(&rolled_back.stderr).contains(reason), "{rolled_back:?}");

        site.configure(&good);
        daemon.signal(Signal::SIGSTOP);
        let busy = site.proxy(&[command, "--timeout", "1"]);
        daemon.signal(Signal::SIGCONT);
        assert!(code(&busy) == 3 && text(&busy.stderr).contains("no answer within 1s"), "{busy:?}");
    }
    let reloads = site.await_status("the late reloads are over", |status| status["reloads"]["applied"] == 4);
    assert_eq!((&reloads["reloads"]["rejected"], &reloads["reloads"]["rolled_back"]), (&2.into(), &2.into()));
    drop(daemon);
    for command in ["reload", "reload-socket"] {
        let gone = site.proxy(&[command]);
        assert!(code(&gone) == 4 && text(&gone.stderr).contains("not running"), "{gone:?}");
    }
}

/// Connections to the admin socket that the kernel knows of; the listening one is not counted.
fn callers(site: &Site) -> usize {
    let path = site.socket().display().to_string();
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    table.lines().filter(|line| line.contains(&path)).count() - 1
}

fn sleeps(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
}

#[test]
fn promise_22_fifty_reloads_at_once_are_two_generations_and_everybody_is_answered() {
    let site = site();
    let daemon = site.start();
    let load = Load::start(site.address(), &load::ALL);
    load.more(10);
    daemon.signal(Signal::SIGSTOP);
    let mut command = Command::new(PROXY);
    command.args(["reload-socket", "-f"]).arg(site.config()).stdin(Stdio::null()).stdout(Stdio::null());
    let mut reloads: Vec<_> = (0..50).map(|_| command.spawn().unwrap()).collect();
    // Connected and asleep: each has asked and waits for its answer.
    until("all callers have asked", || {
        callers(&site) == reloads.len() && reloads.iter().all(|reload| sleeps(reload.id()))
    });
    daemon.signal(Signal::SIGCONT);
    for reload in &mut reloads {
        assert_eq!(reload.wait().unwrap().code(), Some(0));
    }
    let status = site.await_status("one is left", |status| status["generations"].as_array().unwrap().len() == 1);
    assert!((2..=3).contains(&generation(&status)), "{} generations for fifty reloads", generation(&status) - 1);
    assert_eq!(children(daemon.pid()), [serving(&status)]);
    load.more(10);
    load.must_have_succeeded(20);
}

#[test]
fn promise_24_a_killed_worker_is_replaced_and_nobody_is_refused() {
    let site = site();
    let _daemon = site.start();
    let visitors: Vec<_> = (0..4).map(|_| Visitor::start(site.address())).collect();
    let worker = serving(&site.status());
    let killed = Instant::now();
    kill(pid(worker), Signal::SIGKILL).unwrap();
    support::await_end(worker);
    let dead = Instant::now();
    site.await_status("a new worker serves", |status| status["reloads"]["respawns"] == 1);
    assert_eq!(get(site.address(), "/").status(), 200);
    let visits: Vec<_> = visitors.into_iter().flat_map(Visitor::stop).collect();
    nobody_was_turned_away(&visits, dead);
    let answers =
        visits.iter().filter(|visit| visit.fate == Fate::Served && visit.began >= killed && visit.ended > dead);
    let gap = answers.map(|visit| visit.ended.duration_since(killed)).min().unwrap();
    println!("first answer {} ms after the kill, {} visits, none refused", gap.as_millis(), visits.len());
    assert!(gap < Duration::from_secs(1), "{gap:?}");
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

/// What somebody who may not have the listening sockets gets when he asks for them.
fn ask_as_nobody(site: &Site) -> String {
    let script = "use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0) or die $!; connect(S, sockaddr_un($ARGV[0])) or die $!; \
        syswrite(S, \"_getsocks\\n\"); my $n = sysread(S, my $b, 64); print defined $n ? $n : $!;";
    let mut stranger = Command::new("/usr/bin/perl");
    stranger.args(["-e", script]).arg(site.socket()).uid(NOBODY).gid(NOBODY);
    let output = output(stranger);
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

#[test]
#[ignore = "needs root; .ci/run runs it"]
fn promise_33_listening_sockets_go_to_root_and_our_own_user_only() {
    assert!(geteuid().is_root(), "only root can become the stranger of this test");
    let site = site();
    fs::set_permissions(site.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), file.replace("mode = \"0600\"", "mode = \"0666\"")).unwrap();
    let daemon = site.start();
    assert_eq!(ask_as_nobody(&site), "0", "the end of the connection, and nothing before");
    daemon.hear(&format!("uid {NOBODY} was refused `_getsocks` on the admin socket"));
    // The same question by root: the number of sockets comes first.
    let mut root = UnixStream::connect(site.socket()).unwrap();
    root.set_read_timeout(Some(PATIENCE)).unwrap();
    root.write_all(b"_getsocks\n").unwrap();
    let mut count = [0; 4];
    root.read_exact(&mut count).unwrap();
    assert_eq!(i32::from_ne_bytes(count), 1);
}

/// Set for the run inside a network of its own, where port 80 is free.
const INSIDE: &str = "PROXY_TEST_OWN_NETWORK";

#[test]
#[ignore = "needs root and iproute2; .ci/run runs it"]
fn promise_34_a_reload_adds_port_80_although_workers_have_no_rights() {
    adds_port_80("promise_34_a_reload_adds_port_80_although_workers_have_no_rights", Site::start);
}

/// As the systemd unit starts it.
#[test]
#[ignore = "needs root, iproute2 and setpriv (util-linux); .ci/run runs it"]
fn promise_34_so_does_a_master_that_has_two_rights_instead_of_being_root() {
    adds_port_80("promise_34_so_does_a_master_that_has_two_rights_instead_of_being_root", |site| {
        std::os::unix::fs::chown(site.folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        let rights = ["--inh-caps", "--ambient-caps"].map(|set| format!("{set}=-all,+net_bind_service,+sys_chroot"));
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(rights);
        command.args([PROXY, "run", "-f"]).arg(site.config());
        let daemon = site.launch_command(command).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        assert!(status.contains("Uid:\t65534\t"), "{status}");
        daemon
    });
}

/// A reload that adds a privileged port, of a daemon started like this, in a network of its own.
fn adds_port_80(name: &str, start: impl FnOnce(&Site) -> Daemon) {
    assert!(geteuid().is_root(), "a network of its own needs root");
    if std::env::var_os(INSIDE).is_none() {
        let mut again = Command::new("unshare");
        again.arg("--net").arg(std::env::current_exe().unwrap()).args(["--exact", name, "--ignored"]).env(INSIDE, "1");
        let output = output(again);
        assert!(output.status.success() && text(&output.stdout).contains("1 passed"), "{output:?}");
        return;
    }
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    assert!(first.trim().parse::<u16>().unwrap() > 80, "port 80 is privileged");
    let (origin, jail) = (Origin::echo(), tempfile::tempdir().unwrap());
    let global = format!("[global]\nuser = \"nobody\"\nchroot = \"{}\"\n", jail.path().display());
    let site = Site::proxying(&[origin.address], &global);
    let _daemon = start(&site);
    let load = Load::start(site.address(), &load::ALL);
    let more = "[frontend.privileged]\nbind = \"127.0.0.1:80\"\nbackend = \"pool\"\n";
    site.configure(&Site::text(&[origin.address], &(global + more)));
    let output = site.proxy(&["reload-socket"]);
    assert_eq!(code(&output), 0, "{output:?}");
    let worker = serving(&site.status());
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534\n") && status.contains("CapEff:\t0000000000000000\n"));
    assert_eq!(fs::read_link(format!("/proc/{worker}/root")).unwrap(), jail.path());
    assert_eq!(get("127.0.0.1:80".parse().unwrap(), "/privileged").text(), "GET /privileged HTTP/1.1\n");
    load.more(10);
    load.must_have_succeeded(10);
}
