//! Health checks with real servers: who is down gets nothing, who is back serves, and no reload forgets it.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use support::client::{Client, get};
use support::origin::{Origin, ok};
use support::{Daemon, PATIENCE, Port, Site, code, serving};

/// One attempt on one server: who is asked wrongly, shows.
const STRICT: &str = "retries = 0\nredispatch = false\n";

/// A server whose `/health` answers what the test says, and that counts what else it is asked.
struct Patient {
    origin: Origin,
    status: Arc<AtomicUsize>,
    checks: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
}

impl Patient {
    fn new(status: usize) -> Self {
        let (status, checks, requests) =
            (Arc::new(AtomicUsize::new(status)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (says, checked, asked) = (Arc::clone(&status), Arc::clone(&checks), Arc::clone(&requests));
        let origin = Origin::answering(move |request| {
            if request.line.contains(" /health ") {
                checked.fetch_add(1, Ordering::SeqCst);
                let status = says.load(Ordering::SeqCst);
                return format!("HTTP/1.1 {status} Said So\r\nContent-Length: 6\r\n\r\nI am x").into_bytes();
            }
            asked.fetch_add(1, Ordering::SeqCst);
            ok("patient")
        });
        Self { origin, status, checks, requests }
    }

    fn says(&self, status: usize) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn await_checks(&self, more: usize) {
        let (goal, deadline) = (self.checks.load(Ordering::SeqCst) + more, Instant::now() + PATIENCE);
        while self.checks.load(Ordering::SeqCst) < goal {
            assert!(Instant::now() < deadline, "it is not checked");
            std::thread::yield_now();
        }
    }

    fn asked(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Two servers, the first one checked over HTTP, and a statistics page.
fn site(servers: &[SocketAddr], check: &str) -> (Site, Port) {
    let page = Port::new();
    let stats = format!("[stats]\nbind = \"{}\"\nuri = \"/stats\"\n", page.address);
    (Site::proxying(servers, &format!("{STRICT}{check}\n{stats}")), page)
}

fn http(rest: &str) -> String {
    format!("[backend.pool.check]\ntype = \"http\"\npath = \"/health\"\n{rest}\n")
}

/// A row of the statistics.
fn row(page: &Port, service: &str) -> BTreeMap<String, Value> {
    let rows: Vec<BTreeMap<String, Value>> = serde_json::from_slice(&get(page.address, "/stats;json").body).unwrap();
    rows.into_iter().find(|row| row["svname"] == service).unwrap()
}

fn await_status(page: &Port, service: &str, wanted: &str) -> BTreeMap<String, Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let row = row(page, service);
        if row["status"] == wanted {
            return row;
        }
        assert!(Instant::now() < deadline, "{service} is never {wanted}: {row:?}");
    }
}

/// So many requests, each on a connection of its own; all have to be served.
fn serve(site: &Site, count: usize) {
    for _ in 0..count {
        assert_eq!(Client::connect(site.address()).get("/").status(), 200);
    }
}

fn reap_worker(site: &Site) {
    let (worker, before) = (serving(&site.status()), site.status()["reloads"]["respawns"].as_u64().unwrap());
    kill(support::pid(worker), Signal::SIGKILL).unwrap();
    site.await_status("a new worker serves", |status| {
        status["reloads"]["respawns"] == before + 1
            && status["generations"].as_array().unwrap().iter().any(|one| one["state"] == "serving")
    });
}

/// Another worker serves: of the same program, or of the one that the master becomes.
fn renew(site: &Site, step: &str) {
    match step {
        "none" => {}
        "crash" => reap_worker(site),
        "upgrade" => assert_eq!(code(&site.proxy(&["upgrade"])), 0),
        mode => assert_eq!(code(&site.proxy(&["reload", "--mode", mode])), 0),
    }
}

fn hears(daemon: &Daemon, parts: &[&str]) {
    let line = daemon.hear(parts[0]);
    assert!(parts.iter().all(|part| line.contains(part)), "{parts:?} are not in {line}");
}

#[test]
fn a_server_that_refuses_connections_gets_no_request_until_it_is_back() {
    let (dead, alive) = (Port::new(), Origin::named("alive"));
    let (site, page) = site(&[dead.address, alive.address], "check = { interval = \"100ms\", fall = 2, rise = 2 }");
    let daemon = site.start();
    hears(
        &daemon,
        &[
            "Server pool/s1 is DOWN",
            "reason: Layer4 connection problem, info: \"Connection refused\", check duration: ",
            "1 active and 0 backup servers left. 0 sessions active, 0 requeued, 0 remaining in queue.",
        ],
    );
    serve(&site, 20);
    let down = row(&page, "s1");
    for (column, expected) in [("status", "DOWN"), ("check_status", "L4CON"), ("last_chk", "Connection refused")] {
        assert_eq!(down[column], expected, "{down:?}");
    }
    assert_eq!((&down["chkdown"], &down["weight"], &down["stot"]), (&1.into(), &0.into(), &0.into()));
    let _listener = dead.listen();
    hears(&daemon, &["Server pool/s1 is UP", "Layer4 check passed", "2 active and 0 backup servers online"]);
    assert_eq!(row(&page, "s1")["status"], "UP");
}

#[test]
fn answers_are_judged_and_counted_as_haproxy_does() {
    let (patient, alive) = (Patient::new(200), Origin::named("alive"));
    let check = http("interval = \"100ms\"\nfall = 3\nrise = 2\nexpect = { status = \"200-204\", body = \"I am\" }");
    let extra = format!("{STRICT}{check}");
    let page = Port::new();
    let site = Site::new(&format!(
        "[frontend.web]\nbind = \"{{port}}\"\nbackend = \"pool\"\n[backend.pool]\nserver = [\n\
         {{ name = \"s1\", address = \"{}\" }}, {{ name = \"s2\", address = \"{}\", check = false }} ]\n{extra}\n\
         [stats]\nbind = \"{}\"\nuri = \"/stats\"\n",
        patient.origin.address, alive.address, page.address
    ));
    let daemon = site.start();
    patient.await_checks(2);
    let up = await_status(&page, "s1", "UP");
    assert_eq!((&up["check_status"], &up["check_code"], &up["check_health"]), (&"L7OK".into(), &200.into(), &4.into()));
    assert_eq!(row(&page, "s2")["status"], "no check");
    serve(&site, 4);
    assert_eq!(patient.asked(), 2);
    patient.says(503);
    hears(&daemon, &["Server pool/s1 is DOWN", "Layer7 wrong status, code: 503, info: \"Said So\""]);
    let down = row(&page, "s1");
    assert_eq!((&down["chkfail"], &down["chkdown"], &down["check_code"]), (&3.into(), &1.into(), &503.into()));
    serve(&site, 10);
    assert_eq!(patient.asked(), 2, "who is down is not asked");
    patient.says(203);
    hears(&daemon, &["Server pool/s1 is UP", "Layer7 check passed, code: 203"]);
}

#[test]
fn a_backend_without_a_server_says_so_and_answers_503_at_once() {
    let dead = Port::new();
    let (site, page) = site(&[dead.address], "check = { interval = \"100ms\" }");
    let daemon = site.start();
    daemon.hear("backend pool has no server available!");
    assert_eq!(get(site.address(), "/").status(), 503);
    let backend = row(&page, "BACKEND");
    assert_eq!((&backend["status"], &backend["act"], &backend["chkdown"]), (&"DOWN".into(), &0.into(), &1.into()));
    assert_eq!(row(&page, "s1")["stot"], 0, "nobody was asked");
}

#[test]
fn a_silent_server_is_down_when_its_time_is_over() {
    let (held, alive) = (Port::new(), Origin::named("alive"));
    let address = held.address;
    // Listens, and so is connected to, but never answers.
    let _listener = held.listen();
    let check = http("interval = \"200ms\"\nfall = 1");
    let (site, page) = site(&[address, alive.address], &format!("timeout.check = \"300ms\"\n{check}"));
    let daemon = site.start();
    hears(&daemon, &["Server pool/s1 is DOWN", "reason: Layer7 timeout, check duration: 3"]);
    assert_eq!(row(&page, "s1")["check_status"], "L7TOUT");
}

#[test]
fn promise_16_a_server_that_is_down_gets_no_request_after_any_reload_crash_or_upgrade() {
    let (patient, alive) = (Patient::new(503), Origin::named("alive"));
    // Checked once an hour, the first server at once: what later generations know, they were told.
    let check = http("interval = \"1h\"\nfall = 3\nrise = 2");
    let (site, page) = site(&[patient.origin.address, alive.address], &check);
    let _daemon = site.start();
    await_status(&page, "s1", "DOWN");
    for step in ["handover", "rebind", "crash", "upgrade", "handover", "crash", "crash", "upgrade"] {
        renew(&site, step);
        serve(&site, 30);
        assert_eq!(row(&page, "s1")["status"], "DOWN", "{step}");
    }
    assert_eq!((patient.asked(), patient.checks.load(Ordering::SeqCst)), (0, 1));
}

#[test]
fn a_new_generation_goes_on_with_the_levels_of_the_old_one() {
    let (patient, alive) = (Patient::new(200), Origin::named("alive"));
    let (site, page) = site(&[patient.origin.address, alive.address], &http("interval = \"100ms\"\nfall = 1000"));
    let _daemon = site.start();
    let level = || row(&page, "s1")["check_health"].as_u64().unwrap();
    patient.await_checks(2);
    assert_eq!(level(), 1001);
    patient.says(503);
    patient.await_checks(10);
    let before = level();
    reap_worker(&site);
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    patient.await_checks(2);
    let then = level();
    // A generation that began anew would be at 2, and then down.
    assert!((before - 300..before).contains(&then) && before < 1000, "{then} after {before}");
    let last = row(&page, "s1");
    assert_eq!(last["status"], format!("UP {}/1000", last["check_health"].as_u64().unwrap() - 1));
}

#[test]
fn reloads_neither_stop_nor_multiply_the_checks() {
    let patient = Patient::new(200);
    let (site, _page) = site(&[patient.origin.address], &http("interval = \"250ms\""));
    let _daemon = site.start();
    patient.await_checks(1);
    let (began, before) = (Instant::now(), patient.checks.load(Ordering::SeqCst));
    let mut reloads = 0;
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
        reloads += 1;
    }
    let took = began.elapsed();
    let checks = patient.checks.load(Ordering::SeqCst) - before;
    let due = usize::try_from(took.as_millis() / 250).unwrap();
    assert!(reloads > 3, "only {reloads} reloads");
    assert!((due / 2..=due + 2).contains(&checks), "{checks} checks instead of {due} during {reloads} reloads");
}

/// Which of two servers answers so many requests; a failure panics.
fn answers(site: &Site, count: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        let answer = Client::connect(site.address()).get("/");
        assert_eq!(answer.status(), 200);
        *answers.entry(answer.text()).or_default() += 1;
    }
    answers
}

fn expected(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

fn order(site: &Site, arguments: &[&str]) -> String {
    let output = site.proxy(&[&["server", "set"], arguments].concat());
    assert_eq!(code(&output), 0, "{arguments:?}: {}", support::text(&output.stderr));
    support::text(&output.stdout)
}

#[test]
fn promise_16_drain_maintenance_and_weights_survive_reloads_crashes_and_upgrades() {
    let (one, two) = (Origin::named("one"), Origin::named("two"));
    let (site, page) = site(&[one.address, two.address], "");
    let daemon = site.start();
    let steps = ["none", "handover", "rebind", "upgrade", "crash", "handover", "upgrade"];
    for (arguments, status, served) in [
        (&["pool/s1", "--state", "drain"][..], "DRAIN", &[("two", 20)][..]),
        (&["pool/s1", "--state", "maint"], "MAINT", &[("two", 20)]),
        (&["pool/s1", "--state", "ready", "--weight", "3"], "no check", &[("one", 15), ("two", 5)]),
        (&["pool/s1", "--weight", "0"], "DRAIN", &[("two", 20)]),
    ] {
        order(&site, arguments);
        for step in steps {
            renew(&site, step);
            assert_eq!(answers(&site, 20), expected(served), "{arguments:?} after {step}");
        }
        assert_eq!(row(&page, "s1")["status"], status);
    }
    order(&site, &["pool/s1", "--weight", "100%"]);
    assert_eq!(answers(&site, 20), expected(&[("one", 10), ("two", 10)]));
    daemon.hear("Server pool/s1 enters drain state. 1 active and 0 backup servers left.");
    daemon.hear("Server pool/s1 is going DOWN for maintenance.");
    daemon.hear("Server pool/s1 is UP/READY (leaving forced maintenance). 2 active");
}

#[test]
fn an_order_is_forgotten_with_its_server_and_a_weight_with_a_new_configured_one() {
    let (one, two) = (Origin::named("one"), Origin::named("two"));
    let (site, _page) = site(&[one.address, two.address], "");
    let _daemon = site.start();
    order(&site, &["pool/s1", "--state", "drain", "--weight", "7"]);
    let both = std::fs::read_to_string(site.config()).unwrap();
    let line = format!("  {{ name = \"s1\", address = \"{}\" }},\n", one.address);
    let reload = |text: &str| {
        std::fs::write(site.config(), text).unwrap();
        assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    };
    reload(&both.replace(&line, &line.replace(" }", ", weight = 3 }")));
    assert_eq!(answers(&site, 8), expected(&[("two", 8)]), "another weight ends no drain");
    order(&site, &["pool/s1", "--state", "ready"]);
    assert_eq!(answers(&site, 8), expected(&[("one", 6), ("two", 2)]));
    order(&site, &["pool/s1", "--state", "drain"]);
    reload(&both.replace(&line, ""));
    reload(&both);
    assert_eq!(answers(&site, 8), expected(&[("one", 4), ("two", 4)]));
}

#[test]
fn a_wrong_order_changes_nothing_and_is_told_what_would_be_right() {
    let origin = Origin::named("one");
    let (site, _page) = site(&[origin.address], "");
    let daemon = site.start();
    for (name, said) in [
        ("pol/s1", "there is no backend `pol`: did you mean `pool`?"),
        ("pool/s", "backend `pool` has no server `s`: did you mean `s1`?"),
        ("pool", "`pool` names no server: write BACKEND/SERVER"),
    ] {
        let output = site.proxy(&["server", "set", name, "--state", "drain"]);
        assert_eq!((code(&output), support::text(&output.stderr).trim()), (1, said));
    }
    let output = site.proxy(&["server", "set", "pool/s1", "--weight", "257"]);
    assert_eq!(code(&output), 1);
    assert!(support::text(&output.stderr).contains("0 to 256"));
    let list = site.proxy(&["server", "list", "--json"]);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!((&list[0]["server"], &list[0]["state"], &list[0]["weight"]), (&"s1".into(), &"ready".into(), &1.into()));
    let table = support::text(&site.proxy(&["server", "list"]).stdout);
    assert!(table.contains("pool/s1  no check  ready  1"), "{table}");
    drop(daemon);
    assert_eq!(code(&site.proxy(&["server", "set", "pool/s1", "--state", "drain"])), 4);
}

#[test]
fn haproxys_commands_on_the_admin_socket_mean_the_same() {
    let (one, two) = (Origin::named("one"), Origin::named("two"));
    let (site, page) = site(&[one.address, two.address], "");
    let _daemon = site.start();
    let say = |line: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(site.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    for (line, status, weight) in [
        ("set server pool/s1 state drain", "DRAIN", 0),
        ("set server pool/s1 state ready", "no check", 1),
        ("set server pool/s1 weight 9", "no check", 9),
        ("disable server pool/s1", "MAINT", 0),
        ("enable server pool/s1", "no check", 9),
        ("set weight pool/s1 0", "DRAIN", 0),
    ] {
        let answer = say(line);
        assert_eq!(answer["outcome"], "applied", "{line}: {answer}");
        let row = row(&page, "s1");
        assert_eq!((&row["status"], &row["weight"]), (&Value::from(status), &Value::from(weight)), "{line}");
    }
    assert_eq!(say("set server pool/s1 state dran")["outcome"], "rejected");
    // One that is too long for a command is not carried out as far as it is known: here as weight 2.
    let long = format!("{:<1023}256", "set server pool/s1 weight");
    assert!(say(&long)["message"].as_str().unwrap().contains("at most 1024 bytes"));
}

#[test]
fn a_request_that_waits_for_another_attempt_goes_elsewhere_when_its_server_is_taken_out() {
    let (dead, alive) = (Port::new(), Origin::named("alive"));
    let page = Port::new();
    let stats = format!("[stats]\nbind = \"{}\"\nuri = \"/stats\"\n", page.address);
    // A second passes between two attempts.
    let site = Site::proxying(&[dead.address, alive.address], &format!("retries = 50\n{stats}"));
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    let deadline = Instant::now() + PATIENCE;
    while row(&page, "s1")["wretr"] == 0 {
        assert!(Instant::now() < deadline, "it was never tried again");
    }
    order(&site, &["pool/s1", "--state", "maint"]);
    assert_eq!(client.response().unwrap().text(), "alive");
    let then = row(&page, "s1");
    // An attempt may have been under way when the order came.
    assert!(then["econ"].as_u64().unwrap() <= 2 && then["wredis"] == 1, "{then:?}");
}

#[test]
fn names_that_change_with_every_reload_do_not_use_up_the_counters() {
    let origin = Origin::named("one");
    let port = Port::new();
    let many = |name: &str| {
        // More names in three reloads than there are places.
        let servers: String = (0..7000).map(|_| format!("\"{}\",", origin.address)).collect();
        format!(
            "[frontend.web]\nbind = \"{{port}}\"\nbackend = \"pool\"\n[backend.pool]\nservers = [\"{}\"]\n\
             [backend.{name}]\nservers = [{servers}]\n[stats]\nbind = \"{}\"\nuri = \"/stats\"\n",
            origin.address, port.address
        )
    };
    let site = Site::new(&many("b0"));
    let _daemon = site.start();
    for round in 1..5 {
        assert_eq!(get(site.address(), "/").text(), "one");
        site.configure(&many(&format!("b{round}")));
        let output = site.proxy(&["reload-socket"]);
        assert_eq!(code(&output), 0, "{}", support::text(&output.stderr));
        site.await_status("the old worker ends", |status| status["generations"].as_array().unwrap().len() == 1);
    }
    let csv = get(port.address, "/stats;csv").text();
    assert_eq!(support::counted(&csv, "web,FRONTEND,", "stot"), 4, "{csv}");
    assert!(csv.lines().any(|line| line.starts_with("b4,s7000,")));
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn a_check_that_a_fault_of_our_own_ends_is_made_again() {
    let patient = Patient::new(200);
    let (site, page) = site(&[patient.origin.address], &http("interval = \"100ms\"\nfall = 2"));
    let _daemon = site.start_faulty();
    await_status(&page, "s1", "UP");
    site.fault("probe panic");
    support::until("the check is made", || !site.path("fault").exists());
    patient.await_checks(2);
    patient.says(500);
    await_status(&page, "s1", "DOWN");
}
