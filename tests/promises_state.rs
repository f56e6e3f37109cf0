//! What is promised to outlive a reload: counters, tickets, pid, log lines and the history of reloads.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]
#![allow(clippy::print_stdout, reason = "what was measured is shown")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, SupportedProtocolVersion};
use serde_json::Value;
use support::client::{Client, get};
use support::load::{self, Load};
use support::origin::Origin;
use support::tls::{Pair, TlsClient};
use support::{End, PATIENCE, Port, Site, code, generation, serving, text};

/// A page that everybody may see.
fn page(address: SocketAddr) -> String {
    format!("[stats]\nbind = \"{address}\"\nuri = \"/stats\"\n")
}

/// An access log whose lines show where they begin and end.
fn log(socket: &Path) -> String {
    let format = "begin %ST %{+Q}r end";
    format!("[[log]]\ntarget = \"syslog:{}\"\nonly = \"access\"\naccess-format = '{format}'\n", socket.display())
}

/// A syslog daemon that passes on what it receives until told that nothing more comes.
struct Syslog {
    over: Arc<AtomicBool>,
    lines: mpsc::Receiver<String>,
    thread: JoinHandle<()>,
}

impl Syslog {
    fn start(socket: UnixDatagram) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (sender, lines) = mpsc::channel();
        let stop = Arc::clone(&over);
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            loop {
                // Asked first: what was sent before is still received.
                let last = stop.load(Ordering::SeqCst);
                match socket.recv(&mut buffer) {
                    Ok(length) => sender.send(text(&buffer[..length])).unwrap(),
                    Err(_nothing) if last => return,
                    Err(_nothing) => {}
                }
            }
        });
        Self { over, lines, thread }
    }

    /// Ends it; how often each request was logged. Panics for a line that is not whole.
    fn stop(self) -> BTreeMap<String, usize> {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        let mut requests = BTreeMap::new();
        for line in self.lines.try_iter() {
            let whole = line
                .split_once("]: ")
                .and_then(|(_, message)| message.strip_prefix("begin 200 \"")?.strip_suffix(" HTTP/1.1\" end"));
            let request = whole.unwrap_or_else(|| panic!("a torn line: {line:?}"));
            *requests.entry(request.to_owned()).or_default() += 1;
        }
        requests
    }
}

/// Counters of the frontend and of the backend, which may only grow.
const COUNTERS: [&str; 6] = ["stot", "bin", "bout", "hrsp_2xx", "hrsp_5xx", "req_tot"];

/// The counters in the CSV of the page, by `PROXY/SERVICE/COLUMN`.
fn counters(page: SocketAddr) -> BTreeMap<String, u64> {
    let csv = get(page, "/stats;csv").text();
    let mut lines = csv.lines();
    let head: Vec<_> = lines.next().unwrap().trim_start_matches("# ").split(',').collect();
    let mut numbers = BTreeMap::new();
    for line in lines {
        let row: Vec<_> = line.split(',').collect();
        for (name, value) in head.iter().zip(&row).filter(|(name, _)| COUNTERS.contains(name)) {
            // A server has no `req_tot`.
            if let Ok(number) = value.parse() {
                numbers.insert(format!("{}/{}/{name}", row[0], row[1]), number);
            }
        }
    }
    assert!(numbers.len() > COUNTERS.len(), "{csv}");
    numbers
}

/// Looks at the counters all the time, until told to stop; returns how often.
fn watch_counters(page: SocketAddr, over: &AtomicBool) -> usize {
    let (mut last, mut samples) = (counters(page), 1);
    while !over.load(Ordering::SeqCst) {
        let now = counters(page);
        for (name, before) in &last {
            assert!(now[name] >= *before, "{name} went from {before} back to {}", now[name]);
        }
        (last, samples) = (now, samples + 1);
    }
    samples
}

/// Reloads under load: clients, log and counters have to agree on every single request.
fn accounts_agree(reloads: usize) {
    let (origin, stats, folder) = (Origin::echo(), Port::new(), tempfile::tempdir().unwrap());
    let path = folder.path().join("log");
    let syslog = Syslog::start(UnixDatagram::bind(&path).unwrap());
    let site = Site::proxying(&[origin.address], &(page(stats.address) + &log(&path)));
    let daemon = site.start();
    let load = Load::start(site.address(), &load::ALL);
    let over = AtomicBool::new(false);
    let samples = std::thread::scope(|scope| {
        let watch = scope.spawn(|| watch_counters(stats.address, &over));
        let end = End(&over);
        for _ in 0..reloads {
            load.more(30);
            assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
        }
        load.more(30);
        drop(end);
        watch.join().unwrap()
    });
    let (requests, failures) = load.stop();
    assert!(failures.is_empty(), "{} of {requests} failed, first: {}", failures.len(), failures[0]);
    let status = site.await_status("old workers end", |status| status["generations"].as_array().unwrap().len() == 1);
    let deadline = Instant::now() + PATIENCE;
    // A client may have its answer before it is counted.
    while counters(stats.address)["web/FRONTEND/req_tot"] < requests as u64 && Instant::now() < deadline {}
    let counted = counters(stats.address);
    for name in ["web/FRONTEND/req_tot", "web/FRONTEND/hrsp_2xx", "pool/BACKEND/hrsp_2xx", "pool/s1/hrsp_2xx"] {
        assert_eq!(counted[name], requests as u64, "{name}");
    }
    assert_eq!(generation(&status), reloads as u64 + 1);
    let dropped = site.status()["log_lines_dropped"].as_u64().unwrap();
    drop(daemon);
    let logged = syslog.stop();
    let doubled: Vec<_> = logged.iter().filter(|(_, count)| **count != 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
    assert_eq!(logged.len() as u64 + dropped, requests as u64, "{dropped} lines dropped");
    println!("{reloads} reloads: {requests} answers = lines ({dropped} dropped) = counters, seen {samples} times");
}

#[test]
fn promise_13_and_36_twenty_reloads_and_every_request_is_counted_and_logged_once() {
    accounts_agree(20);
}

#[test]
#[ignore = "a hundred reloads take a while; .ci/run runs it"]
fn promise_13_and_36_a_hundred_reloads_and_every_request_is_counted_and_logged_once() {
    accounts_agree(100);
}

#[test]
fn promise_18_a_full_pool_of_server_connections_moves_and_nobody_storms_the_servers() {
    full_pool_moves(1);
}

/// Each thread has a pool of its own.
#[test]
fn promise_18_it_does_so_between_workers_of_several_threads() {
    [2, 4].into_iter().for_each(full_pool_moves);
}

fn full_pool_moves(threads: usize) {
    const POOL: usize = 40;
    let (origin, gate) = Origin::gated();
    let site = Site::proxying(&[origin.address], &format!("[global]\nthreads = {threads}\n"));
    let _daemon = site.start();
    let mut clients: Vec<_> = (0..POOL).map(|_| Client::connect(site.address())).collect();
    // All at a time, so that each needs a connection of its own.
    let mut all_ask = || {
        clients.iter_mut().for_each(|client| client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n"));
        (0..POOL).for_each(|_| gate.arrived());
        (0..POOL).for_each(|_| gate.release());
        assert!(clients.iter_mut().all(|client| client.response().is_some_and(|answer| answer.complete)));
    };
    all_ask();
    assert_eq!(origin.accepted(), POOL);
    for mode in ["handover", "rebind", "handover"] {
        let before = origin.accepted();
        assert_eq!(code(&site.proxy(&["reload", "--mode", mode])), 0);
        site.await_status("the old worker ends", |status| status["generations"].as_array().unwrap().len() == 1);
        all_ask();
        let new = origin.accepted() - before;
        println!("{threads} threads, {mode}: {new} new connections to the server, {POOL} were kept");
        assert!(new * 20 <= POOL, "{new} of {POOL} are new after a {mode}");
    }
}

/// How many of these connections, one after the other, resume a session.
fn resumed(client: &TlsClient, address: SocketAddr, connections: usize) -> usize {
    let kinds = (0..connections).map(|_| client.get(address, "localhost").kind);
    kinds.filter(|kind| *kind == HandshakeKind::Resumed).count()
}

#[test]
fn promise_17_sessions_resume_at_the_same_rate_before_and_after_reloads() {
    let site = Site::proxying(&[Origin::named("one").address], "[frontend.web.tls]\ncertificates = [\"a.pem\"]\n");
    Pair::written(site.folder.path(), "a.pem", "localhost");
    let _daemon = site.start();
    let versions: [&'static SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
    let clients = versions.map(|version| TlsClient::new(&[version]));
    for client in &clients {
        assert_eq!(client.get(site.address(), "localhost").kind, HandshakeKind::Full);
    }
    let before = clients.each_ref().map(|client| resumed(client, site.address(), 20));
    for mode in ["handover", "rebind", "handover"] {
        assert_eq!(code(&site.proxy(&["reload", "--mode", mode])), 0);
        let after = clients.each_ref().map(|client| resumed(client, site.address(), 20));
        assert_eq!((before, after), ([20, 20], [20, 20]), "{mode}");
    }
    println!("20 of 20 connections resume before and after each of 3 reloads, TLS 1.2 and 1.3");
}

/// Reads the pid file until told to stop: at every moment it names this living process.
fn watch_pid_file(path: &Path, master: u32, over: &AtomicBool) -> usize {
    let mut samples = 0;
    while !over.load(Ordering::SeqCst) {
        assert_eq!(fs::read_to_string(path).unwrap(), format!("{master}\n"), "sample {samples}");
        assert!(!support::has_ended(master), "sample {samples}");
        samples += 1;
    }
    samples
}

fn pid_stays(reloads: usize) {
    let site = Site::proxying(&[Origin::echo().address], "[global]\npid-file = \"{dir}/proxy.pid\"\n");
    let daemon = site.start();
    let (over, path, master) = (AtomicBool::new(false), site.path("proxy.pid"), daemon.pid());
    let samples = std::thread::scope(|scope| {
        let watch = scope.spawn(|| watch_pid_file(&path, master, &over));
        let end = End(&over);
        for count in 0..reloads {
            let mode = if count % 2 == 0 { "handover" } else { "rebind" };
            assert_eq!(code(&site.proxy(&["reload", "--mode", mode])), 0);
            assert_eq!(site.status()["pid"], u64::from(daemon.pid()));
        }
        drop(end);
        watch.join().unwrap()
    });
    println!("{reloads} reloads: the pid file named the one master at each of {samples} samples");
    assert!(samples > reloads * 10, "only {samples} samples");
}

#[test]
fn promise_35_the_pid_file_names_the_living_master_through_twenty_reloads() {
    pid_stays(20);
}

#[test]
#[ignore = "a hundred reloads take a while; .ci/run runs it"]
fn promise_35_the_pid_file_names_the_living_master_through_a_hundred_reloads() {
    pid_stays(100);
}

/// More than all queues on the way to a log daemon hold that is behind: what does not fit is dropped.
const MANY: usize = 3000;

/// Asks so often on one connection; returns the longest wait for an answer.
fn ask(site: &Site, count: usize, name: &str) -> Duration {
    let mut client = Client::connect(site.address());
    let asked = (0..count).map(|number| {
        let began = Instant::now();
        assert_eq!(client.get(&format!("/{name}/{number}")).status(), 200);
        began.elapsed()
    });
    asked.max().unwrap()
}

fn dropped(site: &Site) -> usize {
    usize::try_from(site.status()["log_lines_dropped"].as_u64().unwrap()).unwrap()
}

#[test]
fn promise_36_a_syslog_that_stops_never_holds_traffic_up_and_drops_are_counted() {
    let (origin, folder) = (Origin::echo(), tempfile::tempdir().unwrap());
    let path = folder.path().join("log");
    let socket = UnixDatagram::bind(&path).unwrap();
    let site = Site::proxying(&[origin.address], &log(&path));
    let daemon = site.start();
    // Nobody reads. The old worker, which cannot deliver its rest, counts it when it ends.
    let longest = ask(&site, MANY, "old");
    site.await_status("lines are dropped", |status| status["log_lines_dropped"].as_u64().unwrap() > 0);
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    site.await_status("the old worker ends", |status| status["generations"].as_array().unwrap().len() == 1);
    let by_then = dropped(&site);
    let longest = longest.max(ask(&site, 100, "new"));
    let syslog = Syslog::start(socket);
    drop(daemon);
    let logged = syslog.stop();
    let old = logged.keys().filter(|request| request.contains("/old/")).count();
    println!("{MANY} requests, {old} lines kept by the socket, {by_then} dropped; longest wait {longest:?}");
    assert_eq!(old + by_then, MANY, "every line is delivered or counted");
    assert_eq!(logged.len() - old, 100, "what is logged once it is back arrives");
    assert!(logged.values().all(|count| *count == 1));
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

/// A worker's views of reloads that happened before it began.
fn statistics_tell_the_same(status: &Value, stats: SocketAddr, metrics: SocketAddr) {
    let reloads = &status["reloads"];
    let info: Value = serde_json::from_slice(&get(stats, "/stats;info").body).unwrap();
    for path in ["handover", "rebind"] {
        assert_eq!(info["reload_total"][path], reloads[path], "{path}");
    }
    assert_eq!(
        (&info["config_sha256"], &info["reload_last_success"]),
        (&status["config_sha256"], &reloads["last_applied"])
    );
    let scraped = get(metrics, "/metrics").text();
    for line in [
        String::from("proxy_reload_total{result=\"applied\",path=\"handover\"} 2"),
        String::from("proxy_reload_total{result=\"rolled_back\",path=\"handover\"} 1"),
        String::from("proxy_reload_total{result=\"rejected\",path=\"rebind\"} 1"),
        String::from("proxy_reload_duration_seconds_count 5"),
        String::from("proxy_generation_connections{generation=\"1\",state=\"draining\"} 1"),
        format!("proxy_config_info{{sha256=\"{}\"}} 1", status["config_sha256"].as_str().unwrap()),
        format!("proxy_reload_last_success_timestamp_seconds {}", reloads["last_applied"]),
    ] {
        assert!(scraped.lines().any(|scraped| scraped == line), "{line} is not in {scraped}");
    }
    assert!(get(stats, "/stats").text().contains("<b>3</b> applied, <b>1</b> rejected, <b>1</b> rolled back"));
}

#[test]
fn promise_39_the_status_tells_the_history_of_reloads_and_who_still_drains() {
    let (origin, gate) = Origin::gated();
    let good = Site::text(&[origin.address], "");
    let (stats, metrics) = (Port::new(), Port::new());
    let good = format!("{good}{}[metrics]\nbind = \"{}\"\n", page(stats.address), metrics.address);
    let site = Site::new(&good);
    let _daemon = site.start();
    assert_eq!(site.status()["reloads"]["last_applied"], Value::Null);
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut slow = Client::connect(site.address());
    slow.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    gate.arrived();
    let first = serving(&site.status());
    for (mode, applied) in [("handover", 1), ("rebind", 2), ("handover", 3)] {
        assert_eq!(code(&site.proxy(&["reload", "--mode", mode])), 0);
        let reloads = site.status()["reloads"].clone();
        assert_eq!((&reloads["applied"], &reloads["last"]["mode"]), (&Value::from(applied), &Value::from(mode)));
        assert_eq!(reloads["last"]["outcome"], "applied");
        assert!(reloads["last"]["milliseconds"].as_u64().unwrap() < 20_000, "{reloads}");
        assert!(reloads["last_applied"].as_u64().unwrap() >= before, "{reloads}");
    }
    let applied = site.status();
    let digest = |status: &Value| status["config_sha256"].as_str().unwrap().to_owned();
    let file = support::output({
        let mut command = std::process::Command::new("sha256sum");
        command.arg(site.config());
        command
    });
    assert_eq!(text(&file.stdout).split(' ').next(), Some(digest(&applied).as_str()));

    site.configure(&good.replace("backend = \"pool\"", "backendd = \"pool\""));
    assert_eq!(code(&site.proxy(&["reload", "--mode", "rebind"])), 1);
    site.configure(&Site::text(&[origin.address], "[global]\npid-file = \"/proc/no/such.pid\"\n"));
    assert_eq!(code(&site.proxy(&["reload", "--mode", "handover"])), 2);
    let status = site.status();
    let reloads = &status["reloads"];
    assert_eq!(digest(&status), digest(&applied), "what serves, not what was tried");
    assert_eq!((&reloads["rejected"], &reloads["rolled_back"]), (&Value::from(1), &Value::from(1)));
    assert_eq!(reloads["handover"], serde_json::json!({"applied": 2, "rejected": 0, "rolled_back": 1}));
    assert_eq!(reloads["rebind"], serde_json::json!({"applied": 1, "rejected": 1, "rolled_back": 0}));
    assert_eq!(reloads["last_applied"], applied["reloads"]["last_applied"], "failures do not move it");
    assert_eq!(reloads["last"]["outcome"], "rolled-back");

    let workers = status["generations"].as_array().unwrap();
    let draining = workers.iter().find(|worker| worker["pid"] == first).unwrap();
    let expected = (&Value::from(1), &Value::from("draining"), &Value::from(1));
    assert_eq!((&draining["generation"], &draining["state"], &draining["connections"]), expected);
    statistics_tell_the_same(&status, stats.address, metrics.address);
    gate.release();
    assert!(slow.response().unwrap().complete);
}

#[test]
fn promise_39_history_and_histograms_outlive_a_crash_of_the_worker_and_are_scraped() {
    let (origin, metrics) = (Origin::echo(), Port::new());
    let site = Site::proxying(&[origin.address], &format!("[metrics]\nbind = \"{}\"\n", metrics.address));
    let _daemon = site.start();
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    for _ in 0..10 {
        assert_eq!(get(site.address(), "/").status(), 200);
    }
    let worker = serving(&site.status());
    nix::sys::signal::kill(support::pid(worker), nix::sys::signal::Signal::SIGKILL).unwrap();
    site.await_status("a new worker serves", |status| status["reloads"]["respawns"] == 1);
    let deadline = Instant::now() + PATIENCE;
    // A request is counted when its answer is sent, and the last one's worker was killed at about that time.
    let scraped = loop {
        let scraped = get(metrics.address, "/metrics").text();
        if scraped.contains("path=\"respawn\"} 1") || Instant::now() > deadline {
            break scraped;
        }
    };
    let value = |name: &str| {
        let line = scraped.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .unwrap_or_else(|| panic!("{name}: {scraped}"))
    };
    assert!((value("proxy_reload_total{result=\"applied\",path=\"respawn\"}") - 1.0).abs() < 0.1);
    assert!((value("proxy_reload_total{result=\"applied\",path=\"handover\"}") - 1.0).abs() < 0.1);
    for name in [
        "proxy_frontend_http_request_duration_seconds_count{proxy=\"web\"}",
        "proxy_backend_http_response_time_seconds_count{proxy=\"pool\"}",
        "proxy_server_http_response_time_seconds_count{proxy=\"pool\",server=\"s1\"}",
    ] {
        assert!((9.0..=10.0).contains(&value(name)), "{name} is {}", value(name));
    }
    assert_eq!(get(metrics.address, "/").status(), 404);
}
