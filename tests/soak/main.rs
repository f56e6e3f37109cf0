//! Everything at once for a while: every kind of traffic, reloads, servers that die, garbage, killed workers. At the end
//! nothing is left of it: no memory, no descriptor, no connection; and the account closes: what clients did, the
//! access lines, the counters. `SOAK_SECONDS` says how long; `bench/soak` is the command for minutes.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]
#![allow(clippy::print_stdout, reason = "what was measured is shown")]

#[path = "../support/mod.rs"]
mod support;

mod ledger;
mod servers;
mod streams;
mod traffic;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ledger::{Line, Lines, Outcome};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use servers::{Mortal, Trade};
use support::client::get;
use support::kernel::{descriptor_names, descriptors, resident};
use support::tls::TlsClient;
use support::{Daemon, PATIENCE, Port, Site, certificate, code, pid, serving};
use traffic::{Places, Shared, Traffic};

/// How long it takes where nothing else is said.
const SECONDS: u64 = 30;

/// What runs.
struct Soak {
    site: Site,
    daemon: Daemon,
    places: Places,
    page: Port,
    lines: Lines,
    web: Vec<Mortal>,
    raw: Mortal,
    _ports: [Port; 4],
}

impl Soak {
    fn start() -> Self {
        let [tls, raw_port, junk, two] = [Port::new(), Port::new(), Port::new(), Port::new()];
        let (page, lines) = (Port::new(), Lines::new());
        let web: Vec<_> = (0..3).map(|_| Mortal::new(Trade::Web)).collect();
        let raw = Mortal::new(Trade::Echo);
        let site = Site::new("");
        certificate(site.folder.path(), "a.pem", &["localhost"]);
        let text = format!(
            "{}[reload]\nhard-stop-after = \"20s\"\n[defaults]\nretries = 3\n\
             timeout = {{ connect = \"5s\", client = \"10s\", server = \"10s\", http-request = \"2s\", tunnel = \"10s\" }}\n\
             [stats]\nbind = \"{}\"\nuri = \"/stats\"\n\
             [frontend.web]\nbind = \"{{port}}\"\nbackend = \"pool\"\n\
             [frontend.tls]\nbind = \"{}\"\nbackend = \"pool\"\ntls.certificates = [\"a.pem\"]\n\
             [frontend.junk]\nbind = \"{}\"\nbackend = \"pool\"\n\
             [frontend.two]\nproto = \"h2\"\nbind = \"{}\"\nbackend = \"pool\"\n\
             [frontend.raw]\nmode = \"tcp\"\nlog-empty = true\nbind = \"{}\"\nbackend = \"raw\"\n\
             [backend.pool]\nservers = [\"{}\", \"{}\", \"{}\"]\n[backend.raw]\nmode = \"tcp\"\nservers = \"{}\"\n",
            lines.section(),
            page.address,
            tls.address,
            junk.address,
            two.address,
            raw_port.address,
            web[0].address,
            web[1].address,
            web[2].address,
            raw.address
        );
        site.configure(&text);
        let daemon = site.start();
        let config = Arc::new(TlsClient::new(rustls::ALL_VERSIONS).config);
        let (web_at, tls_at) = (site.address(), tls.address);
        let places =
            Places { web: web_at, tls: tls_at, raw: raw_port.address, junk: junk.address, two: two.address, config };
        Self { site, daemon, places, page, lines, web, raw, _ports: [tls, raw_port, junk, two] }
    }

    fn reload(&self) {
        let output = self.site.proxy(&["reload", "--mode", "handover"]);
        assert_eq!(code(&output), 0, "{output:?}");
    }

    /// The rows of the statistics.
    fn rows(&self) -> Vec<Value> {
        serde_json::from_slice(&get(self.page.address, "/stats;json").body).unwrap()
    }

    /// A number of a frontend.
    fn counted(&self, frontend: &str, column: &str) -> u64 {
        let rows = self.rows();
        let row = rows.iter().find(|row| row["pxname"] == frontend && row["svname"] == "FRONTEND").unwrap();
        row[column].as_u64().unwrap()
    }

    /// Waits until nobody is there any more, not even an old worker.
    fn settle(&self) {
        for server in self.web.iter().chain([&self.raw]) {
            server.hang_up();
        }
        self.site.await_status("one worker without connections", |status| {
            let all = status["generations"].as_array().unwrap();
            all.len() == 1 && all[0]["connections"] == 0
        });
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rows = self.rows();
            let busy = rows.iter().find(|row| row["scur"].as_u64().is_some_and(|now| now > 0));
            let Some(busy) = busy else { return };
            assert!(Instant::now() < deadline, "a gauge does not come back to 0: {busy:#}");
        }
    }

    /// Master and worker.
    fn processes(&self) -> [u32; 2] {
        [self.daemon.pid(), serving(&self.site.status())]
    }
}

impl Drop for Soak {
    /// Whatever went wrong, the daemon may know of it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.daemon.said.try_iter().for_each(|line| println!("daemon: {line}"));
        }
    }
}

/// Lets `each` happen again and again for so long.
fn during(time: Duration, every: Duration, mut each: impl FnMut(usize)) {
    let (_keep, never) = mpsc::channel::<()>();
    let began = Instant::now();
    for turn in 0.. {
        let next = every * u32::try_from(turn + 1).unwrap();
        if next > time {
            return;
        }
        let _ = never.recv_timeout(next.saturating_sub(began.elapsed()));
        each(turn);
    }
}

/// A server dies at every third turn and is back at the next one.
fn die_and_live(servers: &mut [Mortal], turn: usize) {
    let victim = turn / 3 % servers.len();
    match turn % 3 {
        1 => servers[victim].die(),
        2 => servers[victim].live(),
        _ => {}
    }
}

/// Every request has exactly one line, which says what the client saw.
fn must_agree(phase: &str, shared: &Shared, lines: &[Line]) {
    let done = shared.done.take();
    let mut told: BTreeMap<&str, &Line> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.is_of(&["web", "tls", "two"])) {
        assert!(told.insert(&line.path, line).is_none(), "two lines: {line:?}");
    }
    let missing: Vec<_> = done.keys().filter(|name| !told.contains_key(name.as_str())).collect();
    assert!(
        missing.is_empty(),
        "{phase}: {} of {} requests have no line, first {}",
        missing.len(),
        done.len(),
        missing[0]
    );
    assert_eq!(told.len(), done.len(), "{phase}: lines of requests that nobody made");
    let mut whole = 0;
    for (name, Outcome { status, whole: complete }) in &done {
        let line = told[name.as_str()];
        assert_eq!(line.status, status.to_string(), "{name}: {line:?}");
        // Over a tunnel both ends may say it differently: its server's death is an end for one, a break for the other.
        assert!(*status != 200 || *complete == (line.state == "----"), "{name}: {complete}, {line:?}");
        whole += usize::from(*complete && *status < 500);
    }
    println!("{phase}: {} requests, {whole} well, the others as their lines say", done.len());
    assert!(whole > done.len() / 2, "{phase}: the servers were dead most of the time");
}

/// Traffic without mercy from `trouble`, then its account.
fn phase(soak: &mut Soak, name: &str, time: Duration, mut trouble: impl FnMut(&mut Soak, usize)) {
    let counters = ["web", "tls", "two", "junk"].map(|frontend| soak.counted(frontend, "req_tot"));
    let sessions = soak.counted("raw", "stot");
    let traffic = Traffic::start(&soak.places, name, false);
    during(time, Duration::from_millis(500), |turn| trouble(soak, turn));
    let shared = traffic.stop();
    soak.settle();
    let counted = ["web", "tls", "two", "junk"].map(|frontend| soak.counted(frontend, "req_tot"));
    let requests: Vec<_> = counted.iter().zip(counters).map(|(now, before)| now - before).collect();
    let streams = usize::try_from(soak.counted("raw", "stot") - sessions).unwrap();
    let all = usize::try_from(requests.iter().sum::<u64>()).unwrap() + streams;
    let lines = soak.lines.take(&["web", "tls", "two", "junk", "raw"], all);
    let of = |frontend| lines.iter().filter(|line| line.is_of(&[frontend])).count();
    assert_eq!(
        [of("web"), of("tls"), of("two"), of("junk")].map(|count| count as u64),
        requests[..],
        "lines and counters"
    );
    assert_eq!((of("raw"), shared.streams.load(Ordering::SeqCst)), (streams, streams), "lines, clients, counters");
    println!("{name}: {} lines of garbage from {} connections", of("junk"), shared.junk.load(Ordering::SeqCst));
    must_agree(name, &shared, &lines);
}

/// Memory in KiB and descriptors of a process. Whoever asked the master something is gone only a moment after the answer.
fn holdings(pid: u32) -> (usize, usize) {
    (resident(pid), (0..100).map(|_| descriptors(pid)).min().unwrap())
}

fn must_be_back(what: &str, pid: u32, before: (usize, usize), spare: (usize, usize)) {
    let deadline = Instant::now() + PATIENCE;
    let most = (before.0 + before.0 / 20 + spare.0, before.1 + spare.1);
    loop {
        let after = holdings(pid);
        if after.0 <= most.0 && after.1 <= most.1 {
            return println!("{what}: KiB and descriptors {before:?}, then {after:?}");
        }
        assert!(
            Instant::now() < deadline,
            "{what}: KiB and descriptors {before:?}, then {after:?}: {:#?}",
            descriptor_names(pid)
        );
    }
}

#[test]
#[ignore = "takes half a minute or more, and every core; .ci/run runs it"]
fn nothing_is_left_of_a_long_mixed_life_and_the_account_closes() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let mut soak = Soak::start();
    let part = Duration::from_secs(seconds) / 5;

    // One worker, so that what it does not give back shows.
    phase(&mut soak, "warm", part, |soak, turn| die_and_live(&mut soak.web, turn));
    let [_, worker] = soak.processes();
    let before = holdings(worker);
    phase(&mut soak, "steady", part, |soak, turn| die_and_live(&mut soak.web, turn));
    // Pipes for the kernel to move bytes are kept, but not many.
    must_be_back("the worker", worker, before, (4096, 32));

    phase(&mut soak, "first-reloads", part, |soak, _| soak.reload());
    let [master, _] = soak.processes();
    let before = holdings(master);
    phase(&mut soak, "reloads", part, |soak, turn| {
        die_and_live(&mut soak.web, turn);
        soak.reload();
    });
    must_be_back("the master", master, before, (512, 0));

    // A killed worker takes its connections and their lines with it: only what is left behind can be looked at.
    let traffic = Traffic::start(&soak.places, "kills", true);
    during(part, Duration::from_millis(500), |turn| match turn % 3 {
        0 => kill(pid(serving(&soak.site.status())), Signal::SIGKILL).unwrap(),
        1 => soak.reload(),
        _ => {}
    });
    let shared = traffic.stop();
    println!("kills: {} requests answered", shared.done.count());
    assert!(shared.done.count() > 0);
    soak.settle();
    must_be_back("the master", master, before, (512, 0));
    assert_eq!(soak.site.status()["log_lines_dropped"], 0);
}
