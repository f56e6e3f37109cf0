//! The counters and gauges of one frontend, backend or server in shared memory, as one thread writes them.
//! Handed out by `stats::Memory`, bumped by the request path. Never allocates, never locks, never sums: `shards` does.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one slot. The discriminant is the place in shared memory: append only. What requests add up stands among
/// the first 32: each serving thread counts it for itself. Maxima, sequences and states are common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Sessions (frontend: connections; backend, server: requests assigned), `stot`.
    Sessions = 0,
    /// Requests received (`req_tot`).
    Requests = 1,
    /// Bytes received from clients (`bin`).
    BytesIn = 2,
    /// Bytes sent to clients (`bout`).
    BytesOut = 3,
    /// Requests refused by rules (`dreq`).
    DeniedRequests = 4,
    /// Requests that were malformed, too large or too late (`ereq`).
    RequestErrors = 5,
    /// Failed connections to servers (`econ`).
    ConnectErrors = 6,
    /// Broken or malformed responses (`eresp`).
    ResponseErrors = 7,
    /// Connection retries (`wretr`).
    Retries = 8,
    /// Retries sent to another server (`wredis`).
    Redispatches = 9,
    /// Responses 1xx (`hrsp_1xx`).
    Status1xx = 10,
    /// Responses 2xx.
    Status2xx = 11,
    /// Responses 3xx.
    Status3xx = 12,
    /// Responses 4xx.
    Status4xx = 13,
    /// Responses 5xx.
    Status5xx = 14,
    /// Any other status, or none (`hrsp_other`).
    StatusOther = 15,
    /// Connections opened to a server (`connect`).
    Connects = 16,
    /// Pooled connections used again (`reuse`).
    Reuses = 17,
    /// Transfers the client broke off (`cli_abrt`).
    ClientAborts = 18,
    /// Transfers the server broke off (`srv_abrt`).
    ServerAborts = 19,
    /// Times chosen by the balancer (`lbtot`).
    Selected = 20,
    /// Highest number of current sessions seen (`smax`); kept with [`Slot::raise`].
    SessionsMax = 21,
    /// Position of the round robin; not shown.
    RoundRobin = 22,
    /// TLS handshakes that failed (frontends).
    HandshakeErrors = 24,
    /// Second (epoch) of the last session (`lastsess`).
    LastSession = 25,
    /// Changes of its servers' standing (backends). From here on common words, in a cache line that requests only read.
    Changes = 40,
    /// What the operator wants of a server, see `standing`.
    Orders = 41,
    /// What the checks say of a server, see `standing`.
    Health = 42,
    /// Checks that failed while the server was up (`chkfail`).
    ChecksFailed = 43,
    /// Times it went down (`chkdown`).
    TimesDown = 44,
    /// Second (epoch) when it last went up or down (`lastchg`), 0 before.
    LastChange = 45,
    /// Seconds it was down before it last came up (`downtime`).
    Downtime = 46,
    /// Millisecond (epoch) when its last check began; not shown.
    LastCheck = 47,
}

/// Words per slot: the counters, from 64 on the latency histogram, from 88 on whose slot it is.
pub const COUNTERS: usize = 96;
/// First word of the histogram.
pub(super) const HISTOGRAM: usize = 64;
/// First word of the owner.
pub(super) const OWNER: usize = 88;
/// Word that says whether the slot's shards are its owner's. A program that knows of none leaves 0 in a slot it gives.
pub(super) const SHARDED: usize = 93;
/// Counters that every serving thread has for itself.
pub(super) const OWN: usize = 32;
/// Words of a histogram.
pub(super) const TIMES: usize = 24;

/// Values that go up and down; one lane per worker so that a crashed worker's share can be cleared. No lane per thread:
/// whoever enters needs the worker's total for its maximum, whoever leaves for its access line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Gauge {
    /// Open sessions (`scur`).
    Sessions = 0,
    /// Waiting requests (`qcur`).
    Queued = 1,
}

/// Gauges per slot and lane.
pub const GAUGES: usize = 2;

/// What requests add up of one entity, in the shard of a thread or in the common area.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub(super) counters: &'static [AtomicU64; OWN],
    pub(super) times: &'static [AtomicU64; TIMES],
}

/// One entity's place in the shared memory, as one thread of one worker writes it.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    common: &'static [AtomicU64; COUNTERS],
    pub(super) own: Counts,
    gauges: &'static [AtomicU64; GAUGES],
}

impl Slot {
    /// Joins the areas of a slot.
    pub(super) fn new(
        common: &'static [AtomicU64; COUNTERS],
        own: Counts,
        gauges: &'static [AtomicU64; GAUGES],
    ) -> Self {
        Self { common, own, gauges }
    }

    /// Where this thread counts.
    fn place(&self, counter: Counter) -> &'static AtomicU64 {
        self.own.counters.get(counter as usize).unwrap_or(&self.common[counter as usize])
    }

    /// Adds to a counter.
    pub fn add(&self, counter: Counter, amount: u64) {
        self.place(counter).fetch_add(amount, Ordering::Relaxed);
    }

    /// The next number of a sequence that all threads share.
    #[must_use]
    pub fn take(&self, counter: Counter) -> u64 {
        self.common[counter as usize].fetch_add(1, Ordering::Relaxed)
    }

    /// Sets a counter that holds a time or a state rather than a count.
    pub fn set(&self, counter: Counter, value: u64) {
        self.place(counter).store(value, Ordering::Relaxed);
    }

    /// Announces that servers of this backend have a new standing; what was set before is seen by
    /// whoever sees the announcement.
    pub fn announce(&self) {
        self.common[Counter::Changes as usize].fetch_add(1, Ordering::Release);
    }

    /// How many changes were announced.
    #[must_use]
    pub fn announced(&self) -> u64 {
        self.common[Counter::Changes as usize].load(Ordering::Acquire)
    }

    /// Raises a maximum over all threads.
    pub fn raise(&self, counter: Counter, value: u64) {
        if self.common[counter as usize].load(Ordering::Relaxed) < value {
            self.common[counter as usize].fetch_max(value, Ordering::Relaxed);
        }
    }

    /// Reads what is common; [`Memory::count`](super::Memory::count) reads a count of all threads.
    #[must_use]
    pub fn state(&self, counter: Counter) -> u64 {
        self.common[counter as usize].load(Ordering::Relaxed)
    }

    /// One more; returns the new value of this worker's lane.
    pub fn enter(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize].fetch_add(1, Ordering::Relaxed) + 1
    }

    /// One less; how many are left.
    pub fn leave(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize].fetch_sub(1, Ordering::Relaxed).saturating_sub(1)
    }

    /// This worker's share of a gauge.
    #[must_use]
    pub fn current(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize].load(Ordering::Relaxed)
    }

    /// A word that is no counter.
    pub(super) fn word(&self, place: usize) -> &'static AtomicU64 {
        &self.common[place]
    }

    /// Counts a response by its class.
    pub fn status(&self, status: u16) {
        self.add(
            match status / 100 {
                1 => Counter::Status1xx,
                2 => Counter::Status2xx,
                3 => Counter::Status3xx,
                4 => Counter::Status4xx,
                5 => Counter::Status5xx,
                _ => Counter::StatusOther,
            },
            1,
        );
    }
}
