//! Whether the serving threads still turn: a worker with one that does not is replaced, systemd hears of those that do.
//! Called by `lifecycle`'s clock. Never says by itself that all is well: a ping stands for heartbeats that came.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::lifecycle::Master;
use super::spawn::Worker;
use super::supervisor;
use crate::logging::Severity;
use crate::stats::Memory;

/// Time between two looks at the heartbeats.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A thread that has not turned for this long will not turn soon.
const STALLED_AFTER: Duration = Duration::from_secs(3);
/// How long the other threads of a stalled worker may finish what they have, once a successor serves.
pub(super) const STALL_PATIENCE: Duration = Duration::from_secs(5);
/// Pings in the time after which systemd would act.
const PINGS: u32 = 4;

/// When to look, and when to tell systemd.
pub(super) struct Watch {
    next_look: Instant,
    look_every: Duration,
    /// Time between two pings, where systemd wants them.
    ping_every: Option<Duration>,
    next_ping: Instant,
}

impl Watch {
    /// What the environment says of systemd's watchdog (`WatchdogSec=`).
    pub(super) fn from_supervisor(now: Instant) -> Self {
        Self::new(now, sd_notify::watchdog_enabled())
    }

    fn new(now: Instant, limit: Option<Duration>) -> Self {
        let ping_every = limit.map(|limit| limit / PINGS);
        let look_every = ping_every.map_or(LOOK_EVERY, |ping| ping.clamp(Duration::from_millis(1), LOOK_EVERY));
        Self { next_look: now + look_every, look_every, ping_every, next_ping: now }
    }

    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// Whether it is time to look; then the next time is set.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next_look <= now;
        if due {
            self.next_look = now + self.look_every;
        }
        due
    }

    /// Whether systemd is to hear now that all is well.
    fn wants_ping(&mut self, now: Instant) -> bool {
        let Some(every) = self.ping_every.filter(|_| self.next_ping <= now) else { return false };
        // Rather early than late: looks are coarse.
        self.next_ping = now + every.saturating_sub(self.look_every / 2);
        true
    }
}

/// What the heartbeats of a worker say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beat {
    /// Every thread has turned since the last look.
    Steady,
    /// Some thread has not, which may mean a busy machine.
    Late,
    /// A thread has not for too long; which one, counted from 0.
    Stalled(usize),
}

/// The heartbeats of one worker as they were seen last. Pure: is told the time and the numbers.
#[derive(Debug)]
pub(super) struct Pulse {
    threads: Vec<(u64, Instant)>,
    looked: Instant,
}

impl Pulse {
    /// A worker that has begun to serve.
    pub(super) fn new(now: Instant) -> Self {
        Self { threads: Vec::new(), looked: now }
    }

    /// Compares with the last look. A thread counts from its first beat; a worker without any has one that is late.
    fn look(&mut self, now: Instant, beats: impl Iterator<Item = u64>) -> Beat {
        // Who looks much too late has been asleep, and so perhaps was everybody.
        let slept = now.duration_since(self.looked) > STALLED_AFTER / 2;
        self.looked = now;
        let mut beat = Beat::Steady;
        for (place, count) in beats.take_while(|count| *count > 0).chain([0]).enumerate() {
            if count == 0 && place > 0 {
                break;
            }
            if self.threads.len() == place {
                self.threads.push((count, now));
                beat = worse(beat, if count == 0 { Beat::Late } else { Beat::Steady });
                continue;
            }
            let seen = &mut self.threads[place];
            if seen.0 != count || slept {
                *seen = (count, now);
            } else {
                let stalled = now.duration_since(seen.1) >= STALLED_AFTER;
                beat = worse(beat, if stalled { Beat::Stalled(place) } else { Beat::Late });
            }
        }
        beat
    }
}

fn worse(one: Beat, other: Beat) -> Beat {
    match (one, other) {
        (Beat::Stalled(_), _) | (Beat::Late, Beat::Steady | Beat::Late) => one,
        _ => other,
    }
}

impl Worker {
    /// What its heartbeats say now.
    fn feel(&mut self, now: Instant, memory: &Memory) -> Beat {
        let beats = memory.beats(self.lane).unwrap_or_default();
        let pulse = self.pulse.get_or_insert_with(|| Pulse::new(now));
        pulse.look(now, beats.iter().map(|beat| beat.load(Ordering::Relaxed)))
    }
}

impl Master {
    /// Looks at every worker that serves or was found stalled.
    pub(super) fn look_after_workers(&mut self, now: Instant) {
        if !self.watch.is_due(now) {
            return;
        }
        let (mut steady, mut news) = (false, Vec::new());
        for worker in self.workers.watched() {
            let beat = worker.feel(now, &self.blank.memory);
            match (beat, worker.stalled) {
                (Beat::Stalled(thread), false) => {
                    worker.suspect();
                    self.respawn.died(now, worker.since.elapsed());
                    let seconds = STALLED_AFTER.as_secs();
                    news.push((
                        Severity::Alert,
                        format!(
                            "thread {thread} of worker {} has not turned for {seconds} s: the worker is replaced",
                            worker.pid
                        ),
                    ));
                }
                (Beat::Steady, true) => {
                    worker.acquit();
                    news.push((Severity::Notice, format!("every thread of worker {} turns again", worker.pid)));
                }
                (Beat::Steady, false) => steady = true,
                (Beat::Late, _) | (Beat::Stalled(_), true) => {}
            }
        }
        for (severity, message) in news {
            self.say(severity, &message);
        }
        if (steady || !self.bundle.systemd.watchdog) && self.watch.wants_ping(now) {
            supervisor::alive();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(500);

    /// Looks every half second at these numbers; returns what each look said.
    fn looks(rounds: &[&[u64]]) -> Vec<Beat> {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        let times = (1..).map(|count| start + TICK * count);
        rounds.iter().zip(times).map(|(beats, now)| pulse.look(now, beats.iter().copied())).collect()
    }

    #[test]
    fn a_worker_is_steady_as_long_as_every_thread_turns() {
        assert_eq!(looks(&[&[1, 1, 0], &[2, 5, 0], &[3, 6, 0]]), [Beat::Steady; 3]);
    }

    #[test]
    fn one_thread_that_stands_still_is_late_and_then_stalled() {
        let rounds: Vec<Vec<u64>> = (1..9).map(|count| vec![count, 7, count, 0]).collect();
        let said = looks(&rounds.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(said[0], Beat::Steady);
        assert_eq!(said[1..6], [Beat::Late; 5]);
        assert_eq!(said[6..], [Beat::Stalled(1); 2]);
    }

    #[test]
    fn a_worker_whose_threads_never_begin_is_stalled_too() {
        let rounds = [&[0_u64, 0][..]; 8];
        let said = looks(&rounds);
        assert_eq!((said[0], said[7]), (Beat::Late, Beat::Stalled(0)));
    }

    #[test]
    fn a_stalled_thread_that_turns_again_is_steady() {
        let mut rounds = vec![&[4_u64][..]; 8];
        rounds.push(&[5]);
        assert_eq!(looks(&rounds)[7..], [Beat::Stalled(0), Beat::Steady]);
    }

    #[test]
    fn who_was_asleep_himself_blames_nobody() {
        let start = Instant::now();
        let mut pulse = Pulse::new(start);
        assert_eq!(pulse.look(start + TICK, [9].into_iter()), Beat::Steady);
        assert_ne!(pulse.look(start + TICK + STALLED_AFTER * 2, [9].into_iter()), Beat::Stalled(0));
    }

    #[test]
    fn systemd_hears_four_times_in_its_limit() {
        let start = Instant::now();
        let mut watch = Watch::new(start, Some(Duration::from_secs(30)));
        let (mut now, mut pings) = (start, 0);
        while now < start + Duration::from_secs(30) {
            now = watch.next_look();
            assert!(watch.is_due(now));
            pings += u32::from(watch.wants_ping(now));
        }
        assert!((4..=5).contains(&pings), "{pings}");
        // A short limit makes for early looks; none for none.
        assert!(Watch::new(start, Some(Duration::from_millis(400))).next_look() <= start + TICK / 4);
        assert!(!Watch::new(start, None).wants_ping(start + TICK));
    }
}
