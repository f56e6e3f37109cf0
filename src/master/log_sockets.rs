//! Log sockets that workers lost, because syslogd restarted: a worker in a chroot cannot connect anew.
//! Owned by `lifecycle`. Never tries more than once a second.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::workers::Workers;
use crate::handoff::messages::ToWorker;
use crate::logging;

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// What is lost, by generation and index of the target, and when it is tried again.
#[derive(Default)]
pub(super) struct LogSockets {
    lost: BTreeMap<(u64, usize), Instant>,
}

impl LogSockets {
    /// A worker cannot reach a target.
    pub(super) fn lost(&mut self, generation: u64, target: usize) {
        self.lost.entry((generation, target)).or_insert_with(Instant::now);
    }

    /// The worker is gone.
    pub(super) fn forget(&mut self, generation: u64) {
        self.lost.retain(|(theirs, _), _| *theirs != generation);
    }

    /// By generation and index of the target.
    pub(super) fn all(&self) -> Vec<(u64, usize)> {
        self.lost.keys().copied().collect()
    }

    pub(super) fn next_attempt(&self) -> Option<Instant> {
        self.lost.values().min().copied()
    }

    /// Connects what can be connected and passes it on.
    pub(super) fn reconnect(&mut self, now: Instant, workers: &Workers) {
        self.lost.retain(|(generation, index), due| {
            if *due > now {
                return true;
            }
            let Some(worker) = workers.find(*generation) else { return false };
            let Some(target) = worker.bundle.logs.get(*index) else { return false };
            let Ok(socket) = logging::connect(target) else {
                *due = now + PAUSE;
                return true;
            };
            // A worker that is gone is noticed by its end, not here.
            let _ = worker.channel.send(&ToWorker::LogSocket(*index), &[socket.as_fd()]);
            false
        });
    }
}
