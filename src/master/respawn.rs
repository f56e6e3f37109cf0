//! When a worker that died is replaced: at once, and with growing pauses if its successors die too.
//! Asked by `lifecycle`. Pure: told the time, never looks at a clock.

use std::time::{Duration, Instant};

/// First pause between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A worker that lived this long did not die of its start.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// The state of the replacement.
#[derive(Debug, Default)]
pub(super) struct Respawn {
    due: Option<Instant>,
    pause: Duration,
}

impl Respawn {
    /// The serving worker died after a life of `lived`.
    pub(super) fn died(&mut self, now: Instant, lived: Duration) {
        if lived >= LONG_LIFE {
            self.pause = Duration::ZERO;
        }
        self.schedule(now);
    }

    /// There is no serving worker, and none has died: the next death is the first one.
    pub(super) fn wanted(&mut self, now: Instant) {
        self.due = Some(now);
    }

    /// A replacement could not be brought up.
    pub(super) fn failed(&mut self, now: Instant) {
        self.schedule(now);
    }

    fn schedule(&mut self, now: Instant) {
        self.due = now.checked_add(self.pause);
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
    }

    /// A transaction has begun which brings a worker anyway.
    pub(super) fn began(&mut self) {
        self.due = None;
    }

    /// When the next attempt is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether it is due now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_replacement_comes_at_once_and_a_crash_loop_slows_down() {
        let (mut respawn, now) = (Respawn::default(), Instant::now());
        respawn.died(now, Duration::from_secs(60));
        assert!(respawn.is_due(now));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            respawn.began();
            assert!(!respawn.is_due(now + LONGEST_PAUSE));
            respawn.died(now, Duration::from_millis(5));
            pauses.push(respawn.due().unwrap().duration_since(now).as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn a_master_that_begins_without_a_worker_replaces_the_first_that_dies_at_once() {
        let (mut respawn, now) = (Respawn::default(), Instant::now());
        respawn.wanted(now);
        assert!(respawn.is_due(now));
        respawn.began();
        respawn.died(now, Duration::ZERO);
        assert!(respawn.is_due(now));
    }

    #[test]
    fn a_long_life_forgives_earlier_deaths() {
        let (mut respawn, now) = (Respawn::default(), Instant::now());
        respawn.died(now, Duration::ZERO);
        respawn.failed(now);
        respawn.died(now, LONG_LIFE);
        assert!(respawn.is_due(now));
    }
}
