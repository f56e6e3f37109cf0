//! What the shared memory keeps of the daemon as a whole: reloads, generations, lost log lines, who probes.
//! Written by the master and by the probing worker, read by every view. Never says what a reload was about.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::memory::{LANES, Memory};

// Words of the header. Append only.
const PROBER: usize = 5;
const LOG_LINES_DROPPED: usize = 6;
const LAST_APPLIED: usize = 7;
const LAST_MICROS: usize = 8;
const TOTAL_MICROS: usize = 9;
const CONFIG: usize = 12;
const RELOADS: usize = 16;
const LIVES: usize = 64;

/// How a new generation came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReloadPath {
    /// The listening sockets were handed over.
    Handover,
    /// They were bound anew.
    Rebind,
    /// A worker that died was replaced.
    Respawn,
    /// The program was replaced.
    Upgrade,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReloadResult {
    /// The new generation serves.
    Applied,
    /// Refused before anything was changed.
    Rejected,
    /// Tried and undone.
    RolledBack,
}

impl ReloadPath {
    /// All, in the order of the memory.
    pub const ALL: [Self; 4] = [Self::Handover, Self::Rebind, Self::Respawn, Self::Upgrade];

    /// Its name in statistics.
    #[must_use]
    pub fn word(self) -> &'static str {
        ["handover", "rebind", "respawn", "upgrade"][self as usize]
    }
}

impl ReloadResult {
    /// All, in the order of the memory.
    pub const ALL: [Self; 3] = [Self::Applied, Self::Rejected, Self::RolledBack];

    /// Its name in statistics.
    #[must_use]
    pub fn word(self) -> &'static str {
        ["applied", "rejected", "rolled_back"][self as usize]
    }
}

/// All transactions since counting began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reloads {
    counts: [[u64; 3]; 4],
    /// When a new generation last began to serve, in seconds since 1970; replaced workers do not count.
    pub last_applied: Option<u64>,
    /// How long the last transaction took.
    pub last_took: Duration,
    /// How long all of them took together.
    pub total_took: Duration,
    /// SHA-256 of the configuration that serves.
    pub config: [u64; 4],
}

impl Reloads {
    /// How often a path ended like that.
    #[must_use]
    pub fn count(&self, path: ReloadPath, result: ReloadResult) -> u64 {
        self.counts[path as usize][result as usize]
    }

    /// SHA-256 of the configuration that serves, lower-case hex.
    #[must_use]
    pub fn config_sha256(&self) -> String {
        self.config.iter().map(|word| format!("{word:016x}")).collect()
    }
}

/// A worker that is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Life {
    /// Its generation.
    pub generation: u64,
    /// Whether it drains, rather than serves.
    pub draining: bool,
    /// Client connections it has open.
    pub connections: u64,
}

impl Memory {
    /// Counts a transaction that has ended.
    pub fn count_reload(&self, path: ReloadPath, result: ReloadResult, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.header(LAST_MICROS).store(micros, Relaxed);
        self.header(TOTAL_MICROS).fetch_add(micros, Relaxed);
        self.header(place(path, result)).fetch_add(1, Relaxed);
        if result == ReloadResult::Applied && path != ReloadPath::Respawn {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            self.header(LAST_APPLIED).store(now, Relaxed);
        }
    }

    /// Says which configuration serves, by its SHA-256 in hex.
    pub fn set_config(&self, sha256: &str) {
        for (place, digits) in sha256.as_bytes().chunks(16).take(4).enumerate() {
            let word = std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
            self.header(CONFIG + place).store(word.unwrap_or(0), Relaxed);
        }
    }

    /// All transactions so far.
    #[must_use]
    pub fn reloads(&self) -> Reloads {
        let word = |place: usize| self.header(place).load(Relaxed);
        let mut reloads = Reloads {
            last_applied: Some(word(LAST_APPLIED)).filter(|second| *second > 0),
            last_took: Duration::from_micros(word(LAST_MICROS)),
            total_took: Duration::from_micros(word(TOTAL_MICROS)),
            config: std::array::from_fn(|part| word(CONFIG + part)),
            ..Reloads::default()
        };
        for (path, result) in all() {
            reloads.counts[path as usize][result as usize] = word(place(path, result));
        }
        reloads
    }

    /// Says which generation has which lane, and whether it drains; all others are nobody's.
    pub fn set_lives(&self, lives: impl IntoIterator<Item = (u32, u64, bool)>) {
        let mut words = [0; LANES as usize];
        for (lane, generation, draining) in lives {
            if let Some(word) = words.get_mut(lane as usize) {
                *word = generation << 1 | u64::from(draining);
            }
        }
        for (lane, word) in words.into_iter().enumerate() {
            self.header(LIVES + lane).store(word, Relaxed);
        }
    }

    /// The living workers, oldest first.
    #[must_use]
    pub fn lives(&self) -> Vec<Life> {
        let words = (0..LANES).map(|lane| (lane, self.header(LIVES + lane as usize).load(Relaxed)));
        let mut lives: Vec<_> = words
            .filter(|(_, word)| *word > 0)
            .map(|(lane, word)| Life {
                generation: word >> 1,
                draining: word & 1 == 1,
                connections: self.connections(lane),
            })
            .collect();
        lives.sort_by_key(|life| life.generation);
        lives
    }

    /// Counts log lines that no target took.
    pub fn drop_log_lines(&self, lines: u64) {
        self.header(LOG_LINES_DROPPED).fetch_add(lines, Relaxed);
    }

    /// Log lines that no target took.
    #[must_use]
    pub fn log_lines_dropped(&self) -> u64 {
        self.header(LOG_LINES_DROPPED).load(Relaxed)
    }

    /// Health checks are the business of this generation from now on; of nobody's, with 0.
    pub fn set_prober(&self, generation: u64) {
        self.header(PROBER).store(generation, Relaxed);
    }

    /// Whose business health checks are.
    #[must_use]
    pub fn prober(&self) -> u64 {
        self.header(PROBER).load(Relaxed)
    }
}

fn all() -> impl Iterator<Item = (ReloadPath, ReloadResult)> {
    ReloadPath::ALL.into_iter().flat_map(|path| ReloadResult::ALL.map(|result| (path, result)))
}

fn place(path: ReloadPath, result: ReloadResult) -> usize {
    RELOADS + path as usize * ReloadResult::ALL.len() + result as usize
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn another_process_reads_the_same_history() {
        let (memory, fd) = Memory::create(1).unwrap();
        assert_eq!(memory.reloads(), Reloads::default());
        memory.count_reload(ReloadPath::Respawn, ReloadResult::Applied, Duration::from_millis(3));
        assert_eq!(memory.reloads().last_applied, None);
        for (path, result) in all() {
            memory.count_reload(path, result, Duration::from_millis(2));
        }
        let digest = "0123456789abcdef".repeat(4);
        memory.set_config(&digest);
        let read = Memory::map(fd.as_fd()).unwrap().reloads();
        assert_eq!(read.counts, [[1, 1, 1], [1, 1, 1], [2, 1, 1], [1, 1, 1]]);
        assert_eq!((read.last_took, read.total_took), (Duration::from_millis(2), Duration::from_millis(27)));
        assert!(read.last_applied.is_some());
        assert_eq!(read.config_sha256(), digest);
    }

    #[test]
    fn the_living_are_known_and_the_dead_forgotten() {
        let (memory, _fd) = Memory::create(1).unwrap();
        memory.set_lives([(5, 9, false), (63, 7, true)]);
        let life = |generation, draining| Life { generation, draining, connections: 0 };
        assert_eq!(memory.lives(), [life(7, true), life(9, false)]);
        memory.set_lives([(5, 9, true)]);
        assert_eq!(memory.lives(), [life(9, true)]);
    }
}
