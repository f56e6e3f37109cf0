//! The master's event loop: one event after the other, at most one transaction beside them.
//! Called by `proxy run`. Decides when a generation begins, commits it, and retires the old ones.

use std::cell::RefCell;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::admin::{AdminSocket, Caller};
use super::agenda::Wish;
use super::events::{self, Event};
use super::expiry::Warned;
use super::listeners::{self, Listener};
use super::log_sockets::LogSockets;
use super::pidfile::PidFile;
use super::reload::{Plan, Prepared};
use super::request::{Answer, Outcome, Request};
use super::respawn::Respawn;
use super::retire::{Retiring, answer_all};
use super::slots::Directory;
use super::spawn::Worker;
use super::start::{self, Options};
use super::status::LastReload;
use super::store::Store;
use super::tickets::TicketRing;
use super::transaction::{Running, Task, Transaction, conclusion};
use super::upgrade::Predecessor;
use super::watchdog::Watch;
use super::workers::Workers;
use super::{MasterError, certificates, spawn, supervisor};
use crate::config::Bundle;
use crate::handoff::messages::{FromWorker, Slots, ToWorker};
use crate::handoff::{Channel, getsocks};
use crate::logging::{EventLog, Severity};
use crate::stats::Memory;

/// How long answers that are under way get when the supervisor ends the daemon.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How the daemon is coming to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    WhenDrained,
    /// What is being answered may be answered: whoever comes meanwhile waits with the supervisor for the next master.
    Soon,
    Now,
}

/// What lives as long as the master, whatever generation serves.
pub(super) struct Blank {
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) directory: Rc<RefCell<Directory>>,
    pub(super) memory: Memory,
    pub(super) counters: Arc<OwnedFd>,
    pub(super) tickets: TicketRing,
}

impl Blank {
    pub(super) fn of(plan: &Plan, memory: Memory, tickets: TicketRing) -> Self {
        Self {
            events: plan.events.clone(),
            directory: Rc::clone(&plan.directory),
            memory,
            counters: Arc::clone(&plan.counters),
            tickets,
        }
    }
}

/// What a killed master left with the supervisor, beside sockets and counters.
#[derive(Default)]
pub(super) struct Found {
    pub(super) store: Store,
    pub(super) last_reload: Option<LastReload>,
    pub(super) orphans: Vec<(u32, u32)>,
}

/// What a master finds that was another program a moment ago.
pub(super) struct Taken {
    pub(super) listeners: Vec<Listener>,
    pub(super) workers: Vec<Worker>,
    pub(super) admin: Option<AdminSocket>,
    pub(super) pid_file: Option<(PathBuf, PidFile)>,
    pub(super) maxconn: u32,
    pub(super) last_reload: Option<LastReload>,
    pub(super) generation: u64,
    pub(super) began: Instant,
    pub(super) previous: Option<Predecessor>,
    pub(super) store: Store,
    /// Who waits for the upgrade, and for reloads.
    pub(super) callers: (Vec<Caller>, Vec<Wish>),
}

/// The state of the daemon.
pub(super) struct Master {
    pub(super) options: Options,
    pub(super) blank: Blank,
    pub(super) bundle: Arc<Bundle>,
    pub(super) listeners: Vec<Listener>,
    pub(super) maxconn: u32,
    pub(super) workers: Workers,
    pub(super) log: EventLog,
    pub(super) log_sockets: LogSockets,
    pub(super) admin: Option<AdminSocket>,
    pub(super) pid_file: Option<(PathBuf, PidFile)>,
    pub(super) wishes: Vec<Wish>,
    /// Who wants another program, and as long as there is a `previous` one: who waits for its first generation.
    pub(super) upgrades: Vec<Caller>,
    /// The program before, as long as nothing of this one serves.
    pub(super) previous: Option<Predecessor>,
    pub(super) running: Option<Running>,
    pub(super) retiring: Option<Retiring>,
    /// Looks after certificates whose files change.
    pub(super) certificates: certificates::Watch,
    pub(super) warned: Warned,
    pub(super) store: Store,
    pub(super) respawn: Respawn,
    pub(super) last_reload: Option<LastReload>,
    pub(super) watch: Watch,
    pub(super) generation: u64,
    pub(super) began: Instant,
    ending: Ending,
    /// A worker was told to serve and has not said yet that it does.
    pub(super) electing: bool,
    /// The end that waits for that.
    postponed: bool,
}

/// The event loop. Signals are the main thread's alone, which holds them back while it becomes another program.
fn runtime() -> Result<tokio::runtime::Runtime, MasterError> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().on_thread_start(|| {
        // What could be blocked in the main thread can be here.
        let _ = events::signals().thread_block();
    });
    builder.build().map_err(MasterError::EventLoop)
}

/// Runs the daemon to its end; `ready` is called once it serves.
///
/// # Errors
/// Why it cannot start.
pub fn run(options: Options, ready: impl FnOnce()) -> Result<(), MasterError> {
    runtime()?.block_on(async {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        events::watch_signals(&sender)?;
        let mut master = start::start(options, sender).await?;
        ready();
        master.follow(&mut receiver).await;
        Ok(())
    })
}

/// Runs a daemon that was another program until now to its end; what that one left comes through the channel.
///
/// # Errors
/// Why it cannot go on, and why the program before could not be executed again either.
pub fn resume(options: &Options, channel: &Channel) -> Result<(), MasterError> {
    runtime()?.block_on(async {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let mut master = super::resume::resume(options, channel, &sender)?;
        // Not before: who goes back to the program before leaves them to that one.
        events::watch_signals(&sender)?;
        master.follow(&mut receiver).await;
        Ok(())
    })
}

impl Master {
    /// The master with what it finds.
    pub(super) fn resumed(options: Options, blank: Blank, bundle: Arc<Bundle>, taken: Taken) -> Self {
        let (upgrades, wishes) = taken.callers;
        let mut respawn = Respawn::default();
        let workers = Workers::of(taken.workers);
        if !workers.any_serving() {
            respawn.wanted(Instant::now());
        }
        Self {
            options,
            blank,
            listeners: taken.listeners,
            maxconn: taken.maxconn,
            workers,
            log: EventLog::open(&bundle.logs),
            log_sockets: LogSockets::default(),
            admin: taken.admin,
            pid_file: taken.pid_file,
            wishes,
            upgrades,
            previous: taken.previous,
            running: None,
            retiring: None,
            certificates: certificates::Watch::default(),
            warned: Warned::default(),
            store: taken.store,
            respawn,
            last_reload: taken.last_reload,
            watch: Watch::from_supervisor(Instant::now()),
            generation: taken.generation,
            began: taken.began,
            ending: Ending::No,
            electing: false,
            postponed: false,
            bundle,
        }
    }

    /// The master with its first generation serving.
    pub(super) async fn first(
        options: Options,
        blank: Blank,
        prepared: Prepared,
        found: Found,
    ) -> Result<Self, MasterError> {
        let generation = prepared.worker.generation;
        let taken = Taken {
            listeners: Vec::new(),
            workers: Vec::new(),
            admin: None,
            pid_file: None,
            maxconn: prepared.maxconn,
            last_reload: found.last_reload,
            generation,
            began: Instant::now(),
            previous: None,
            callers: (Vec::new(), Vec::new()),
            store: found.store,
        };
        let mut master = Self::resumed(options, blank, Arc::clone(&prepared.bundle), taken);
        master.workers.reserve(found.orphans);
        for warning in &prepared.warnings {
            master.show(Severity::Warning, warning);
        }
        let elected = master.elect(prepared)?.serving().await.map_err(|(_, error)| error)?;
        master.commit(elected)?;
        master
            .say(Severity::Notice, &format!("proxy {} serves, pid {}", env!("CARGO_PKG_VERSION"), std::process::id()));
        master.keep();
        supervisor::started(&format!("generation {generation} serves"));
        Ok(master)
    }

    pub(super) fn signal_predecessors(&self) {
        for problem in start::signal_all(&self.options) {
            self.say(Severity::Warning, &problem);
        }
    }

    async fn follow(&mut self, receiver: &mut mpsc::UnboundedReceiver<Event>) {
        let mut transaction: Option<Transaction> = None;
        while self.ending == Ending::No || !self.workers.is_empty() {
            if self.examination_can_wait() {
                transaction = None;
            }
            if transaction.is_none() {
                transaction = self.next_transaction();
            }
            let deadline = self.next_deadline();
            tokio::select! {
                event = receiver.recv() => if let Some(event) = event { self.handle(event) },
                stage = conclusion(&mut transaction) => transaction = self.advance(stage, receiver).await,
                () = until(deadline) => self.on_deadline(),
            }
            self.blank.memory.set_lives(self.workers.lives());
            if self.ending != Ending::No {
                transaction = None;
                self.dismiss_callers();
            }
        }
        self.say(Severity::Notice, "proxy has ended");
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending != Ending::No
    }

    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::Admin(request, caller) => self.serve_caller(request, caller),
            Event::GiveSockets(stream) => self.give_sockets(stream),
            Event::Refused(message) => self.say(Severity::Warning, &message),
            Event::Worker(generation, FromWorker::LogLost(target)) => self.log_sockets.lost(generation, target),
            Event::Worker(generation, FromWorker::Draining) => self.accepts_no_more(generation),
            Event::Worker(_, FromWorker::Event(severity, line)) => self.say(Severity::of(severity), &line),
            Event::Worker(generation, FromWorker::Stranded) => self.workers.reconnect(generation),
            Event::Worker(..) => {}
            Event::WorkerSaid(pid, line) => self.say(Severity::Error, &format!("worker {pid}: {line}")),
            Event::WorkerEnded(generation, status) => self.bury(generation, &status),
            Event::Certificates(sight, found) => self.exchange(&sight, found),
            Event::ReloadSignal => self.wishes.push(Wish { mode: None, caller: None }),
            Event::FinishSignal => self.end(Ending::WhenDrained),
            Event::StopSignal if self.ending == Ending::No && !self.electing && self.store.keeps_listeners() => {
                self.end(Ending::Soon);
            }
            Event::StopSignal => self.end(Ending::Now),
        }
    }

    fn serve_caller(&mut self, request: Request, caller: Caller) {
        match request {
            Request::Reload(mode) => self.wishes.push(Wish { mode, caller: Some(caller) }),
            Request::Upgrade => self.upgrades.push(caller),
            Request::Status => caller.answer(&self.status()),
            Request::Servers(request) => {
                let answer = self.serve_servers(&request);
                caller.answer(&answer);
            }
            Request::Stop { graceful: true } => {
                self.end(Ending::WhenDrained);
                caller.answer_and_hold(&Answer::new(Outcome::Applied, "finishing open connections"));
            }
            Request::Stop { graceful: false } => {
                self.end(Ending::Now);
                caller.answer_and_hold(&Answer::new(Outcome::Applied, "stopping"));
            }
        }
    }

    fn give_sockets(&self, stream: tokio::net::UnixStream) {
        let sockets: Vec<_> = self.listeners.iter().map(|listener| Arc::clone(&listener.socket)).collect();
        self.say(Severity::Notice, &format!("{} listening sockets were handed to another process", sockets.len()));
        // The exchange waits for acknowledgements of a foreign process; the event loop must not.
        tokio::task::spawn_blocking(move || {
            let fds: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
            // Before: whoever has them may tell us to end at once, and needs the paths.
            sockets.iter().for_each(|socket| socket.share());
            // The process that asked reports what went wrong; we keep our sockets either way.
            let _ = stream.into_std().map(|stream| getsocks::give(stream, &fds));
        });
    }

    /// A transaction is over: what had to wait for its end happens now.
    pub(super) fn catch_up(&mut self) {
        self.electing = false;
        if std::mem::take(&mut self.postponed) {
            self.end(Ending::WhenDrained);
        }
    }

    /// A worker has closed its listening sockets: as it was told, or because it could not help it.
    fn accepts_no_more(&mut self, generation: u64) {
        self.retired(generation);
        self.workers.retreated(generation);
        let limit = self.bundle.reload.hard_stop_after;
        if let Some(lived) = self.workers.resign(generation, limit) {
            self.say(
                Severity::Alert,
                &format!("the worker of generation {generation} accepts no more and is replaced"),
            );
            self.respawn.died(Instant::now(), lived);
        }
    }

    /// A worker accepts no more (0: nobody new); the last one lets the callers of the reload go.
    pub(super) fn retired(&mut self, generation: u64) {
        if let Some(retiring) = self.retiring.take_if(|retiring| retiring.retired(generation)) {
            retiring.finish();
        }
    }

    /// A worker's process is gone.
    fn bury(&mut self, generation: u64, status: &str) {
        let Some(worker) = self.workers.remove(generation) else { return };
        self.retired(generation);
        self.blank.memory.clear_lane(worker.lane);
        self.log_sockets.forget(generation);
        self.keep();
        if worker.state != spawn::State::Serving {
            self.say(Severity::Info, &format!("generation {generation} has ended: {status}"));
            return;
        }
        self.say(Severity::Alert, &format!("worker {} of generation {generation} died: {status}", worker.pid));
        self.respawn.died(Instant::now(), worker.since.elapsed());
    }

    fn on_deadline(&mut self) {
        let now = Instant::now();
        for killed in self.workers.kill_overdue(now) {
            self.say(Severity::Warning, &killed);
        }
        self.look_after_workers(now);
        self.warn_daily();
        self.log_sockets.reconnect(now, &self.workers);
        for lane in self.workers.bury_orphans() {
            self.blank.memory.clear_lane(lane);
        }
        if let Some(retiring) = self.retiring.take_if(|retiring| retiring.deadline() <= now) {
            retiring.finish();
        }
        match self.blank.tickets.rotate(now, &self.bundle.global.tickets) {
            Ok(false) => {}
            Ok(true) => {
                self.workers.tell_all(&ToWorker::TicketKeys(self.blank.tickets.keys().to_vec()));
                self.keep();
                self.say(Severity::Info, "the TLS ticket keys were rotated");
            }
            Err(error) => self.say(Severity::Error, &format!("the TLS ticket keys stay: {error}")),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let idle = self.running.as_ref().is_none_or(|running| running.task == Task::Examine);
        let idle = idle && self.ending == Ending::No;
        let respawn = if idle { self.respawn.due() } else { None };
        let retiring = self.retiring.as_ref().map(Retiring::deadline);
        let rotation = self.blank.tickets.due(&self.bundle.global.tickets);
        let look = Some(self.watch.next_look());
        let times = [respawn, retiring, rotation, look, self.workers.next_deadline(), self.log_sockets.next_attempt()];
        times.into_iter().flatten().min()
    }

    fn end(&mut self, ending: Ending) {
        if self.electing && ending == Ending::WhenDrained {
            // It may have clients already.
            self.postponed = true;
            return;
        }
        let abandoned = listeners::abandoned(&self.listeners, &[]);
        if self.ending == Ending::No {
            supervisor::stopping();
            // A successor may want the path; who waits for our end keeps its connection.
            self.admin = None;
            self.listeners.clear();
        }
        match ending {
            Ending::Now => self.workers.stop_all(),
            Ending::Soon => self.workers.wind_up(LAST_ANSWERS),
            Ending::WhenDrained | Ending::No => self.workers.drain(&abandoned, self.bundle.reload.hard_stop_after),
        }
        self.ending = ending;
    }

    /// Where everything that serves is counted.
    pub(super) fn slots(&self) -> Result<Slots, MasterError> {
        self.blank.directory.borrow_mut().slots(&self.bundle, &self.workers.slots())
    }

    fn dismiss_callers(&mut self) {
        let waiting = self.wishes.drain(..).filter_map(|wish| wish.caller);
        let running = self.running.take().map(|running| running.callers).unwrap_or_default();
        let waiting = waiting.chain(self.upgrades.drain(..));
        answer_all(waiting.chain(running), &Answer::new(Outcome::Busy, "the daemon is stopping"));
        if let Some(decided) = self.retiring.take() {
            decided.finish();
        }
    }

    /// An event for the log, and for whoever watches the foreground.
    pub(super) fn say(&self, severity: Severity, message: &str) {
        for line in message.lines().filter(|line| !line.trim().is_empty()) {
            self.log.event(severity, line);
        }
        self.show(severity, message);
    }

    /// On stderr alone.
    fn show(&self, severity: Severity, message: &str) {
        if !self.options.quiet || severity <= Severity::Error {
            // Where stderr is closed nobody watches.
            let _ = writeln!(std::io::stderr(), "{message}");
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending::<()>().await,
    }
}
