//! The descriptor limit that `maxconn` needs.
//! Called by `master` while it loads; workers inherit it. Never lowers a limit.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors beside connections and listeners: logs, channel, shared memory, the statistics page; and the
/// copies of connections that are leaving for another worker.
const MARGIN: u64 = 128 + 506;

/// Descriptors of a thread's own event loop.
const PER_THREAD: u64 = 8;

/// A limit that cannot be raised far enough.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// `maxconn` needs more than the hard limit.
    #[error(
        "maxconn {maxconn} needs {needed} descriptors, the limit is {hard}: lower maxconn to {fits}, or raise the limit (ulimit -n, LimitNOFILE=)"
    )]
    TooLow {
        /// What was asked for.
        maxconn: u32,
        /// Descriptors for it.
        needed: u64,
        /// RLIMIT_NOFILE, hard.
        hard: u64,
        /// The maxconn that fits.
        fits: u64,
    },
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

/// Raises the limit for `maxconn` connections and their counterparts; without `maxconn`, settles on
/// what the hard limit allows. Returns the settled maxconn.
///
/// # Errors
/// When the hard limit is too low.
pub fn raise_for(maxconn: Option<u32>, fittings: Fittings) -> Result<u32, LimitError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let fits = fitting(hard, fittings);
    let Some(maxconn) = maxconn else {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        return Ok(u32::try_from(fits).unwrap_or(u32::MAX).max(1));
    };
    let needed = u64::from(maxconn) * 2 + fittings.descriptors(maxconn.into());
    if needed <= soft {
        return Ok(maxconn);
    }
    // Root may raise the hard limit too.
    if needed > hard && setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_err() {
        return Err(LimitError::TooLow { maxconn, needed, hard, fits });
    }
    if needed <= hard {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard)?;
    }
    Ok(maxconn)
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
