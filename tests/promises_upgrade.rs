//! What is promised for the day a new version is installed: the master becomes it in place, or nothing has happened.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use serde_json::json;
use support::client::{Client, get};
use support::load::{self, Load};
use support::origin::Origin;
use support::program::{
    has_become_it, install, install_next, install_script, launch, program, runs_installed, stays, upgraded,
};
use support::tls::{Pair, TlsClient};
use support::{End, PATIENCE, PROXY, Port, Site, await_end, code, counted, generation, pid, refuses, serving};

fn site() -> Site {
    Site::proxying(&[Origin::echo().address], "")
}

#[test]
fn promise_27_the_running_daemon_becomes_the_installed_program_and_no_request_fails() {
    let site = site();
    let mut daemon = launch(&site, &[], &[]);
    let load = Load::start(site.address(), &load::ALL);
    load.more(50);
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    for round in 1..=3_u64 {
        let before = site.status();
        install_next(&site);
        assert!(!runs_installed(&site, daemon.pid()));
        upgraded(&site);
        has_become_it(&site, &daemon);
        load.more(50);
        let after = site.status();
        assert_eq!(generation(&after), generation(&before) + 1);
        assert_eq!(
            (&after["reloads"]["upgrade"]["applied"], &after["reloads"]["applied"]),
            (&json!(round), &json!(round + 1))
        );
        assert!(after["uptime_seconds"].as_u64() >= before["uptime_seconds"].as_u64(), "{after:#}");
        // What the program before started is waited for by the next: nothing is left of it.
        await_end(serving(&before));
        site.await_status("one worker is left", |status| status["generations"].as_array().unwrap().len() == 1);
    }
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    load.must_have_succeeded(200);
    assert_eq!(code(&site.proxy(&["stop"])), 0);
    assert!(daemon.wait().success());
    assert!(refuses(site.address()) && !site.socket().exists());
}

#[test]
fn promise_27_a_program_that_cannot_take_over_leaves_the_old_one_serving() {
    let site = site();
    let daemon = launch(&site, &[], &[]);
    let load = Load::start(site.address(), &load::ALL);
    let wrapped = |broken: &str| format!("case \"$*\" in {broken} esac\nexec {PROXY} \"$@\"");
    fs::remove_file(program(&site)).unwrap();
    stays(&site, &daemon, 1, "No such file");
    install(&site, &fs::read(PROXY).unwrap()[..4096]);
    stays(&site, &daemon, 1, "does not run: signal");
    install_script(&site, "echo 'error: maxconn is gone' >&2; exit 1");
    stays(&site, &daemon, 1, "maxconn is gone");
    // One that has no such subcommand, and one that is something else.
    install_script(&site, &wrapped("version*) echo 'unexpected argument' >&2; exit 1;;"));
    stays(&site, &daemon, 1, "unexpected argument");
    install_script(&site, "echo hello");
    stays(&site, &daemon, 1, "hello");
    install_script(&site, &wrapped("*--rehearse*) echo 'no such field' >&2; exit 1;;"));
    stays(&site, &daemon, 1, "cannot take over: no such field");
    install_script(&site, &wrapped("*--rehearse*) kill -9 $$;;"));
    stays(&site, &daemon, 1, "signal: 9");
    // And from there the next good one takes over.
    load.more(20);
    install_next(&site);
    upgraded(&site);
    has_become_it(&site, &daemon);
    load.more(20);
    load.must_have_succeeded(100);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn promise_27_a_program_whose_workers_cannot_serve_gives_everything_back() {
    let site = site();
    let fault = site.path("fault");
    let daemon = launch(&site, &[], &[("PROXY_FAULT", &fault.to_string_lossy())]);
    let load = Load::start(site.address(), &load::ALL);
    for step in ["spawn EMFILE", "ready EMFILE", "threads crash", "commit ENOSPC", "load EMFILE"] {
        install_next(&site);
        load.more(20);
        site.fault(step);
        stays(&site, &daemon, 2, "could not serve");
        assert!(!fault.exists(), "{step} was never reached");
        assert_eq!(code(&site.proxy(&["reload"])), 0, "the old program reloads after {step}");
    }
    upgraded(&site);
    has_become_it(&site, &daemon);
    load.more(20);
    load.must_have_succeeded(200);
}

/// What a program that this process executes would have beside stdin, stdout and stderr.
fn inheritable(process: u32) -> Vec<PathBuf> {
    let folder = PathBuf::from(format!("/proc/{process}"));
    let numbers = fs::read_dir(folder.join("fdinfo")).unwrap().map(|entry| entry.unwrap().file_name());
    let later = numbers.filter(|number| number.to_str().unwrap().parse::<u32>().unwrap() > 2);
    let closed_on_exec = |info: String| {
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        u32::from_str_radix(flags.trim(), 8).unwrap() & 0o2_000_000 != 0
    };
    let left = later.filter(|number| {
        fs::read_to_string(folder.join("fdinfo").join(number)).is_ok_and(|info| !closed_on_exec(info))
    });
    left.map(|number| fs::read_link(folder.join("fd").join(number)).unwrap()).collect()
}

#[test]
fn no_program_leaves_the_next_one_more_than_it_means_to() {
    let site = site();
    let daemon = launch(&site, &[], &[]);
    // Whoever started us may have left something, too.
    let before = inheritable(daemon.pid());
    for _ in 0..3 {
        upgraded(&site);
    }
    assert_eq!(inheritable(daemon.pid()), before);
    assert_eq!(inheritable(serving(&site.status())), before);
}

/// A thread beside the main one would take what that one holds back while it becomes another program.
#[test]
fn signals_come_to_the_main_thread_alone() {
    let site = site();
    Pair::written(site.folder.path(), "cert.pem", "localhost");
    let text = Site::text(&[Origin::echo().address], "");
    // Files of certificates are looked at by a thread.
    site.configure(&text.replace("backend = \"pool\"", "backend = \"pool\"\ntls.certificates = [\"{dir}/cert.pem\"]"));
    let daemon = launch(&site, &[], &[]);
    let tasks = PathBuf::from(format!("/proc/{}/task", daemon.pid()));
    let wanted = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM];
    let wanted = wanted.into_iter().fold(0, |mask, signal| mask | 1_u64 << (signal as i32 - 1));
    let held_back = |task: &Path| {
        let status = fs::read_to_string(task.join("status")).unwrap_or_default();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?;
        Some(u64::from_str_radix(blocked.trim(), 16).unwrap() & wanted)
    };
    let main = tasks.join(daemon.pid().to_string());
    assert_eq!(held_back(&main), Some(0));
    // A thread that has just begun may not have come to it.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let others = fs::read_dir(&tasks).unwrap().map(|task| task.unwrap().path()).filter(|task| *task != main);
        let others: Vec<_> = others.filter_map(|task| held_back(&task)).collect();
        if !others.is_empty() && others.iter().all(|mask| *mask == wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{others:x?} instead of {wanted:x}");
    }
}

#[test]
fn a_configuration_that_is_broken_on_disk_is_found_before_anything_happens() {
    let site = site();
    let daemon = launch(&site, &[], &[]);
    let good = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), good.replace("bind =", "bindd =")).unwrap();
    install_next(&site);
    stays(&site, &daemon, 1, "bindd");
    fs::write(site.config(), good).unwrap();
    upgraded(&site);
    has_become_it(&site, &daemon);
}

#[test]
fn an_upgrade_of_nothing_says_so() {
    let output = site().proxy(&["upgrade"]);
    assert_eq!(code(&output), 4, "{output:?}");
}

#[test]
fn a_daemon_in_the_background_keeps_its_pid_and_pid_file() {
    let site = site();
    install_next(&site);
    let pid_file = site.path("proxy.pid");
    let mut command = Command::new(program(&site));
    command.args(["run", "-D", "-q", "-p"]).arg(&pid_file).arg("-f").arg(site.config());
    let started = support::output(command);
    assert_eq!(code(&started), 0, "{started:?}");
    let number: u32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    for _ in 0..2 {
        install_next(&site);
        upgraded(&site);
        assert_eq!(fs::read_to_string(&pid_file).unwrap(), format!("{number}\n"));
        assert!(runs_installed(&site, number));
    }
    assert_eq!(get(site.address(), "/").status(), 200);
    assert_eq!(code(&site.proxy(&["stop"])), 0);
    await_end(number);
    assert!(!pid_file.exists());
}

/// Whoever asks while the program changes is answered by the one or by the other.
#[test]
fn callers_that_come_during_an_upgrade_are_answered() {
    let site = site();
    let daemon = launch(&site, &[], &[]);
    for _ in 0..3 {
        install_next(&site);
        std::thread::scope(|scope| {
            let ask = |command: &'static str| {
                let site = &site;
                move || (command, site.proxy(&[command]))
            };
            let mut asked = vec![scope.spawn(ask("upgrade"))];
            for _ in 0..6 {
                asked.extend(["reload-socket", "status", "reload"].map(|command| scope.spawn(ask(command))));
            }
            for (command, output) in asked.into_iter().map(|caller| caller.join().unwrap()) {
                assert_eq!(code(&output), 0, "{command}: {output:?}");
            }
        });
        has_become_it(&site, &daemon);
    }
}

#[test]
fn workers_of_the_program_before_are_looked_after() {
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], "[reload]\nhard-stop-after = \"1m\"\n");
    let mut daemon = launch(&site, &[], &[]);
    let mut client = Client::connect(site.address());
    client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    gate.arrived();
    let first = serving(&site.status());
    install_next(&site);
    upgraded(&site);
    install_next(&site);
    upgraded(&site);
    // Two programs later it still drains, and what it serves ends whole.
    let status = site.status();
    let generations = status["generations"].as_array().unwrap();
    assert!(generations.iter().any(|one| one["pid"] == first && one["state"] == "draining"), "{status:#}");
    gate.release();
    assert!(client.response().is_some_and(|answer| answer.complete && answer.text() == "first half, second half"));
    await_end(first);
    // One that is killed is buried, and replaced by a worker of the new program.
    let second = serving(&site.status());
    kill(pid(second), Signal::SIGKILL).unwrap();
    site.await_status("another worker", |status| {
        let all = status["generations"].as_array().unwrap();
        all.len() == 1 && all[0]["pid"] != second && all[0]["state"] == "serving"
    });
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}

#[test]
fn promise_17_tickets_and_counters_outlive_the_program() {
    let (origin, stats) = (Origin::echo(), Port::new());
    let page = format!("[stats]\nbind = \"{}\"\nuri = \"/stats\"\n", stats.address);
    let site = Site::proxying(&[origin.address], &page);
    Pair::written(site.folder.path(), "cert.pem", "localhost");
    let text = Site::text(&[origin.address], &page);
    site.configure(&text.replace("backend = \"pool\"", "backend = \"pool\"\ntls.certificates = [\"{dir}/cert.pem\"]"));
    let _daemon = launch(&site, &[], &[]);
    let clients = [TlsClient::new(&[&TLS12]), TlsClient::new(&[&TLS13])];
    let ask = |kind: HandshakeKind| {
        clients.iter().for_each(|client| assert_eq!(client.get(site.address(), "localhost").kind, kind));
    };
    ask(HandshakeKind::Full);
    let sessions = || counted(&get(stats.address, "/stats;csv").text(), "web,FRONTEND,", "stot");
    for _ in 0..3 {
        install_next(&site);
        upgraded(&site);
        (0..20).for_each(|_| ask(HandshakeKind::Resumed));
    }
    assert_eq!(sessions(), 2 * (1 + 3 * 20), "one session of each connection, whoever counted it");
}

/// What `proxy version --json` says of a program that speaks these versions.
fn speaking(program: &str, manifest: (u32, u32), messages: (u32, u32)) -> String {
    let span = |(oldest, newest)| json!({ "oldest": oldest, "newest": newest });
    json!({ "program": program, "manifest": span(manifest), "messages": span(messages) }).to_string()
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds speak other versions")]
fn promise_28_neighbouring_versions_take_over_from_each_other_up_and_down() {
    let site = site();
    let versions = site.path("versions");
    let daemon = launch(&site, &[], &[("PROXY_VERSIONS", &versions.to_string_lossy())]);
    let load = Load::start(site.address(), &load::ALL);
    let next = speaking("next", (1, 2), (1, 2));
    let one_after = speaking("one after", (2, 3), (2, 3));
    // Up twice, and down twice.
    for pretended in [Some(&next), Some(&one_after), Some(&next), None] {
        install_next(&site);
        match pretended {
            Some(text) => fs::write(&versions, text).unwrap(),
            None => fs::remove_file(&versions).unwrap(),
        }
        load.more(20);
        upgraded(&site);
        has_become_it(&site, &daemon);
        load.more(20);
    }
    // Two at once is one too many, and costs nothing.
    install_next(&site);
    fs::write(&versions, &one_after).unwrap();
    stays(&site, &daemon, 1, "restart instead");
    load.more(20);
    load.must_have_succeeded(200);
}

#[test]
fn promise_35_pid_file_and_main_pid_name_the_living_master_through_upgrades() {
    pid_stays(5);
}

#[test]
#[ignore = "a hundred upgrades and a hundred reloads take a while; .ci/run runs it"]
fn promise_35_they_do_so_through_a_hundred_upgrades_and_a_hundred_reloads() {
    pid_stays(100);
}

/// Looks at the pid file and its process without a pause while upgrades and reloads take turns.
fn pid_stays(rounds: usize) {
    let site = site();
    let pid_file = site.path("proxy.pid");
    let path = pid_file.to_string_lossy().into_owned();
    let daemon = launch(&site, &["-p", &path], &[]);
    let (master, over) = (daemon.pid(), std::sync::atomic::AtomicBool::new(false));
    let samples = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut samples = 0_usize;
            while !over.load(std::sync::atomic::Ordering::SeqCst) {
                assert_eq!(fs::read_to_string(&pid_file).unwrap(), format!("{master}\n"));
                assert!(!support::has_ended(master));
                samples += 1;
            }
            samples
        });
        let end = End(&over);
        for round in 0..rounds {
            assert!(!watch.is_finished());
            install_next(&site);
            upgraded(&site);
            let mode = if round % 2 == 0 { "handover" } else { "rebind" };
            assert_eq!(code(&site.proxy(&["reload", "--mode", mode])), 0);
            // What a service manager asks, and what tells it whom to signal.
            assert_eq!(code(&site.proxy(&["status"])), 0);
            assert_eq!(site.status()["pid"], master);
        }
        drop(end);
        watch.join().unwrap()
    });
    assert!(samples > 10 * rounds, "{samples}");
}
