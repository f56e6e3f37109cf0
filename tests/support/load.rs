//! Clients that keep asking and never retry: what fails for them, fails for a user.

use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use super::PATIENCE;
use super::client::read_message;

/// What one client does over and over.
#[derive(Debug, Clone, Copy)]
pub enum Habit {
    /// A connection for each GET.
    Fresh,
    /// GETs on a kept connection; a new one only after the answer said so.
    KeepGet,
    /// POSTs with a body on a kept connection; a new one only after the answer said so.
    KeepPost,
}

/// One client of each kind.
pub const ALL: [Habit; 3] = [Habit::Fresh, Habit::KeepGet, Habit::KeepPost];

/// Requests answered so far, for those who wait for more.
type Progress = Arc<(Mutex<usize>, Condvar)>;

/// Running clients.
pub struct Load {
    over: Arc<AtomicBool>,
    progress: Progress,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// Starts a client per habit; the origin must be [`super::origin::Origin::echo`].
    pub fn start(address: SocketAddr, habits: &[Habit]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let progress: Progress = Arc::default();
        let clients = habits.iter().map(|habit| {
            let (habit, over, progress) = (*habit, Arc::clone(&over), Arc::clone(&progress));
            std::thread::spawn(move || run(address, habit, &over, &progress))
        });
        let clients = clients.collect();
        Self { over, progress, clients }
    }

    /// Waits until so many more requests have ended.
    pub fn more(&self, count: usize) {
        let (ended, changed) = &*self.progress;
        let ended = ended.lock().unwrap();
        let goal = *ended + count;
        let (ended, waited) = changed.wait_timeout_while(ended, PATIENCE, |ended| *ended < goal).unwrap();
        assert!(!waited.timed_out(), "only {} of {goal} requests ended", *ended);
    }

    /// Ends the clients; returns the number of requests and what failed.
    pub fn stop(self) -> (usize, Vec<String>) {
        self.over.store(true, Ordering::SeqCst);
        let failures = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        let requests = *self.progress.0.lock().unwrap();
        (requests, failures)
    }

    /// Ends the clients; at least `least` requests were sent and each got its own whole answer.
    pub fn must_have_succeeded(self, least: usize) {
        let (requests, failures) = self.stop();
        assert!(failures.is_empty(), "{} of {requests} requests failed, first: {}", failures.len(), failures[0]);
        assert!(requests >= least, "only {requests} requests, which proves little");
    }
}

fn run(address: SocketAddr, habit: Habit, over: &AtomicBool, progress: &Progress) -> Vec<String> {
    let (mut failures, mut kept) = (Vec::new(), None);
    let mut number = 0_u64;
    while !over.load(Ordering::SeqCst) {
        number += 1;
        match request(address, habit, number, kept.take()) {
            Ok(connection) => kept = connection,
            Err(failure) => failures.push(format!("{habit:?} {number}: {failure}")),
        }
        *progress.0.lock().unwrap() += 1;
        progress.1.notify_all();
    }
    failures
}

/// One request; returns the connection if it may be used again.
fn request(
    address: SocketAddr,
    habit: Habit,
    number: u64,
    kept: Option<BufReader<TcpStream>>,
) -> Result<Option<BufReader<TcpStream>>, String> {
    let reused = kept.is_some();
    let failed = |step: &str, why: String| format!("{step} failed (reused: {reused}): {why}");
    let mut connection = match kept {
        Some(connection) => connection,
        None => connect(address).map_err(|error| failed("connecting", error.to_string()))?,
    };
    let body = "x".repeat(usize::try_from(number % 700).unwrap());
    let (method, body) = if matches!(habit, Habit::KeepPost) { ("POST", body) } else { ("GET", String::new()) };
    let line = format!("{method} /{habit:?}/{number} HTTP/1.1");
    let text = format!("{line}\r\nHost: test\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    connection.get_mut().write_all(text.as_bytes()).map_err(|error| failed("sending", error.to_string()))?;
    let answer = read_message(&mut connection, true).ok_or_else(|| failed("receiving", String::from("it ended")))?;
    if answer.status() != 200 || !answer.complete || answer.text() != format!("{line}\n{body}") {
        return Err(failed("the answer", format!("{} {:?}", answer.line, answer.text())));
    }
    let keep = !matches!(habit, Habit::Fresh) && answer.field("connection") != Some("close");
    Ok(keep.then_some(connection))
}

fn connect(address: SocketAddr) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}
