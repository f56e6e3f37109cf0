//! The shards: what each serving thread counts for itself, so that no two of them write the same cache line.
//! Taken by each serving thread, summed by every view. Never touches a shard that no thread has taken: even reading
//! would cost memory.

use std::sync::atomic::Ordering::Relaxed;

use super::counters::{Counter, Counts, OWN};
use super::histogram::Histogram;
use super::memory::{Memory, SHARDS_USED};

impl Memory {
    /// The memory as the serving thread with this number has it, counting from 0: slots taken from there count in its
    /// own shard. Threads of several workers share one by their number, those beyond the last shard by remainder.
    #[must_use]
    pub fn of_thread(&self, number: usize) -> Self {
        let shard = number.checked_rem(self.shards as usize).and_then(|shard| u32::try_from(shard).ok());
        if let Some(shard) = shard {
            self.header(SHARDS_USED).fetch_or(1 << shard, Relaxed);
        }
        let mut memory = *self;
        memory.own = shard;
        memory
    }

    /// A counter over all threads; 0 beyond the last slot.
    #[must_use]
    pub fn count(&self, index: u32, counter: Counter) -> u64 {
        if counter as usize >= OWN {
            return self.slot(0, index).map_or(0, |slot| slot.state(counter));
        }
        let counts = self.all_counts(index).map(|counts| counts.counters[counter as usize].load(Relaxed));
        match counter {
            Counter::LastSession => counts.max().unwrap_or(0),
            _ => counts.fold(0, u64::wrapping_add),
        }
    }

    /// How long something took, over all threads; nothing beyond the last slot.
    #[must_use]
    pub fn histogram(&self, index: u32) -> Histogram {
        self.all_counts(index).fold(Histogram::default(), Histogram::add)
    }

    /// A slot's shards hold nothing any more.
    pub(super) fn forget_shards(&self, index: u32) {
        for counts in self.used_shards().filter_map(|shard| self.counts(index, Some(shard))) {
            counts.counters.iter().chain(counts.times).for_each(|word| word.store(0, Relaxed));
        }
    }

    /// What the common area holds, and then each shard.
    fn all_counts(&self, index: u32) -> impl Iterator<Item = Counts> {
        let shards = self.is_sharded(index).then(|| self.used_shards().map(Some));
        std::iter::once(None).chain(shards.into_iter().flatten()).filter_map(move |shard| self.counts(index, shard))
    }

    fn used_shards(&self) -> impl Iterator<Item = u32> + use<> {
        let used = self.header(SHARDS_USED).load(Relaxed);
        (0..self.shards).filter(move |shard| used >> shard & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs::File;
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    use std::time::Duration;

    use super::super::counters::Slot;
    use super::*;
    use crate::stats::{Gauge, Kind, Owner, SLOTS};

    const SOMEBODY: Owner = Owner { kind: Kind::Server, name: [1; 4] };
    const ANOTHER: Owner = Owner { kind: Kind::Server, name: [2; 4] };

    /// A memory of four shards whose slot 1 is somebody's.
    fn given() -> (Memory, OwnedFd) {
        let (memory, fd) = Memory::with_shards(4, 4).unwrap();
        memory.give(1, SOMEBODY);
        (memory, fd)
    }

    /// The memory as a program sees it that knows of no shards.
    fn older(memory: &Memory) -> Memory {
        let mut memory = *memory;
        memory.shards = 0;
        memory
    }

    fn slot(memory: &Memory, thread: usize) -> Slot {
        memory.of_thread(thread).slot(0, 1).unwrap()
    }

    #[test]
    fn whoever_reads_sees_what_all_threads_have_counted() {
        let (memory, fd) = given();
        for thread in 0..10 {
            let slot = slot(&memory, thread);
            slot.add(Counter::Requests, 1 + thread as u64);
            slot.status(200);
            slot.observe(Duration::from_millis(1));
            slot.set(Counter::LastSession, 100 - thread as u64 % 4);
        }
        memory.slot(9, 1).unwrap().add(Counter::Requests, 1000);
        let other = Memory::map(fd.as_fd()).unwrap();
        assert_eq!((other.count(1, Counter::Requests), other.count(1, Counter::Status2xx)), (1055, 10));
        assert_eq!(other.count(1, Counter::LastSession), 100, "the latest");
        assert_eq!((other.histogram(1).counts[3], other.histogram(1).micros), (10, 10_000));
        assert_eq!((other.count(0, Counter::Requests), other.count(4, Counter::Requests)), (0, 0));
    }

    #[test]
    fn maxima_sequences_and_states_are_the_same_for_all_threads() {
        let (memory, _fd) = given();
        let (first, second) = (slot(&memory, 0), slot(&memory, 1));
        first.raise(Counter::SessionsMax, first.enter(Gauge::Sessions));
        second.raise(Counter::SessionsMax, second.enter(Gauge::Sessions));
        assert_eq!(memory.count(1, Counter::SessionsMax), 2);
        assert_eq!((first.take(Counter::RoundRobin), second.take(Counter::RoundRobin)), (0, 1));
        first.set(Counter::LastChange, 7);
        second.add(Counter::ChecksFailed, 1);
        assert_eq!((second.state(Counter::LastChange), memory.count(1, Counter::ChecksFailed)), (7, 1));
        first.announce();
        assert_eq!(second.announced(), 1);
    }

    #[test]
    fn no_two_threads_write_the_same_cache_line() {
        let (memory, _fd) = given();
        memory.give(2, ANOTHER);
        let mut lines = HashSet::new();
        for thread in 0..4 {
            let memory = memory.of_thread(thread);
            let counts = [1, 2].map(|index| memory.slot(0, index).unwrap().own);
            let words = counts.iter().flat_map(|counts| counts.counters.iter().chain(counts.times));
            let own: HashSet<_> = words.map(|word| std::ptr::from_ref(word).addr() / 64).collect();
            assert_eq!(own.len(), 2 * 7);
            lines.extend(own);
        }
        assert_eq!(lines.len(), 4 * 2 * 7);
    }

    #[test]
    fn a_slot_that_is_given_away_holds_nothing_of_its_former_owner_in_any_shard() {
        let (memory, _fd) = given();
        for thread in 0..4 {
            slot(&memory, thread).add(Counter::BytesIn, 5);
            slot(&memory, thread).observe(Duration::from_millis(1));
        }
        memory.give(1, ANOTHER);
        assert_eq!((memory.count(1, Counter::BytesIn), memory.histogram(1)), (0, Histogram::default()));
        slot(&memory, 3).add(Counter::BytesIn, 5);
        assert_eq!(memory.count(1, Counter::BytesIn), 5);
    }

    #[test]
    fn a_worker_that_is_gone_leaves_its_counts() {
        let (memory, _fd) = given();
        let slot = slot(&memory, 2);
        slot.add(Counter::Sessions, 3);
        slot.enter(Gauge::Sessions);
        memory.clear_lane(0);
        assert_eq!((memory.count(1, Counter::Sessions), memory.gauge_total(1, Gauge::Sessions)), (3, 0));
    }

    #[test]
    fn in_the_memory_of_an_older_program_everybody_counts_in_the_common_area() {
        let (made, fd) = Memory::with_shards(4, 0).unwrap();
        made.give(1, SOMEBODY);
        made.slot(5, 1).unwrap().add(Counter::Requests, 40);
        let memory = Memory::map(fd.as_fd()).unwrap();
        slot(&memory, 1).add(Counter::Requests, 2);
        slot(&memory, 1).observe(Duration::from_millis(1));
        assert_eq!((memory.count(1, Counter::Requests), older(&made).count(1, Counter::Requests)), (42, 42));
        assert_eq!(made.histogram(1), memory.histogram(1));
        memory.give(1, ANOTHER);
        assert_eq!(memory.count(1, Counter::Requests), 0);
    }

    #[test]
    fn what_an_older_program_counts_in_a_memory_with_shards_is_part_of_the_sum() {
        let (memory, _fd) = given();
        slot(&memory, 0).add(Counter::Requests, 10);
        let older = older(&memory);
        older.slot(5, 1).unwrap().add(Counter::Requests, 5);
        assert_eq!((older.count(1, Counter::Requests), memory.count(1, Counter::Requests)), (5, 15));
        slot(&memory, 0).add(Counter::Requests, 1);
        assert_eq!(memory.count(1, Counter::Requests), 16);
    }

    #[test]
    fn a_slot_that_an_older_program_gave_away_does_not_inherit_the_shards() {
        let (memory, _fd) = given();
        slot(&memory, 0).add(Counter::Requests, 10);
        older(&memory).give(1, ANOTHER);
        older(&memory).slot(5, 1).unwrap().add(Counter::Requests, 5);
        assert_eq!(memory.count(1, Counter::Requests), 5);
        slot(&memory, 0).add(Counter::Requests, 1);
        assert_eq!(memory.count(1, Counter::Requests), 6);
        memory.give(1, SOMEBODY);
        slot(&memory, 0).add(Counter::Requests, 1);
        assert_eq!(memory.count(1, Counter::Requests), 1);
    }

    #[test]
    fn a_file_too_short_for_its_shards_is_refused() {
        let (_memory, fd) = Memory::with_shards(4, 2).unwrap();
        let whole = File::from(fd.try_clone().unwrap()).metadata().unwrap().len();
        for (bytes, accepted) in [(whole, true), (whole - 8, false)] {
            let (mut header, copy) = ([0; 4096], tempfile::tempfile().unwrap());
            File::from(fd.try_clone().unwrap()).read_exact_at(&mut header, 0).unwrap();
            copy.write_all_at(&header, 0).unwrap();
            copy.set_len(bytes).unwrap();
            assert_eq!(Memory::map(copy.as_fd()).is_ok(), accepted, "{bytes}");
        }
    }

    #[test]
    fn slots_and_shards_that_nobody_uses_cost_nothing() {
        let (memory, fd) = Memory::with_shards(SLOTS, 64).unwrap();
        let pages = || File::from(fd.try_clone().unwrap()).metadata().unwrap().blocks() / 8;
        for index in 0..3 {
            memory.give(index, SOMEBODY);
        }
        let before = pages();
        for thread in 0..2 {
            slot(&memory, thread).add(Counter::Requests, 1);
        }
        let seen: Vec<_> = (0..memory.given()).map(|index| memory.histogram(index)).collect();
        assert_eq!((seen.len(), memory.count(1, Counter::Requests)), (3, 2));
        assert_eq!(pages() - before, 2, "a page for each thread");
    }
}
