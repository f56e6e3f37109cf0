//! The descriptor limit that `maxconn` needs.
//! Called by `master` while it loads; workers inherit it. Never lowers a limit.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors beside connections and listeners: logs, channel, shared memory, the statistics page; and the
/// copies of connections that are leaving for another worker.
const MARGIN: u64 = 128 + 506;

/// Descriptors of a thread's own event loop.
const PER_THREAD: u64 = 8;

/// Fewer descriptors than `maxconn` connections may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("maxconn {maxconn} needs {needed} descriptors, the limit is {hard}")]
pub struct Shortage {
    /// What was asked for.
    pub maxconn: u32,
    /// Descriptors for it.
    pub needed: u64,
    /// RLIMIT_NOFILE, hard.
    pub hard: u64,
    /// The maxconn that fits.
    pub fits: u64,
}

impl Shortage {
    /// What may happen where it is accepted, in words.
    #[must_use]
    pub fn warning(&self) -> String {
        format!(
            "warning: {self}, which is enough for {}: with more, clients may wait to be accepted, and requests may be \
             answered 503 because no connection to a server can be opened; strict-limits = false allows that",
            self.fits
        )
    }
}

/// A limit that cannot be raised far enough.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// `maxconn` needs more than the hard limit.
    #[error("{0}: lower maxconn to {fits}, or raise the limit (ulimit -n, LimitNOFILE=)", fits = .0.fits)]
    TooLow(Shortage),
    /// getrlimit(2) or setrlimit(2) failed.
    #[error("cannot change the descriptor limit")]
    System(#[from] Errno),
}

/// What a worker holds beside its connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fittings {
    /// Listening sockets, of which every thread has its own copy.
    pub listeners: usize,
    /// Serving threads.
    pub threads: usize,
    /// Idle connections to servers that may be kept at most.
    pub idle: usize,
}

impl Fittings {
    /// Descriptors for all that, when `maxconn` connections bound the idle ones.
    fn descriptors(self, maxconn: u64) -> u64 {
        let (listeners, threads) = (self.listeners as u64, self.threads as u64);
        MARGIN + listeners * (2 + threads) + threads * PER_THREAD + (self.idle as u64).min(maxconn)
    }
}

/// The largest `maxconn` that fits under a limit: two descriptors a connection, and the fittings.
fn fitting(limit: u64, fittings: Fittings) -> u64 {
    let with_all_idle = limit.saturating_sub(fittings.descriptors(u64::MAX)) / 2;
    let with_as_many_idle = limit.saturating_sub(fittings.descriptors(0)) / 3;
    with_all_idle.max(with_as_many_idle)
}

/// What a configuration says of connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Connections at most; `None` is what the hard limit allows.
    pub maxconn: Option<u32>,
    /// Whether a limit that is too low is an error.
    pub strict: bool,
}

/// Raises the limit for `maxconn` connections and their counterparts; without `maxconn`, settles on
/// what the hard limit allows. Returns the settled maxconn, and what is missing for it where that was said not to matter.
///
/// # Errors
/// When the hard limit is too low, and that matters.
pub fn raise_for(wanted: Wanted, fittings: Fittings) -> Result<(u32, Option<Shortage>), LimitError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let fits = fitting(hard, fittings);
    let Some(maxconn) = wanted.maxconn else {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        return Ok((u32::try_from(fits).unwrap_or(u32::MAX).max(1), None));
    };
    let needed = u64::from(maxconn) * 2 + fittings.descriptors(maxconn.into());
    if needed <= soft {
        return Ok((maxconn, None));
    }
    if needed <= hard {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard)?;
        return Ok((maxconn, None));
    }
    // Root may raise the hard limit too.
    if setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_ok() {
        return Ok((maxconn, None));
    }
    let shortage = Shortage { maxconn, needed, hard, fits };
    if wanted.strict {
        return Err(LimitError::TooLow(shortage));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok((maxconn, Some(shortage)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_can_be_asked_for() {
        for (limit, listeners, threads, idle) in [(1024, 1, 2, 192), (20_000, 10, 64, 100_000), (4096, 3, 8, 0)] {
            let fittings = Fittings { listeners, threads, idle };
            let maxconn = fitting(limit, fittings);
            assert!(2 * maxconn + fittings.descriptors(maxconn) <= limit, "{limit} {fittings:?} {maxconn}");
            let more = maxconn + 2;
            assert!(2 * more + fittings.descriptors(more) > limit, "{limit} {fittings:?} {maxconn}");
        }
        assert_eq!(fitting(10, Fittings::default()), 0);
    }
}
