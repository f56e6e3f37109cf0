//! Promise 36 with a real rsyslogd at the other end, by UDP and by its socket: one line for every request, whatever is
//! reloaded meanwhile; and what it does not get while it is down is counted, and delays nobody.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]
#![allow(clippy::print_stdout, reason = "what was measured is shown")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use support::client::Client;
use support::origin::Origin;
use support::{PATIENCE, Site, code, pid};

const RSYSLOGD: &str = "/usr/sbin/rsyslogd";

/// A running rsyslogd; killed when dropped.
struct Rsyslogd(Child);

impl Rsyslogd {
    /// Starts one that writes what it gets into `udp.log` and `unix.log`; returns when its socket is there.
    fn start(folder: &Path, port: u16) -> Self {
        assert!(Path::new(RSYSLOGD).exists(), "{RSYSLOGD} is not installed, and this test is about it");
        let dir = folder.display();
        let text = format!(
            "global(workDirectory=\"{dir}\")\nmodule(load=\"imudp\")\nmodule(load=\"imuxsock\" SysSock.Use=\"off\")\n\
             template(name=\"bare\" type=\"string\" string=\"%msg%\\n\")\n\
             ruleset(name=\"udp\") {{ action(type=\"omfile\" file=\"{dir}/udp.log\" template=\"bare\") }}\n\
             ruleset(name=\"unix\") {{ action(type=\"omfile\" file=\"{dir}/unix.log\" template=\"bare\") }}\n\
             input(type=\"imudp\" address=\"127.0.0.1\" port=\"{port}\" ruleset=\"udp\" rcvbufSize=\"8m\")\n\
             input(type=\"imuxsock\" socket=\"{dir}/log\" ruleset=\"unix\" RateLimit.Interval=\"0\")\n"
        );
        fs::write(folder.join("rsyslog.conf"), text).unwrap();
        let mut command = Command::new(RSYSLOGD);
        command.arg("-n").arg("-f").arg(folder.join("rsyslog.conf")).arg("-i").arg(folder.join("rsyslogd.pid"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let running = Self(child);
        let deadline = Instant::now() + PATIENCE;
        // It binds the UDP port first, and both before it reads.
        while !folder.join("log").exists() || UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            assert!(Instant::now() < deadline, "rsyslogd does not listen");
            std::thread::yield_now();
        }
        running
    }
}

impl Drop for Rsyslogd {
    fn drop(&mut self) {
        let _ = kill(pid(self.0.id()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// How often each path of a run is in a file.
fn told(file: &Path, run: &str) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    let text = fs::read_to_string(file).unwrap_or_default();
    // What is behind the last line end is still being written.
    for line in text.rsplit_once('\n').map_or("", |(whole, _)| whole).lines() {
        assert!(line.ends_with(" HTTP/1.1\""), "torn: {line}");
        let path = line.split("\"GET ").nth(1).unwrap().split(' ').next().unwrap();
        if path.starts_with(run) {
            *count.entry(path.to_owned()).or_insert(0) += 1;
        }
    }
    count
}

fn files(site: &Site) -> [PathBuf; 2] {
    ["udp.log", "unix.log"].map(|name| site.path(name))
}

/// Requests from three clients at once while the daemon reloads; each client counts on.
fn run(site: &Site, name: &'static str, (each, reloads): (usize, usize)) {
    let address = site.address();
    let clients: Vec<_> = (0..3)
        .map(|client| {
            std::thread::spawn(move || {
                let mut connection = Client::connect(address);
                for number in 0..each {
                    assert_eq!(connection.get(&format!("{name}/{client}/{number}")).status(), 200);
                }
            })
        })
        .collect();
    for _ in 0..reloads {
        assert_eq!(code(&site.proxy(&["reload", "--mode", "handover"])), 0);
    }
    for client in clients {
        client.join().unwrap();
    }
}

/// Waits until both files have a line of each request, and no second one.
fn must_be_told(site: &Site, name: &str, requests: usize) {
    for file in files(site) {
        let deadline = Instant::now() + PATIENCE;
        while told(&file, name).len() < requests {
            assert!(Instant::now() < deadline, "{}: {} of {requests}", file.display(), told(&file, name).len());
            std::thread::yield_now();
        }
        assert!(told(&file, name).values().all(|count| *count == 1), "{}: a line came twice", file.display());
    }
}

#[test]
#[ignore = "needs rsyslog; .ci/run runs it"]
fn promise_36_a_real_rsyslogd_gets_one_line_for_each_request_over_reloads() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    drop(socket);
    let site = Site::new("");
    let logs = format!(
        "[[log]]\ntarget = \"syslog+udp:127.0.0.1:{port}\"\nonly = [\"access\"]\n\
         [[log]]\ntarget = \"syslog:{{dir}}/log\"\nonly = [\"access\"]\n"
    );
    site.configure(&Site::text(&[Origin::echo().address], &logs));
    let rsyslogd = Rsyslogd::start(site.folder.path(), port);
    let _daemon = site.start();
    run(&site, "/reloads", (1000, 10));
    must_be_told(&site, "/reloads", 3000);
    assert_eq!(site.status()["log_lines_dropped"], 0);

    drop(rsyslogd);
    run(&site, "/down", (300, 1));
    site.await_status("what nobody took is counted", |status| status["log_lines_dropped"].as_u64().unwrap() >= 500);
    let _again = Rsyslogd::start(site.folder.path(), port);
    // The first line after the silence may still find the old socket gone.
    let deadline = Instant::now() + PATIENCE;
    while files(&site).iter().any(|file| told(file, "/again").is_empty()) {
        assert!(Instant::now() < deadline, "no line came any more");
        run(&site, "/again", (1, 0));
    }
    let before = site.status()["log_lines_dropped"].as_u64().unwrap();
    run(&site, "/back", (500, 3));
    must_be_told(&site, "/back", 1500);
    assert_eq!(site.status()["log_lines_dropped"], before);
    println!("{before} lines were dropped while rsyslogd was down");
}
