//! What a supervisor passes at start (sd_listen_fds(3)): sockets of its units, and what it kept of ours.
//! Called by `start`. Never believes a name: the kernel says what a descriptor is.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use listenfd::ListenFd;
use nix::sys::stat::{SFlag, stat};

use super::MasterError;
use super::legacy::{Legacy, LegacyFile};
use super::store::Store;
use crate::socket::{self, Former, ListeningSocket};
use crate::stats::{Memory, StatsError};

/// Everything that was passed and is of use.
#[derive(Default)]
pub(super) struct Passed {
    pub(super) sockets: Vec<Arc<ListeningSocket>>,
    pub(super) counters: Option<(Memory, OwnedFd)>,
    pub(super) legacy: Option<(LegacyFile, Legacy)>,
    /// Names of what the supervisor keeps for us.
    pub(super) kept: BTreeSet<String>,
    /// What could not be used, for the log.
    pub(super) problems: Vec<String>,
}

impl Passed {
    /// Takes what the environment announces; to be called once, before there are threads.
    pub(super) fn from_environment() -> Result<Self, MasterError> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut listening = ListenFd::from_env();
        let mut passed = Self::default();
        for index in 0..listening.len() {
            passed.take(&mut listening, index, names.next().unwrap_or_default())?;
        }
        Ok(passed)
    }

    fn take(&mut self, listening: &mut ListenFd, index: usize, name: String) -> Result<(), MasterError> {
        let kept = Store::gave(&name);
        let tcp = listening.take_tcp_listener(index).ok().flatten().map(OwnedFd::from);
        let taken = tcp.or_else(|| listening.take_unix_listener(index).ok().flatten().map(OwnedFd::from));
        if let Some(socket) = taken {
            // Of a socket that it kept for us, the path is ours, too.
            let former = if kept { Former::Daemon } else { Former::Supervisor };
            let socket = socket::adopt(socket, former).map_err(MasterError::Adopt)?;
            self.sockets.extend(socket.map(|socket| Arc::new(if kept { socket } else { socket.named(name.clone()) })));
        } else if listening.take_udp_socket(index).ok().flatten().is_none()
            && listening.take_unix_datagram(index).ok().flatten().is_none()
            && let Ok(Some(number)) = listening.take_raw_fd(index)
        {
            self.take_file(number);
        }
        if kept {
            self.kept.insert(name);
        }
        Ok(())
    }

    /// A file of memory: the counters, or the legacy.
    fn take_file(&mut self, number: i32) {
        let path = format!("/proc/self/fd/{number}");
        let regular =
            stat(path.as_str()).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits());
        let open = || OpenOptions::new().read(true).write(true).open(&path).ok();
        let file = if regular { open() } else { None };
        // Whatever it is, this name for it is not needed any more.
        let _ = nix::unistd::close(number);
        if let Some(file) = file {
            self.recognise(file);
        }
    }

    fn recognise(&mut self, file: File) {
        match Memory::map(file.as_fd()) {
            Ok(memory) => self.counters = Some((memory, file.into())),
            Err(error @ StatsError::Layout { .. }) => {
                self.problems.push(format!("{error}: the statistics start afresh"));
            }
            Err(_something_else) => self.legacy = LegacyFile::adopt(file),
        }
    }
}
