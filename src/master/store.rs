//! systemd's file descriptor store: listening sockets, counters and the legacy outlive the master there.
//! Filled by `lifecycle` after each change, taken out at start. Never keeps a socket that nobody accepts from.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::UNIX_EPOCH;

use nix::sys::stat::fstat;
use sd_notify::{NotifyState, notify, notify_with_fds};

use super::legacy::{Legacy, LegacyFile};
use super::lifecycle::Master;
use crate::config::KEPT_NAMES;
use crate::logging::Severity;

// How the names of what is kept begin; the inode follows: what takes the place of something has another name.
const COUNTERS: &str = KEPT_NAMES[0];
const LEGACY: &str = KEPT_NAMES[1];
const LISTENER: &str = KEPT_NAMES[2];

/// The unit sets this variable to `%S`, which systemd 236 is the first to resolve.
const RESOLVED: &str = "PROXY_SYSTEMD_STATE";
/// What the unit has it keep at most.
const ROOM: usize = 1024;

/// What the supervisor has of ours.
#[derive(Default)]
pub(super) struct Store {
    pub(super) kept: BTreeSet<String>,
    pub(super) legacy: Option<LegacyFile>,
    /// How many that should be kept there is no room for.
    left_out: usize,
}

impl Store {
    /// Whether a name that comes with a descriptor is one of those that we give.
    pub(super) fn gave(name: &str) -> bool {
        KEPT_NAMES.iter().any(|kind| name.starts_with(kind))
    }

    /// Whether clients can still connect when this process has closed its sockets.
    pub(super) fn keeps_listeners(&self) -> bool {
        self.kept.iter().any(|name| name.starts_with(LISTENER))
    }

    /// What the supervisor has already, given by the process or the program before.
    pub(super) fn of(kept: BTreeSet<String>, legacy: Option<LegacyFile>) -> Self {
        Self { kept, legacy, left_out: 0 }
    }

    /// Whether there is a supervisor that keeps what it is told to keep.
    fn is_there() -> bool {
        std::env::var_os("NOTIFY_SOCKET").is_some() && lets_go()
    }

    /// Why there is none, where there seems to be one.
    pub(super) fn lack() -> Option<&'static str> {
        let systemd = ["INVOCATION_ID", RESOLVED].iter().any(|name| std::env::var_os(name).is_some());
        (systemd && std::env::var_os("NOTIFY_SOCKET").is_some() && !lets_go()).then_some(
            "systemd before 236, or a unit without the shipped one's Environment=: nothing is kept for the next master, \
             a restart or a killed master refuses clients, and counters and TLS sessions begin anew",
        )
    }

    /// How much it keeps at most.
    fn room() -> usize {
        // Said since systemd 254.
        let said = std::env::var("FDSTORE").ok().and_then(|room| room.parse().ok());
        said.unwrap_or(ROOM)
    }

    /// Gives what is new and takes back what is not wanted any more. Says what there is no room for, once.
    fn update(&mut self, wanted: &[(String, BorrowedFd<'_>)]) -> Option<String> {
        let gone: Vec<_> =
            self.kept.iter().filter(|kept| wanted.iter().all(|(name, _)| name != *kept)).cloned().collect();
        for name in gone {
            // A supervisor that cannot be told keeps it; there is nobody else to tell.
            let _ = notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)]);
            self.kept.remove(&name);
        }
        for (name, fd) in wanted {
            if !self.kept.contains(name)
                && self.kept.len() < Self::room()
                && notify_with_fds(&[NotifyState::FdStore, NotifyState::FdName(name)], &[*fd]).is_ok()
            {
                self.kept.insert(name.clone());
            }
        }
        let left_out = wanted.iter().filter(|(name, _)| !self.kept.contains(name)).count();
        let before = std::mem::replace(&mut self.left_out, left_out);
        (left_out > before).then(|| {
            format!(
                "systemd keeps {} descriptors at most (FileDescriptorStoreMax=), {} are wanted: a restart or a killed \
                 master refuses the clients of {left_out} listening sockets",
                Self::room(),
                wanted.len(),
            )
        })
    }
}

/// Whether the supervisor lets go again of what it keeps, when it is told to: before systemd 236 a listening socket
/// that nobody accepts from would keep its clients waiting. Later ones say which process they started (248).
fn lets_go() -> bool {
    let resolved = std::env::var(RESOLVED).is_ok_and(|folder| !folder.starts_with('%'));
    resolved || std::env::var_os("SYSTEMD_EXEC_PID").is_some()
}

/// A descriptor with its name, which no other of its kind has as long as this one lives.
fn named<'a>(kind: &str, fd: &'a impl AsFd) -> Option<(String, BorrowedFd<'a>)> {
    Some((format!("{kind}{}", fstat(fd).ok()?.st_ino), fd.as_fd()))
}

impl Master {
    /// Lets the supervisor keep what the next master would need if this one were killed now.
    pub(super) fn keep(&mut self) {
        if !Store::is_there() {
            return;
        }
        let mut store = std::mem::take(&mut self.store);
        if self.bundle.systemd.fdstore && !self.is_ending() {
            if let Err(error) = self.write_legacy(&mut store) {
                self.say(Severity::Warning, &format!("TLS sessions would not outlive this process: {error}"));
            }
            let legacy = store.legacy.as_ref().map(|legacy| legacy.file.try_clone());
            let legacy: Option<File> = legacy.and_then(Result::ok);
            let files = [named(COUNTERS, &*self.blank.counters), legacy.as_ref().and_then(|file| named(LEGACY, file))];
            let mut wanted: Vec<_> = files.into_iter().flatten().collect();
            let sockets = self.listeners.iter().map(|listener| &listener.socket);
            // What a socket unit gave us it keeps itself.
            let ours = sockets.filter(|socket| socket.name().is_none());
            wanted.extend(ours.filter_map(|socket| named(LISTENER, &**socket)));
            if let Some(lack) = store.update(&wanted) {
                self.say(Severity::Warning, &lack);
            }
        } else if !self.is_ending() {
            store.update(&[]);
        }
        self.store = store;
    }

    fn write_legacy(&self, store: &mut Store) -> std::io::Result<()> {
        let file = match &mut store.legacy {
            Some(file) => file,
            none => none.insert(LegacyFile::create()?),
        };
        file.write(Legacy {
            generation: self.generation,
            ticket_keys: self.blank.tickets.keys().to_vec(),
            tickets_made: self.blank.tickets.made().duration_since(UNIX_EPOCH).map_or(0, |made| made.as_secs()),
            last_reload: self.last_reload.clone(),
            workers: self.workers.all().iter().map(|worker| (worker.pid, worker.lane)).collect(),
        })
    }
}
