//! Faults at the named steps of a hand-over, for tests; a release build has none.
//! Asked by `master` and `worker` at each step. Never acts unless `PROXY_FAULT` names a file that says so.

use nix::errno::Errno;

/// Where a fault may strike; the file names a step by its words with dashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Worker: the process has begun.
    Start,
    /// Worker: everything the master sends is there.
    Inherited,
    /// Worker: before it becomes another user.
    Privileges,
    /// Worker: before its serving threads start.
    Threads,
    /// Worker: before it says that it is ready.
    Ready,
    /// Worker: it was told to serve, and does not yet.
    Serve,
    /// Serving thread: it has come round, which it does every 50 ms.
    Beat,
    /// Old worker: it has a successor, whose channel is not taken up.
    Successor,
    /// Old worker: it was told to drain, and does not yet.
    Drain,
    /// Draining worker: connections are about to be sent.
    Sending,
    /// Draining worker: connections are sent, the successor has not answered.
    Sent,
    /// Draining worker: it accepts no more, and has not said so.
    Drained,
    /// New worker: connections have come, the answer is not given.
    Receiving,
    /// Master: before the configuration is read.
    Load,
    /// Master: before addresses are bound.
    Bind,
    /// Master: before the worker's process starts.
    Spawn,
    /// Master: the worker has its first message, the listeners are not sent.
    HandedOver,
    /// Master: before the first change that somebody could notice.
    Commit,
    /// Master that was another program: a listening socket is taken over, the rest is not.
    Adopted,
    /// Checks: before a server is connected to.
    Probe,
}

#[cfg(debug_assertions)]
impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Inherited => "inherited",
            Self::Privileges => "privileges",
            Self::Threads => "threads",
            Self::Ready => "ready",
            Self::Serve => "serve",
            Self::Beat => "beat",
            Self::Successor => "successor",
            Self::Drain => "drain",
            Self::Sending => "sending",
            Self::Sent => "sent",
            Self::Drained => "drained",
            Self::Receiving => "receiving",
            Self::Load => "load",
            Self::Bind => "bind",
            Self::Spawn => "spawn",
            Self::HandedOver => "handed-over",
            Self::Commit => "commit",
            Self::Adopted => "adopted",
            Self::Probe => "probe",
        }
    }

    fn is_the_masters(self) -> bool {
        matches!(self, Self::Load | Self::Bind | Self::Spawn | Self::HandedOver | Self::Commit | Self::Adopted)
    }
}

/// What the file wants of this step. It is obeyed once: who removes it does.
#[cfg(debug_assertions)]
fn wanted(step: Step, meant: impl Fn(&str) -> bool) -> Option<String> {
    let file = std::env::var_os("PROXY_FAULT")?;
    let text = std::fs::read_to_string(&file).ok()?;
    let fault = text.trim().strip_prefix(step.name())?.strip_prefix(' ').filter(|fault| meant(fault))?;
    std::fs::remove_file(&file).ok().map(|()| fault.to_owned())
}

/// Does what `STEP FAULT` in the file wants: `crash` (kill -9; the master, which is to live, gets EIO
/// instead), `hang` and `panic` (workers only), `EMFILE` or `ENOSPC`.
///
/// # Errors
/// What a system call of this step would have said.
#[cfg(debug_assertions)]
pub fn strike(step: Step) -> Result<(), Errno> {
    use nix::sys::signal::{Signal, raise};

    let Some(fault) = wanted(step, |fault| fault != "version") else { return Ok(()) };
    match (fault.as_str(), step.is_the_masters()) {
        ("EMFILE", _) => Err(Errno::EMFILE),
        ("ENOSPC", _) => Err(Errno::ENOSPC),
        ("crash", false) => raise(Signal::SIGKILL),
        ("panic", false) => panic!("a fault at this step"),
        ("hang", false) => {
            // A test that fails must not leave a hanging process behind.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            loop {
                std::thread::park();
            }
        }
        _ => Err(Errno::EIO),
    }
}

/// The version to announce to a worker: ours, or for `handed-over version` the next one.
#[cfg(debug_assertions)]
#[must_use]
pub fn announced(version: u32) -> u32 {
    version + u32::from(wanted(Step::HandedOver, |fault| fault == "version").is_some())
}

/// What the file that `PROXY_VERSIONS` names says this program speaks, as `proxy version --json` prints it; read once.
#[cfg(debug_assertions)]
#[must_use]
pub fn pretended() -> Option<super::Versions> {
    static PRETENDED: std::sync::OnceLock<Option<super::Versions>> = std::sync::OnceLock::new();
    let read = || serde_json::from_slice(&std::fs::read(std::env::var_os("PROXY_VERSIONS")?).ok()?).ok();
    PRETENDED.get_or_init(read).clone()
}

/// Nothing: release builds speak what they speak.
#[cfg(not(debug_assertions))]
#[inline]
#[must_use]
pub fn pretended() -> Option<super::Versions> {
    None
}

/// Nothing: release builds have no faults.
///
/// # Errors
/// None.
#[cfg(not(debug_assertions))]
#[inline]
pub fn strike(_step: Step) -> Result<(), Errno> {
    Ok(())
}

/// Our version: release builds have no faults.
#[cfg(not(debug_assertions))]
#[inline]
#[must_use]
pub fn announced(version: u32) -> u32 {
    version
}
