//! Certificates and authorities that end: told when they are read, and once a day.
//! Asked by `lifecycle` and whenever the certificates are others. Never reads a file.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::lifecycle::Master;
use crate::config::Expiry;
use crate::logging::Severity;

/// Which certificates have been warned of today.
#[derive(Default)]
pub(super) struct Warned {
    day: u64,
    certificates: HashSet<Expiry>,
}

impl Warned {
    /// What is to be told now of certificates that end: each once a day.
    fn news(&mut self, expiries: &[Expiry], now: Duration) -> Vec<String> {
        if !self.is_of(now) {
            *self = Self { day: day(now), certificates: HashSet::new() };
        }
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let warnings = expiries.iter().filter_map(|expiry| Some((expiry, expiry.warning(now)?)));
        warnings.filter(|(expiry, _)| self.certificates.insert((*expiry).clone())).map(|(_, line)| line).collect()
    }

    fn is_of(&self, now: Duration) -> bool {
        self.day == day(now)
    }
}

/// Days since 1970.
fn day(now: Duration) -> u64 {
    now.as_secs() / (24 * 3600)
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Master {
    /// Tells of certificates that end, or have ended, when that has not been told today.
    pub(super) fn warn_of_expiry(&mut self) {
        let expiries = self.bundle.expiries(SystemTime::now());
        for line in self.warned.news(&expiries, now()) {
            self.say(Severity::Warning, &line);
        }
    }

    /// The same, once a day.
    pub(super) fn warn_daily(&mut self) {
        if !self.warned.is_of(now()) {
            self.warn_of_expiry();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_is_near_is_told_once_a_day() {
        let day = Duration::from_secs(24 * 3600);
        let expiry = |path: &str, days: i64| Expiry {
            kind: "frontend",
            proxy: String::from("www"),
            path: path.into(),
            not_after: days * 24 * 3600,
            authority: false,
        };
        let mut warned = Warned::default();
        let mut all = vec![expiry("near.pem", 105), expiry("far.pem", 200)];
        assert_eq!(warned.news(&all, day * 100), ["frontend www: the certificate of `near.pem` expires in 5 days"]);
        // It is a day less by now, but the same day.
        assert!(warned.news(&all, day * 100 + day / 2).is_empty());
        all.push(expiry("gone.pem", 99));
        let gone = "frontend www: the certificate of `gone.pem` has expired";
        assert_eq!(warned.news(&all, day * 100), [gone]);
        assert!(warned.news(&all, day * 100).is_empty());
        assert!(!warned.is_of(day * 101));
        assert!(warned.news(&all, day * 101).contains(&gone.to_owned()));
    }
}
