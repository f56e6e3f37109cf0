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
    #[cfg(debug_assertions)]
    if fault(&channel) {
        return super::REFUSED;
    }
    match worker::run(channel) {
        Ok(()) => super::DONE,
        // The master has been told, and says so.
        Err(_told) => super::REFUSED,
    }
}

/// For tests, in debug builds only: where the file that `PROXY_FAULT` names says `die`, a new worker
/// ends before it is ready; where it says `silent`, it takes its orders and never answers. The file
/// is gone once it is obeyed.
#[cfg(debug_assertions)]
fn fault(channel: &Channel) -> bool {
    use crate::handoff::messages::ToWorker;

    let Some(file) = std::env::var_os("PROXY_FAULT") else { return false };
    let Ok(wanted) = std::fs::read_to_string(&file) else { return false };
    let obeyed = std::fs::remove_file(&file).is_ok();
    let patience = std::time::Duration::from_secs(600);
    while wanted == "silent" && channel.recv_blocking::<ToWorker>(patience).is_ok_and(|order| order.is_some()) {}
    obeyed
}
