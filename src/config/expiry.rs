//! When certificates end, and how that is told before clients find out.
//! Asked by the readers of certificates and authorities, the master's log and the statistics. Never reads a file.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::section::{Section, Text};
use super::{Authorities, Backend, Bundle, Certificate, Frontend};

/// A certificate that is good for fewer days than this is worth a warning.
const SOON: i64 = 14;
const DAY: i64 = 24 * 3600;

/// When a certificate in use ends, or the next authority of a file.
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
    /// Whether it is an authority that ends.
    #[serde(skip)]
    pub authority: bool,
}

impl Expiry {
    /// Of a frontend or backend, one per file: that which comes first.
    fn of(owner: (&'static str, &str), shown: &[Certificate], believed: Option<&Authorities>, now: i64) -> Vec<Self> {
        let shown = shown.iter().map(|certificate| (&certificate.path, certificate.not_after, false));
        let believed = believed.and_then(|list| Some((&list.path, list.end(now)?, true)));
        let mut all: Vec<Self> = Vec::new();
        for (path, not_after, authority) in shown.chain(believed) {
            let (kind, proxy) = (owner.0, owner.1.to_owned());
            let one = Self { kind, proxy, path: path.clone(), not_after, authority };
            match all.iter_mut().find(|known| known.path == *path) {
                Some(known) if not_after < known.not_after => *known = one,
                Some(_earlier) => {}
                None => all.push(one),
            }
        }
        all
    }

    /// A line for the log, if it ends soon or has ended.
    #[must_use]
    pub fn warning(&self, now: i64) -> Option<String> {
        let Self { kind, proxy, path, not_after, authority } = self;
        let fate = fate(*not_after, now)?;
        let what = if *authority { "an authority" } else { "the certificate" };
        Some(format!("{kind} {proxy}: {what} of `{}` {fate}", path.display()))
    }
}

impl Bundle {
    /// When the certificates end that clients and servers are shown, and those that vouch for them, as seen now.
    #[must_use]
    pub fn expiries(&self, now: SystemTime) -> Vec<Expiry> {
        let (now, mut all) = (seconds(now), Vec::new());
        for Frontend { name, tls, .. } in &self.frontends {
            let Some(tls) = tls else { continue };
            let believed = tls.client_auth.as_ref().map(|auth| &auth.authorities);
            all.extend(Expiry::of(("frontend", name), &tls.certificates, believed, now));
        }
        for Backend { name, tls, .. } in &self.backends {
            let Some(tls) = tls else { continue };
            let believed = tls.authorities.and_then(|place| self.authorities.get(place));
            all.extend(Expiry::of(("backend", name), tls.identity.as_slice(), believed, now));
        }
        all
    }
}

/// Since the epoch.
fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Seconds since the epoch, while files are read.
pub(super) fn now() -> i64 {
    seconds(SystemTime::now())
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

/// Warns of a certificate that is refused, now or soon.
pub(super) fn tell_end(not_after: i64, file: &Text, section: &Section<'_>) {
    tell(("the certificate", "it"), not_after, file, section);
}

/// Warns of an authority that is not believed any more, now or soon.
pub(super) fn tell_end_of_authority(not_after: i64, file: &Text, section: &Section<'_>) {
    tell(("an authority", "what it has issued"), not_after, file, section);
}

fn tell((what, whose): (&str, &str), not_after: i64, file: &Text, section: &Section<'_>) {
    let now = now();
    if let Some(fate) = fate(not_after, now) {
        let then = if not_after < now { "is refused" } else { "will be refused then" };
        section.report.warning(
            file.span.clone(),
            format!("{what} of `{}` {fate}", file.text),
            format!("{whose} {then}"),
        );
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
