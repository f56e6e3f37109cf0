//! A client that keeps coming on fresh connections: what happens to those who come while something breaks.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use super::{PATIENCE, until};

/// A client that keeps coming, each time on a connection of its own.
pub struct Visitor {
    over: Arc<AtomicBool>,
    /// Visits that have ended.
    ended: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<Visit>>,
}

/// How a visit ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    Served,
    Broken,
    Refused,
}

/// One connection.
pub struct Visit {
    pub began: Instant,
    pub ended: Instant,
    pub fate: Fate,
}

impl Visitor {
    pub fn start(address: SocketAddr) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicUsize::new(0));
        let (stop, count) = (Arc::clone(&over), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            let mut visits = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                let began = Instant::now();
                let fate = visit(address);
                visits.push(Visit { began, ended: Instant::now(), fate });
                count.fetch_add(1, Ordering::SeqCst);
            }
            visits
        });
        Self { over, ended, thread }
    }

    /// Ends it after a visit that has yet to begin; returns how each visit went.
    pub fn stop(self) -> Vec<Visit> {
        let before = self.ended.load(Ordering::SeqCst);
        until("a visit has begun and ended", || self.ended.load(Ordering::SeqCst) >= before + 2);
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn visit(address: SocketAddr) -> Fate {
    let mut stream = match TcpStream::connect(address) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Fate::Refused,
        Err(_) => return Fate::Broken,
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    let read = asked.and_then(|()| stream.read_to_string(&mut answer));
    let whole = read.is_ok() && answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("GET / HTTP/1.1\n");
    if whole { Fate::Served } else { Fate::Broken }
}

/// Nobody was refused, and whoever came after this moment was served.
pub fn nobody_was_turned_away(visits: &[Visit], since: Instant) {
    assert_eq!(visits.iter().filter(|visit| visit.fate == Fate::Refused).count(), 0, "of {}", visits.len());
    let late: Vec<_> = visits.iter().filter(|visit| visit.began >= since).map(|visit| &visit.fate).collect();
    assert!(!late.is_empty() && late.iter().all(|fate| **fate == Fate::Served), "{late:?}");
}
