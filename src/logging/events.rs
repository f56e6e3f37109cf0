//! Event lines of the master: same targets and line format, sent at once.
//! Called by the master, which has few events and no log thread. Never waits for a receiver.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

use super::clock::{Zone, epoch_seconds};
use super::escape;
use super::line::{Prefix, Severity, cut, longest};
use super::target::connect;
use crate::config::LogTarget;

/// The master's way to the log targets.
#[derive(Debug)]
pub struct EventLog {
    targets: Mutex<Vec<Target>>,
}

#[derive(Debug)]
struct Target {
    settings: LogTarget,
    prefix: Prefix,
    socket: Option<OwnedFd>,
}

impl EventLog {
    /// Connects the targets that want events; one that cannot be reached is tried again with each event.
    #[must_use]
    pub fn open(targets: &[LogTarget]) -> Self {
        let pid = std::process::id();
        let wanted = targets.iter().filter(|settings| settings.events);
        let opened = wanted.map(|settings| Target {
            prefix: Prefix::of(settings, pid),
            socket: connect(settings).ok(),
            settings: settings.clone(),
        });
        Self { targets: Mutex::new(opened.collect()) }
    }

    /// Sends one event line to every target whose level admits it. A line that a target cannot
    /// take now is lost: the master must not wait for its log.
    pub fn event(&self, severity: Severity, message: &str) {
        let second = epoch_seconds(SystemTime::now());
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        for target in targets.iter_mut().filter(|target| target.settings.level >= severity as u8) {
            let mut line = target.prefix.at(Zone::local(), second, severity).to_vec();
            escape::event(&mut line, message);
            cut(&mut line, longest(&target.settings.sink, false));
            target.deliver(&line);
        }
    }
}

impl Target {
    /// A restarted syslog daemon is noticed by the failing send; a second attempt goes to a fresh socket.
    fn deliver(&mut self, line: &[u8]) {
        for _ in 0..2 {
            if self.socket.is_none() {
                self.socket = connect(&self.settings).ok();
            }
            let Some(socket) = &self.socket else { return };
            match send(socket.as_raw_fd(), line, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EMSGSIZE) => return,
                Err(_) => self.socket = None,
            }
        }
    }
}
