//! The start of a master: take over sockets, bring up the first generation, tell everybody.
//! Called by `lifecycle::run`. Never serves two daemons on one admin socket.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::admin::Answer;
use super::events::Event;
use super::reload::{Plan, Source, prepare};
use super::slots::Directory;
use super::tickets::TicketRing;
use super::{MasterError, lifecycle, listeners};
use crate::config::{self, ReloadMode};
use crate::handoff::memfd_is_missing;
use crate::logging::Severity;
use crate::socket::Sharing;
use crate::stats::Memory;

/// How long a daemon that may be running already gets to say so.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

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
    let mut held = listeners::from_supervisor()?;
    if let Some(socket) = &options.take_over {
        held.extend(listeners::from_daemon(socket)?);
    }
    let (memory, counters) = Memory::create(crate::stats::SLOTS)?;
    let tickets = TicketRing::new(Instant::now())?;
    let plan = Plan {
        source: Source::File(options.config.clone()),
        mode: ReloadMode::Handover,
        held,
        // A predecessor that hands nothing over (`-sf` without `-x`) listens until we do.
        unheld: if options.binds_beside() { Sharing::Reuse } else { Sharing::Exclusive },
        generation: 1,
        lane: 0,
        directory: Rc::new(RefCell::new(Directory::of(memory))),
        in_use: HashSet::new(),
        counters: Arc::new(counters),
        ticket_keys: tickets.keys(),
        events,
    };
    let blank = lifecycle::Blank::of(&plan, memory, tickets);
    let prepared = prepare(plan).await.map_err(|(_, error)| error)?;
    let master = lifecycle::Master::first(options, blank, prepared).await?;
    if let Some(lack) = memfd_is_missing() {
        master.say(Severity::Warning, lack);
    }
    master.signal_predecessors();
    Ok(master)
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
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PROBE_PATIENCE)).ok()?;
    stream.write_all(b"status\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    let answer: Answer = serde_json::from_str(&line).ok()?;
    u32::try_from(answer.facts.get("pid")?.as_u64()?).ok()
}
