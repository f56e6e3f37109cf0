//! Latency histograms in shared memory: buckets that double, one atomic addition per request and one for the sum.
//! Fed by the request path, read by the Prometheus view. Never divides, never allocates.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::counters::{Counts, Slot};

/// Buckets, the last one for whatever takes longer.
pub const BUCKETS: usize = 21;
/// The first bucket ends at two to this power, in microseconds.
const FIRST: u32 = 7;

/// A histogram at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Histogram {
    /// Observations per bucket.
    pub counts: [u64; BUCKETS],
    /// Their sum in microseconds.
    pub micros: u64,
}

impl Histogram {
    /// The longest time that a bucket counts, in microseconds; `None` for the last one.
    #[must_use]
    pub fn limit(bucket: usize) -> Option<u64> {
        let power = FIRST + u32::try_from(bucket).ok()?;
        (bucket + 1 < BUCKETS).then(|| 1 << power)
    }
}

fn bucket(micros: u64) -> usize {
    // Bits of the next lower number: what is exactly a limit still belongs below it.
    let bits = u64::BITS - micros.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(FIRST) as usize).min(BUCKETS - 1)
}

impl Slot {
    /// Counts how long something took.
    pub fn observe(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.own.times[bucket(micros)].fetch_add(1, Ordering::Relaxed);
        self.own.times[BUCKETS].fetch_add(micros, Ordering::Relaxed);
    }
}

impl Histogram {
    /// Adds what was observed there.
    pub(super) fn add(mut self, counts: Counts) -> Self {
        let word = |place: usize| counts.times[place].load(Ordering::Relaxed);
        for (bucket, count) in self.counts.iter_mut().enumerate() {
            *count += word(bucket);
        }
        self.micros = self.micros.wrapping_add(word(BUCKETS));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Memory;

    #[test]
    fn every_time_is_counted_in_the_first_bucket_that_holds_it() {
        assert_eq!((bucket(0), bucket(1), bucket(128), bucket(129), bucket(256)), (0, 0, 0, 1, 1));
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for place in 0..BUCKETS - 1 {
            let limit = Histogram::limit(place).unwrap();
            assert_eq!((bucket(limit), bucket(limit + 1)), (place, place + 1));
        }
        assert_eq!(Histogram::limit(BUCKETS - 1), None);
        assert_eq!(Histogram::limit(0), Some(128));
        assert_eq!(Histogram::limit(BUCKETS - 2), Some(67_108_864), "a minute is the scale's end");
    }

    #[test]
    fn sum_and_counts_are_kept_together() {
        let (memory, _fd) = Memory::create(1).unwrap();
        let slot = memory.slot(0, 0).unwrap();
        for millis in [0, 1, 1, 500] {
            slot.observe(Duration::from_millis(millis));
        }
        let seen = memory.histogram(0);
        assert_eq!((seen.counts.iter().sum::<u64>(), seen.micros), (4, 502_000));
        assert_eq!((seen.counts[0], seen.counts[3], seen.counts[12]), (1, 2, 1));
    }
}
