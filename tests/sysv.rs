//! The SysV init script, run as `service` runs it, with a real daemon: every action, its exit code, its restraint.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use nix::sys::signal::{Signal, kill};
use support::client::{Client, get};
use support::origin::{Origin, ok};
use support::{PATIENCE, PROXY, Site, code, text};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/init/proxy");

/// A site with its own `/etc/default/proxy`; whatever it started is stopped when it is dropped.
struct Service {
    site: Site,
}

impl Service {
    fn proxying(servers: &[SocketAddr]) -> Self {
        let service = Self { site: Site::proxying(servers, "") };
        service.defaults("");
        service
    }

    /// Writes the defaults file; `extra` is appended.
    fn defaults(&self, extra: &str) {
        let paths = format!(
            "DAEMON={PROXY}\nCONFIG={}\nPIDFILE={}\n{extra}\n",
            self.site.config().display(),
            self.pid_file().display()
        );
        fs::write(self.site.path("default"), paths).unwrap();
    }

    fn pid_file(&self) -> PathBuf {
        self.site.path("daemon.pid")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("sh");
        command.arg(SCRIPT).args(arguments).env("PROXY_DEFAULTS", self.site.path("default"));
        support::output(command)
    }

    /// Runs an action that must exit with `expected`.
    fn act(&self, action: &str, expected: i32) -> Output {
        let output = self.run(&[action]);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(code(&output), expected, "{action}\nstdout: {out}\nstderr: {err}");
        output
    }

    /// The daemon's pid, on which pid file and status agree.
    fn pid(&self) -> u32 {
        let written = fs::read_to_string(self.pid_file()).unwrap().trim().parse().unwrap();
        assert_eq!(self.site.status()["pid"], u64::from(written));
        written
    }

    fn worker(&self) -> u32 {
        support::serving(&self.site.status())
    }

    fn answer(&self) -> String {
        get(self.site.address(), "/").text()
    }

    fn is_down(&self) -> bool {
        TcpStream::connect(self.site.address()).is_err()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.site.proxy(&["stop"]);
    }
}

/// Whether a process still runs a program; one that is only not yet reaped does not.
fn runs(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok()
}

/// An executable that stands in for the daemon's. Another process writes it: while ours had it open for
/// writing, a test that starts a process beside us could make it "busy".
fn stand_in(path: &Path, script: &str) {
    let draft = path.with_extension("draft");
    fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
    let mut install = Command::new("install");
    install.args(["-m", "755"]).arg(draft).arg(path);
    assert_eq!(code(&support::output(install)), 0);
}

/// A program that answers every line with itself, and that any signal would end.
struct Bystander {
    child: Child,
}

impl Bystander {
    fn new() -> Self {
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Self { child }
    }

    fn is_well(&mut self) -> bool {
        let (mut stdin, stdout) = (self.child.stdin.take().unwrap(), self.child.stdout.take().unwrap());
        let mut heard = String::new();
        stdin.write_all(b"well\n").is_ok()
            && BufReader::new(stdout).read_line(&mut heard).is_ok_and(|_| heard == "well\n")
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_service_that_does_not_run_is_stopped_without_complaint_and_cannot_reload() {
    let service = Service::proxying(&[Origin::named("one").address]);
    assert!(text(&service.act("status", 3).stdout).contains("not running"));
    assert_eq!(text(&service.act("stop", 0).stderr), "");
    for action in ["reload", "force-reload", "reload-socket"] {
        assert!(text(&service.act(action, 7).stderr).contains("not running"), "{action}");
    }
    service.act("try-restart", 0);
    assert!(service.is_down());
}

#[test]
fn every_action_of_a_life() {
    let service = Service::proxying(&[Origin::named("one").address]);
    service.act("start", 0);
    let pid = service.pid();
    assert_eq!(service.answer(), "one");
    assert!(text(&service.act("status", 0).stdout).contains(&format!("pid {pid}")));

    service.act("start", 0);
    assert_eq!(service.pid(), pid, "a second start changes nothing");

    for (action, mode) in [("reload", "rebind"), ("force-reload", "rebind"), ("reload-socket", "handover")] {
        let before = service.worker();
        service.act(action, 0);
        assert_eq!(service.pid(), pid, "{action}");
        assert_ne!(service.worker(), before, "{action}");
        assert_eq!(service.site.status()["reloads"]["last"]["mode"], mode, "{action}");
        assert_eq!(service.answer(), "one");
    }

    for action in ["restart", "try-restart"] {
        let before = service.pid();
        service.act(action, 0);
        assert_ne!(service.pid(), before, "{action}");
        assert_eq!(service.answer(), "one");
    }

    let last = service.pid();
    service.act("stop", 0);
    assert!(service.is_down());
    assert!(!service.pid_file().exists());
    assert!(!runs(last), "the daemon outlives its stop");
    service.act("status", 3);
    service.act("stop", 0);
    service.act("restart", 0);
    assert_eq!(service.answer(), "one", "a restart starts what does not run");
}

#[test]
fn wrong_usage_is_told_and_starts_nothing() {
    let service = Service::proxying(&[Origin::named("one").address]);
    for arguments in [&[][..], &["begin"], &["start", "now"], &[""]] {
        let output = service.run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert!(text(&output.stderr).contains("Usage: "), "{arguments:?}");
    }
    assert!(service.is_down());
}

#[test]
fn what_cannot_be_configured_does_not_start_and_says_why() {
    let service = Service::proxying(&[Origin::named("one").address]);
    service.site.configure("[frontend.web]\nbind = \"{port}\"\nbackend = \"gone\"\n[backend.pool]\nmaxcon = 1\n");
    let report = text(&service.act("start", 1).stderr);
    for part in ["there is no [backend.gone]", "unknown key `maxcon`", "proxy.toml:"] {
        assert!(report.contains(part), "{report}");
    }
    fs::remove_file(service.site.config()).unwrap();
    service.act("start", 6);
    assert!(service.is_down() && !service.pid_file().exists());
}

#[test]
fn what_cannot_be_bound_does_not_start_and_says_why() {
    let other = Origin::named("other");
    let service = Service::proxying(&[other.address]);
    service.site.configure(&Site::text(&[other.address], "").replace("{port}", &other.address.to_string()));
    let report = text(&service.act("start", 1).stderr);
    assert!(report.contains(&other.address.to_string()), "{report}");
    service.act("status", 3);
}

#[test]
fn a_broken_configuration_leaves_the_running_service_alone() {
    let service = Service::proxying(&[Origin::named("one").address]);
    service.act("start", 0);
    let (pid, worker) = (service.pid(), service.worker());
    service.site.configure("[frontend.web]\nbind = \"{port}\"\nbackend = \"gone\"\n");
    for action in ["restart", "try-restart", "reload", "force-reload", "reload-socket"] {
        let report = text(&service.act(action, 1).stderr);
        assert!(report.contains("there is no [backend.gone]"), "{action}: {report}");
        assert_eq!((service.pid(), service.worker()), (pid, worker), "{action}");
        assert_eq!(service.answer(), "one", "{action}");
    }
    service.act("start", 0);
    service.act("stop", 0);
    assert!(service.is_down());
}

#[test]
fn the_binary_is_called_plainly_and_its_codes_and_words_are_passed_on() {
    let service = Service::proxying(&[Origin::named("one").address]);
    let (config, pid_file) = (service.site.config(), service.pid_file());
    let daemon = service.site.path("stand-in");
    service.defaults(&format!("DAEMON={}\nEXTRAOPTS='-q --more x'", daemon.display()));
    let calls = service.site.path("calls");
    let stand_in_answering = |code: i32| {
        let known = "case $1 in status) exit 4 ;; check) exit 0 ;; esac";
        let script = format!("echo \"$@\" >>{}\n{known}\necho words >&2\nexit {code}", calls.display());
        stand_in(&daemon, &script);
    };
    let last_call = || fs::read_to_string(&calls).unwrap().lines().last().unwrap().to_owned();
    for (binary, expected) in [(0, 0), (1, 1), (2, 2), (3, 3), (4, 7)] {
        stand_in_answering(binary);
        for (action, call) in [
            ("reload", "reload --mode rebind"),
            ("force-reload", "reload --mode rebind"),
            ("reload-socket", "reload-socket"),
        ] {
            assert_eq!(text(&service.act(action, expected).stderr), "words\n");
            assert_eq!(last_call(), format!("{call} -f {}", config.display()));
        }
    }
    stand_in_answering(1);
    assert_eq!(text(&service.act("start", 1).stderr), "words\n");
    let run = format!("run -D -f {} -p {} -q --more x", config.display(), pid_file.display());
    assert_eq!(last_call(), run);
    stand_in_answering(3);
    assert_eq!(text(&service.act("stop", 1).stderr), "words\n", "what does not end in time is not stopped");
}

#[test]
fn a_stale_pid_file_is_seen_through() {
    let service = Service::proxying(&[Origin::named("one").address]);
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    fs::write(service.pid_file(), format!("{}\n", ended.id())).unwrap();
    assert!(text(&service.act("status", 1).stdout).contains("exists"));
    service.act("reload", 7);
    service.act("start", 0);
    assert_ne!(service.pid(), ended.id());
    service.act("stop", 0);
    for content in [format!("{}\n", ended.id()), String::from("no pid\n"), String::new()] {
        fs::write(service.pid_file(), content).unwrap();
        service.act("stop", 0);
        assert!(!service.pid_file().exists());
        service.act("status", 3);
    }
}

#[test]
fn another_program_under_the_pid_is_never_signalled() {
    let service = Service::proxying(&[Origin::named("one").address]);
    let mut bystander = Bystander::new();
    let foreign = || fs::write(service.pid_file(), format!("{}\n", bystander.child.id())).unwrap();
    for (action, expected) in
        [("status", 1), ("reload", 7), ("force-reload", 7), ("reload-socket", 7), ("try-restart", 0), ("stop", 0)]
    {
        foreign();
        service.act(action, expected);
    }
    for action in ["start", "restart"] {
        foreign();
        service.act(action, 0);
        assert_ne!(service.pid(), bystander.child.id());
        assert_eq!(service.answer(), "one");
    }
    foreign();
    service.act("stop", 0);
    assert!(service.is_down());
    assert!(bystander.is_well());
}

#[test]
fn a_daemon_that_cannot_be_asked_is_found_by_its_pid_file() {
    let service = Service::proxying(&[Origin::named("one").address]);
    service.act("start", 0);
    let pid = service.pid();
    fs::remove_file(service.site.socket()).unwrap();
    assert!(text(&service.act("status", 0).stdout).contains("cannot be asked"));
    service.act("start", 0);
    assert!(text(&service.act("reload-socket", 1).stderr).contains("admin.socket"));
    assert!(runs(pid));
    assert_eq!(service.answer(), "one");
    assert_eq!(text(&service.act("stop", 0).stderr), "");
    assert!(!runs(pid) && service.is_down() && !service.pid_file().exists());
}

#[test]
fn a_start_beside_the_worker_of_a_killed_master_serves_and_cuts_nothing_short() {
    let (origin, gate) = Origin::gated();
    let service = Service::proxying(&[origin.address]);
    service.act("start", 0);
    let (master, orphan) = (service.pid(), service.worker());
    let mut client = Client::connect(service.site.address());
    client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    gate.arrived();
    kill(support::pid(master), Signal::SIGKILL).unwrap();
    support::await_end(master);
    // It finishes what it has and takes nobody more.
    support::await_refusal(service.site.address());
    assert!(text(&service.act("status", 1).stdout).contains("is dead, but"));
    service.act("start", 0);
    assert!(service.pid() != master && service.worker() != orphan && runs(orphan));
    assert_eq!(get(service.site.address(), "/").status(), 200);
    service.act("reload-socket", 0);
    gate.release();
    assert!(client.response().is_some_and(|answer| answer.complete && answer.text() == "first half, second half"));
    drop(client);
    support::await_end(orphan);
    service.act("status", 0);
}

#[test]
fn two_starts_at_once_are_one_daemon_which_can_be_asked() {
    let service = Service::proxying(&[Origin::named("one").address]);
    for _ in 0..5 {
        std::thread::scope(|scope| {
            let starts = [scope.spawn(|| service.run(&["start"])), scope.spawn(|| service.run(&["start"]))];
            let codes = starts.map(|start| code(&start.join().unwrap()));
            assert!(codes.contains(&0), "{codes:?}");
        });
        // The one that lost took nothing of the other with it.
        let pid = service.pid();
        service.act("status", 0);
        service.act("reload-socket", 0);
        assert_eq!((service.pid(), service.answer().as_str()), (pid, "one"));
        service.act("stop", 0);
        assert!(service.is_down() && !runs(pid));
    }
}

#[test]
fn a_removed_package_does_not_disturb_the_boot() {
    let service = Service::proxying(&[Origin::named("one").address]);
    service.defaults("DAEMON=/nowhere/proxy");
    for (action, expected) in [("start", 0), ("stop", 0), ("status", 4), ("restart", 5), ("reload-socket", 5)] {
        service.act(action, expected);
    }
}

#[test]
fn no_client_notices_a_reload_socket() {
    let (arrived, arrival) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (arrived, released) = (Mutex::new(arrived), Mutex::new(released));
    let origin = Origin::answering(move |request| {
        if request.line.contains("/slow") {
            arrived.lock().unwrap().send(()).unwrap();
            // Without a sender the test has failed already.
            let _ = released.lock().unwrap().recv();
        }
        ok("one")
    });
    let service = Service::proxying(&[origin.address]);
    service.act("start", 0);
    let mut kept = Client::connect(service.site.address());
    assert_eq!(kept.get("/").status(), 200);
    let mut waiting = Client::connect(service.site.address());
    waiting.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    arrival.recv_timeout(PATIENCE).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let crowd: Vec<_> = (0..4)
        .map(|_| {
            let (over, address) = (Arc::clone(&over), service.site.address());
            std::thread::spawn(move || {
                let mut served = 0;
                while !over.load(Ordering::SeqCst) {
                    assert_eq!(get(address, "/").text(), "one");
                    served += 1;
                }
                served
            })
        })
        .collect();
    for _ in 0..3 {
        service.act("reload-socket", 0);
    }
    over.store(true, Ordering::SeqCst);
    for client in crowd {
        assert!(client.join().unwrap() > 0);
    }
    assert_eq!(kept.get("/").status(), 200);
    release.send(()).unwrap();
    assert_eq!(waiting.response().unwrap().text(), "one");
}
