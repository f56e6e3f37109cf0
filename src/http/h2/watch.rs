//! Counts the frames of a client that cost work and bring none: floods of SETTINGS, PING, RST_STREAM and their like.
//! Shown every byte read by `proxy`. Never interprets a payload; the library does that.

use std::time::{Duration, Instant};

/// Credit of a connection, in frames. A client may run into debt only by doing nothing but work for us: requests,
/// answers taken and time earn more than well-behaved clients spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Most that can be saved up, and what a new connection has.
    pub burst: u32,
    /// Earned every second.
    pub per_second: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { burst: 2000, per_second: 500 }
    }
}

/// Bytes of answer that earn one frame: a client may open its window that often.
const ANSWER: u64 = 1024;
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// Follows the frames of one client.
#[derive(Debug)]
pub struct Watch {
    budget: Budget,
    credit: i64,
    /// When credit was last given for time.
    paid: Instant,
    /// Answer bytes not yet credited.
    answered: u64,
    /// Bytes until the next frame header.
    skip: usize,
    header: [u8; HEADER],
    filled: usize,
}

impl Watch {
    /// Watches from the first byte of the preface on.
    #[must_use]
    pub fn new(budget: Budget, now: Instant) -> Self {
        let skip = super::PREFACE.len();
        Self { budget, credit: i64::from(budget.burst), paid: now, answered: 0, skip, header: [0; HEADER], filled: 0 }
    }

    /// Takes in what was read; false when the client has overdrawn.
    pub fn read(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEADER - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled == HEADER {
                self.filled = 0;
                self.frame();
            }
        }
        if self.credit < 0 {
            self.pay(now);
        }
        self.credit >= 0
    }

    /// Takes note of bytes the client has taken.
    pub fn wrote(&mut self, bytes: usize) {
        self.answered += bytes as u64;
        if self.answered >= ANSWER {
            self.earn(i64::try_from(self.answered / ANSWER).unwrap_or(i64::MAX));
            self.answered %= ANSWER;
        }
    }

    fn frame(&mut self) {
        let [a, b, c, kind, flags, ..] = self.header;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        match kind {
            HEADERS => self.earn(1),
            DATA if self.skip > 0 || flags & END_STREAM != 0 => {}
            // A request taken back has cost more than one that never came.
            RST_STREAM => self.credit -= 2,
            _ => self.credit -= 1,
        }
    }

    /// Gives credit for the time since it was last given: asked for only when there is none left.
    fn pay(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.paid).min(Duration::from_secs(3600));
        let earned = since.as_millis() * u128::from(self.budget.per_second) / 1000;
        self.paid = now;
        self.earn(i64::try_from(earned).unwrap_or(i64::MAX));
    }

    fn earn(&mut self, frames: i64) {
        self.credit = self.credit.saturating_add(frames).min(i64::from(self.budget.burst));
    }
}
