//! The hidden `worker` subcommand: a worker process on the channel that is its stdin.
//! Started by the master. Never useful by hand.

use std::os::fd::AsFd as _;

use crate::handoff::Channel;
use crate::worker;

pub(super) fn run() -> u8 {
    let channel = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(fd) => Channel::from_fd(fd),
        Err(error) => {
            eprintln!("proxy: a worker is started by its master only: {error}");
            return super::REFUSED;
        }
    };
    // The channel's second name would keep it open when the worker closes the first.
    if let Ok(null) = std::fs::File::open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(null);
    }
    match worker::run(channel) {
        Ok(()) => super::DONE,
        // The master has been told, and says so.
        Err(_told) => super::REFUSED,
    }
}
