//! Promises about traffic: who waits, who asks and who is being answered does not notice a reload.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use support::client::{Client, get, read_head};
use support::kernel::{Stopped, await_queued, listening};
use support::load::{self, Habit, Load};
use support::origin::{Origin, download, ok};
use support::{PATIENCE, Port, Site, await_end, certificate, code, pid, serving, text};

/// Set inside the network namespace where the kernel migrates queues.
const MIGRATING: &str = "PROXY_TEST_MIGRATING";

fn reload(site: &Site, arguments: &[&str]) {
    let output = site.proxy(&[&["reload"], arguments].concat());
    assert_eq!(code(&output), 0, "{output:?}");
}

fn alone(status: &Value) -> bool {
    status["generations"].as_array().unwrap().len() == 1
}

/// Clients that have each sent a request with a number of its own.
fn asking(address: SocketAddr, count: usize) -> Vec<Client> {
    let ask = |number| {
        let mut client = Client::connect(address);
        client.send(format!("POST /{number} HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi"));
        client
    };
    (0..count).map(ask).collect()
}

/// Each gets its own whole answer.
fn must_be_answered(clients: &mut [Client]) {
    for (number, client) in clients.iter_mut().enumerate() {
        let answer = client.response().unwrap_or_else(|| panic!("client {number} got no answer"));
        assert_eq!((answer.text(), answer.complete), (format!("POST /{number} HTTP/1.1\nhi"), true));
    }
}

#[test]
fn promise_01_a_queue_of_200_is_served_by_the_new_worker_while_the_old_one_stands_still() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let old = serving(&site.status());
    let stopped = Stopped::new(old);
    let mut queued = asking(site.address(), 200);
    await_queued(site.address(), 200);
    reload(&site, &["--mode", "handover"]);
    must_be_answered(&mut queued);
    assert!(stopped.still(), "the old worker had no part in it");
    drop(stopped);
    await_end(old);
    assert_eq!(get(site.address(), "/").status(), 200);
}

#[test]
fn promise_01_a_hundred_reloads_under_plain_and_tls_load_cost_no_request() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let secure = Port::new();
    certificate(site.folder.path(), "a.pem", &["localhost"]);
    let tls = "[frontend.secure.tls]\ncertificates = [\"a.pem\"]";
    let extra = format!("[frontend.secure]\nbind = \"{}\"\nbackend = \"pool\"\n{tls}\n", secure.address);
    site.configure(&Site::text(&[origin.address], &extra));
    let daemon = site.start();
    let plain = Load::start(site.address(), &[&load::ALL[..], &[Habit::Fresh]].concat());
    let encrypted = Load::start_tls(secure.address, &load::ALL);
    for _ in 0..100 {
        reload(&site, &["--mode", "handover"]);
        plain.more(10);
        encrypted.more(3);
    }
    plain.must_have_succeeded(1000);
    encrypted.must_have_succeeded(300);
    let status = site.await_status("one worker is left", alone);
    assert_eq!((&status["reloads"]["applied"], &status["pid"]), (&100.into(), &daemon.pid().into()));
}

#[test]
fn promise_02_rebinding_accepts_the_old_queues_until_they_are_empty() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let old = serving(&site.status());
    let stopped = Stopped::new(old);
    let mut queued = asking(site.address(), 200);
    await_queued(site.address(), 200);
    reload(&site, &["--mode", "rebind"]);
    await_queued(site.address(), 200);
    assert_eq!(listening(site.address()).len(), 2, "the old queue is still there");
    drop(stopped);
    must_be_answered(&mut queued);
    drop(queued);
    await_end(old);
    assert_eq!(listening(site.address()).len(), 1);
}

#[test]
fn promise_02_nothing_makes_new_sockets_but_a_reload_that_is_to() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "[reload]\nstrategy = \"rebind\"\n");
    let _daemon = site.start();
    let inodes = || listening(site.address()).into_iter().map(|socket| socket.inode).collect::<Vec<_>>();
    let first = inodes();
    for command in [&["reload-socket"][..], &["upgrade"], &["server", "set", "pool/s1", "--weight", "2"]] {
        let output = site.proxy(command);
        assert_eq!(code(&output), 0, "{command:?}: {output:?}");
        assert_eq!(inodes(), first, "{command:?}");
    }
    let worker = serving(&site.status());
    kill(pid(worker), Signal::SIGKILL).unwrap();
    site.await_status("another worker", |status| status["reloads"]["respawns"] == 1);
    assert_eq!(inodes(), first, "a respawn");
    reload(&site, &[]);
    site.await_status("the old worker has ended", alone);
    assert!(!inodes().is_empty() && inodes() != first, "a reload that is to");
}

/// A hundred times new sockets under load; how many requests, and what failed.
fn hundred_rebinds() -> (usize, Vec<String>) {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let load = Load::start(site.address(), &[&load::ALL[..], &[Habit::Fresh; 3]].concat());
    for _ in 0..100 {
        reload(&site, &["--mode", "rebind"]);
        load.more(20);
    }
    load.stop()
}

#[test]
#[ignore = "needs root and iproute2; .ci/run runs it"]
fn promise_02_rebinding_loses_nothing_where_the_kernel_migrates() {
    if std::env::var_os(MIGRATING).is_some() {
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req").unwrap().trim(), "1");
        let (requests, failures) = hundred_rebinds();
        println!("{} of {requests} requests were lost by 100 rebinds with tcp_migrate_req=1", failures.len());
        assert!(failures.is_empty() && requests >= 2000, "{failures:?}");
        return;
    }
    let script = "ip link set lo up && echo 1 > /proc/sys/net/ipv4/tcp_migrate_req && exec \"$0\" \"$@\"";
    let mut inside = Command::new("unshare");
    inside.args(["--net", "sh", "-c", script]).arg(std::env::current_exe().unwrap()).env(MIGRATING, "1");
    inside.args([
        "promise_02_rebinding_loses_nothing_where_the_kernel_migrates",
        "--exact",
        "--ignored",
        "--nocapture",
    ]);
    let output = inside.output().unwrap();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    // Without the right to a namespace of its own (root) this cannot be shown.
    assert!(output.status.success() && said.contains("1 passed"), "{said}{errors}");
}

#[test]
fn promise_02_losses_by_rebinding_where_the_kernel_does_not_migrate_are_counted() {
    let (requests, failures) = hundred_rebinds();
    println!("{} of {requests} requests were lost by 100 rebinds: {failures:?}", failures.len());
    for failure in &failures {
        assert!(failure.contains("reused: false"), "whoever was served before is never lost: {failure}");
    }
    assert!(requests >= 2000 && failures.len() * 100 < requests, "{} of {requests}", failures.len());
}

#[test]
fn promise_03_a_slow_download_ends_byte_exact_over_reloads() {
    const PIECE: usize = 1024 * 1024;
    let (origin, pace) = Origin::paced(6, PIECE);
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(client.head().unwrap().status(), 200);
    let mut body = vec![0; 6 * PIECE];
    for piece in body.chunks_mut(PIECE) {
        reload(&site, &[]);
        pace.allow();
        client.reader.read_exact(piece).unwrap();
    }
    assert!(body == download(6 * PIECE), "the body is not what the server sent");
    site.await_status("the download's worker has ended", alone);
}

#[test]
fn promise_03_a_chunked_upload_ends_byte_exact_over_reloads() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("POST /up HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut wanted = String::from("POST /up HTTP/1.1\n");
    for number in 0..5 {
        let piece = format!("{number:0>60000}");
        wanted.push_str(&piece);
        // Cut inside the size, so that even that is carried over.
        client.send("ea");
        reload(&site, &[]);
        client.send(format!("60\r\n{piece}\r\n"));
    }
    reload(&site, &[]);
    client.send("0\r\n\r\n");
    let answer = client.response().unwrap();
    assert!((answer.text(), answer.complete) == (wanted, true), "{} bytes arrived", answer.body.len());
    site.await_status("the upload's worker has ended", alone);
}

#[test]
fn promise_03_an_exchange_that_waits_for_100_continue_goes_on_over_reloads() {
    let (arrive, arrived) = mpsc::channel();
    let (go, goes) = mpsc::channel();
    let goes = std::sync::Mutex::new(goes);
    let origin = Origin::new(move |mut stream: TcpStream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let head = read_head(&mut reader).unwrap();
        arrive.send(head).unwrap();
        goes.lock().unwrap().recv().unwrap();
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let mut body = [0; 5];
        reader.read_exact(&mut body).unwrap();
        stream.write_all(&ok(&text(&body))).unwrap();
    });
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(arrived.recv_timeout(PATIENCE).unwrap().field("expect"), Some("100-continue"));
    reload(&site, &[]);
    go.send(()).unwrap();
    assert_eq!(client.response().unwrap().status(), 100);
    reload(&site, &[]);
    client.send("hello");
    let answer = client.response().unwrap();
    assert_eq!((answer.text().as_str(), answer.complete), ("hello", true));
}

/// A request that arrives byte by byte.
const SLOW: &str = "POST /slow HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi";

fn must_be_slow(client: &mut Client) {
    let answer = client.response().unwrap();
    assert_eq!((answer.text().as_str(), answer.field("connection")), ("POST /slow HTTP/1.1\nhi", None));
}

/// A reload every 0.2 s while clients POST on kept connections and a head arrives byte by byte.
fn posts_without_retry(time: Duration) {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "[frontend.web.timeout]\nhttp-request = \"1m\"\n");
    let _daemon = site.start();
    let load = Load::start(site.address(), &[Habit::KeepPost; 6]);
    let mut dribble = Client::connect(site.address());
    let (mut next, end, mut sent) = (Instant::now(), Instant::now() + time, 0);
    while next < end {
        dribble.send(&SLOW[sent..=sent]);
        sent = (sent + 1) % SLOW.len();
        if sent == 0 {
            must_be_slow(&mut dribble);
        }
        reload(&site, &["--mode", "handover"]);
        next += Duration::from_millis(200);
        while Instant::now() < next {
            load.more(1);
        }
    }
    dribble.send(&SLOW[sent..]);
    must_be_slow(&mut dribble);
    load.must_have_succeeded(100);
}

/// A download that lasts so many seconds, a piece each, on a site of its own that is reloaded as often.
fn slow_download(seconds: usize) {
    const PIECE: usize = 256 * 1024;
    let (origin, pace) = Origin::paced(seconds, PIECE);
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    client.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!(client.head().unwrap().status(), 200);
    let (began, mut body) = (Instant::now(), vec![0; seconds * PIECE]);
    for (second, piece) in (1..).zip(body.chunks_mut(PIECE)) {
        while Instant::now() < began + Duration::from_secs(second) {
            reload(&site, &[]);
        }
        pace.allow();
        client.reader.read_exact(piece).unwrap();
    }
    assert!(body == download(seconds * PIECE), "the body is not what the server sent");
    site.await_status("the download's worker has ended", alone);
}

#[test]
fn promise_05_posts_on_kept_connections_survive_a_reload_every_200_ms() {
    posts_without_retry(Duration::from_secs(5));
}

#[test]
#[ignore = "a minute long; .ci/run runs it"]
fn promise_03_a_download_and_promise_05_posts_on_kept_connections_survive_a_minute_of_reloads() {
    std::thread::scope(|scope| {
        scope.spawn(|| slow_download(60));
        scope.spawn(|| posts_without_retry(Duration::from_secs(60)));
    });
}

/// Runs a benchmark against a site until it ends; what it said.
fn benchmark(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}, which this test is about, does not run: {error}"));
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{program}: {said}");
    said
}

/// The number behind these words.
fn figure(said: &str, words: &str) -> u64 {
    let rest = said.split_once(words).unwrap_or_else(|| panic!("no `{words}` in {said}")).1;
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs ab and wrk; .ci/run runs it"]
fn promise_01_ab_and_wrk_with_200_connections_see_nothing_of_a_hundred_reloads() {
    let origin = Origin::echo();
    let secure = Port::new();
    let tls = "[frontend.secure.tls]\ncertificates = [\"a.pem\"]";
    let extra = format!("[frontend.secure]\nbind = \"{}\"\nbackend = \"pool\"\n{tls}\n", secure.address);
    let site = Site::proxying(&[origin.address], "");
    certificate(site.folder.path(), "a.pem", &["localhost"]);
    site.configure(&Site::text(&[origin.address], &extra));
    let _daemon = site.start();
    let (plain, encrypted) = (format!("http://{}/", site.address()), format!("https://{}/", secure.address));
    // ab ends after so many seconds, however many requests that is.
    let ab = |url: &str| benchmark("ab", &["-q", "-t", "21", "-n", "10000000", "-c", "200", url]);
    // Slow is not lost: on a machine with all this to do an answer may take longer than wrk's own two seconds.
    let wrk = |url: &str| benchmark("wrk", &["-d", "21", "-t", "1", "-c", "200", "--timeout", "20s", "--latency", url]);
    let reports = std::thread::scope(|scope| {
        let one_shot = [scope.spawn(|| ab(&plain)), scope.spawn(|| ab(&encrypted))];
        let kept = [scope.spawn(|| wrk(&plain)), scope.spawn(|| wrk(&encrypted))];
        let began = Instant::now();
        for number in 1..=100 {
            reload(&site, &["--mode", "handover"]);
            while Instant::now() < began + number * Duration::from_millis(200) {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
        (one_shot.map(|run| run.join().unwrap()), kept.map(|run| run.join().unwrap()))
    });
    for said in &reports.0 {
        println!("ab: {} requests, {} failed", figure(said, "Complete requests:"), figure(said, "Failed requests:"));
        assert_eq!(figure(said, "Failed requests:"), 0, "{said}");
        assert!(!said.contains("Non-2xx") && figure(said, "Complete requests:") > 100, "{said}");
    }
    for said in &reports.1 {
        println!("wrk: {}", said.lines().find(|line| line.contains("requests in")).unwrap_or_default().trim());
        assert!(!said.contains("Socket errors") && !said.contains("Non-2xx") && said.contains("requests in"), "{said}");
    }
}
