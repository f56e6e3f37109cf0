//! Everything that can happen to a master, in one queue.
//! Sent by the admin socket, signals and workers; handled one after the other by `lifecycle`.

use nix::sys::signal::{SigSet, Signal};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::MasterError;
use super::admin::Caller;
use super::certificates::{Found, Sight};
use super::request::Request;
use crate::handoff::messages::FromWorker;

/// Something to handle.
pub(super) enum Event {
    /// A caller on the admin socket, with its rights already checked.
    Admin(Request, Caller),
    /// A caller that may have the listening sockets.
    GiveSockets(UnixStream),
    /// A refusal worth a log line.
    Refused(String),
    /// A worker said something.
    Worker(u64, FromWorker),
    /// A worker's process wrote a line to stderr.
    WorkerSaid(u32, String),
    /// A worker's process ended; its exit status as text.
    WorkerEnded(u64, String),
    /// What has become of a frontend's certificate files.
    Certificates(Sight, Found),
    /// SIGHUP or SIGUSR2.
    ReloadSignal,
    /// SIGUSR1 or SIGQUIT.
    FinishSignal,
    /// SIGTERM or SIGINT.
    StopSignal,
}

/// Turns signals into events from now on.
pub(super) fn watch_signals(events: &mpsc::UnboundedSender<Event>) -> Result<(), MasterError> {
    let wanted: [(SignalKind, fn() -> Event); 6] = [
        (SignalKind::hangup(), || Event::ReloadSignal),
        (SignalKind::user_defined2(), || Event::ReloadSignal),
        (SignalKind::user_defined1(), || Event::FinishSignal),
        (SignalKind::terminate(), || Event::StopSignal),
        (SignalKind::interrupt(), || Event::StopSignal),
        (SignalKind::quit(), || Event::FinishSignal),
    ];
    for (kind, event) in wanted {
        let mut arrivals = signal(kind).map_err(MasterError::Signals)?;
        let events = events.clone();
        tokio::spawn(async move { while arrivals.recv().await.is_some() && events.send(event()).is_ok() {} });
    }
    // The program before held them back while nobody would have heard.
    signals().thread_unblock().map_err(|error| MasterError::Signals(error.into()))
}

/// The signals that become events.
pub(super) fn signals() -> SigSet {
    use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2].into_iter().collect()
}
