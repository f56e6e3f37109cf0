//! What systemd is told: ready, reloading, stopping, a line about how things stand, and that the threads turn.
//! Called by `lifecycle` after the fact, never before. Without a supervisor nobody is told, which is no failure.

use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    // Without a supervisor there is nobody to tell.
    let _ = sd_notify::notify(states);
}

/// The first generation serves.
pub(super) fn started(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id()), NotifyState::Status(status)]);
}

/// A reload has begun; [`ready`] ends it, however it went.
pub(super) fn reloading() {
    // Since version 253 the time has to come with it.
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// A reload is over; the daemon serves, with the new configuration or the old one.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// How things stand, in one line.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The end has begun.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing open connections")]);
}

/// Heartbeats have come.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}
