//! The descriptor limit that `maxconn` needs.
//! Called by `master` while it loads; workers inherit it. Never lowers a limit.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors beside connections and listeners: logs, event loops, channel, shared memory.
const MARGIN: u64 = 128;

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

/// Raises the limit for `maxconn` connections and their counterparts; without `maxconn`, settles on
/// what the hard limit allows. Returns the settled maxconn.
///
/// # Errors
/// When the hard limit is too low.
pub fn raise_for(maxconn: Option<u32>, listeners: usize) -> Result<u32, LimitError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let reserve = MARGIN + 2 * listeners as u64;
    let fits = hard.saturating_sub(reserve) / 2;
    let Some(maxconn) = maxconn else {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        return Ok(u32::try_from(fits).unwrap_or(u32::MAX).max(1));
    };
    let needed = u64::from(maxconn) * 2 + reserve;
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
