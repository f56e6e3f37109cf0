//! The command line as people, scripts and HAProxy's own start files use it: flags, output, exit codes.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output};

use support::client::get;
use support::origin::Origin;
use support::{PROXY, Site, code, output, text};

/// Runs the binary with exactly these arguments.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(PROXY);
    command.args(arguments);
    output(command)
}

/// A site whose configuration has five mistakes, with the line and column of each.
fn mistaken() -> (Site, Vec<(&'static str, String)>) {
    let site = Site::new(
        r#"[global]
maxconn = "many"

[frontend.web]
bind = "127.0.0.1:99999"
backend = "pol"
colour = "blue"

[backend.pool]
balance = "roundrobbin"
servers = ["127.0.0.1:9000"]
"#,
    );
    let file = site.config().display().to_string();
    let place = |line: u32, column: u32| format!("{file}:{line}:{column}");
    let mistakes = vec![
        ("a string where a whole number belongs", place(7, 11)),
        ("`127.0.0.1:99999` is not an address to listen on", place(10, 8)),
        ("there is no [backend.pol]", place(11, 11)),
        ("unknown key `colour`", place(12, 1)),
        ("`balance` cannot be `roundrobbin`", place(15, 11)),
    ];
    (site, mistakes)
}

#[test]
fn check_shows_every_mistake_with_its_place_in_the_order_of_the_file() {
    let (site, mistakes) = mistaken();
    let output = site.proxy(&["check"]);
    let said = text(&output.stderr);
    assert_eq!(code(&output), 1, "{said}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let mut rest = said.as_str();
    for (message, place) in mistakes {
        let found = rest.find(message).unwrap_or_else(|| panic!("`{message}` is missing or too early in:\n{said}"));
        rest = &rest[found..];
        let problem = rest.split("\n\n").next().unwrap();
        assert!(problem.contains(&place) && problem.contains('^'), "{place} belongs to:\n{problem}");
    }
    assert_eq!(said.matches("error:").count(), 5, "{said}");
    for fix in ["did you mean `pool`?", "did you mean `roundrobin`?"] {
        assert!(said.contains(fix), "{fix} in:\n{said}");
    }
}

#[test]
fn check_touches_nothing_and_says_that_a_good_file_is_valid() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    for arguments in [&["check"][..], &["-c"], &["-c", "-V"]] {
        let output = site.proxy(arguments);
        assert_eq!(code(&output), 0, "{output:?}");
        assert_eq!(text(&output.stdout), format!("{}: valid\n", site.config().display()));
    }
    let quiet = site.proxy(&["-c", "-q"]);
    assert_eq!((code(&quiet), quiet.stdout.len(), quiet.stderr.len()), (0, 0, 0), "{quiet:?}");
    assert_eq!(fs::read_dir(site.folder.path()).unwrap().count(), 1, "only the configuration is there");
}

#[test]
fn check_works_beside_the_daemon_it_is_meant_for() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    assert_eq!(code(&site.proxy(&["check"])), 0, "its own addresses are not in the way");
    assert_eq!(get(site.address(), "/").status(), 200);
}

#[test]
fn haproxys_check_line_refuses_what_check_refuses() {
    let (site, mistakes) = mistaken();
    let output = run(&["-f", &site.config().to_string_lossy(), "-c"]);
    assert_eq!(code(&output), 1);
    assert!(text(&output.stderr).contains(mistakes[0].0), "{output:?}");
}

#[test]
fn a_missing_file_is_named() {
    for arguments in [&["check", "-f", "/nowhere/p.toml"][..], &["-f", "/nowhere/p.toml", "-c"]] {
        let output = run(arguments);
        assert_eq!(code(&output), 1);
        assert!(text(&output.stderr).contains("cannot read /nowhere/p.toml: No such file"), "{output:?}");
    }
}

#[test]
fn versions_are_shown_as_haproxy_does_and_as_others_do() {
    let version = format!("proxy {}\n", env!("CARGO_PKG_VERSION"));
    for arguments in [["-v"], ["--version"], ["version"]] {
        let output = run(&arguments);
        assert_eq!((code(&output), text(&output.stdout)), (0, version.clone()), "{arguments:?}");
    }
    let verbose = text(&run(&["-vv"]).stdout);
    assert!(verbose.starts_with(&version) && verbose.contains("TLS: "), "{verbose}");
}

#[test]
fn haproxys_start_stop_and_replace_lines_work_as_they_are() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let (config, pid_file) = (site.config(), site.path("proxy.pid"));
    let (config, pid_text) = (config.to_string_lossy(), pid_file.to_string_lossy());
    let started = run(&["-f", &config, "-D", "-p", &pid_text]);
    assert_eq!(code(&started), 0, "{started:?}");
    let first = fs::read_to_string(&pid_file).unwrap();
    assert_eq!(get(site.address(), "/").status(), 200);
    let socket = site.socket();
    let line = ["-W", "-f", &config, "-D", "-p", &pid_text, "-x", &socket.to_string_lossy(), "-sf", first.trim()];
    let replaced = run(&line);
    assert_eq!(code(&replaced), 0, "{replaced:?}");
    support::await_end(first.trim().parse().unwrap());
    let second = fs::read_to_string(&pid_file).unwrap();
    assert_ne!(first, second);
    assert_eq!(get(site.address(), "/").status(), 200);
    assert_eq!(site.status()["pid"], second.trim().parse::<u64>().unwrap());
    assert_eq!(code(&site.proxy(&["stop"])), 0);
    assert!(!pid_file.exists());
}

#[test]
fn a_quiet_daemon_says_nothing_but_errors() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start_with(&["-q"]);
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    site.configure("[nonsense]\n");
    assert_eq!(code(&site.proxy(&["reload-socket"])), 1);
    assert_eq!(code(&site.proxy(&["stop"])), 0);
    let said: Vec<String> = daemon.said.iter().collect();
    let expected = format!("reload failed, the old configuration goes on: {}:", site.config().display());
    assert!(said[0].starts_with(&expected), "{said:?}");
}

#[test]
fn unknown_words_are_refused_and_nothing_is_done() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    for arguments in [
        &["--frobnicate"][..],
        &["run", "--frobnicate"],
        &["-Z"],
        &["reload", "--mode", "sideways"],
        &["reload", "--timeout", "0"],
        &["run", "-sf", "1"],
        &["run", "-sf", "all"],
    ] {
        let output = site.proxy(arguments);
        assert_eq!(code(&output), 1, "{arguments:?}: {output:?}");
        assert!(text(&output.stderr).contains("error:"), "{arguments:?}: {output:?}");
    }
    let output = run(&["frobnicate"]);
    assert!(text(&output.stderr).contains("unrecognized subcommand 'frobnicate'"), "{output:?}");
    assert!(!site.socket().exists());
    let help = run(&["--help"]);
    assert_eq!(code(&help), 0);
    assert!(text(&help.stdout).contains("reload-socket"), "{help:?}");
}

#[test]
fn without_a_daemon_every_command_ends_with_four_and_says_where_it_looked() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let commands: [&[&str]; 5] = [&["reload"], &["reload-socket"], &["status"], &["stop"], &["stop", "--graceful"]];
    for stale in [false, true] {
        if stale {
            drop(UnixListener::bind(site.socket()).unwrap());
        }
        for command in commands {
            let output = site.proxy(command);
            assert_eq!(code(&output), 4, "{command:?}: {output:?}");
            let expected = format!("not running: nobody answers on {}", site.socket().display());
            assert!(text(&output.stderr).contains(&expected), "{output:?}");
        }
    }
}

#[test]
fn a_file_without_an_admin_socket_says_what_to_give_instead() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let bare = site.path("bare.toml");
    fs::write(&bare, "config-version = 1\n").unwrap();
    let output = run(&["status", "-f", &bare.to_string_lossy()]);
    assert_eq!(code(&output), 1);
    assert!(text(&output.stderr).contains("names no admin socket: give --socket"), "{output:?}");
    let output = run(&["status", "-f", &bare.to_string_lossy(), "-s", &site.socket().to_string_lossy()]);
    assert_eq!(code(&output), 0, "{output:?}");
}

#[test]
fn something_else_behind_the_socket_is_not_taken_for_the_daemon() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let foreign = UnixListener::bind(site.socket()).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = foreign.accept().unwrap();
        BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        stream.write_all(b"Unknown command. Please enter one of the following\n").unwrap();
    });
    let output = site.proxy(&["status"]);
    server.join().unwrap();
    assert_eq!(code(&output), 1);
    assert!(text(&output.stderr).contains("answers something else than proxy"), "{output:?}");
}

#[test]
fn the_admin_socket_survives_callers_that_break_the_rules() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    for bytes in [&b"\n"[..], b"reload sideways\n", b"\xff\xfe\n", &[b'x'; 10_000], b"status", b"_getsocks \n"] {
        let mut stream = UnixStream::connect(site.socket()).unwrap();
        // The daemon may be gone from the connection before everything is written.
        let _ = stream.write_all(bytes);
    }
    let answer = UnixStream::connect(site.socket()).and_then(|mut stream| {
        stream.write_all(b"reload sideways\n")?;
        std::io::read_to_string(stream)
    });
    assert!(answer.unwrap().contains("unknown command `reload sideways`"));
    let status = site.status();
    assert_eq!((status["pid"].as_u64(), status["reloads"]["applied"].as_u64()), (Some(daemon.pid().into()), Some(0)));
    assert_eq!(get(site.address(), "/").status(), 200);
}

#[test]
fn people_see_the_same_status_as_machines() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    let facts = site.status();
    let shown = text(&site.proxy(&["status"]).stdout);
    for part in [
        format!("pid {}", daemon.pid()),
        format!("{:.12}", facts["config_sha256"].as_str().unwrap()),
        site.config().display().to_string(),
        site.address().to_string(),
        support::serving(&facts).to_string(),
        String::from("reloads        1 applied, 0 rejected, 0 rolled back"),
    ] {
        assert!(shown.contains(&part), "{part} in:\n{shown}");
    }
}

#[test]
fn warnings_reach_who_checks_and_who_reloads() {
    let origin = Origin::echo();
    let stats = support::Port::new();
    let extra = format!(
        "[stats]\nbind = \"{}\"\nauth = \"ops\"\n[users.ops]\nadmin = {{ insecure-password = \"x\" }}\n",
        stats.address
    );
    let site = Site::proxying(&[origin.address], &extra);
    let _daemon = site.start();
    for command in ["check", "reload"] {
        let output = site.proxy(&[command]);
        assert_eq!(code(&output), 0, "{output:?}");
        let said = text(&output.stderr);
        assert!(said.starts_with("warning: ") && said.contains(": a password in clear text"), "{command}: {said}");
        assert!(!said.contains("\"x\""), "the password itself is not shown");
    }
}
