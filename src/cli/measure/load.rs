//! The users of a run: so many at a time, until all requests are made.
//! Called by `measure`. Never retries and never hides a lost request.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio::task::LocalSet;

use super::subject::SubjectError;
use super::user::{Loss, Target, User};

/// One run.
pub(super) struct Plan {
    pub(super) target: Target,
    pub(super) requests: u64,
    pub(super) users: usize,
    pub(super) keep_alive: bool,
    /// Connections that are opened before and make one more request after.
    pub(super) idle: usize,
    /// Users resume their TLS sessions, each its own.
    pub(super) resume: bool,
}

/// What became of a run.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// How long each answered request took, connection included, sorted.
    pub(super) answered: Vec<Duration>,
    /// Lost requests by kind.
    pub(super) lost: BTreeMap<Loss, u64>,
    /// The whole run.
    pub(super) took: Duration,
    /// Full TLS handshakes, but for each user's first.
    pub(super) full: u64,
    /// Resumed ones.
    pub(super) resumed: u64,
}

impl Outcome {
    /// Lost requests of all kinds.
    pub(super) fn failed(&self) -> u64 {
        self.lost.values().sum()
    }

    /// Requests answered per second.
    pub(super) fn rate(&self) -> f64 {
        self.answered.len() as f64 / self.took.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Mean time of an answered request.
    pub(super) fn mean(&self) -> Duration {
        mean(&self.answered)
    }

    /// The time that so many percent of the answered requests stayed within.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.answered.len() * percent).div_ceil(100);
        self.answered.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// Nothing where there is nothing.
pub(super) fn mean(times: &[Duration]) -> Duration {
    times.iter().sum::<Duration>().checked_div(u32::try_from(times.len()).unwrap_or(u32::MAX)).unwrap_or_default()
}

struct Shared {
    left: Cell<u64>,
    outcome: RefCell<Outcome>,
}

/// Makes all requests of a plan from this thread; `disturb` is called once the idle connections are open.
pub(super) fn run<T>(
    plan: &Plan,
    progress: &Arc<ProgressBar>,
    disturb: impl FnOnce() -> T,
    calm: impl FnOnce(T),
) -> Result<Outcome, SubjectError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut idle: Vec<_> = (0..plan.idle).map(|_| User::new(plan.target.clone(), true, false)).collect();
    let mut lost_before = 0;
    for user in &mut idle {
        lost_before += u64::from(runtime.block_on(user.request()).is_err());
    }
    let disturbance = disturb();
    let shared = Rc::new(Shared { left: Cell::new(plan.requests), outcome: RefCell::default() });
    let began = Instant::now();
    let users = LocalSet::new();
    for number in 0..plan.users {
        let target = if plan.resume { plan.target.resuming()? } else { plan.target.clone() };
        let user = User::new(target, plan.keep_alive, plan.keep_alive && number % 2 == 1);
        users.spawn_local(live(user, Rc::clone(&shared), Arc::clone(progress)));
    }
    runtime.block_on(users);
    let mut outcome = shared.outcome.take();
    outcome.took = began.elapsed();
    calm(disturbance);
    // Who was lost while it opened was no idle connection yet, but lost all the same.
    let lost_after: u64 = idle.iter_mut().map(|user| u64::from(runtime.block_on(user.request()).is_err())).sum();
    if lost_before + lost_after > 0 {
        outcome.lost.insert(Loss::Idle, lost_before + lost_after);
    }
    outcome.answered.sort_unstable();
    Ok(outcome)
}

async fn live(mut user: User, shared: Rc<Shared>, progress: Arc<ProgressBar>) {
    loop {
        let left = shared.left.get();
        if left == 0 {
            let mut outcome = shared.outcome.borrow_mut();
            outcome.full += user.handshakes().full;
            outcome.resumed += user.handshakes().resumed;
            return;
        }
        shared.left.set(left - 1);
        let began = Instant::now();
        let result = user.request().await;
        let mut outcome = shared.outcome.borrow_mut();
        match result {
            Ok(()) => outcome.answered.push(began.elapsed()),
            Err(loss) => *outcome.lost.entry(loss).or_default() += 1,
        }
        progress.inc(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let answered = (1..=200).map(Duration::from_millis).collect();
        let outcome = Outcome { answered, took: Duration::from_secs(2), ..Outcome::default() };
        assert_eq!(outcome.percentile(50), Duration::from_millis(100));
        assert_eq!(outcome.percentile(99), Duration::from_millis(198));
        assert_eq!(outcome.mean(), Duration::from_micros(100_500));
        assert!((outcome.rate() - 100.0).abs() < 1e-9);
    }

    #[test]
    fn a_run_that_lost_everything_has_numbers_too() {
        let outcome = Outcome::default();
        assert_eq!((outcome.percentile(99), outcome.mean(), outcome.failed()), (Duration::ZERO, Duration::ZERO, 0));
    }
}
