//! What the package installs beside the binary: configurations, error pages, script header, rsyslog rules.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::client::get;
use support::{PATIENCE, Port, Site, code, text};

const PAGES: [u16; 7] = [400, 403, 408, 500, 502, 503, 504];

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(shipped(name)).unwrap()
}

/// A shipped configuration in a folder, with what it names: accounts that exist, a certificate, error pages.
fn installed(configuration: &str) -> Site {
    let site = Site::new("");
    let folder = site.folder.path();
    let certificate = site.path("self-signed.pem");
    let output = support::output({
        let mut command = Command::new(support::PROXY);
        command.args(["self-signed", "--name", "localhost", "--out"]).arg(&certificate);
        command
    });
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let moved = configuration
        .replace("\"proxyd\"", "\"root\"")
        .replace("/etc/pki/tls/certs/REPLACEME.pem", &certificate.display().to_string())
        .replace("/etc/proxy/certs", &folder.display().to_string())
        .replace("/etc/proxy/errors", &shipped("etc/errors").display().to_string())
        .replace("/var/lib/proxy", &folder.display().to_string())
        .replace("/run/proxy", &folder.display().to_string())
        .replace("/dev/log", &site.path("log").display().to_string());
    fs::write(site.config(), moved).unwrap();
    site
}

/// What `proxy check` says of a valid configuration on stderr; what only root can do has no effect for
/// whoever else runs this.
fn warnings(site: &Site) -> String {
    let output = site.proxy(&["check"]);
    let said = text(&output.stderr);
    assert_eq!(code(&output), 0, "{said}");
    let of_all = said.lines().filter(|line| !line.ends_with(" has no effect; only root can do that"));
    of_all.collect::<Vec<_>>().join("\n")
}

#[test]
fn promise_17_and_25_the_unit_keeps_paths_for_the_next_master_and_keys_off_the_disk() {
    let unit = read("systemd/proxy.service");
    // The daemon reckons with this room where systemd does not say it.
    for line in ["RuntimeDirectoryPreserve=restart", "LimitCORE=0", "FileDescriptorStoreMax=1024"] {
        assert!(unit.lines().any(|here| here == line), "{line}");
    }
}

#[test]
fn the_default_configuration_passes_without_a_warning() {
    assert_eq!(warnings(&installed(&read("etc/proxy.toml"))), "");
}

#[test]
fn what_the_default_configuration_only_suggests_passes_too() {
    let default = read("etc/proxy.toml");
    // A setting that is commented out has no space behind its `#`, prose has.
    let is_setting = |line: &str| line.starts_with('#') && line[1..].starts_with(|c: char| !c.is_whitespace());
    assert!(default.lines().any(is_setting));
    let all: Vec<_> = default.lines().map(|line| if is_setting(line) { &line[1..] } else { line }).collect();
    let site = installed(&all.join("\n"));
    assert_eq!(warnings(&site), "");
}

#[test]
fn the_default_configuration_serves_as_it_is_installed() {
    let (statistics, closed, front, secure) = (Port::new(), Port::new(), Port::new(), Port::new());
    let syslog = UdpSocket::bind("127.0.0.1:0").unwrap();
    syslog.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut configuration = read("etc/proxy.toml");
    let ports = ["127.0.0.1:9000", "127.0.0.1:9001", "127.0.0.1:9002"].map(|port| (port, closed.address));
    let own = [("127.0.0.1:8998", statistics.address), ("*:80", front.address), ("*:443", secure.address)];
    for (port, ours) in ports.into_iter().chain(own).chain([("127.0.0.1:514", syslog.local_addr().unwrap())]) {
        assert!(configuration.contains(port), "{port}");
        configuration = configuration.replace(port, &ours.to_string());
    }
    let site = installed(&configuration);
    let log = UnixDatagram::bind(site.path("log")).unwrap();
    log.set_read_timeout(Some(PATIENCE)).unwrap();
    let _daemon = site.start();
    let answer = get(front.address, "/path");
    assert_eq!(answer.line, "HTTP/1.1 301 Moved Permanently");
    assert!(answer.text().is_empty() || !answer.text().contains("www-backend"), "{answer:?}");
    let answer = Command::new("curl")
        .args(["-sik", "--max-time", "10"])
        .arg(format!("https://localhost:{}/", secure.address.port()))
        .output()
        .unwrap();
    let answer = text(&answer.stdout);
    assert!(answer.starts_with("HTTP/2 503"), "{answer}");
    assert!(answer.contains("No server is available"), "{answer}");
    assert!(get(statistics.address, "/admin?stats").text().contains("www-backend"));
    // Facility local0, severity info for requests, notice for events.
    let mut buffer = [0; 4096];
    let length = syslog.recv(&mut buffer).unwrap();
    let line = text(&buffer[..length]);
    assert!(line.starts_with("<134>") && line.contains(" proxy[") && line.contains("GET /path HTTP/1.1"), "{line}");
    let length = log.recv(&mut buffer).unwrap();
    let line = text(&buffer[..length]);
    assert!(line.starts_with("<133>") && line.contains("serves"), "{line}");
}

#[test]
fn a_self_signed_certificate_is_its_owners_alone_and_never_replaced() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made.pem");
    let make = || {
        let mut command = Command::new(support::PROXY);
        command.args(["self-signed", "--out"]).arg(&path);
        support::output(command)
    };
    assert_eq!(code(&make()), 0);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let first = fs::read(&path).unwrap();
    let again = make();
    assert_eq!(code(&again), 1);
    assert!(text(&again.stderr).contains("made.pem: File exists"), "{}", text(&again.stderr));
    assert_eq!(fs::read(&path).unwrap(), first);
}

#[test]
fn the_example_passes_and_warns_of_its_password_only() {
    let said = warnings(&installed(&read("etc/examples/article.toml")));
    assert_eq!(said.matches("warning").count(), 1, "{said}");
    assert!(said.contains("a password in clear text"), "{said}");
}

#[test]
fn the_example_of_tcp_mode_passes_without_a_warning() {
    assert_eq!(warnings(&installed(&read("etc/examples/tcp.toml"))), "");
}

#[test]
fn the_example_of_a_socket_unit_says_what_a_bind_has_to_and_is_enabled_by_nobody() {
    let unit = read("etc/examples/proxy.socket");
    let name = unit.lines().find_map(|line| line.strip_prefix("FileDescriptorName=")).unwrap();
    let bind = unit.lines().find_map(|line| line.split_once("in a frontend: ")).unwrap().1;
    assert!(bind.contains(&format!("{{ fd-name = \"{name}\" }}")), "{bind}");
    let site = Site::proxying(&[Port::new().address], "");
    site.configure(&Site::text(&[Port::new().address], "").replace("bind = \"{port}\"", bind));
    assert_eq!(warnings(&site), "");
    // The package enables whatever unit it finds there.
    let units: Vec<_> = fs::read_dir(shipped("systemd")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(units, ["proxy.service"]);
}

#[test]
fn error_pages_are_whole_responses_with_true_line_ends() {
    for status in PAGES {
        let page = read(&format!("etc/errors/{status}.http"));
        assert_eq!(page.replace("\r\n", "").find(['\r', '\n']), None, "{status}: a bare CR or LF");
        let (head, body) = page.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.0 {status} ")), "{head}");
        for field in ["Cache-Control: no-cache", "Connection: close", "Content-Type: text/html"] {
            assert!(head.lines().any(|line| line == field), "{status}: no {field}");
        }
        assert!(body.contains(&format!("<h1>{status} ")), "{status}: {body}");
    }
    let pages: Vec<_> = PAGES
        .iter()
        .map(|status| format!("{status} = \"{}/{status}.http\"\n", shipped("etc/errors").display()))
        .collect();
    let site = Site::proxying(&[Port::new().address], &format!("[defaults.error-pages]\n{}", pages.concat()));
    assert_eq!(warnings(&site), "");
}

#[test]
fn every_configuration_names_every_error_page() {
    for file in ["etc/proxy.toml", "etc/examples/article.toml"] {
        let configuration = read(file);
        for status in PAGES {
            assert!(
                configuration.contains(&format!("{status} = \"/etc/proxy/errors/{status}.http\"")),
                "{file}: {status}"
            );
        }
    }
}

#[test]
fn the_init_script_carries_what_insserv_reads() {
    let script = read("init/proxy");
    assert!(script.starts_with("#!/bin/sh\n### BEGIN INIT INFO\n"));
    let header = script.split_once("### BEGIN INIT INFO\n").unwrap().1.split_once("### END INIT INFO\n").unwrap().0;
    let value = |key: &str| {
        let line = header.lines().find_map(|line| line.strip_prefix(&format!("# {key}:")));
        line.unwrap_or_else(|| panic!("no {key}")).trim().to_owned()
    };
    assert_eq!(value("Provides"), "proxy");
    for key in ["Required-Start", "Required-Stop"] {
        for facility in ["$remote_fs", "$syslog", "$network"] {
            assert!(value(key).split_whitespace().any(|word| word == facility), "{key}: {facility}");
        }
    }
    assert_eq!((value("Default-Start"), value("Default-Stop")), ("2 3 4 5".into(), "0 1 6".into()));
    assert!(!value("Short-Description").is_empty() && !value("Description").is_empty());
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(shipped("init/proxy")).unwrap().permissions());
    assert_eq!(mode & 0o111, 0o111);
}

#[test]
fn the_defaults_file_shows_the_scripts_own_defaults() {
    let script = read("init/proxy");
    let defaults = read("etc/default/proxy");
    let settings: Vec<_> =
        defaults.lines().filter_map(|line| line.strip_prefix('#').filter(|s| !s.starts_with(' '))).collect();
    assert_eq!(settings.len(), 4);
    for setting in settings {
        assert!(script.lines().any(|line| line == setting), "{setting}");
    }
}

#[test]
#[ignore = "needs rsyslogd; .ci/run runs it"]
fn rsyslog_takes_its_rules() {
    let mut command = Command::new("rsyslogd");
    let output = support::output({
        command.arg("-N1").arg("-f").arg(shipped("etc/rsyslog/49-proxy.conf"));
        command
    });
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
}
