//! Taking over: the first messages from the master become what the threads need.
//! Called once by `control::run`. Never serves.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, chdir, chroot, geteuid, setgid, setgroups, setuid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::WorkerError;
use crate::config::Bundle;
use crate::handoff::Channel;
use crate::handoff::fault::{self, Step};
use crate::handoff::messages::{ListenerOwner, PROTOCOL_VERSION, Start, ToWorker};
use crate::stats::Memory;

/// How long the master may take for each message.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything the master hands to a new worker.
pub struct Inheritance {
    /// The message itself.
    pub start: Start,
    /// The configuration.
    pub bundle: Arc<Bundle>,
    /// The shared counters.
    pub memory: Memory,
    /// One entry per log target.
    pub log_sockets: Vec<Option<OwnedFd>>,
    /// The listening sockets.
    pub listeners: Vec<(ListenerOwner, OwnedFd)>,
}

/// Receives everything.
///
/// # Errors
/// When the master breaks the protocol, or what it sends cannot be used.
pub fn inherit(channel: &Channel) -> Result<Inheritance, WorkerError> {
    let Some((ToWorker::Start(start), fds)) = channel.recv_blocking(PATIENCE)? else {
        return Err(WorkerError::Protocol("a start message"));
    };
    if start.protocol != PROTOCOL_VERSION {
        return Err(WorkerError::Version { theirs: start.protocol, ours: PROTOCOL_VERSION });
    }
    let mut fds = fds.into_iter();
    let bundle = read_bundle(fds.next().ok_or(WorkerError::Protocol("the bundle"))?)?;
    let counters = fds.next().ok_or(WorkerError::Protocol("the counters"))?;
    let memory = Memory::map(counters.as_fd())?;
    let log_sockets = start.logs_connected.iter().map(|connected| if *connected { fds.next() } else { None }).collect();
    let listeners = receive_listeners(channel, start.listeners as usize)?;
    fault::strike(Step::Inherited).map_err(|source| WorkerError::Step { step: "taking over", source })?;
    Ok(Inheritance { start: *start, bundle: Arc::new(bundle), memory, log_sockets, listeners })
}

fn read_bundle(fd: OwnedFd) -> Result<Bundle, WorkerError> {
    let mut file = File::from(fd);
    let mut text = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(WorkerError::Bundle)?;
    Ok(serde_json::from_slice(&text)?)
}

fn receive_listeners(channel: &Channel, expected: usize) -> Result<Vec<(ListenerOwner, OwnedFd)>, WorkerError> {
    let mut listeners = Vec::with_capacity(expected);
    while listeners.len() < expected {
        let Some((ToWorker::Listeners(owners), fds)) = channel.recv_blocking(PATIENCE)? else {
            return Err(WorkerError::Protocol("its listeners"));
        };
        if owners.is_empty() || owners.len() != fds.len() {
            return Err(WorkerError::Protocol("one descriptor per listener"));
        }
        listeners.extend(owners.into_iter().zip(fds));
    }
    Ok(listeners)
}

/// Without getrandom(2) (Linux 3.17) random bytes come from a device that a chroot does not have, but who has it open
/// keeps it: the TLS library's and the standard library's.
fn open_randomness() {
    // Where there are none, the first one who needs them says so.
    let _ = aws_lc_rs::rand::fill(&mut [0]);
    let _ = std::hash::RandomState::new();
}

/// Becomes the configured user inside the configured directory; nothing when not asked to. Who is not root then has no
/// capability left. Those belong to a thread: no other may have been started.
///
/// # Errors
/// Names the step that failed.
pub fn drop_privileges(start: &Start) -> Result<(), WorkerError> {
    let failed = |step| move |source| WorkerError::Privileges { step, source };
    fault::strike(Step::Privileges).map_err(failed("chroot"))?;
    if let Some(directory) = &start.chroot {
        open_randomness();
        chroot(directory.as_str()).map_err(failed("chroot"))?;
        chdir("/").map_err(failed("chdir"))?;
    }
    if start.uid.is_some() || start.gid.is_some() {
        setgroups(&[]).map_err(failed("setgroups"))?;
    }
    if let Some(gid) = start.gid {
        setgid(Gid::from_raw(gid)).map_err(failed("setgid"))?;
    }
    if let Some(uid) = start.uid {
        setuid(Uid::from_raw(uid)).map_err(failed("setuid"))?;
    }
    if !geteuid().is_root() {
        // The master's, where systemd gave it some without making it root.
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, none).map_err(|errno| failed("capset")(Errno::from_raw(errno.raw_os_error())))?;
    }
    Ok(())
}
