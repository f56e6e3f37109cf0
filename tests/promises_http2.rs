//! What HTTP/2 clients notice of a reload, and what an attacker's connection costs the others.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use h2::Reason;
use support::h2::{
    CONTINUATION, END_HEADERS, END_STREAM, Frame, GOAWAY, H2Client, HEADERS, PING, RST_STREAM, Raw, SETTINGS,
    WINDOW_UPDATE, get_block, literal,
};
use support::origin::{Origin, download};
use support::{PATIENCE, Site, code, serving};

const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

fn site(origin: &Origin, frontend: &str) -> Site {
    Site::new(&format!(
        "[global]\nthreads = 1\n[frontend.web]\nbind = \"{{port}}\"\nproto = \"h2\"\nbackend = \"pool\"\n{frontend}\n\
         [backend.pool]\nservers = [\"{}\"]\n",
        origin.address
    ))
}

/// How one client's requests went.
#[derive(Debug, Default)]
struct Tally {
    answered: usize,
    /// Refused or left behind by a GOAWAY: the client knows that nobody has touched them.
    untouched: usize,
    connections: usize,
    failed: Vec<String>,
}

/// Keeps ten POSTs under way on one connection until it is over; a new connection whenever the server says so.
async fn keep_asking(address: std::net::SocketAddr, over: Arc<AtomicBool>, total: Arc<AtomicUsize>) -> Tally {
    let mut tally = Tally::default();
    while !over.load(Ordering::SeqCst) {
        let (client, ended) = H2Client::connect(address).await;
        tally.connections += 1;
        let asking = (0..10).map(|_| {
            let (client, over, total) = (client.clone(), Arc::clone(&over), Arc::clone(&total));
            tokio::spawn(async move {
                let mut answered = 0;
                while !over.load(Ordering::SeqCst) {
                    let number = total.fetch_add(1, Ordering::SeqCst);
                    let path = format!("/{number}");
                    match client.ask(client.request("POST", &path), b"hi").await {
                        Ok(answer) if answer.text() == format!("POST {path} HTTP/1.1\nhi") => answered += 1,
                        Ok(answer) => return (answered, Some(Err(format!("{path}: {answer:?}")))),
                        // The answer of a request that the server had not begun: the client may ask again.
                        Err(error) if error.is_go_away() && error.reason() == Some(Reason::NO_ERROR) => {
                            return (answered, Some(Ok(())));
                        }
                        Err(error) if error.reason() == Some(Reason::REFUSED_STREAM) => {
                            return (answered, Some(Ok(())));
                        }
                        Err(error) => return (answered, Some(Err(format!("{path}: {error:?}")))),
                    }
                }
                (answered, None)
            })
        });
        for one in asking.collect::<Vec<_>>() {
            let (answered, end) = one.await.unwrap();
            tally.answered += answered;
            match end {
                None => {}
                Some(Ok(())) => tally.untouched += 1,
                Some(Err(failed)) => tally.failed.push(failed),
            }
        }
        drop(client);
        ended.abort();
    }
    tally
}

#[test]
fn promise_08_no_stream_fails_over_100_reloads_that_was_not_safe_to_retry() {
    let origin = Origin::echo();
    let site = site(&origin, "");
    let _daemon = site.start();
    let over = Arc::new(AtomicBool::new(false));
    let tallies = {
        let (address, over) = (site.address(), Arc::clone(&over));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let total = Arc::default();
                let clients: Vec<_> =
                    (0..4).map(|_| tokio::spawn(keep_asking(address, Arc::clone(&over), Arc::clone(&total)))).collect();
                let mut tallies = Vec::new();
                for client in clients {
                    tallies.push(client.await.unwrap());
                }
                tallies
            })
        })
    };
    for number in 0..100 {
        let output = site.proxy(&["reload"]);
        assert_eq!(code(&output), 0, "reload {number}: {output:?}");
    }
    over.store(true, Ordering::SeqCst);
    let tallies = tallies.join().unwrap();
    for tally in &tallies {
        assert!(tally.failed.is_empty(), "{tally:?}");
        assert!(tally.answered > 100 && tally.connections > 10, "{tally:?}");
    }
}

/// The next frame of a kind; what comes before is kept.
fn note(raw: &mut Raw, kind: u8, seen: &mut Vec<Frame>) -> Frame {
    loop {
        let frame = raw.read().unwrap_or_else(|| panic!("no frame {kind} before the end: {seen:?}"));
        seen.push(frame.clone());
        if frame.kind == kind {
            return frame;
        }
    }
}

#[test]
fn an_answer_under_way_is_finished_after_the_goodbye_in_two_steps() {
    let (origin, gate) = Origin::gated();
    let site = site(&origin, "");
    let _daemon = site.start();
    let mut raw = Raw::connect(site.address());
    raw.send(SETTINGS, 1, 0, b"");
    let block: Vec<u8> = [(":method", "GET"), (":scheme", "http"), (":authority", "test"), (":path", "/slow")]
        .iter()
        .flat_map(|(name, value)| literal(name, value))
        .collect();
    raw.send(HEADERS, END_STREAM | END_HEADERS, 1, &block);
    gate.arrived();
    let old = serving(&site.status());
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    let mut seen = Vec::new();
    let first = note(&mut raw, GOAWAY, &mut seen);
    assert_eq!((&first.payload[..4], first.code()), (&0x7fff_ffff_u32.to_be_bytes()[..], 0), "any stream still counts");
    // Sent before the client could have known: it is answered as well.
    raw.send(HEADERS, END_STREAM | END_HEADERS, 3, &get_block(&[]));
    let ping = note(&mut raw, PING, &mut seen);
    raw.send(PING, 1, 0, &ping.payload);
    let second = note(&mut raw, GOAWAY, &mut seen);
    assert_eq!((&second.payload[..4], second.code()), (&3_u32.to_be_bytes()[..], 0));
    gate.release();
    seen.extend(std::iter::from_fn(|| raw.read()));
    assert!(seen.iter().all(|frame| frame.kind != RST_STREAM), "{seen:?}");
    let last = seen.iter().filter(|frame| frame.kind <= HEADERS && frame.flags & END_STREAM != 0);
    let mut ended: Vec<_> = last.map(|frame| frame.stream).collect();
    ended.sort_unstable();
    assert_eq!(ended, [1, 3], "both were answered to their ends, then the connection closed");
    support::await_end(old);
}

#[test]
fn a_client_that_does_not_hear_the_goodbye_keeps_no_worker() {
    let origin = Origin::echo();
    let site = site(&origin, "");
    let _daemon = site.start();
    let mut raw = Raw::connect(site.address());
    raw.send(SETTINGS, 1, 0, b"");
    let old = serving(&site.status());
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    // It goes on asking as if nothing had been said, and answers no PING.
    let (mut stream, mut seen, mut refused) = (1, Vec::new(), 0);
    let deadline = Instant::now() + PATIENCE;
    while raw.send(HEADERS, END_STREAM | END_HEADERS, stream, &get_block(&[])) {
        assert!(Instant::now() < deadline, "it is served for ever");
        let ended = std::iter::from_fn(|| raw.read()).find(|frame| {
            seen.push(frame.kind);
            frame.kind == RST_STREAM || frame.stream == stream && frame.flags & END_STREAM != 0
        });
        let Some(ended) = ended else { break };
        // What is not answered is what any client may ask again elsewhere.
        assert!(ended.kind != RST_STREAM || ended.code() == REFUSED_STREAM, "{ended:?}");
        refused += usize::from(ended.kind == RST_STREAM);
        stream += 2;
        // Every answer is taken in.
        raw.send(WINDOW_UPDATE, 0, 0, &100_u32.to_be_bytes());
    }
    assert!(seen.contains(&GOAWAY) && refused > 0, "{refused} refused");
    support::await_end(old);
}

#[test]
fn an_idle_connection_is_told_to_go_and_goes() {
    let origin = Origin::echo();
    let site = site(&origin, "timeout.http-keep-alive = \"200ms\"");
    let _daemon = site.start();
    let mut raw = Raw::connect(site.address());
    let goodbye = raw.expect(GOAWAY);
    assert_eq!(goodbye.code(), 0);
    assert!(std::iter::from_fn(|| raw.read()).count() < 4, "and the connection ends");
}

fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// A daemon, and a client that was there before the attack.
struct Scene {
    site: Site,
    _daemon: support::Daemon,
    worker: u32,
    runtime: tokio::runtime::Runtime,
    client: H2Client,
    before: usize,
}

impl Scene {
    fn new(origin: &Origin, frontend: &str) -> Self {
        let site = site(origin, frontend);
        let daemon = site.start();
        let worker = serving(&site.status());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let (client, _) = H2Client::connect(site.address()).await;
            assert_eq!(client.get("/before").await.status, 200);
            client
        });
        Self { before: resident(worker), site, _daemon: daemon, worker, runtime, client }
    }

    /// The other client goes on, on the connection it has, and the worker is neither another one nor a big one.
    fn must_be_calm(&self, what: &str) {
        let answer = self.runtime.block_on(async {
            let asked = tokio::time::timeout(support::PATIENCE, self.client.get("/after"));
            asked.await.unwrap()
        });
        assert_eq!(answer.status, 200, "{what}");
        let grown = resident(self.worker).saturating_sub(self.before);
        assert!(grown < 32 * 1024 * 1024, "{what}: {grown} bytes more");
        assert_eq!(serving(&self.site.status()), self.worker, "{what}: the worker lives");
    }
}

/// Sends what `attack` makes of a number until nobody takes it any more; the goodbye must say why. `answered` says that
/// each is answered by a frame.
///
/// Whoever goes on sending gets a reset right after the goodbye, and the reset overtakes what its window has no room for
/// (RFC 9113 section 5.4.1 promises no more than an attempt): this client owes itself no more answers than fit.
fn must_be_calmed(what: &str, answered: bool, attack: impl Fn(u32) -> Vec<u8>) {
    let origin = Origin::echo();
    let scene = Scene::new(&origin, "");
    let mut raw = Raw::connect(scene.site.address());
    let (frames, mut seen) = (raw.listen(), Vec::new());
    let taken = (1..=200_000).take_while(|number| {
        let sent = raw.0.write_all(&attack(*number)).is_ok();
        if answered && number % 1000 == 0 {
            seen.extend(frames.iter().take(1000));
        }
        sent
    });
    assert!(taken.count() < 200_000, "{what}: nothing stops it");
    seen.extend(frames);
    let goodbye = seen.iter().find(|frame| frame.kind == GOAWAY);
    let goodbye = goodbye.unwrap_or_else(|| panic!("{what}: no goodbye in {} frames", seen.len()));
    assert_eq!(goodbye.code(), ENHANCE_YOUR_CALM, "{what}");
    scene.must_be_calm(what);
}

#[test]
fn a_flood_of_frames_that_ask_for_nothing_is_calmed() {
    must_be_calmed("PING", true, |_| Raw::frame(PING, 0, 0, b"12345678"));
    must_be_calmed("SETTINGS", true, |_| Raw::frame(SETTINGS, 0, 0, b""));
    must_be_calmed("unknown frames", false, |_| Raw::frame(0xfa, 0, 0, b""));
}

#[test]
fn a_flood_that_comes_at_once_is_not_answered_first() {
    let origin = Origin::echo();
    let scene = Scene::new(&origin, "");
    let mut raw = Raw::connect(scene.site.address());
    let frames = raw.listen();
    // All of it may be there before anybody looks.
    let _cut_off = raw.0.write_all(&Raw::frame(SETTINGS, 0, 0, b"").repeat(50_000));
    let seen: Vec<_> = frames.iter().collect();
    assert!(seen.iter().any(|frame| frame.kind == GOAWAY), "no goodbye in {} frames", seen.len());
    // 2000 are everybody's, and what was read with the last of them is answered, too.
    let answered = seen.iter().filter(|frame| frame.kind == SETTINGS).count();
    assert!(answered < 5000, "{answered}");
}

#[test]
fn requests_taken_back_at_once_are_calmed() {
    must_be_calmed("rapid reset", false, |number| {
        let stream = number * 2 - 1;
        let mut frames = Raw::frame(HEADERS, END_STREAM | END_HEADERS, stream, &get_block(&[]));
        frames.extend(Raw::frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        frames
    });
}

#[test]
fn a_head_without_end_is_calmed() {
    must_be_calmed("CONTINUATION", false, |number| match number {
        1 => Raw::frame(HEADERS, END_STREAM, 1, &get_block(&[])),
        _ => Raw::frame(CONTINUATION, 0, 1, &literal("x", "y")),
    });
}

#[test]
fn a_head_that_unpacks_into_megabytes_is_calmed() {
    let value = "v".repeat(3000);
    must_be_calmed("header bomb", false, move |number| {
        let mut block = get_block(&[]);
        // Into the table once, then out of it again and again.
        let mut entry = literal("x", &value);
        entry[0] = 0x40;
        block.extend(entry);
        block.extend(std::iter::repeat_n(0x80 | 62, 10_000));
        Raw::frame(HEADERS, END_STREAM | END_HEADERS, number * 2 - 1, &block)
    });
}

#[test]
fn answers_that_a_client_does_not_take_cost_little_and_end() {
    let big = download(2_000_000);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", big.len());
    let whole = [head.as_bytes(), &big].concat();
    let origin = Origin::answering(
        move |request| {
            if request.path() == "/" { whole.clone() } else { support::origin::ok("small") }
        },
    );
    let scene = Scene::new(&origin, "timeout.client = \"2s\"");
    let mut raw = Raw::connect(scene.site.address());
    // No window for any stream.
    raw.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    for number in 0..100 {
        raw.send(HEADERS, END_STREAM | END_HEADERS, number * 2 + 1, &get_block(&[]));
    }
    // The first may be at their end before the last have begun.
    let (mut begun, mut ended) = (0, 0);
    while begun < 100 {
        let frame = raw.read().unwrap();
        begun += usize::from(frame.kind == HEADERS);
        ended += usize::from(frame.kind == RST_STREAM);
    }
    scene.must_be_calm("zero windows");
    // Each of them ends when its time is over.
    for _ in ended..100 {
        raw.expect(RST_STREAM);
    }
}
