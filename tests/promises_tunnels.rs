//! Promise 9: plain tunnels go on in the new worker, and nobody at either end can tell.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use serde_json::Value;
use support::client::read_head;
use support::origin::{Origin, download};
use support::syslog::Syslog;
use support::tls::TlsClient;
use support::{PATIENCE, Port, Site, certificate, code};

const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
const ASK: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

fn reload(site: &Site) {
    let output = site.proxy(&["reload", "--mode", "handover"]);
    assert_eq!(code(&output), 0, "{output:?}");
}

fn generations(status: &Value) -> usize {
    status["generations"].as_array().unwrap().len()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A connection after its 101.
fn upgraded(address: SocketAddr) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(ASK).unwrap();
    // Not a byte more than the head: what follows is the tunnel's.
    let mut head = vec![0; SWITCH.len()];
    stream.read_exact(&mut head).unwrap();
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", support::text(&head));
    stream
}

fn send_back(mut stream: TcpStream) {
    let mut buffer = vec![0; 65_536];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}

fn echo() -> Origin {
    Origin::new(send_back)
}

fn switching() -> Origin {
    Origin::new(|mut stream| {
        let mut reader = BufReader::with_capacity(1, stream.try_clone().unwrap());
        if read_head(&mut reader).is_some() {
            stream.write_all(SWITCH).unwrap();
            send_back(stream);
        }
    })
}

/// What went in and what came out of a tunnel.
struct Passed {
    sent: Digest,
    received: Digest,
    bytes: u64,
}

type Running = JoinHandle<Passed>;

/// Pieces of a flood that may be on their way. Without a bound they fill every receive buffer there is, and some kernels
/// then drop what they had room for and send it again ever more slowly, in both directions at once.
const UNDER_WAY: usize = 8;

/// Sends for as long as it may, as fast as it goes, and reads what comes back.
fn flooding(stream: TcpStream, stop: &Arc<AtomicBool>) -> Running {
    let (mut writer, mut reader, stop) = (stream.try_clone().unwrap(), stream, Arc::clone(stop));
    let (leaves, arrives) = mpsc::sync_channel::<u64>(UNDER_WAY);
    let writing = std::thread::spawn(move || {
        let (mut sent, block) = (Context::new(&SHA256), download(1 << 20));
        let mut count = 0_u64;
        while !stop.load(Ordering::SeqCst) {
            // No two blocks are alike.
            let piece = [&count.to_le_bytes()[..], &block[..100_000 + (count as usize * 7919) % 900_000]].concat();
            leaves.send(piece.len() as u64).unwrap();
            writer.write_all(&piece).unwrap();
            sent.update(&piece);
            count += 1;
        }
        writer.shutdown(Shutdown::Write).unwrap();
        sent.finish()
    });
    std::thread::spawn(move || {
        let (mut received, mut bytes, mut buffer) = (Context::new(&SHA256), 0, vec![0; 65_536]);
        let mut whole = 0;
        while let read @ 1.. = reader.read(&mut buffer).unwrap() {
            received.update(&buffer[..read]);
            bytes += read as u64;
            while whole < bytes {
                // A piece was announced before the first byte of it left.
                whole += arrives.recv().unwrap();
            }
        }
        Passed { sent: writing.join().unwrap(), received: received.finish(), bytes }
    })
}

/// Sends a little, waits for it to come back, and so on.
fn talking(mut stream: TcpStream, stop: &Arc<AtomicBool>) -> Running {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let (mut sent, mut received) = (Context::new(&SHA256), Context::new(&SHA256));
        let (mut count, mut bytes, block) = (0_u64, 0, download(64 * 1024));
        while !stop.load(Ordering::SeqCst) {
            let piece = [&count.to_le_bytes()[..], &block[..(count as usize * 7919) % block.len()]].concat();
            stream.write_all(&piece).unwrap();
            let mut answer = vec![0; piece.len()];
            stream.read_exact(&mut answer).unwrap();
            sent.update(&piece);
            received.update(&answer);
            bytes += piece.len() as u64;
            count += 1;
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "a proper end follows");
        Passed { sent: sent.finish(), received: received.finish(), bytes }
    })
}

/// A site with a frontend for each kind of tunnel; the first is in TCP mode.
fn site(tcp: &Origin, web: &Origin, more: &str) -> (Site, Port) {
    let second = Port::new();
    let text = format!(
        "[frontend.raw]\nmode = \"tcp\"\nbind = \"{{port}}\"\nbackend = \"raw\"\n[backend.raw]\nmode = \"tcp\"\nservers = \"{}\"\n\
         [frontend.web]\nbind = \"{}\"\nbackend = \"web\"\n[backend.web]\nservers = \"{}\"\n{more}\n",
        tcp.address, second.address, web.address
    );
    (Site::new(&text), second)
}

#[test]
fn promise_09_plain_tunnels_survive_a_hundred_reloads_and_leave_no_old_worker() {
    let (tcp, web) = (echo(), switching());
    let log = Syslog::new();
    let (site, second) = site(&tcp, &web, &log.section());
    let _daemon = site.start();
    let stop = Arc::new(AtomicBool::new(false));
    let floods = [flooding(connect(site.address()), &stop), flooding(upgraded(second.address), &stop)];
    let mut talks: Vec<_> = (0..3).map(|_| talking(connect(site.address()), &stop)).collect();
    talks.extend((0..3).map(|_| talking(upgraded(second.address), &stop)));
    let silent = [connect(site.address()), upgraded(second.address)];
    for _ in 0..100 {
        reload(&site);
    }
    // The last one is told that it may go before the thread that has it by now counts it.
    site.await_status("one worker is left, and has all tunnels", |status| {
        generations(status) == 1 && status["generations"][0]["connections"] == 10
    });
    assert_eq!(log.left(), 0, "no tunnel has ended");
    stop.store(true, Ordering::SeqCst);
    for (number, flood) in floods.into_iter().enumerate() {
        let passed = flood.join().unwrap();
        assert_eq!(passed.sent.as_ref(), passed.received.as_ref(), "flood {number}");
    }
    let mut said: Vec<u64> = Vec::new();
    for (number, talk) in talks.into_iter().enumerate() {
        let passed = talk.join().unwrap();
        assert_eq!(passed.sent.as_ref(), passed.received.as_ref(), "talk {number}");
        said.push(passed.bytes);
    }
    for mut stream in silent {
        stream.write_all(b"still here").unwrap();
        let mut back = [0; 10];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"still here");
    }
    // One line each, with the bytes of all workers together.
    let lines: Vec<_> = (0..10).map(|_| log.line()).collect();
    let (raw, http): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.contains(" raw raw/s1 "));
    assert_eq!((raw.len(), http.len()), (5, 5), "{lines:#?}");
    let logged: Vec<u64> = raw.iter().map(|line| line.split(' ').nth(5).unwrap().parse().unwrap()).collect();
    assert!(said[..3].iter().all(|bytes| logged.contains(bytes)), "{said:?} is in {logged:?}");
    let logged: Vec<u64> = http.iter().map(|line| line.split(' ').nth(6).unwrap().parse().unwrap()).collect();
    let head = logged.iter().min().unwrap() - 10;
    assert!(said[3..].iter().all(|bytes| logged.contains(&(bytes + head))), "{said:?} and {head} is in {logged:?}");
    assert!(http.iter().all(|line| line.contains(" 101 ") && line.ends_with("\"GET / HTTP/1.1\"")), "{http:#?}");
    site.await_status("nobody is counted any more", |status| status["generations"][0]["connections"] == 0);
    assert_eq!(log.left(), 0);
}

#[test]
fn a_tunnel_with_one_end_said_moves_and_the_other_end_follows() {
    let (tell, told) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let tcp = Origin::new(move |mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        tell.send(bytes.len()).unwrap();
        gone.lock().unwrap().recv().unwrap();
        stream.write_all(b"late").unwrap();
    });
    let (site, _second) = site(&tcp, &switching(), "");
    let _daemon = site.start();
    let mut client = connect(site.address());
    client.write_all(b"all of it").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), 9);
    reload(&site);
    site.await_status("it has moved", |status| generations(status) == 1);
    go.send(()).unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"late");
}

#[test]
fn what_a_tunnel_holds_because_nobody_reads_it_travels_along() {
    let bytes = download(32 << 20);
    let sent = bytes.clone();
    let tcp = Origin::new(move |mut stream| stream.write_all(&sent).unwrap());
    let (site, _second) = site(&tcp, &switching(), "");
    let _daemon = site.start();
    let mut client = connect(site.address());
    let mut received = vec![0; 1];
    client.read_exact(&mut received).unwrap();
    for _ in 0..5 {
        reload(&site);
        site.await_status("it has moved", |status| generations(status) == 1);
    }
    client.read_to_end(&mut received).unwrap();
    assert!(received == bytes, "{} of {} bytes, or not the same", received.len(), bytes.len());
}

#[test]
fn a_tunnel_whose_server_is_gone_from_the_file_stays_where_it_is() {
    let (site, second) = site(&echo(), &switching(), "");
    let _daemon = site.start();
    let mut client = connect(site.address());
    client.write_all(b"a").unwrap();
    client.read_exact(&mut [0; 1]).unwrap();
    let text = std::fs::read_to_string(site.config()).unwrap();
    let (_, text) = text.split_once("[frontend").unwrap();
    site.configure(&format!(
        "[frontend{}",
        text.replace("[backend.raw]", "[backend.new]").replace("backend = \"raw\"", "backend = \"new\"")
    ));
    reload(&site);
    // Long enough for the offer to be made: another connection has gone the same way.
    drop(upgraded(second.address));
    assert_eq!(generations(&site.status()), 2);
    client.write_all(b"b").unwrap();
    client.read_exact(&mut [0; 1]).unwrap();
    drop(client);
    site.await_status("the old worker has nothing left", |status| generations(status) == 1);
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn a_new_worker_killed_while_it_takes_tunnels_takes_none_with_it() {
    let (site, second) = site(&echo(), &switching(), "");
    let _daemon = site.start_faulty();
    let mut tunnels: Vec<_> = (0..20).map(|_| connect(site.address())).collect();
    tunnels.extend((0..20).map(|_| upgraded(second.address)));
    site.await_status("all are there", |status| status["generations"][0]["connections"] == 40);
    site.fault("receiving crash");
    reload(&site);
    site.await_status("a respawn serves", |status| status["reloads"]["respawns"] == 1);
    for stream in &mut tunnels {
        stream.write_all(b"there?").unwrap();
        let mut back = [0; 6];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"there?");
    }
    // And the respawned worker is asked, too.
    let status = site.await_status("the old worker is not needed any more", |status| generations(status) == 1);
    assert_eq!(status["generations"][0]["connections"], 40);
    for stream in &mut tunnels {
        stream.write_all(b"here!!").unwrap();
        stream.read_exact(&mut [0; 6]).unwrap();
    }
}

/// What becomes of the tunnels that a successor was offered is in the air until it answers, which it has 5 s for; the others
/// do not wait for it.
#[test]
#[cfg_attr(not(debug_assertions), ignore = "only debug builds have faults")]
fn a_tunnel_flows_while_it_waits_for_its_turn_to_leave() {
    const OFFERED: usize = 253;
    let (site, _second) = site(&echo(), &switching(), "");
    let _daemon = site.start_faulty();
    let mut tunnels: Vec<_> = (0..OFFERED + 50).map(|_| connect(site.address())).collect();
    site.await_status("all are there", |status| status["generations"][0]["connections"] == OFFERED + 50);
    site.fault("receiving hang");
    reload(&site);
    for stream in &mut tunnels {
        stream.write_all(b"there?").unwrap();
    }
    let began = Instant::now();
    let mut flowing = 0;
    while flowing < 50 {
        assert!(began.elapsed() < Duration::from_secs(3), "{flowing} of the 50 that were not offered flow");
        std::thread::yield_now();
        flowing = tunnels.iter().filter(|stream| has_answered(stream)).count();
    }
    for stream in &mut tunnels {
        let mut back = [0; 6];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"there?");
    }
}

fn has_answered(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let seen = stream.peek(&mut [0; 6]).is_ok_and(|count| count == 6);
    stream.set_nonblocking(false).unwrap();
    seen
}

#[test]
fn a_tunnel_through_tls_ends_with_its_old_worker_and_not_before() {
    let (site, _second) = site(&echo(), &switching(), "");
    certificate(site.folder.path(), "a.pem", &["localhost"]);
    let text = std::fs::read_to_string(site.config()).unwrap();
    let (_, text) = text.split_once("[frontend").unwrap();
    site.configure(&format!("[frontend{text}[frontend.raw.tls]\ncertificates = [\"a.pem\"]\n[reload]\nmax-old = 20\n"));
    let _daemon = site.start();
    let mut stream = TlsClient::new(rustls::ALL_VERSIONS).shake(site.address(), "localhost").unwrap();
    let bytes = download(20_000);
    for _ in 0..10 {
        stream.write_all(&bytes).unwrap();
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back).unwrap();
        assert!(back == bytes);
        reload(&site);
    }
    site.await_status("one old worker is left, which has it", |status| generations(status) == 2);
    drop(stream);
    site.await_status("it is gone", |status| generations(status) == 1);
}
