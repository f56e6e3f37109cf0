//! What `proxy status` shows, and how another process asks for it.
//! Filled by `lifecycle`, read by people and machines. Never changes anything.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::lifecycle::Master;
use super::request::{Answer, Outcome};
use crate::config::{Expiry, ReloadMode};
use crate::stats::{Memory, ReloadPath, ReloadResult};

/// How long a daemon gets to say what it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the daemon behind an admin socket says of itself, if there is one.
#[must_use]
pub fn facts_of(socket: &Path) -> Option<serde_json::Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"status\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    let answer: Answer = serde_json::from_str(&line).ok()?;
    Some(answer.facts)
}

/// The daemon at one moment.
#[derive(Serialize)]
pub(super) struct Status {
    pub(super) version: &'static str,
    pub(super) pid: u32,
    pub(super) uptime_seconds: u64,
    pub(super) config: String,
    /// Of the configuration that serves; a rejected file leaves it.
    pub(super) config_sha256: String,
    pub(super) maxconn: u32,
    pub(super) admin_socket: Option<String>,
    pub(super) listeners: Vec<String>,
    pub(super) generations: Vec<Generation>,
    pub(super) reloads: Reloads,
    pub(super) log_lines_dropped: u64,
    /// When certificates end.
    pub(super) certificates: Vec<Expiry>,
}

/// One worker.
#[derive(Serialize)]
pub(super) struct Generation {
    pub(super) generation: u64,
    pub(super) pid: u32,
    pub(super) state: &'static str,
    pub(super) connections: u64,
    pub(super) age_seconds: u64,
}

/// The history of reloads since counting began.
#[derive(Serialize)]
pub(super) struct Reloads {
    applied: u64,
    rejected: u64,
    rolled_back: u64,
    /// The same by path: a rebind may lose clients, a hand-over may not.
    handover: ByOutcome,
    rebind: ByOutcome,
    upgrade: ByOutcome,
    /// Workers replaced after a crash; no reload.
    respawn: ByOutcome,
    respawns: u64,
    /// When a reload was last applied, in seconds since 1970; none: never.
    last_applied: Option<u64>,
    /// How long all transactions took together.
    total_milliseconds: u64,
    last: Option<LastReload>,
}

/// How the transactions of one path ended.
#[derive(Serialize)]
struct ByOutcome {
    applied: u64,
    rejected: u64,
    rolled_back: u64,
}

/// The last reload.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastReload {
    pub(super) outcome: Outcome,
    pub(super) mode: ReloadMode,
    pub(super) message: String,
    /// From the beginning of the transaction to its decision.
    pub(super) milliseconds: u64,
    /// When it ended, in seconds since 1970.
    pub(super) unix_time: u64,
}

impl From<Outcome> for ReloadResult {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Applied => Self::Applied,
            Outcome::Rejected => Self::Rejected,
            Outcome::RolledBack | Outcome::Busy => Self::RolledBack,
        }
    }
}

impl LastReload {
    pub(super) fn new(outcome: Outcome, mode: ReloadMode, message: &str, took: Duration) -> Self {
        Self {
            outcome,
            mode,
            message: message.to_owned(),
            milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        }
    }
}

impl Reloads {
    pub(super) fn of(memory: &Memory, last: Option<LastReload>) -> Self {
        let reloads = memory.reloads();
        let path = |path| ByOutcome {
            applied: reloads.count(path, ReloadResult::Applied),
            rejected: reloads.count(path, ReloadResult::Rejected),
            rolled_back: reloads.count(path, ReloadResult::RolledBack),
        };
        let asked = [ReloadPath::Handover, ReloadPath::Rebind, ReloadPath::Upgrade];
        let sum = |result| asked.into_iter().map(|path| reloads.count(path, result)).sum();
        Self {
            applied: sum(ReloadResult::Applied),
            rejected: sum(ReloadResult::Rejected),
            rolled_back: sum(ReloadResult::RolledBack),
            handover: path(ReloadPath::Handover),
            rebind: path(ReloadPath::Rebind),
            upgrade: path(ReloadPath::Upgrade),
            respawn: path(ReloadPath::Respawn),
            respawns: reloads.count(ReloadPath::Respawn, ReloadResult::Applied),
            last_applied: reloads.last_applied,
            total_milliseconds: u64::try_from(reloads.total_took.as_millis()).unwrap_or(u64::MAX),
            last,
        }
    }
}

impl Master {
    /// The daemon now.
    pub(super) fn status(&self) -> Answer {
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
            certificates: self.bundle.expiries(SystemTime::now()),
        };
        let mut answer = Answer::new(Outcome::Applied, "");
        answer.facts = serde_json::to_value(&status).unwrap_or_default();
        answer
    }
}
