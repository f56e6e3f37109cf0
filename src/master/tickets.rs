//! The TLS ticket keys of all generations: made here, in memory only, and made anew from time to time.
//! Owned by `lifecycle`. A key that was exchanged goes on decrypting until it is the oldest.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::config::Tickets;
use crate::tls::{TlsError, random_ticket_key};

/// The keys, newest first, and when the newest was made.
pub(super) struct TicketRing {
    keys: Arc<Vec<Vec<u8>>>,
    made: Instant,
}

impl TicketRing {
    pub(super) fn new(now: Instant) -> Result<Self, TlsError> {
        Ok(Self { keys: Arc::new(vec![random_ticket_key()?]), made: now })
    }

    /// The keys of the program before, and since when there are the newest of them.
    pub(super) fn adopt(keys: Vec<Vec<u8>>, age: Duration, now: Instant) -> Result<Self, TlsError> {
        if keys.is_empty() {
            return Self::new(now);
        }
        Ok(Self { keys: Arc::new(keys), made: now.checked_sub(age).unwrap_or(now) })
    }

    /// When the newest key was made, by the clock on the wall: what another process on this machine understands.
    pub(super) fn made(&self) -> SystemTime {
        let now = SystemTime::now();
        now.checked_sub(self.made.elapsed()).unwrap_or(now)
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.made)
    }

    pub(super) fn keys(&self) -> Arc<Vec<Vec<u8>>> {
        Arc::clone(&self.keys)
    }

    /// When the next key is due; never, if that is beyond what the clock can say.
    pub(super) fn due(&self, rules: &Tickets) -> Option<Instant> {
        self.made.checked_add(rules.rotate)
    }

    /// Puts a new key in front where it is due. True when it was.
    pub(super) fn rotate(&mut self, now: Instant, rules: &Tickets) -> Result<bool, TlsError> {
        if self.due(rules).is_none_or(|due| due > now) {
            return Ok(false);
        }
        // Even a failure is tried again only in due time.
        self.made = now;
        let newest = random_ticket_key()?;
        let older = self.keys.iter().take(rules.keep.saturating_sub(1)).cloned();
        self.keys = Arc::new(std::iter::once(newest).chain(older).collect());
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_rotate_in_time_and_the_oldest_goes() {
        let rules = Tickets { rotate: Duration::from_secs(10), keep: 2 };
        let start = Instant::now();
        let mut ring = TicketRing::new(start).unwrap();
        let first = ring.keys();
        assert!(!ring.rotate(start + Duration::from_secs(9), &rules).unwrap());
        assert!(ring.rotate(start + Duration::from_secs(10), &rules).unwrap());
        let second = ring.keys();
        assert_eq!((second.len(), &second[1]), (2, &first[0]));
        assert!(!ring.rotate(start + Duration::from_secs(19), &rules).unwrap());
        assert!(ring.rotate(start + Duration::from_secs(20), &rules).unwrap());
        assert_eq!((ring.keys().len(), &ring.keys()[1]), (2, &second[0]));
    }
}
