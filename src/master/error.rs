//! Why the master cannot do what it was asked to.
//! Made by every step of start and reload, answered to the caller and logged once. Never swallowed.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::config::Rejected;
use crate::handoff::{HandoffError, Incompatible, Span};
use crate::socket::{BindError, LimitError};
use crate::stats::StatsError;
use crate::tls::TlsError;

/// A step of the master that failed.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// The configuration is broken.
    #[error("{0}")]
    Rejected(#[from] Rejected),
    /// Addresses cannot be bound; one line each.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Bind(Vec<BindError>),
    /// A socket taken over cannot be used.
    #[error("a listening socket taken over cannot be used")]
    Adopt(#[source] io::Error),
    /// The descriptor limit is too low.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The shared counters cannot be made.
    #[error("shared counters cannot be made")]
    Stats(#[from] StatsError),
    /// More names than the shared counters have room for.
    #[error("more than {0} frontends, backends and servers at a time, those of draining workers included")]
    TooManyNames(u32),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
    /// A file of the master cannot be written.
    #[error("cannot write {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The user or group does not exist.
    #[error("there is no {kind} `{name}`")]
    Account {
        /// "user" or "group".
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The event loop cannot be set up.
    #[error("the event loop cannot be set up")]
    EventLoop(#[source] io::Error),
    /// Signals cannot be received.
    #[error("signals cannot be received")]
    Signals(#[source] io::Error),
    /// The thread that reads the configuration panicked.
    #[error("reading the configuration failed unexpectedly")]
    LoaderDied,
    /// A worker process cannot be started.
    #[error("a worker cannot be started")]
    Spawn(#[source] io::Error),
    /// The worker said why it cannot serve.
    #[error("the new worker cannot serve: {0}")]
    WorkerFailed(String),
    /// The worker ended before it served.
    #[error("the new worker ended before it was ready")]
    WorkerDied,
    /// The worker was told to serve and did not say that it does.
    #[error("the new worker did not serve within {0} s")]
    WorkerIdle(u64),
    /// The worker said nothing.
    #[error("the new worker was not ready within {0} s")]
    WorkerSilent(u64),
    /// The channel to a worker broke.
    #[error("the channel to a worker broke")]
    Channel(#[from] HandoffError),
    /// The configuration cannot be passed on.
    #[error("the configuration cannot be passed on")]
    Bundle(#[from] serde_json::Error),
    /// All gauge lanes are in use.
    #[error("too many workers are still draining")]
    NoLane,
    /// Another daemon answers on our admin socket.
    #[error("already running with pid {0}; reload it, stop it, or take over with -x and -sf")]
    AlreadyRunning(u32),
    /// The other daemon did not hand over its sockets.
    #[error("no sockets from {path}")]
    TakeOver {
        /// Its admin socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: HandoffError,
    },
    /// What an older process of ours left is not complete.
    #[error("what the program before left is not complete")]
    Manifest,
    /// What an older process of ours left cannot be read.
    #[error("what the program before left cannot be read")]
    ManifestText(#[source] serde_json::Error),
    /// What an older process of ours left is of a version that is not spoken here.
    #[error("what the program before left is of version {theirs}, this program reads {ours}")]
    ManifestVersion {
        /// Its version.
        theirs: u32,
        /// Those that are read.
        ours: Span,
    },
    /// The program on disk cannot be run.
    #[error("{path} cannot be run")]
    Program {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program on disk says no.
    #[error("{path} {what}: {said}")]
    ProgramRefuses {
        /// The program.
        path: PathBuf,
        /// What it was asked.
        what: &'static str,
        /// What it said.
        said: String,
    },
    /// The program on disk did not answer.
    #[error("{path} {what}: no answer within {seconds} s")]
    ProgramSilent {
        /// The program.
        path: PathBuf,
        /// What it was asked.
        what: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The program on disk was replaced while it was looked at.
    #[error("{0} was replaced while it was looked at; try again")]
    ProgramChanged(PathBuf),
    /// The program on disk and the one that runs have nothing in common.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
    /// The program on disk took over and could not serve.
    #[error("{0}")]
    Returned(String),
    /// A system call failed.
    #[error("{what} failed")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
}

impl MasterError {
    /// What may go into a log: as [`Self::chain`], but nothing quoted from the configuration.
    #[must_use]
    pub fn brief(&self) -> String {
        match self {
            Self::Rejected(rejected) => rejected.brief.clone(),
            // What it said may quote the configuration.
            Self::ProgramRefuses { path, what, .. } => format!("{} {what}", path.display()),
            other => other.chain(),
        }
    }

    /// Whether another start from the same file would be refused, too, at any time.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Rejected(rejected) if rejected.lasting)
    }

    /// The whole chain of causes.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Transparent errors repeat what has been said.
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        text
    }
}
