//! The shared memory behind all counters: one file, mapped by the master and every worker.
//! Created by the master, mapped by workers from its descriptor. Never unmapped, never resized.
#![expect(unsafe_code, reason = "mapping a file and viewing it as atomics has no safe form")]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::stat::fstat;

use super::counters::{COUNTERS, Counts, GAUGES, Gauge, HISTOGRAM, OWN, OWNER, SHARDED, Slot, TIMES};
use super::error::StatsError;
use super::snapshot::Kind;
use crate::config::MAX_THREADS;
use crate::handoff::{memory_file, seal_length};

/// Slots a new memory has unless told otherwise; the file is sparse, unused ones cost nothing.
pub const SLOTS: u32 = 16_384;
/// Gauge lanes: workers that may be alive at the same time.
pub const LANES: u32 = 64;
/// Shards a memory may have: as many as a word has bits.
pub(super) const SHARDS: u32 = u64::BITS;
/// Serving threads of one worker that have a heartbeat.
const BEATS: u32 = MAX_THREADS;
/// Version of the layout; counters, words of the header and areas at the end may be appended without a new one.
pub(super) const LAYOUT: u32 = 2;

const MAGIC: u64 = u64::from_le_bytes(*b"PRXSTATS");
/// The header takes one page, so that all that follows is aligned to cache lines.
const HEADER_WORDS: usize = 4096 / WORD;
const WORD: usize = size_of::<u64>();
/// Word of the header with a bit for every lane that may hold something.
const LANES_USED: usize = 3;
/// Word of the header: how many slots were ever given to somebody; they are the first ones.
const GIVEN: usize = 4;
/// Word of the header: how many shards there are; a program that knows of none leaves 0, and counts in the common area.
const SHARDS_MADE: usize = 10;
/// Word of the header with a bit for every shard that may hold something.
pub(super) const SHARDS_USED: usize = 11;
/// Words of a slot in a shard: whole cache lines.
const SHARD_WORDS: usize = OWN + TIMES;

/// Whose a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Frontend, backend or server.
    pub kind: Kind,
    /// SHA-256 of its name.
    pub name: [u64; 4],
}

/// The counters, as long as the process lives.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    words: &'static [AtomicU64],
    slots: u32,
    /// How many shards there are.
    pub(super) shards: u32,
    /// The one that slots taken from here count in; none for whoever is no serving thread.
    pub(super) own: Option<u32>,
}

impl Memory {
    /// Makes an empty memory and the descriptor that shares it. No more threads run at a time than there are
    /// processors, nor are there more shards.
    ///
    /// # Errors
    /// When the system gives no memory, or `slots` is 0 or beyond what one file can hold.
    pub fn create(slots: u32) -> Result<(Self, OwnedFd), StatsError> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with_shards(slots, u32::try_from(processors).unwrap_or(SHARDS).min(SHARDS))
    }

    /// Makes an empty memory with so many shards.
    pub(super) fn with_shards(slots: u32, shards: u32) -> Result<(Self, OwnedFd), StatsError> {
        let length = words(slots, shards).ok_or(StatsError::Size { slots, bytes: 0 })?;
        let bytes = length.get() * WORD;
        let file = anonymous_file(bytes).map_err(|source| StatsError::Create { bytes, source })?;
        let memory = Self { words: map_words(file.as_fd(), length)?, slots, shards, own: None };
        memory.words[1].store(u64::from(LAYOUT) << 32 | u64::from(slots), Ordering::Relaxed);
        memory.words[SHARDS_MADE].store(u64::from(shards), Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        memory.words[2].store(now.as_secs(), Ordering::Relaxed);
        memory.words[0].store(MAGIC, Ordering::Release);
        Ok((memory, file))
    }

    /// Maps what [`Memory::create`] made, here or in another process.
    ///
    /// # Errors
    /// When the descriptor holds something else, another layout, or too little.
    pub fn map(fd: BorrowedFd<'_>) -> Result<Self, StatsError> {
        let size = fstat(fd).map_err(|error| StatsError::Map(error.into()))?.st_size;
        let bytes = u64::try_from(size).unwrap_or(0);
        let header = NonZeroUsize::new(HEADER_WORDS).ok_or(StatsError::Magic)?;
        if bytes < (HEADER_WORDS * WORD) as u64 {
            return Err(StatsError::Magic);
        }
        let head = map_words(fd, header)?;
        if head[0].load(Ordering::Acquire) != MAGIC {
            return Err(StatsError::Magic);
        }
        let shape = head[1].load(Ordering::Relaxed);
        let (found, slots) = ((shape >> 32) as u32, shape as u32);
        if found != LAYOUT {
            return Err(StatsError::Layout { found });
        }
        let shards = u32::try_from(head[SHARDS_MADE].load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let length = words(slots, shards).ok_or(StatsError::Size { slots, bytes })?;
        if bytes < (length.get() * WORD) as u64 {
            return Err(StatsError::Size { slots, bytes });
        }
        Ok(Self { words: map_words(fd, length)?, slots, shards, own: None })
    }

    /// The slot as the worker of this lane sees it; `None` beyond the last slot or lane.
    #[must_use]
    pub fn slot(&self, lane: u32, index: u32) -> Option<Slot> {
        if lane >= LANES || index >= self.slots {
            return None;
        }
        let common = self.words.get(HEADER_WORDS + index as usize * COUNTERS..)?.first_chunk()?;
        let gauges = self.words.get(self.gauges(lane, index)..)?.first_chunk()?;
        let own = self.counts(index, self.own.filter(|_| self.is_sharded(index)))?;
        let (lanes, bit) = (&self.words[LANES_USED], 1 << lane);
        if lanes.load(Ordering::Relaxed) & bit == 0 {
            lanes.fetch_or(bit, Ordering::Relaxed);
        }
        Some(Slot::new(common, own, gauges))
    }

    /// What requests add up of a slot, in a shard or in the common area; `None` beyond the last slot.
    pub(super) fn counts(&self, index: u32, shard: Option<u32>) -> Option<Counts> {
        if index >= self.slots {
            return None;
        }
        let common = HEADER_WORDS + index as usize * COUNTERS;
        let (counters, times) = match shard {
            None => (common, common + HISTOGRAM),
            Some(shard) => {
                let place = shard as usize * self.slots as usize + index as usize;
                let start = self.gauges(LANES, 0) + (LANES * BEATS) as usize + place * SHARD_WORDS;
                (start, start + OWN)
            }
        };
        Some(Counts {
            counters: self.words.get(counters..)?.first_chunk()?,
            times: self.words.get(times..)?.first_chunk()?,
        })
    }

    /// Whether what the shards hold of a slot is its owner's.
    pub(super) fn is_sharded(&self, index: u32) -> bool {
        let word = HEADER_WORDS + index as usize * COUNTERS + SHARDED;
        self.shards > 0 && index < self.slots && self.words[word].load(Ordering::Relaxed) != 0
    }

    /// Forgets the gauges of a worker that is gone, whatever it left behind.
    pub fn clear_lane(&self, lane: u32) {
        if lane < LANES {
            self.words[LANES_USED].fetch_and(!(1 << lane), Ordering::Relaxed);
            let start = self.gauges(lane, 0);
            // No further: even reading takes memory for pages of the sparse file that nobody has touched.
            for gauge in &self.words[start..start + self.given() as usize * GAUGES] {
                gauge.store(0, Ordering::Relaxed);
            }
        }
    }

    /// The heartbeat of a serving thread; `None` beyond the last lane or thread.
    #[must_use]
    pub fn beat(&self, lane: u32, thread: u32) -> Option<&'static AtomicU64> {
        self.beats(lane)?.get(thread as usize)
    }

    /// The heartbeats of a worker's threads; those that have begun count up from 1.
    #[must_use]
    pub fn beats(&self, lane: u32) -> Option<&'static [AtomicU64]> {
        let start = self.gauges(LANES, 0) + (lane * BEATS) as usize;
        self.words.get(start..start + BEATS as usize).filter(|_| lane < LANES)
    }

    /// A new worker's heartbeats begin at 0, whoever had its lane before.
    pub fn clear_beats(&self, lane: u32) {
        for beat in self.beats(lane).unwrap_or_default() {
            beat.store(0, Ordering::Relaxed);
        }
    }

    /// A gauge over all workers.
    #[must_use]
    pub fn gauge_total(&self, index: u32, gauge: Gauge) -> u64 {
        if index >= self.slots {
            return 0;
        }
        let (mut lanes, mut total) = (self.words[LANES_USED].load(Ordering::Relaxed), 0_u64);
        while lanes != 0 {
            let place = self.gauges(lanes.trailing_zeros(), index) + gauge as usize;
            total = total.wrapping_add(self.words[place].load(Ordering::Relaxed));
            lanes &= lanes - 1;
        }
        // A lane cleared under a worker that still counts down would show as a huge number.
        if total > i64::MAX as u64 { 0 } else { total }
    }

    /// When the memory was created: uptime counts from here, across reloads.
    #[must_use]
    pub fn started(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.words[2].load(Ordering::Relaxed))
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// How many slots were ever given to somebody; they are the first ones.
    #[must_use]
    pub fn given(&self) -> u32 {
        u32::try_from(self.words[GIVEN].load(Ordering::Relaxed)).map_or(self.slots, |given| given.min(self.slots))
    }

    /// Whose a slot is; `None` for one that nobody has.
    #[must_use]
    pub fn owner(&self, index: u32) -> Option<Owner> {
        let slot = self.slot(0, index).filter(|_| index < self.given())?;
        let word = |place: usize| slot.word(OWNER + place).load(Ordering::Acquire);
        let kind = Kind::of(word(4))?;
        Some(Owner { kind, name: std::array::from_fn(word) })
    }

    /// Gives a slot to somebody; whatever it held is forgotten. No worker may have it.
    pub fn give(&self, index: u32, owner: Owner) {
        let Some(slot) = self.slot(0, index) else { return };
        // First the old owner goes, last comes the new one: a master that dies in between leaves a slot of nobody.
        slot.word(OWNER + 4).store(0, Ordering::Release);
        for place in 0..COUNTERS {
            slot.word(place).store(0, Ordering::Relaxed);
        }
        self.forget_shards(index);
        slot.word(SHARDED).store((self.shards > 0).into(), Ordering::Relaxed);
        for (place, word) in owner.name.into_iter().enumerate() {
            slot.word(OWNER + place).store(word, Ordering::Relaxed);
        }
        slot.word(OWNER + 4).store(owner.kind as u64 + 1, Ordering::Release);
        for gauge in (0..LANES).flat_map(|lane| (0..GAUGES).map(move |gauge| (lane, gauge))) {
            let (lane, gauge) = gauge;
            if self.words[LANES_USED].load(Ordering::Relaxed) & (1 << lane) != 0 {
                self.words[self.gauges(lane, index) + gauge].store(0, Ordering::Relaxed);
            }
        }
        self.words[GIVEN].fetch_max(u64::from(index) + 1, Ordering::Relaxed);
    }

    /// Open client connections of the worker of a lane.
    #[must_use]
    pub fn connections(&self, lane: u32) -> u64 {
        let frontends =
            (0..self.given()).filter(|index| self.owner(*index).is_some_and(|owner| owner.kind == Kind::Frontend));
        frontends.filter_map(|index| self.slot(lane, index)).map(|slot| slot.current(Gauge::Sessions)).sum()
    }

    /// A word of the header.
    pub(super) fn header(&self, word: usize) -> &'static AtomicU64 {
        &self.words[word]
    }

    fn gauges(&self, lane: u32, index: u32) -> usize {
        let slots = self.slots as usize;
        HEADER_WORDS + slots * COUNTERS + (lane as usize * slots + index as usize) * GAUGES
    }
}

/// Words of a whole memory; `None` for no slots, more than four million (6 GiB of addresses and 2 for each shard), or
/// more shards than there may be.
fn words(slots: u32, shards: u32) -> Option<NonZeroUsize> {
    if slots > 1 << 22 || shards > SHARDS {
        return None;
    }
    let slots = NonZeroUsize::new(slots as usize)?.get();
    let of_slot = COUNTERS + LANES as usize * GAUGES + shards as usize * SHARD_WORDS;
    NonZeroUsize::new(HEADER_WORDS + slots * of_slot + (LANES * BEATS) as usize)
}

/// A file in memory that nobody can shrink (a mapping beyond the end would be fatal) where the kernel can see to it.
fn anonymous_file(bytes: usize) -> io::Result<OwnedFd> {
    let file = memory_file("proxy-stats")?;
    file.set_len(u64::try_from(bytes).map_err(io::Error::other)?)?;
    seal_length(&file)?;
    Ok(file.into())
}

/// Maps the first `length` words of a file, for as long as the process lives.
fn map_words(fd: BorrowedFd<'_>, length: NonZeroUsize) -> Result<&'static [AtomicU64], StatsError> {
    let bytes = length.saturating_mul(NonZeroUsize::MIN.saturating_add(WORD - 1));
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses the place (no address, no MAP_FIXED), so no other memory is touched.
    let start = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, fd, 0) }
        .map_err(|error| StatsError::Map(error.into()))?;
    // SAFETY: the mapping is page-aligned, `bytes` long, zeroed or written by atomics only, valid
    // u64 for any bits, and never unmapped, so `'static` holds. Other processes write to it, but
    // every access here goes through `AtomicU64`, which allows that. Callers have checked the
    // file's size, and memfds are sealed against shrinking.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>().as_ptr(), length.get()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{BUCKETS, Counter};
    use std::io::{Seek, Write};

    #[test]
    fn two_mappings_of_one_descriptor_are_one_memory() {
        let (memory, fd) = Memory::create(8).unwrap();
        let other = Memory::map(fd.as_fd()).unwrap();
        assert_eq!((other.slots(), other.started()), (8, memory.started()));
        memory.give(7, Owner { kind: Kind::Server, name: [1; 4] });
        let (mine, theirs) = (memory.slot(0, 7).unwrap(), other.slot(63, 7).unwrap());
        mine.add(Counter::Requests, 3);
        assert_eq!(other.count(7, Counter::Requests), 3);
        assert_eq!(memory.count(6, Counter::Requests), 0);
        mine.enter(Gauge::Sessions);
        theirs.enter(Gauge::Sessions);
        theirs.enter(Gauge::Sessions);
        assert_eq!((mine.current(Gauge::Sessions), memory.gauge_total(7, Gauge::Sessions)), (1, 3));
        memory.clear_lane(63);
        assert_eq!(other.gauge_total(7, Gauge::Sessions), 1);
        theirs.leave(Gauge::Sessions);
        mine.leave(Gauge::Sessions);
        assert_eq!(other.gauge_total(7, Gauge::Sessions), 0);
    }

    #[test]
    fn there_is_nothing_beyond_the_last_slot_and_lane() {
        let (memory, _fd) = Memory::create(2).unwrap();
        assert!(memory.slot(LANES - 1, 1).is_some());
        assert!(memory.slot(LANES, 0).is_none() && memory.slot(0, 2).is_none());
        memory.clear_lane(LANES);
        assert_eq!(memory.gauge_total(2, Gauge::Queued), 0);
        assert!(memory.beat(LANES - 1, BEATS - 1).is_some());
        assert!(memory.beat(LANES, 0).is_none() && memory.beat(0, BEATS).is_none());
        assert!(matches!(Memory::create(0), Err(StatsError::Size { .. })));
        assert!(matches!(Memory::create(u32::MAX), Err(StatsError::Size { .. })));
    }

    #[test]
    fn a_slot_that_is_given_away_holds_nothing_of_its_former_owner() {
        let (memory, fd) = Memory::create(4).unwrap();
        let owner = |kind, name| Owner { kind, name: [name; 4] };
        assert_eq!((memory.given(), memory.owner(2)), (0, None));
        memory.give(2, owner(Kind::Frontend, 7));
        let other = Memory::map(fd.as_fd()).unwrap();
        assert_eq!((other.given(), other.owner(2)), (3, Some(owner(Kind::Frontend, 7))));
        let slot = memory.slot(9, 2).unwrap();
        slot.add(Counter::Requests, 3);
        slot.observe(Duration::from_millis(1));
        slot.enter(Gauge::Sessions);
        assert_eq!((other.connections(9), other.connections(8)), (1, 0));
        memory.give(2, owner(Kind::Server, 8));
        assert_eq!(other.owner(2), Some(owner(Kind::Server, 8)));
        assert_eq!((memory.count(2, Counter::Requests), slot.current(Gauge::Sessions)), (0, 0));
        assert_eq!(memory.histogram(2).counts, [0; BUCKETS]);
    }

    fn forged(words: &[u64], bytes: u64) -> Result<Memory, StatsError> {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        file.rewind().unwrap();
        words.iter().for_each(|word| file.write_all(&word.to_ne_bytes()).unwrap());
        Memory::map(file.as_fd())
    }

    #[test]
    fn foreign_memory_is_refused() {
        let shape = |layout: u64, slots: u64| layout << 32 | slots;
        assert!(matches!(forged(&[], 0), Err(StatsError::Magic)));
        assert!(matches!(forged(&[MAGIC], 100), Err(StatsError::Magic)));
        assert!(matches!(forged(&[MAGIC + 1, shape(2, 1)], 8192), Err(StatsError::Magic)));
        assert!(matches!(forged(&[MAGIC, shape(1, 1)], 8192), Err(StatsError::Layout { found: 1 })));
        assert!(matches!(forged(&[MAGIC, shape(2, 0)], 8192), Err(StatsError::Size { .. })));
        assert!(matches!(forged(&[MAGIC, shape(2, 16_384)], 8192), Err(StatsError::Size { .. })));
        let whole = words(1, 0).unwrap().get() * WORD;
        assert!(forged(&[MAGIC, shape(2, 1)], whole as u64).is_ok());
    }

    #[test]
    fn heartbeats_are_seen_by_the_other_side_and_lie_beside_all_gauges() {
        let (memory, fd) = Memory::create(2).unwrap();
        let other = Memory::map(fd.as_fd()).unwrap();
        memory.slot(LANES - 1, 1).unwrap().enter(Gauge::Sessions);
        assert!(other.beats(0).unwrap().iter().all(|beat| beat.load(Ordering::Relaxed) == 0));
        memory.beat(0, 3).unwrap().fetch_add(1, Ordering::Relaxed);
        assert_eq!(other.beats(0).unwrap()[3].load(Ordering::Relaxed), 1);
        other.clear_beats(0);
        assert_eq!(memory.beat(0, 3).unwrap().load(Ordering::Relaxed), 0);
        assert_eq!(other.gauge_total(1, Gauge::Sessions), 1);
    }

    #[test]
    fn slots_do_not_share_cache_lines() {
        let (memory, _fd) = Memory::create(4).unwrap();
        for index in 0..4 {
            let place = HEADER_WORDS + index * COUNTERS;
            assert_eq!(std::ptr::from_ref(&memory.words[place]).addr() % 64, 0);
        }
    }
}
