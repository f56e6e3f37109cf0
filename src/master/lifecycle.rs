//! The master's event loop: one event after the other, at most one transaction beside them.
//! Called by `proxy run`. Decides when a generation begins, commits it, and retires the old ones.

use std::cell::RefCell;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::admin::{AdminSocket, Answer, Outcome, Request};
use super::events::{self, Event};
use super::listeners::{self, Listener};
use super::log_sockets::LogSockets;
use super::pidfile::PidFile;
use super::reload::{Plan, Prepared, Source};
use super::respawn::Respawn;
use super::retire::{Retiring, answer_all};
use super::slots::Directory;
use super::start::{self, Options};
use super::status::{LastReload, Reloads, Status};
use super::tickets::TicketRing;
use super::transaction::{Running, Transaction, conclusion, preparing};
use super::watchdog::Watch;
use super::workers::Workers;
use super::{MasterError, spawn, supervisor};
use crate::config::{Bundle, ReloadMode};
use crate::handoff::getsocks;
use crate::handoff::messages::{FromWorker, ToWorker};
use crate::logging::{EventLog, Severity};
use crate::socket::Sharing;
use crate::stats::Memory;

/// How the daemon is coming to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    WhenDrained,
    Now,
}

/// What lives as long as the master, whatever generation serves.
pub(super) struct Blank {
    pub(super) events: mpsc::UnboundedSender<Event>,
    directory: Rc<RefCell<Directory>>,
    pub(super) memory: Memory,
    counters: Arc<OwnedFd>,
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

/// A reload that somebody asked for.
struct Wish {
    mode: Option<ReloadMode>,
    caller: Option<oneshot::Sender<Answer>>,
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
    wishes: Vec<Wish>,
    pub(super) running: Option<Running>,
    pub(super) retiring: Option<Retiring>,
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

/// Runs the daemon to its end; `ready` is called once it serves.
///
/// # Errors
/// Why it cannot start.
pub fn run(options: Options, ready: impl FnOnce()) -> Result<(), MasterError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(MasterError::EventLoop)?;
    runtime.block_on(async {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        events::watch_signals(&sender)?;
        let mut master = start::start(options, sender).await?;
        ready();
        master.follow(&mut receiver).await;
        Ok(())
    })
}

impl Master {
    /// The master with its first generation serving.
    pub(super) async fn first(options: Options, blank: Blank, prepared: Prepared) -> Result<Self, MasterError> {
        let mut master = Self {
            options,
            blank,
            bundle: Arc::clone(&prepared.bundle),
            listeners: Vec::new(),
            maxconn: prepared.maxconn,
            workers: Workers::default(),
            log: EventLog::open(&prepared.bundle.logs),
            log_sockets: LogSockets::default(),
            admin: None,
            pid_file: None,
            wishes: Vec::new(),
            running: None,
            retiring: None,
            respawn: Respawn::default(),
            last_reload: None,
            watch: Watch::from_supervisor(Instant::now()),
            generation: 1,
            began: Instant::now(),
            ending: Ending::No,
            electing: false,
            postponed: false,
        };
        for warning in &prepared.warnings {
            master.show(Severity::Warning, warning);
        }
        let elected = master.elect(prepared)?.serving().await.map_err(|(_, error)| error)?;
        master.commit(elected)?;
        master
            .say(Severity::Notice, &format!("proxy {} serves, pid {}", env!("CARGO_PKG_VERSION"), std::process::id()));
        supervisor::started("generation 1 serves");
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
            if transaction.is_none() {
                transaction = self.next_plan().map(|plan| Box::pin(preparing(plan)) as Transaction);
            }
            let deadline = self.next_deadline();
            tokio::select! {
                event = receiver.recv() => if let Some(event) = event { self.handle(event) },
                result = conclusion(&mut transaction) => transaction = self.advance(result),
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

    fn handle(&mut self, event: Event) {
        match event {
            Event::Admin(request, caller) => self.serve_caller(request, caller),
            Event::GiveSockets(stream) => self.give_sockets(stream),
            Event::Refused(message) => self.say(Severity::Warning, &message),
            Event::Worker(generation, FromWorker::LogLost(target)) => self.log_sockets.lost(generation, target),
            Event::Worker(generation, FromWorker::Draining) => self.accepts_no_more(generation),
            Event::Worker(..) => {}
            Event::WorkerSaid(pid, line) => self.say(Severity::Error, &format!("worker {pid}: {line}")),
            Event::WorkerEnded(generation, status) => self.bury(generation, &status),
            Event::ReloadSignal => self.wishes.push(Wish { mode: None, caller: None }),
            Event::FinishSignal => self.end(Ending::WhenDrained),
            Event::StopSignal => self.end(Ending::Now),
        }
    }

    fn serve_caller(&mut self, request: Request, caller: oneshot::Sender<Answer>) {
        let answer = match request {
            Request::Reload(mode) => {
                self.wishes.push(Wish { mode, caller: Some(caller) });
                return;
            }
            Request::Status => self.status(),
            Request::Stop { graceful: true } => {
                self.end(Ending::WhenDrained);
                Answer::new(Outcome::Applied, "finishing open connections")
            }
            Request::Stop { graceful: false } => {
                self.end(Ending::Now);
                Answer::new(Outcome::Applied, "stopping")
            }
        };
        // A caller that broke off has nobody left to be told.
        let _ = caller.send(answer);
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

    /// The next transaction: a respawn that is due, else the reloads that wait for the same thing.
    fn next_plan(&mut self) -> Option<Plan> {
        if self.ending != Ending::No {
            return None;
        }
        // A reload whose worker dies before it serves is not over, but needs another one.
        let respawn = self.wishes.is_empty() || self.retiring.is_some();
        if respawn && !self.respawn.is_due(Instant::now()) {
            return None;
        }
        let Some(lane) = self.workers.free_lane() else {
            self.refuse_all(&MasterError::NoLane);
            if respawn {
                self.respawn.failed(Instant::now());
            }
            return None;
        };
        let (mode, callers) = if respawn { (ReloadMode::Handover, Vec::new()) } else { self.take_wishes() };
        self.running = Some(Running { mode, respawn, callers, began: Instant::now() });
        self.respawn.began();
        self.generation += 1;
        self.blank.memory.clear_beats(lane);
        if !respawn {
            supervisor::reloading();
        }
        Some(Plan {
            source: if respawn {
                Source::Same(Arc::clone(&self.bundle))
            } else {
                Source::File(self.options.config.clone())
            },
            mode,
            held: self.listeners.iter().map(|listener| Arc::clone(&listener.socket)).collect(),
            unheld: Sharing::Exclusive,
            generation: self.generation,
            lane,
            directory: Rc::clone(&self.blank.directory),
            in_use: self.workers.slots(),
            counters: Arc::clone(&self.blank.counters),
            ticket_keys: self.blank.tickets.keys(),
            events: self.blank.events.clone(),
        })
    }

    /// The mode of the oldest wish, and everybody who wants the same.
    fn take_wishes(&mut self) -> (ReloadMode, Vec<oneshot::Sender<Answer>>) {
        let strategy = self.bundle.reload.strategy;
        let mode = self.wishes.first().map_or(ReloadMode::Handover, |wish| wish.mode.unwrap_or(strategy));
        let (now, later): (Vec<_>, Vec<_>) =
            self.wishes.drain(..).partition(|wish| wish.mode.unwrap_or(strategy) == mode);
        self.wishes = later;
        (mode, now.into_iter().filter_map(|wish| wish.caller).collect())
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
        self.log_sockets.reconnect(now, &self.workers);
        if let Some(retiring) = self.retiring.take_if(|retiring| retiring.deadline() <= now) {
            retiring.finish();
        }
        match self.blank.tickets.rotate(now, &self.bundle.global.tickets) {
            Ok(false) => {}
            Ok(true) => {
                self.workers.tell_all(&ToWorker::TicketKeys(self.blank.tickets.keys().to_vec()));
                self.say(Severity::Info, "the TLS ticket keys were rotated");
            }
            Err(error) => self.say(Severity::Error, &format!("the TLS ticket keys stay: {error}")),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let idle = self.ending == Ending::No && self.running.is_none();
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
        if ending == Ending::Now {
            self.workers.stop_all();
        } else {
            self.workers.drain(&abandoned, self.bundle.reload.hard_stop_after);
        }
        self.ending = ending;
    }

    fn dismiss_callers(&mut self) {
        let waiting = self.wishes.drain(..).filter_map(|wish| wish.caller);
        let running = self.running.take().map(|running| running.callers).unwrap_or_default();
        answer_all(waiting.chain(running), &Answer::new(Outcome::Busy, "the daemon is stopping"));
        if let Some(decided) = self.retiring.take() {
            decided.finish();
        }
    }

    fn refuse_all(&mut self, error: &MasterError) {
        let callers = self.wishes.drain(..).filter_map(|wish| wish.caller);
        answer_all(callers, &Answer::new(Outcome::Busy, error.chain()));
    }

    fn status(&self) -> Answer {
        let status = Status {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime_seconds: self.began.elapsed().as_secs(),
            config: self.options.config.display().to_string(),
            config_sha256: self.bundle.sha256.clone(),
            maxconn: self.maxconn,
            admin_socket: self.admin.as_ref().map(|admin| admin.path().display().to_string()),
            listeners: self.listeners.iter().map(|listener| listener.bind.address.to_string()).collect(),
            generations: self.workers.status(&self.blank.memory),
            reloads: Reloads::of(&self.blank.memory, self.last_reload.clone()),
            log_lines_dropped: self.blank.memory.log_lines_dropped(),
        };
        let mut answer = Answer::new(Outcome::Applied, "");
        answer.facts = serde_json::to_value(&status).unwrap_or_default();
        answer
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
