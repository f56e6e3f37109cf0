//! The hidden `worker` subcommand: a worker process on the channel that is its stdin.
//! Started by the master. Never useful by hand.

use std::os::fd::AsFd as _;

use crate::handoff::Channel;
use crate::worker;

pub(super) fn run() -> u8 {
    let channel = match channel_on_stdin() {
        Ok(channel) => channel,
        Err(error) => {
            eprintln!("proxy: a worker is started by its master only: {error}");
            return super::REFUSED;
        }
    };
    match worker::run(channel) {
        Ok(()) => super::DONE,
        // The master has been told, and says so.
        Err(_told) => super::REFUSED,
    }
}

/// The channel that a process of ours left on our stdin.
pub(super) fn channel_on_stdin() -> std::io::Result<Channel> {
    let channel = Channel::from_fd(std::io::stdin().as_fd().try_clone_to_owned()?);
    // The channel's second name would keep it open when the first is closed.
    if let Ok(null) = std::fs::File::open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(null);
    }
    Ok(channel)
}
