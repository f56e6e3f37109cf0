//! One coarse deadline per connection, checked by one sweep per thread.
//! Set by every phase (a store, no timer-wheel entry per request), swept by the worker thread.
//! Never fires earlier than by the few milliseconds of the kernel's own tick; fires at most one of ours late.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time between sweeps, and so the accuracy of every time-out.
pub const TICK: Duration = Duration::from_millis(50);

/// The time deadlines are kept in: since boot, as of the kernel's last tick. A request moves its deadline half a dozen
/// times, and the exact time costs ten times as much.
#[must_use]
pub fn now() -> Duration {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// What is later than in 584 years never comes.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// All deadlines of a thread.
#[derive(Default)]
pub struct Timers {
    entries: RefCell<Vec<Weak<Entry>>>,
    stopping: Cell<bool>,
}

struct Entry {
    /// Nanoseconds on the clock of [`now`]: half the room of a `Duration`, on every connection there is.
    deadline: Cell<u64>,
    expired: Cell<bool>,
    stopped: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// The deadline of one connection.
pub struct Timer {
    entry: Rc<Entry>,
}

impl Timers {
    /// Registers a connection.
    #[must_use]
    pub fn register(&self, within: Duration) -> Timer {
        let entry = Rc::new(Entry {
            deadline: Cell::new(nanos(now().saturating_add(within))),
            expired: Cell::new(false),
            stopped: Cell::new(self.stopping.get()),
            waker: RefCell::new(None),
        });
        self.entries.borrow_mut().push(Rc::downgrade(&entry));
        Timer { entry }
    }

    /// Wakes every connection whose deadline has passed and forgets those that are gone.
    pub fn sweep(&self, now: Duration) {
        let now = nanos(now);
        self.entries.borrow_mut().retain(|weak| {
            let Some(entry) = weak.upgrade() else { return false };
            if entry.deadline.get() <= now && !entry.expired.replace(true) {
                entry.wake();
            }
            true
        });
    }

    /// Whether every connection was told to end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Has every connection look around: something has changed for all of them.
    pub fn wake_all(&self) {
        for entry in self.entries.borrow().iter().filter_map(Weak::upgrade) {
            entry.wake();
        }
    }

    /// Ends every connection, now and from now on.
    pub fn stop(&self) {
        self.stopping.set(true);
        for entry in self.entries.borrow().iter().filter_map(Weak::upgrade) {
            entry.stopped.set(true);
            entry.wake();
        }
    }
}

impl Entry {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

/// Why a connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// The deadline passed.
    Expired,
    /// The worker ends.
    Stopped,
}

impl Timer {
    /// Moves the deadline.
    pub fn set(&self, within: Duration) {
        self.entry.deadline.set(nanos(now().saturating_add(within)));
        self.entry.expired.set(false);
    }

    /// What is left of the time.
    pub fn left(&self) -> Duration {
        Duration::from_nanos(self.entry.deadline.get()).saturating_sub(now())
    }

    /// Asks whether the task has to give up; the task is woken when that changes.
    pub fn poll(&self, context: &Context<'_>) -> Option<Alarm> {
        if self.entry.stopped.get() {
            return Some(Alarm::Stopped);
        }
        if self.entry.expired.get() {
            return Some(Alarm::Expired);
        }
        let mut waker = self.entry.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_was_moved_does_not_fire() {
        let timers = Timers::default();
        let timer = timers.register(Duration::from_secs(1));
        let context = Context::from_waker(Waker::noop());
        timer.set(Duration::from_secs(60));
        timers.sweep(now() + Duration::from_secs(30));
        assert_eq!(timer.poll(&context), None);
        timers.sweep(now() + Duration::from_secs(61));
        assert_eq!(timer.poll(&context), Some(Alarm::Expired));
        timer.set(Duration::from_secs(60));
        assert_eq!(timer.poll(&context), None);
    }

    #[test]
    fn stopping_reaches_old_and_new_connections() {
        let timers = Timers::default();
        let old = timers.register(Duration::from_secs(1));
        timers.stop();
        let new = timers.register(Duration::from_secs(1));
        let context = Context::from_waker(Waker::noop());
        assert_eq!((old.poll(&context), new.poll(&context)), (Some(Alarm::Stopped), Some(Alarm::Stopped)));
    }

    #[test]
    fn gone_connections_are_forgotten() {
        let timers = Timers::default();
        drop(timers.register(Duration::from_secs(1)));
        timers.sweep(now());
        assert!(timers.entries.borrow().is_empty());
    }
}
