//! The log thread: takes entries off the queue, formats them, sends them in batches.
//! Started by `Logger::start`, ended by `LogThread::finish`. The only place that formats access lines.

use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::clock::{Zone, epoch_seconds};
use super::escape;
use super::format::{Context, Format};
use super::line::{Prefix, Severity, cut, longest};
use super::names::Names;
use super::queue::{Entry, Shared};
use super::target::{Outlet, Standing};
use crate::config::{Bundle, LogTarget};

/// Pause between a wake-up and the work, so that a busy proxy wakes this thread 500 times a second at most.
const GATHER: Duration = Duration::from_millis(2);
/// No pause when this much waits already.
const URGENT: usize = 4096;
/// How soon a slow receiver is tried again.
const RETRY: Duration = Duration::from_millis(10);
/// How long the thread gets to count what is given up.
const LAST_WORD: Duration = Duration::from_millis(200);
/// How often a missing socket is asked for.
const ASK: Duration = Duration::from_secs(1);

pub(super) type Callbacks = (Box<dyn Fn(usize) + Send>, Box<dyn Fn(u64) + Send>);

/// The running log thread.
#[derive(Debug)]
pub struct LogThread {
    handle: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("waiting", &self.queue.len()).finish_non_exhaustive()
    }
}

impl LogThread {
    /// Sends what is queued and ends the thread. After `deadline` it gives up what a receiver has not
    /// taken, which is counted as dropped.
    pub fn finish(mut self, deadline: Duration) {
        let mut end = Instant::now() + deadline;
        self.shared.finishing.store(true, Ordering::SeqCst);
        self.shared.wake();
        let Some(handle) = self.handle.take() else { return };
        while !handle.is_finished() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() && self.shared.given_up.swap(true, Ordering::SeqCst) {
                return;
            } else if left.is_zero() {
                end += LAST_WORD;
                self.shared.wake();
            }
            std::thread::park_timeout(left.min(GATHER));
        }
        // A panic of the log thread was reported by the panic hook; there is nothing left to lose.
        let _ = handle.join();
    }
}

/// Starts the thread. When the system has no thread left, lines fill the queue and are counted as dropped.
pub(super) fn spawn(
    bundle: &Bundle,
    sockets: Vec<Option<OwnedFd>>,
    shared: Arc<Shared>,
    callbacks: Callbacks,
) -> LogThread {
    let mut worker = Worker::new(bundle, sockets, Arc::clone(&shared), callbacks);
    let handle = std::thread::Builder::new().name("log".to_owned()).spawn(move || worker.run()).ok();
    if let Some(handle) = &handle {
        // Cannot be set before: this is the only place that sets it.
        let _ = shared.thread.set(handle.thread().clone());
        // An entry pushed before the line above could not wake anybody.
        handle.thread().unpark();
    }
    LogThread { handle, shared }
}

struct Target {
    settings: LogTarget,
    /// One for each frontend, or a single one where the target has its own.
    formats: Vec<Format>,
    prefix: Prefix,
    outlet: Outlet,
    asked: Option<Instant>,
}

impl Target {
    fn wants(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Access(_) | Entry::Unserved(_) => {
                self.settings.access && self.settings.level >= Severity::Info as u8
            }
            Entry::Event(severity, _) => self.settings.events && self.settings.level >= *severity as u8,
        }
    }

    fn add(&mut self, entry: &Entry, second: i64, context: &Context) -> bool {
        if !self.outlet.has_room() {
            return false;
        }
        let mut line = self.outlet.buffer();
        let mut json = false;
        match entry {
            Entry::Access(record) => {
                let index = if self.formats.len() == 1 { 0 } else { record.frontend };
                let Some(format) = self.formats.get(index) else { return false };
                line.extend_from_slice(self.prefix.at(&context.zone, second, Severity::Info));
                format.render(record, context, &mut line);
                json = format.is_json();
            }
            Entry::Unserved(connection) => {
                let index = if self.formats.len() == 1 { 0 } else { connection.frontend };
                json = self.formats.get(index).is_some_and(Format::is_json);
                line.extend_from_slice(self.prefix.at(&context.zone, second, Severity::Info));
                connection.render(context, json, &mut line);
            }
            Entry::Event(severity, message) => {
                line.extend_from_slice(self.prefix.at(&context.zone, second, *severity));
                escape::event(&mut line, message);
            }
        }
        cut(&mut line, longest(&self.settings.sink, json));
        self.outlet.push(line);
        true
    }
}

struct Worker {
    shared: Arc<Shared>,
    targets: Vec<Target>,
    context: Context,
    callbacks: Callbacks,
    dropped: u64,
}

impl Worker {
    fn new(bundle: &Bundle, sockets: Vec<Option<OwnedFd>>, shared: Arc<Shared>, callbacks: Callbacks) -> Self {
        let context = Context {
            names: Names::of(bundle),
            zone: Zone::local().clone(),
            hostname: nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            pid: std::process::id(),
        };
        let mut sockets = sockets.into_iter();
        let targets = bundle.logs.iter().map(|settings| {
            let formats = match &settings.access_format {
                Some(text) => vec![compile(text)],
                None => bundle.frontends.iter().map(|frontend| compile(&frontend.access_format)).collect(),
            };
            Target {
                formats,
                prefix: Prefix::of(settings, context.pid),
                outlet: Outlet::new(&settings.sink, sockets.next().flatten()),
                asked: None,
                settings: settings.clone(),
            }
        });
        Self { targets: targets.collect(), context, shared, callbacks, dropped: 0 }
    }

    fn run(&mut self) {
        loop {
            let finishing = self.shared.finishing.load(Ordering::SeqCst);
            self.take_sockets();
            self.drain();
            let pause = self.flush();
            self.report_drops();
            let waiting: usize = self.targets.iter().map(|target| target.outlet.waiting()).sum();
            // A target that is away would need a new socket, which nobody brings to a worker that ends.
            let hopeless = waiting == 0 || pause == Some(ASK);
            let given_up = self.shared.given_up.load(Ordering::SeqCst);
            if finishing && (given_up || self.shared.queue.is_empty() && hopeless) {
                self.dropped += (waiting + self.shared.queue.len()) as u64;
                self.report_drops();
                return;
            }
            self.sleep(pause);
        }
    }

    fn take_sockets(&mut self) {
        let fresh = std::mem::take(&mut *self.shared.sockets.lock().unwrap_or_else(PoisonError::into_inner));
        for (index, socket) in fresh {
            if let Some(target) = self.targets.get_mut(index) {
                target.outlet.replace(socket);
                target.asked = None;
            }
        }
    }

    /// Formats what is queued now. Bounded by one queue's worth, so that flushing gets its turn.
    fn drain(&mut self) {
        let second = epoch_seconds(SystemTime::now());
        for _ in 0..self.shared.queue.len() {
            let Some(entry) = self.shared.queue.pop() else { return };
            for target in &mut self.targets {
                if !target.wants(&entry) {
                    continue;
                }
                if !target.add(&entry, second, &self.context) {
                    self.dropped += 1;
                } else if target.outlet.wants_flush() {
                    target.outlet.flush(&mut self.dropped);
                }
            }
        }
    }

    /// Sends what waits; returns how soon to try again, if something is left to try.
    fn flush(&mut self) -> Option<Duration> {
        let mut pause = None;
        for (index, target) in self.targets.iter_mut().enumerate() {
            match target.outlet.flush(&mut self.dropped) {
                Standing::Clear => target.asked = None,
                Standing::Full => pause = Some(RETRY),
                Standing::Lost => {
                    pause = pause.or(Some(ASK));
                    if target.asked.is_none_or(|at| at.elapsed() >= ASK) {
                        target.asked = Some(Instant::now());
                        (self.callbacks.0)(index);
                    }
                }
            }
        }
        pause
    }

    fn report_drops(&mut self) {
        let dropped = std::mem::take(&mut self.dropped) + self.shared.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            (self.callbacks.1)(dropped);
        }
    }

    fn sleep(&self, pause: Option<Duration>) {
        let shared = &self.shared;
        shared.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `Logger::push`.
        fence(Ordering::SeqCst);
        if shared.queue.is_empty() && !shared.finishing.load(Ordering::SeqCst) {
            match pause {
                Some(pause) => std::thread::park_timeout(pause),
                None => std::thread::park(),
            }
        }
        shared.asleep.store(false, Ordering::Relaxed);
        if shared.queue.len() < URGENT {
            std::thread::park_timeout(GATHER);
        }
    }
}

/// The configuration was checked before it came here; should a format be unknown all the same, lines
/// are written as JSON rather than not at all.
fn compile(text: &str) -> Format {
    Format::compile(text).unwrap_or_else(|_| Format::fallback())
}
