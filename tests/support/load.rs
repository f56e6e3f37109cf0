//! Clients that keep asking and never retry: what fails for them, fails for a user.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::PATIENCE;
use super::client::read_message;
use super::tls::TlsClient;

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

/// A connection, encrypted or not.
trait Wire: Read + Write {}

impl<Stream: Read + Write> Wire for Stream {}

type Connection = BufReader<Box<dyn Wire>>;

/// Where a client connects, and its TLS settings if it needs any.
#[derive(Clone)]
struct Goal {
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
}

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
        Self::aim(&Goal { address, tls: None }, habits)
    }

    /// As [`Load::start`], with TLS. The clients resume each other's sessions where they can.
    pub fn start_tls(address: SocketAddr, habits: &[Habit]) -> Self {
        let tls = Some(Arc::new(TlsClient::new(&[&TLS13, &TLS12]).config));
        Self::aim(&Goal { address, tls }, habits)
    }

    fn aim(goal: &Goal, habits: &[Habit]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let progress: Progress = Arc::default();
        let clients = habits.iter().map(|habit| {
            let (goal, habit) = (goal.clone(), *habit);
            let (over, progress) = (Arc::clone(&over), Arc::clone(&progress));
            std::thread::spawn(move || run(&goal, habit, &over, &progress))
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

fn run(goal: &Goal, habit: Habit, over: &AtomicBool, progress: &Progress) -> Vec<String> {
    let (mut failures, mut kept) = (Vec::new(), None);
    let mut number = 0_u64;
    while !over.load(Ordering::SeqCst) {
        number += 1;
        match request(goal, habit, number, kept.take()) {
            Ok(connection) => kept = connection,
            Err(failure) => failures.push(format!("{habit:?} {number}: {failure}")),
        }
        *progress.0.lock().unwrap() += 1;
        progress.1.notify_all();
    }
    failures
}

/// One request; returns the connection if it may be used again.
fn request(goal: &Goal, habit: Habit, number: u64, kept: Option<Connection>) -> Result<Option<Connection>, String> {
    let reused = kept.is_some();
    let failed = |step: &str, why: String| format!("{step} failed (reused: {reused}): {why}");
    let mut connection = match kept {
        Some(connection) => connection,
        None => connect(goal).map_err(|error| failed("connecting", error.to_string()))?,
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

fn connect(goal: &Goal) -> std::io::Result<Connection> {
    let mut stream = TcpStream::connect(goal.address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let Some(config) = &goal.tls else { return Ok(BufReader::new(Box::new(stream))) };
    let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
    let mut session = ClientConnection::new(Arc::clone(config), name).map_err(std::io::Error::other)?;
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    Ok(BufReader::new(Box::new(StreamOwned::new(session, stream))))
}
