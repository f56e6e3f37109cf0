//! Promises about what a reload adds, removes, or cannot take along: everybody is told, nobody is cut off.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::io::{BufRead as _, ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use support::client::{Client, End, get, read_message};
use support::kernel::{Stopped, await_queued, listening};
use support::load::{self, Load};
use support::origin::Origin;
use support::tls::{Answer, Pair, TlsClient};
use support::{Daemon, Port, Site, await_end, await_refusal, code, refuses, serving, text};

/// A running site with TLS and these settings of `[reload]`.
fn encrypted(reload: &str) -> (Site, Daemon) {
    let extra = format!("[frontend.web.tls]\ncertificates = [\"a.pem\"]\n[reload]\n{reload}");
    let site = Site::proxying(&[Origin::echo().address], &extra);
    Pair::written(site.folder.path(), "a.pem", "localhost");
    let daemon = site.start();
    (site, daemon)
}

/// A second frontend.
fn second(address: SocketAddr) -> String {
    format!("[frontend.second]\nbind = \"{address}\"\nbackend = \"pool\"\n")
}

fn reload(site: &Site) {
    let output = site.proxy(&["reload"]);
    assert_eq!(code(&output), 0, "{output:?}");
}

/// Whether the connection is open and has nothing to say.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0; 1]);
    stream.set_nonblocking(false).unwrap();
    peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn asked_again(answer: &mut Answer) -> Option<String> {
    answer.reader.get_mut().write_all(b"GET /again HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let again = read_message(&mut answer.reader, true).unwrap();
    assert_eq!((again.text().as_str(), again.complete), ("GET /again HTTP/1.1\n", true));
    again.field("connection").map(str::to_owned)
}

#[test]
fn promise_07_an_encrypted_connection_is_told_before_it_ends() {
    let (site, _daemon) = encrypted("");
    for versions in [[&TLS12], [&TLS13]] {
        let mut answer = TlsClient::new(&versions).get(site.address(), "localhost");
        assert_eq!(asked_again(&mut answer), None);
        let old = serving(&site.status());
        for _ in 0..3 {
            reload(&site);
        }
        let held = site.status();
        let worker = held["generations"].as_array().unwrap().iter().find(|worker| worker["pid"] == old).unwrap();
        assert_eq!((&worker["state"], &worker["connections"]), (&"draining".into(), &1.into()), "{versions:?}");
        assert!(is_open(&answer.reader.get_ref().sock), "not a byte and no end before it asks, {versions:?}");
        assert_eq!(asked_again(&mut answer).as_deref(), Some("close"), "{versions:?}");
        // An end that TLS announces; anything else is an error here.
        assert!(answer.reader.fill_buf().is_ok_and(<[u8]>::is_empty), "{versions:?}");
        await_end(old);
    }
}

#[test]
fn promise_07_an_encrypted_connection_that_never_asks_ends_with_hard_stop_after() {
    let (site, _daemon) = encrypted("hard-stop-after = \"2s\"");
    let mut answer = TlsClient::new(&[&TLS13]).get(site.address(), "localhost");
    let old = serving(&site.status());
    let began = Instant::now();
    reload(&site);
    assert!(is_open(&answer.reader.get_ref().sock));
    let end = answer.reader.fill_buf().map(<[u8]>::len);
    assert!(matches!(end, Ok(0)), "even now the end is announced: {end:?}");
    let lasted = began.elapsed();
    await_end(old);
    println!("with hard-stop-after = 2s the connection ended after {lasted:?}, its worker after {:?}", began.elapsed());
    assert!((Duration::from_millis(1900)..Duration::from_secs(5)).contains(&lasted), "{lasted:?}");
}

#[test]
fn promise_10_a_listener_that_cannot_bind_changes_nothing() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let (taken, free) = (foreign.local_addr().unwrap(), Port::new());
    let (before, sockets) = (site.status(), listening(site.address()));
    let mut kept = Client::connect(site.address());
    assert_eq!(kept.get("/").status(), 200);
    let load = Load::start(site.address(), &load::ALL);
    let third = second(taken).replace("second", "third");
    site.configure(&Site::text(&[origin.address], &format!("{}{third}", second(free.address))));
    let output = site.proxy(&["reload-socket"]);
    let said = text(&output.stderr);
    assert_eq!(code(&output), 1, "{said}");
    assert!(said.contains(&taken.to_string()), "{said}");
    assert!(said.contains(&format!("pid {} (", std::process::id())), "{said}");
    assert!(refuses(free.address), "the one that could be bound does not listen either");
    load.more(50);
    load.must_have_succeeded(50);
    let after = site.status();
    assert_eq!((serving(&after), &after["listeners"]), (serving(&before), &before["listeners"]));
    let inodes =
        |sockets: Vec<support::kernel::Listening>| sockets.into_iter().map(|one| one.inode).collect::<Vec<_>>();
    assert_eq!(inodes(listening(site.address())), inodes(sockets));
    assert_eq!(kept.get("/").field("connection"), None);
    drop(foreign);
    reload(&site);
    assert_eq!((get(taken, "/").status(), get(free.address, "/").status()), (200, 200));
}

#[test]
fn promise_11_a_removed_listener_serves_its_queue_and_then_refuses() {
    let origin = Origin::echo();
    let going = Port::new();
    // Most of the queue has to wait until the worker knows that it drains.
    let site = Site::proxying(&[origin.address], &format!("{}maxconn = 10\n", second(going.address)));
    let _daemon = site.start();
    let old = serving(&site.status());
    let stopped = Stopped::new(old);
    let ask = |number| {
        let mut client = Client::connect(going.address);
        client.send(format!("GET /{number} HTTP/1.1\r\nHost: test\r\n\r\n"));
        client
    };
    let mut queued: Vec<_> = (0..200).map(ask).collect();
    await_queued(going.address, 200);
    site.configure(&Site::text(&[origin.address], ""));
    reload(&site);
    drop(stopped);
    let began = Instant::now();
    await_refusal(going.address);
    let refused = began.elapsed();
    let mut left_open = 0;
    for (number, client) in queued.iter_mut().enumerate() {
        let answer = client.response().unwrap_or_else(|| panic!("client {number} of the queue got no answer"));
        assert_eq!((answer.text(), answer.complete), (format!("GET /{number} HTTP/1.1\n"), true));
        // It has nowhere to go on.
        if answer.field("connection") != Some("close") {
            left_open += 1;
            assert_eq!(client.get("/").field("connection"), Some("close"));
        }
        assert_eq!(client.end().1, End::Closed);
    }
    let served = began.elapsed();
    println!(
        "a queue of 200: the port refuses after {refused:?}, all are served after {served:?}, {left_open} by two answers"
    );
    assert!(refused < Duration::from_secs(2), "{refused:?}");
    await_end(old);
    assert_eq!(get(site.address(), "/").status(), 200);
}

#[test]
fn promise_11_a_removed_listener_refuses_at_once_and_never_hangs() {
    let origin = Origin::echo();
    let going = Port::new();
    let site = Site::new("");
    let mut times = Vec::new();
    for _ in 0..10 {
        site.configure(&Site::text(&[origin.address], &second(going.address)));
        let _daemon = site.start();
        assert_eq!(get(going.address, "/").status(), 200);
        site.configure(&Site::text(&[origin.address], ""));
        let began = Instant::now();
        reload(&site);
        let returned = Instant::now();
        await_refusal(going.address);
        let took = returned.elapsed();
        println!("the reload took {:?}, the port refused {took:?} later", returned - began);
        times.push(took);
    }
    times.sort();
    // Another process may hold up some of them, hardly most.
    assert!(times[5] < Duration::from_millis(100) && times[9] < Duration::from_secs(2), "{times:?}");
}
