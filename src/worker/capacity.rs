//! `maxconn`: how many client connections may be open, over all threads.
//! Asked by `accept` before each accept(2). Never refuses a connection: the kernel's queue waits.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};

/// A limit shared by threads.
pub struct Capacity {
    open: AtomicU32,
    limit: u32,
    waiting: Mutex<Vec<Waker>>,
}

/// Room for one connection, given back when dropped.
pub struct Permit {
    capacity: Arc<Capacity>,
}

/// The limits that the connections of a listener count against.
#[derive(Clone)]
pub struct Limits {
    own: Option<Arc<Capacity>>,
    whole: Arc<Capacity>,
}

/// Room for one connection under each of its limits.
pub struct Permits {
    _own: Option<Permit>,
    _whole: Permit,
}

impl Limits {
    /// A limit of its own, where there is one, and that of the whole worker.
    #[must_use]
    pub fn new(own: Option<u32>, whole: &Arc<Capacity>) -> Self {
        Self { own: own.map(Capacity::new), whole: Arc::clone(whole) }
    }

    /// Takes room, or has the task woken when there may be some.
    pub fn poll_reserve(&self, cx: &Context<'_>) -> Option<Permits> {
        let own = match &self.own {
            Some(own) => Some(own.poll_reserve(cx)?),
            None => None,
        };
        Some(Permits { _own: own, _whole: self.whole.poll_reserve(cx)? })
    }

    /// Room for a connection that is there already, whatever the limits say.
    #[must_use]
    pub fn enter(&self) -> Permits {
        Permits { _own: self.own.as_ref().map(Capacity::enter), _whole: self.whole.enter() }
    }
}

impl Capacity {
    /// Room for `limit` connections.
    #[must_use]
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { open: AtomicU32::new(0), limit, waiting: Mutex::new(Vec::new()) })
    }

    /// Takes room, or has the task woken when there may be some.
    pub fn poll_reserve(self: &Arc<Self>, cx: &Context<'_>) -> Option<Permit> {
        self.reserve().or_else(|| {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            drop(waiting);
            // A permit may have been returned between the first look and the registration.
            self.reserve()
        })
    }

    /// Room for a connection that is there already, whatever the limit says.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Permit {
        self.open.fetch_add(1, Ordering::AcqRel);
        Permit { capacity: Arc::clone(self) }
    }

    fn reserve(self: &Arc<Self>) -> Option<Permit> {
        self.open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < self.limit).then_some(open + 1))
            .ok()
            .map(|_| Permit { capacity: Arc::clone(self) })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let was = self.capacity.open.fetch_sub(1, Ordering::AcqRel);
        // Only the step out of a full house makes room for somebody who waits.
        if was == self.capacity.limit {
            let waiting = std::mem::take(&mut *self.capacity.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            for waker in waiting {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

    use super::*;

    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_limit_is_exact_and_a_returned_permit_wakes_who_waits() {
        let capacity = Capacity::new(2);
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&flag));
        let cx = Context::from_waker(&waker);
        let first = capacity.poll_reserve(&cx);
        let second = capacity.poll_reserve(&cx);
        assert!(first.is_some() && second.is_some());
        assert!(capacity.poll_reserve(&cx).is_none());
        assert!(!flag.0.load(Ordering::SeqCst));
        drop(first);
        assert!(flag.0.load(Ordering::SeqCst));
        assert!(capacity.poll_reserve(&cx).is_some());
    }
}
