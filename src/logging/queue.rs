//! The bounded queue between everything that logs and the log thread.
//! `Logger` is cloned into every serving thread. Never blocks; wakes the log thread only out of its sleep.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;

use crossbeam_queue::SegQueue;

use super::line::Severity;
use super::record::Record;
use super::thread::{self, LogThread};
use super::unserved::Unserved;
use crate::config::Bundle;

/// Lines that may wait for the log thread.
pub(super) const QUEUE: usize = 65_536;

/// What waits for the log thread.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every entry is a record, and a box would cost each request an allocation"
)]
pub(super) enum Entry {
    Access(Record),
    Unserved(Box<Unserved>),
    Event(Severity, String),
}

/// State shared by loggers and the log thread.
pub(super) struct Shared {
    /// Not a ring: it grows as it fills, and what was read a moment ago is what is written next, so that a busy thread
    /// finds it in its cache and a new worker has nothing to lay out.
    pub(super) queue: SegQueue<Entry>,
    capacity: usize,
    pub(super) dropped: AtomicU64,
    pub(super) asleep: AtomicBool,
    pub(super) finishing: AtomicBool,
    /// Nobody waits for the rest any more.
    pub(super) given_up: AtomicBool,
    pub(super) sockets: Mutex<Vec<(usize, OwnedFd)>>,
    pub(super) thread: OnceLock<Thread>,
}

impl Shared {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            queue: SegQueue::new(),
            capacity,
            dropped: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            sockets: Mutex::new(Vec::new()),
            thread: OnceLock::new(),
        }
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// Handle to the log thread.
#[derive(Clone)]
pub struct Logger {
    shared: Arc<Shared>,
}

impl fmt::Debug for Logger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logger").field("waiting", &self.shared.queue.len()).finish_non_exhaustive()
    }
}

impl Logger {
    /// Starts the log thread. `sockets` are in the order of `bundle.logs`; a missing one is asked
    /// for with `lost(index)`, once a second until [`Logger::replace_socket`] brings it. `dropped(n)`
    /// is told how many more lines were given up. Both are called on the log thread.
    #[must_use]
    pub fn start(
        bundle: &Bundle,
        sockets: Vec<Option<OwnedFd>>,
        lost: impl Fn(usize) + Send + 'static,
        dropped: impl Fn(u64) + Send + 'static,
    ) -> (Self, LogThread) {
        let shared = Arc::new(Shared::new(QUEUE));
        let thread = thread::spawn(bundle, sockets, Arc::clone(&shared), (Box::new(lost), Box::new(dropped)));
        (Self { shared }, thread)
    }

    /// Hands over a finished request. When the queue is full the line is dropped and counted.
    pub fn access(&self, record: Record) {
        self.push(Entry::Access(record));
    }

    /// Hands over a connection that asked for nothing; it counts as a request among lines.
    pub fn unserved(&self, connection: Unserved) {
        self.push(Entry::Unserved(Box::new(connection)));
    }

    /// Logs something that happened to the process rather than to a request.
    pub fn event(&self, severity: Severity, message: &str) {
        self.push(Entry::Event(severity, message.to_owned()));
    }

    /// Gives a target a fresh socket; what waits for it is sent first.
    pub fn replace_socket(&self, index: usize, socket: OwnedFd) {
        self.shared.sockets.lock().unwrap_or_else(PoisonError::into_inner).push((index, socket));
        self.shared.wake();
    }

    /// A logger without a thread.
    #[cfg(test)]
    pub(super) fn over(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn push(&self, entry: Entry) {
        // Threads that ask at the same time may all find the last place.
        if self.shared.queue.len() >= self.shared.capacity {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.shared.queue.push(entry);
        // Pairs with the fence of the sleeping side: either it sees the entry, or we see it asleep.
        fence(Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::Relaxed) && self.shared.asleep.swap(false, Ordering::Relaxed) {
            self.shared.wake();
        }
    }
}
