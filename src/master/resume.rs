//! A master that was another program a moment ago: everything is taken out of the manifest, nothing is made anew.
//! Called by `lifecycle::resume`, and by `rehearse` in a process of its own. Never closes what a client could notice.

use std::cell::RefCell;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::admin::{AdminSocket, Caller};
use super::agenda::Wish;
use super::events::Event;
use super::legacy::LegacyFile;
use super::lifecycle::{Blank, Master, Taken};
use super::listeners::Listener;
use super::manifest::{Estate, HeldWish, HeldWorker, Manifest};
use super::pidfile::PidFile;
use super::request::Outcome;
use super::slots::Directory;
use super::spawn::{Worker, relay};
use super::store::Store;
use super::tickets::TicketRing;
use super::upgrade::{Predecessor, execute};
use super::{MasterError, Options, load, supervisor};
use crate::config::Bundle;
use crate::handoff::fault::{self, Step};
use crate::handoff::{Channel, Versions};
use crate::logging::Severity;
use crate::socket::{self, Former};
use crate::stats::{Memory, StatsError};

type Events = mpsc::UnboundedSender<Event>;

/// Reads everything as [`resume`] would, and changes nothing.
///
/// # Errors
/// Why this program cannot go on from there.
pub fn rehearse(config: &Path, channel: &Channel) -> Result<(), MasterError> {
    let estate = Estate::receive(channel)?;
    let manifest = &estate.manifest;
    messages_are_known(manifest)?;
    bundles(manifest, config)?;
    counters(&estate)?;
    let workers = manifest.workers.iter().map(|worker| worker.channel);
    let places = workers.chain(manifest.listeners.iter().map(|listener| listener.socket));
    let last = places.chain(manifest.callers.iter().map(|caller| caller.stream)).max();
    last.map_or(Ok(()), |last| estate.claim(last).map(drop))
}

/// The master as it was, in this program. What fails here goes back to the program before.
pub(super) fn resume(options: &Options, channel: &Channel, events: &Events) -> Result<Master, MasterError> {
    let mut estate = Estate::receive(channel)?;
    let error = match take(options.clone(), &estate, events) {
        Ok(master) => return Ok(master),
        Err(error) => error,
    };
    if estate.manifest.returned.is_some() {
        // The program before has been tried already.
        return Err(error);
    }
    let previous = estate.claim(estate.manifest.previous)?;
    let reason = format!("proxy {} could not take over: {}", env!("CARGO_PKG_VERSION"), error.chain());
    let estate = estate.give_back(reason)?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&previous));
    let Err(_worse) = execute(Path::new(&path), options, &estate);
    Err(error)
}

fn take(options: Options, estate: &Estate, events: &Events) -> Result<Master, MasterError> {
    let manifest = &estate.manifest;
    messages_are_known(manifest)?;
    let bundles = bundles(manifest, &options.config)?;
    let (memory, counters, lost) = counters(estate)?;
    let now = Instant::now();
    let bundle = bundles.first().cloned().ok_or(MasterError::Manifest)?;
    let blank = Blank {
        events: events.clone(),
        directory: Rc::new(RefCell::new(Directory::of(memory))),
        memory,
        counters: Arc::new(counters),
        tickets: TicketRing::adopt(manifest.ticket_keys.clone(), manifest.ticket_age, now)?,
    };
    let workers = manifest.workers.iter().map(|held| adopt(held, estate, &bundles, now));
    let workers = workers.collect::<Result<Vec<_>, MasterError>>()?;
    let sockets = manifest.listeners.iter().map(|held| estate.claim(held.socket));
    let sockets = sockets.collect::<Result<Vec<_>, MasterError>>()?;
    let (previous, callers) = (previous(estate)?, callers(estate)?);
    let legacy = manifest.legacy.map(|place| estate.claim(place)).transpose()?;
    let legacy = legacy.and_then(|file| LegacyFile::adopt(file.into())).map(|(file, _known)| file);
    let listeners = listeners(manifest, sockets)?;
    let taken = Taken {
        listeners,
        workers,
        // Last, because whoever drops this takes a path away that the program before would miss.
        admin: admin(estate, &bundle, events)?,
        pid_file: pid_file(manifest),
        maxconn: manifest.maxconn,
        last_reload: manifest.last_reload.clone(),
        generation: manifest.generation,
        began: now.checked_sub(manifest.uptime).unwrap_or(now),
        previous,
        callers,
        store: Store::of(manifest.kept.clone(), legacy),
    };
    // Nothing fails from here on: paths may go away with their sockets again.
    let removing = taken.listeners.iter().zip(&manifest.listeners).filter(|(_, held)| held.removes_path);
    removing.for_each(|(listener, _)| listener.socket.inherit());
    let mut master = Master::resumed(options, blank, bundle, taken);
    for (generation, target) in &manifest.logs_lost {
        master.log_sockets.lost(*generation, *target);
    }
    master.workers.follow(events);
    master.certificates.turn_to(&master.bundle, events);
    master.workers.reserve(manifest.orphans.clone());
    master.keep();
    if let Some(lost) = lost {
        master.say(Severity::Warning, &format!("{lost}: the statistics start afresh"));
    }
    match &manifest.returned {
        Some(reason) => {
            master.upgrade_failed(Outcome::RolledBack, &MasterError::Returned(reason.clone()));
            supervisor::ready(reason);
        }
        None => master.say(
            Severity::Notice,
            &format!("proxy {} has taken over from proxy {}", env!("CARGO_PKG_VERSION"), manifest.program),
        ),
    }
    Ok(master)
}

fn messages_are_known(manifest: &Manifest) -> Result<(), MasterError> {
    let ours = Versions::ours().messages;
    if ours.holds(manifest.messages) || manifest.messages > ours.newest {
        // A newer program that left this manifest speaks ours, or it would not have left it.
        return Ok(());
    }
    Err(MasterError::ManifestVersion { theirs: manifest.messages, ours })
}

/// The configurations, first the one that serves. One that this program reads no more is taken from the file: what a
/// new generation will have.
fn bundles(manifest: &Manifest, config: &Path) -> Result<Vec<Arc<Bundle>>, MasterError> {
    let mut fresh = None;
    let mut all = Vec::with_capacity(manifest.bundles.len());
    for document in &manifest.bundles {
        all.push(match (serde_json::from_value::<Bundle>(document.clone()), &fresh) {
            (Ok(bundle), _) => Arc::new(bundle),
            (Err(_other_shape), Some(fresh)) => Arc::clone(fresh),
            (Err(_other_shape), None) => Arc::clone(fresh.insert(Arc::new(load(config)?.bundle))),
        });
    }
    Ok(all)
}

type Counters = (Memory, OwnedFd, Option<StatsError>);

/// The counters; fresh ones where those of the program before are laid out differently.
fn counters(estate: &Estate) -> Result<Counters, MasterError> {
    let fd = estate.claim(estate.manifest.counters)?;
    match Memory::map(fd.as_fd()) {
        Ok(memory) => Ok((memory, fd, None)),
        Err(error @ StatsError::Layout { .. }) => {
            let (memory, fd) = Memory::create(crate::stats::SLOTS)?;
            Ok((memory, fd, Some(error)))
        }
        Err(error) => Err(error.into()),
    }
}

/// The listening sockets, in the places by which workers know them, whatever has become of their paths.
fn listeners(manifest: &Manifest, sockets: Vec<OwnedFd>) -> Result<Vec<Listener>, MasterError> {
    let mut all = Vec::with_capacity(sockets.len());
    for (held, socket) in manifest.listeners.iter().zip(sockets) {
        let former = if held.removes_path { Former::Daemon } else { Former::Supervisor };
        let socket = socket::resume(socket, former).map_err(MasterError::Adopt)?;
        all.push(Listener {
            bind: held.bind.clone(),
            owner: held.owner,
            socket: Arc::new(socket.named(held.name.clone())),
        });
        fault::strike(Step::Adopted).map_err(|error| MasterError::Adopt(error.into()))?;
    }
    Ok(all)
}

fn adopt(held: &HeldWorker, estate: &Estate, bundles: &[Arc<Bundle>], now: Instant) -> Result<Worker, MasterError> {
    Ok(Worker {
        generation: held.generation,
        pid: held.pid,
        lane: held.lane,
        state: held.state,
        slots: held.slots.clone(),
        bundle: bundles.get(held.bundle).cloned().ok_or(MasterError::Manifest)?,
        channel: Arc::new(Channel::from_fd(estate.claim(held.channel)?)),
        stderr: held.stderr.and_then(|place| estate.claim(place).ok()),
        since: now.checked_sub(held.age).unwrap_or(now),
        deadline: held.left.and_then(|left| now.checked_add(left)),
        retreat: held.retreat.and_then(|left| now.checked_add(left)),
        relief: held.relief.clone(),
        pulse: None,
        stalled: false,
        kill: None,
    })
}

impl Worker {
    /// Begins to hear what an adopted worker says, and of its end.
    pub(super) fn follow(&mut self, events: &Events) {
        self.listen(Vec::new(), events);
        let stderr = self.stderr.as_ref().and_then(|stderr| stderr.try_clone().ok());
        if let Some(Ok(stderr)) = stderr.map(pipe::Receiver::from_owned_fd) {
            tokio::spawn(relay(stderr, self.pid, events.clone()));
        }
        let (kill, killed) = oneshot::channel();
        self.kill = Some(kill);
        tokio::spawn(reap(self.pid, killed, self.generation, events.clone()));
    }
}

/// Waits for the end of a child that the program before started, and tells of it.
async fn reap(pid: u32, mut killed: oneshot::Receiver<()>, generation: u64, events: Events) {
    let status = match i32::try_from(pid) {
        Ok(pid) => end_of(Pid::from_raw(pid), &mut killed).await.unwrap_or_else(|error| error.to_string()),
        Err(error) => error.to_string(),
    };
    // The receiver is gone only when the master ends.
    let _ = events.send(Event::WorkerEnded(generation, status));
}

async fn end_of(pid: Pid, killed: &mut oneshot::Receiver<()>) -> std::io::Result<String> {
    let mut deaths = signal(SignalKind::child())?;
    let mut may_be_killed = true;
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(format!("exit status: {code}")),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(format!("signal: {signal}")),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            _death = deaths.recv() => {}
            _asked = &mut *killed, if may_be_killed => {
                may_be_killed = false;
                // It has not been waited for: the pid is still its own.
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }
}

fn admin(estate: &Estate, bundle: &Bundle, events: &Events) -> Result<Option<AdminSocket>, MasterError> {
    let (Some(held), Some(admin)) = (&estate.manifest.admin, &bundle.admin) else { return Ok(None) };
    let listener = estate.claim(held.socket)?;
    let adopted = AdminSocket::adopt(listener, held.inode, admin, events.clone());
    adopted.map(Some).map_err(|source| MasterError::File { path: admin.socket.clone(), source })
}

/// The pid has not changed, and so the file has not; one that somebody removed is written again. Where that fails it
/// is missing as before, and the next reload says so.
fn pid_file(manifest: &Manifest) -> Option<(PathBuf, PidFile)> {
    let path = manifest.pid_file.as_ref()?;
    let ours = fs::read_to_string(path).is_ok_and(|text| text.trim() == std::process::id().to_string());
    let file = if ours { PidFile::adopt(path) } else { PidFile::write(path).ok()? };
    Some((path.clone(), file))
}

/// What to go back to; nothing for a program that was gone back to itself.
fn previous(estate: &Estate) -> Result<Option<Predecessor>, MasterError> {
    if estate.manifest.returned.is_some() {
        return Ok(None);
    }
    Ok(Some(Predecessor {
        file: estate.claim(estate.manifest.previous)?,
        version: estate.manifest.program.clone(),
        manifest: estate.version,
    }))
}

fn callers(estate: &Estate) -> Result<(Vec<Caller>, Vec<Wish>), MasterError> {
    let (mut upgrades, mut wishes) = (Vec::new(), Vec::new());
    for held in &estate.manifest.callers {
        let caller = Caller::adopt(estate.claim(held.stream)?, held.trusted);
        match held.wish {
            HeldWish::Upgrade => upgrades.push(caller),
            HeldWish::Reload(mode) => wishes.push(Wish { mode, caller: Some(caller) }),
        }
    }
    wishes.extend((0..estate.manifest.hangups).map(|_| Wish { mode: None, caller: None }));
    Ok((upgrades, wishes))
}
