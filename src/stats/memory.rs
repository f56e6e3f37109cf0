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

use super::counters::{COUNTERS, GAUGES, Gauge, Slot};
use super::error::StatsError;
use crate::handoff::{memory_file, seal_length};

/// Slots a new memory has unless told otherwise; the file is sparse, unused ones cost nothing.
pub const SLOTS: u32 = 16_384;
/// Gauge lanes: workers that may be alive at the same time.
pub const LANES: u32 = 64;
/// Version of the layout; counters and gauges may be appended without a new one.
pub(super) const LAYOUT: u32 = 1;

const MAGIC: u64 = u64::from_le_bytes(*b"PRXSTATS");
/// The header takes one page, so that all that follows is aligned to cache lines.
const HEADER_WORDS: usize = 4096 / WORD;
const WORD: usize = size_of::<u64>();
/// Word of the header with a bit for every lane that may hold something.
const LANES_USED: usize = 3;

/// The counters, as long as the process lives.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    words: &'static [AtomicU64],
    slots: u32,
}

impl Memory {
    /// Makes an empty memory and the descriptor that shares it.
    ///
    /// # Errors
    /// When the system gives no memory, or `slots` is 0 or beyond what one file can hold.
    pub fn create(slots: u32) -> Result<(Self, OwnedFd), StatsError> {
        let length = words(slots).ok_or(StatsError::Size { slots, bytes: 0 })?;
        let bytes = length.get() * WORD;
        let file = anonymous_file(bytes).map_err(|source| StatsError::Create { bytes, source })?;
        let memory = Self { words: map_words(file.as_fd(), length)?, slots };
        memory.words[1].store(u64::from(LAYOUT) << 32 | u64::from(slots), Ordering::Relaxed);
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
        let length = words(slots).ok_or(StatsError::Size { slots, bytes })?;
        if bytes < (length.get() * WORD) as u64 {
            return Err(StatsError::Size { slots, bytes });
        }
        Ok(Self { words: map_words(fd, length)?, slots })
    }

    /// The slot as the worker of this lane sees it; `None` beyond the last slot or lane.
    #[must_use]
    pub fn slot(&self, lane: u32, index: u32) -> Option<Slot> {
        if lane >= LANES || index >= self.slots {
            return None;
        }
        let counters = self.words.get(HEADER_WORDS + index as usize * COUNTERS..)?.first_chunk()?;
        let gauges = self.words.get(self.gauges(lane, index)..)?.first_chunk()?;
        let (lanes, own) = (&self.words[LANES_USED], 1 << lane);
        if lanes.load(Ordering::Relaxed) & own == 0 {
            lanes.fetch_or(own, Ordering::Relaxed);
        }
        Some(Slot::new(counters, gauges))
    }

    /// Forgets the gauges of a worker that is gone, whatever it left behind.
    pub fn clear_lane(&self, lane: u32) {
        if lane < LANES {
            self.words[LANES_USED].fetch_and(!(1 << lane), Ordering::Relaxed);
            let start = self.gauges(lane, 0);
            for gauge in &self.words[start..start + self.slots as usize * GAUGES] {
                // Reading first leaves untouched pages of the sparse file untouched.
                if gauge.load(Ordering::Relaxed) != 0 {
                    gauge.store(0, Ordering::Relaxed);
                }
            }
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

    fn gauges(&self, lane: u32, index: u32) -> usize {
        let slots = self.slots as usize;
        HEADER_WORDS + slots * COUNTERS + (lane as usize * slots + index as usize) * GAUGES
    }
}

/// Words of a whole memory; `None` for no slots or more than four million (6 GiB of addresses).
fn words(slots: u32) -> Option<NonZeroUsize> {
    if slots > 1 << 22 {
        return None;
    }
    let slots = NonZeroUsize::new(slots as usize)?.get();
    NonZeroUsize::new(HEADER_WORDS + slots * (COUNTERS + LANES as usize * GAUGES))
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
    use crate::stats::Counter;
    use std::io::{Seek, Write};

    #[test]
    fn two_mappings_of_one_descriptor_are_one_memory() {
        let (memory, fd) = Memory::create(8).unwrap();
        let other = Memory::map(fd.as_fd()).unwrap();
        assert_eq!((other.slots(), other.started()), (8, memory.started()));
        let (mine, theirs) = (memory.slot(0, 7).unwrap(), other.slot(63, 7).unwrap());
        mine.add(Counter::Requests, 3);
        assert_eq!(theirs.value(Counter::Requests), 3);
        assert_eq!(memory.slot(0, 6).unwrap().value(Counter::Requests), 0);
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
        assert!(matches!(Memory::create(0), Err(StatsError::Size { .. })));
        assert!(matches!(Memory::create(u32::MAX), Err(StatsError::Size { .. })));
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
        assert!(matches!(forged(&[MAGIC + 1, shape(1, 1)], 8192), Err(StatsError::Magic)));
        assert!(matches!(forged(&[MAGIC, shape(2, 1)], 8192), Err(StatsError::Layout { found: 2 })));
        assert!(matches!(forged(&[MAGIC, shape(1, 0)], 8192), Err(StatsError::Size { .. })));
        assert!(matches!(forged(&[MAGIC, shape(1, 16_384)], 8192), Err(StatsError::Size { .. })));
        assert!(forged(&[MAGIC, shape(1, 1)], 8192).is_ok());
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
