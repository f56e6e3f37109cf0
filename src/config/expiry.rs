//! When certificates end, and how that is told before clients find out.
//! Asked by the readers of certificates, the master's log and the statistics. Never reads a clock.

use std::path::PathBuf;

use serde::Serialize;

use super::section::{Section, Text};
use super::{Bundle, Certificate};

/// A certificate that is good for fewer days than this is worth a warning.
const SOON: i64 = 14;
const DAY: i64 = 24 * 3600;

/// When a certificate in use ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Expiry {
    /// `frontend` or `backend`.
    pub kind: &'static str,
    /// Name of the frontend, or of the backend whose servers see it.
    pub proxy: String,
    /// Its file.
    pub path: PathBuf,
    /// End of validity, seconds since the epoch.
    pub not_after: i64,
}

impl Expiry {
    /// The `kind` of what clients are shown.
    pub const FRONTEND: &'static str = "frontend";

    /// Of a frontend's certificates, one per file.
    #[must_use]
    pub fn of_frontend(name: &str, certificates: &[Certificate]) -> Vec<Self> {
        Self::of(Self::FRONTEND, name, certificates)
    }

    fn of<'a>(kind: &'static str, proxy: &str, certificates: impl IntoIterator<Item = &'a Certificate>) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for Certificate { path, not_after, .. } in certificates {
            if !all.iter().any(|known| known.path == *path) {
                all.push(Self { kind, proxy: proxy.to_owned(), path: path.clone(), not_after: *not_after });
            }
        }
        all
    }

    /// A line for the log, if it ends soon or has ended.
    #[must_use]
    pub fn warning(&self, now: i64) -> Option<String> {
        let Self { kind, proxy, path, not_after } = self;
        let fate = fate(*not_after, now)?;
        Some(format!("{kind} {proxy}: the certificate of `{}` {fate}", path.display()))
    }
}

impl Bundle {
    /// When the certificates end that clients and servers are shown.
    #[must_use]
    pub fn expiries(&self) -> Vec<Expiry> {
        let mut all = Vec::new();
        for frontend in &self.frontends {
            all.extend(frontend.tls.iter().flat_map(|tls| Expiry::of_frontend(&frontend.name, &tls.certificates)));
        }
        for backend in &self.backends {
            let identity = backend.tls.as_ref().and_then(|tls| tls.identity.as_ref());
            all.extend(Expiry::of("backend", &backend.name, identity));
        }
        all
    }
}

/// What becomes of a certificate, if that is worth a word.
fn fate(not_after: i64, now: i64) -> Option<String> {
    let left = not_after.saturating_sub(now);
    match left / DAY {
        _ if left < 0 => Some(String::from("has expired")),
        0 => Some(String::from("expires within a day")),
        1 => Some(String::from("expires in 1 day")),
        days if days < SOON => Some(format!("expires in {days} days")),
        _ => None,
    }
}

/// Warns of a certificate that will be refused, now or soon.
pub(super) fn tell_expiry(certificate: &Certificate, file: &Text, section: &Section<'_>) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    if let Some(fate) = fate(certificate.not_after, now) {
        let fix = if certificate.not_after < now { "clients will refuse it" } else { "clients will refuse it then" };
        section.report.warning(file.span.clone(), format!("the certificate of `{}` {fate}", file.text), fix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_weeks_before_the_end_the_days_are_counted() {
        let now = 1_800_000_000;
        for (left, expected) in [
            (-1, Some("has expired")),
            (0, Some("expires within a day")),
            (DAY - 1, Some("expires within a day")),
            (DAY, Some("expires in 1 day")),
            (2 * DAY, Some("expires in 2 days")),
            (14 * DAY - 1, Some("expires in 13 days")),
            (14 * DAY, None),
            (i64::MAX, None),
        ] {
            assert_eq!(fate(now + left.min(i64::MAX - now), now).as_deref(), expected, "{left}");
        }
    }
}
