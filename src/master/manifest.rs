//! What a master leaves to the program it becomes: one document and every descriptor, queued in a socket.
//! Written by `upgrade`, read by `resume`. Never judges what it carries.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::MasterError;
use super::spawn::State;
use super::status::LastReload;
use crate::config::{Bind, ReloadMode};
use crate::handoff::messages::{ListenerOwner, Slots, ToWorker};
use crate::handoff::{Channel, MAX_DESCRIPTORS, Versions, memory_file};

/// How long the queue may take for each message; all of them are there before anybody reads.
const PATIENCE: Duration = Duration::from_secs(10);

/// Place of a descriptor among those that come along.
pub(super) type Place = usize;

/// Everything that lives as long as the master's pid. New fields have a default: an older program leaves them out.
#[derive(Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Of the program that wrote it.
    pub(super) program: String,
    /// Of the messages its workers understand.
    pub(super) messages: u32,
    pub(super) generation: u64,
    pub(super) uptime: Duration,
    pub(super) maxconn: u32,
    /// The configurations of all generations; the first one serves.
    pub(super) bundles: Vec<serde_json::Value>,
    pub(super) last_reload: Option<LastReload>,
    pub(super) ticket_keys: Vec<Vec<u8>>,
    /// Since the newest key was made.
    pub(super) ticket_age: Duration,
    pub(super) counters: Place,
    pub(super) listeners: Vec<HeldListener>,
    pub(super) workers: Vec<HeldWorker>,
    /// Log targets that workers lost, by generation.
    pub(super) logs_lost: Vec<(u64, usize)>,
    pub(super) admin: Option<HeldAdmin>,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) callers: Vec<HeldCaller>,
    /// Reloads that a SIGHUP asked for, which nobody waits for.
    #[serde(default)]
    pub(super) hangups: usize,
    /// Names of what the supervisor keeps for us.
    #[serde(default)]
    pub(super) kept: BTreeSet<String>,
    /// What would outlive the process.
    #[serde(default)]
    pub(super) legacy: Option<Place>,
    /// Workers of a master that was killed, and their gauge lanes.
    #[serde(default)]
    pub(super) orphans: Vec<(u32, u32)>,
    /// The program to go back to.
    pub(super) previous: Place,
    /// Why the program that was to take over gave everything back.
    pub(super) returned: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct HeldListener {
    pub(super) bind: Bind,
    pub(super) owner: ListenerOwner,
    pub(super) socket: Place,
    /// Whether its path goes away with it.
    pub(super) removes_path: bool,
    /// What the supervisor calls it.
    #[serde(default)]
    pub(super) name: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct HeldWorker {
    pub(super) generation: u64,
    pub(super) pid: u32,
    pub(super) lane: u32,
    pub(super) state: State,
    pub(super) slots: Slots,
    /// Place of its configuration.
    pub(super) bundle: usize,
    pub(super) channel: Place,
    pub(super) stderr: Option<Place>,
    pub(super) age: Duration,
    /// Until it is killed.
    pub(super) left: Option<Duration>,
    /// Until it has to say that it accepts no more.
    #[serde(default)]
    pub(super) retreat: Option<Duration>,
    pub(super) relief: Option<ToWorker>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct HeldAdmin {
    pub(super) socket: Place,
    pub(super) inode: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct HeldCaller {
    pub(super) stream: Place,
    pub(super) trusted: bool,
    pub(super) wish: HeldWish,
}

/// What a caller waits for.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum HeldWish {
    Upgrade,
    Reload(Option<ReloadMode>),
}

/// First message: what follows. The document travels with it.
#[derive(Serialize, Deserialize)]
struct Opening {
    manifest: u32,
    descriptors: usize,
}

/// The descriptors of a manifest that is being written.
#[derive(Default)]
pub(super) struct Luggage<'a>(Vec<BorrowedFd<'a>>);

impl<'a> Luggage<'a> {
    pub(super) fn add(&mut self, fd: BorrowedFd<'a>) -> Place {
        self.0.push(fd);
        self.0.len() - 1
    }

    /// Queues everything; the reader finds it at the descriptor that is returned.
    pub(super) fn send(&self, version: u32, manifest: &Manifest) -> Result<OwnedFd, MasterError> {
        let (ours, theirs) = Channel::pair()?;
        let failed = |source| MasterError::File { path: "manifest".into(), source };
        let mut document = memory_file("manifest").map_err(failed)?;
        document.write_all(&serde_json::to_vec(manifest)?).and_then(|()| document.rewind()).map_err(failed)?;
        ours.send(&Opening { manifest: version, descriptors: self.0.len() }, &[document.as_fd()])?;
        for batch in self.0.chunks(MAX_DESCRIPTORS) {
            ours.send(&batch.len(), batch)?;
        }
        Ok(theirs)
    }
}

/// A manifest and its descriptors, as they were received.
pub(super) struct Estate {
    pub(super) version: u32,
    pub(super) manifest: Manifest,
    descriptors: Vec<OwnedFd>,
}

impl Estate {
    /// Reads what [`Luggage::send`] queued.
    pub(super) fn receive(channel: &Channel) -> Result<Self, MasterError> {
        let (opening, documents) = channel.recv_blocking::<Opening>(PATIENCE)?.ok_or(MasterError::Manifest)?;
        let versions = Versions::ours();
        if !versions.manifest.holds(opening.manifest) {
            return Err(MasterError::ManifestVersion { theirs: opening.manifest, ours: versions.manifest });
        }
        let mut descriptors = Vec::new();
        while descriptors.len() < opening.descriptors {
            let (count, fds) = channel.recv_blocking::<usize>(PATIENCE)?.ok_or(MasterError::Manifest)?;
            if count == 0 || count != fds.len() {
                return Err(MasterError::Manifest);
            }
            descriptors.extend(fds);
        }
        let document = documents.into_iter().next().ok_or(MasterError::Manifest)?;
        Ok(Self { version: opening.manifest, manifest: read(document)?, descriptors })
    }

    /// A descriptor of one's own; the estate stays whole, to be passed on if the rest fails.
    pub(super) fn claim(&self, place: Place) -> Result<OwnedFd, MasterError> {
        let fd = self.descriptors.get(place).ok_or(MasterError::Manifest)?;
        fd.try_clone().map_err(MasterError::Adopt)
    }

    /// Queues it again as it is, but for the reason.
    pub(super) fn give_back(&mut self, reason: String) -> Result<OwnedFd, MasterError> {
        self.manifest.returned = Some(reason);
        let luggage = Luggage(self.descriptors.iter().map(|fd| fd.as_fd()).collect());
        luggage.send(self.version, &self.manifest)
    }
}

fn read(document: OwnedFd) -> Result<Manifest, MasterError> {
    let (mut file, mut text) = (File::from(document), Vec::new());
    let failed = |source| MasterError::File { path: "manifest".into(), source };
    file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(failed)?;
    serde_json::from_slice(&text).map_err(MasterError::ManifestText)
}
