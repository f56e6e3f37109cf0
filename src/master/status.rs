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
    /// Of the configuration that serves; a rejected file leaves it.
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

/// The history of reloads since the master started.
#[derive(Clone, Default, Serialize)]
pub(super) struct Reloads {
    pub(super) applied: u64,
    pub(super) rejected: u64,
    pub(super) rolled_back: u64,
    /// The same by mode: a rebind may lose clients, a hand-over may not.
    pub(super) handover: ByOutcome,
    pub(super) rebind: ByOutcome,
    /// Workers replaced after a crash; no reload.
    pub(super) respawns: u64,
    /// When a reload was last applied, in seconds since 1970; none: never.
    pub(super) last_applied: Option<u64>,
    pub(super) last: Option<LastReload>,
}

/// How the reloads of one mode ended.
#[derive(Clone, Default, Serialize)]
pub(super) struct ByOutcome {
    pub(super) applied: u64,
    pub(super) rejected: u64,
    pub(super) rolled_back: u64,
}

/// The last reload.
#[derive(Clone, Serialize)]
pub(super) struct LastReload {
    pub(super) outcome: Outcome,
    pub(super) mode: ReloadMode,
    pub(super) message: String,
    /// From the beginning of the transaction to its decision.
    pub(super) milliseconds: u64,
    /// When it ended, in seconds since 1970.
    pub(super) unix_time: u64,
}

impl Reloads {
    pub(super) fn record(&mut self, mode: ReloadMode, outcome: Outcome, message: &str, took: Duration) {
        let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let by_mode = match mode {
            ReloadMode::Handover => &mut self.handover,
            ReloadMode::Rebind => &mut self.rebind,
        };
        let (all, of_mode) = match outcome {
            Outcome::Applied => (&mut self.applied, &mut by_mode.applied),
            Outcome::Rejected => (&mut self.rejected, &mut by_mode.rejected),
            Outcome::RolledBack | Outcome::Busy => (&mut self.rolled_back, &mut by_mode.rolled_back),
        };
        *all += 1;
        *of_mode += 1;
        if outcome == Outcome::Applied {
            self.last_applied = Some(unix_time);
        }
        self.last = Some(LastReload {
            outcome,
            mode,
            message: message.to_owned(),
            milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            unix_time,
        });
    }
}
