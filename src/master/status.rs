//! What `proxy status` shows.
//! Filled by `lifecycle`, read by people and machines. Never changes anything.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::config::ReloadMode;

use super::admin::Outcome;

/// The daemon at one moment.
#[derive(Serialize)]
pub(super) struct Status {
    pub(super) version: &'static str,
    pub(super) pid: u32,
    pub(super) uptime_seconds: u64,
    pub(super) config: String,
    pub(super) config_sha256: String,
    pub(super) maxconn: u32,
    pub(super) admin_socket: Option<String>,
    pub(super) listeners: Vec<String>,
    pub(super) generations: Vec<Generation>,
    pub(super) reloads: Reloads,
    pub(super) log_lines_dropped: u64,
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

/// The history of reloads.
#[derive(Clone, Default, Serialize)]
pub(super) struct Reloads {
    pub(super) applied: u64,
    pub(super) rejected: u64,
    pub(super) rolled_back: u64,
    pub(super) respawns: u64,
    pub(super) last: Option<LastReload>,
}

/// The last reload.
#[derive(Clone, Serialize)]
pub(super) struct LastReload {
    pub(super) outcome: Outcome,
    pub(super) mode: ReloadMode,
    pub(super) message: String,
    pub(super) milliseconds: u64,
    pub(super) unix_time: u64,
}

impl Reloads {
    pub(super) fn record(&mut self, mode: ReloadMode, outcome: Outcome, message: &str, took: Duration) {
        match outcome {
            Outcome::Applied => self.applied += 1,
            Outcome::Rejected => self.rejected += 1,
            Outcome::RolledBack | Outcome::Busy => self.rolled_back += 1,
        }
        self.last = Some(LastReload {
            outcome,
            mode,
            message: message.to_owned(),
            milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        });
    }
}
