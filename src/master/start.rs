//! The start of a master: take over sockets, bring up the first generation, tell everybody.
//! Called by `lifecycle::run`. Never serves two daemons on one admin socket.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::events::Event;
use super::legacy::Legacy;
use super::passed::Passed;
use super::reload::{Plan, Source, prepare};
use super::slots::Directory;
use super::status::facts_of;
use super::store::Store;
use super::tickets::TicketRing;
use super::workers::is_alive;
use super::{MasterError, lifecycle, listeners};
use crate::config::{self, ReloadMode};
use crate::handoff::memfd_is_missing;
use crate::logging::Severity;
use crate::socket::Sharing;
use crate::stats::{LANES, Memory};

/// What the command line says of the daemon.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where this program lies, and where its successor will.
    pub program: PathBuf,
    /// Configuration file.
    pub config: PathBuf,
    /// Pid file, instead of the configuration's.
    pub pid_file: Option<PathBuf>,
    /// Admin socket of a daemon whose listening sockets are taken over (`-x`).
    pub take_over: Option<PathBuf>,
    /// Processes told to finish once we serve (`-sf`).
    pub finish: Vec<i32>,
    /// Processes told to end once we serve (`-st`).
    pub terminate: Vec<i32>,
    /// Nothing but errors on stderr.
    pub quiet: bool,
}

impl Options {
    fn replaces_another(&self) -> bool {
        self.take_over.is_some() || self.binds_beside()
    }

    fn binds_beside(&self) -> bool {
        self.take_over.is_none() && !(self.finish.is_empty() && self.terminate.is_empty())
    }
}

/// Brings up the first generation.
pub(super) async fn start(
    options: Options,
    events: mpsc::UnboundedSender<Event>,
) -> Result<lifecycle::Master, MasterError> {
    if !options.replaces_another()
        && let Some(socket) = config::admin_socket(&options.config)
        && let Some(pid) = answering(&socket)
    {
        return Err(MasterError::AlreadyRunning(pid));
    }
    let passed = Passed::from_environment()?;
    let mut held = passed.sockets;
    let (inherited, of_units) = (held.len(), listeners::of_units(held.iter()));
    if let Some(socket) = &options.take_over {
        held.extend(listeners::from_daemon(socket)?);
    }
    let (memory, counters) = match passed.counters {
        Some(kept) => kept,
        None => Memory::create(crate::stats::SLOTS)?,
    };
    let (file, legacy) = passed.legacy.map_or((None, Legacy::default()), |(file, legacy)| (Some(file), legacy));
    let orphans: Vec<_> = legacy.workers.into_iter().filter(|(pid, _)| is_alive(*pid)).collect();
    let lane = free_lane(&memory, &orphans)?;
    let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(legacy.tickets_made));
    let tickets = TicketRing::adopt(legacy.ticket_keys, age.unwrap_or_default(), Instant::now())?;
    let plan = Plan {
        source: Source::File(options.config.clone()),
        mode: ReloadMode::Handover,
        held,
        // A predecessor that hands nothing over (`-sf` without `-x`) listens until we do.
        unheld: if options.binds_beside() { Sharing::Reuse } else { Sharing::Exclusive },
        generation: legacy.generation + 1,
        lane,
        directory: Rc::new(RefCell::new(Directory::of(memory))),
        in_use: HashSet::new(),
        counters: Arc::new(counters),
        ticket_keys: tickets.keys(),
        events,
    };
    let blank = lifecycle::Blank::of(&plan, memory, tickets);
    let prepared = prepare(plan).await.map_err(|(_, error)| error)?;
    let store = Store::of(passed.kept, file);
    let found = lifecycle::Found { store, last_reload: legacy.last_reload, orphans };
    let master = lifecycle::Master::first(options, blank, prepared, found).await?;
    if inherited > 0 {
        master.say(Severity::Notice, &format!("{inherited} listening sockets came from the supervisor"));
    }
    let wanted = listeners::of_units(master.listeners.iter().map(|listener| &listener.socket));
    for unwanted in of_units.difference(&wanted) {
        let what =
            format!("the supervisor listens on {unwanted}, and no bind wants it: its clients would wait for ever");
        master.say(Severity::Warning, &what);
    }
    for problem in &passed.problems {
        master.say(Severity::Warning, problem);
    }
    let store_lacks = if master.bundle.systemd.fdstore { Store::lack() } else { None };
    for lack in [memfd_is_missing(), store_lacks].into_iter().flatten() {
        master.say(Severity::Warning, lack);
    }
    master.signal_predecessors();
    Ok(master)
}

/// A gauge lane for the first worker; what nobody alive counts in is cleared.
fn free_lane(memory: &Memory, orphans: &[(u32, u32)]) -> Result<u32, MasterError> {
    let free = (0..LANES).filter(|lane| orphans.iter().all(|(_, taken)| taken != lane));
    let free: Vec<u32> = free.inspect(|lane| memory.clear_lane(*lane)).collect();
    free.first().copied().ok_or(MasterError::NoLane)
}

/// Tells the processes of `-sf` and `-st`; what became of each failure is said in its line.
pub(super) fn signal_all(options: &Options) -> Vec<String> {
    let finish = options.finish.iter().map(|pid| (*pid, Signal::SIGUSR1));
    let terminate = options.terminate.iter().map(|pid| (*pid, Signal::SIGTERM));
    finish
        .chain(terminate)
        .filter_map(|(pid, signal)| {
            let error = kill(Pid::from_raw(pid), signal).err()?;
            Some(format!("cannot send {signal} to {pid}: {error}"))
        })
        .collect()
}

/// The pid of a daemon that answers on a socket.
fn answering(socket: &Path) -> Option<u32> {
    u32::try_from(facts_of(socket)?.get("pid")?.as_u64()?).ok()
}
