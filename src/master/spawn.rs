//! One worker process from the master's side: start, messages, end.
//! Called by `reload` and at start. Never shares memory with it but the counters.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};

use super::MasterError;
use super::events::Event;
use super::watchdog::Pulse;
use crate::config::{Bundle, may_become_anybody, may_confine};
use crate::handoff::fault::{self, Step};
use crate::handoff::messages::{FromWorker, ListenerOwner, PROTOCOL_VERSION, Slots, Start, ToWorker};
use crate::handoff::{Channel, HandoffError, MAX_DESCRIPTORS, memory_file};
use crate::logging;

/// A worker that is not ready after this long is given up.
pub(super) const READY_PATIENCE: Duration = Duration::from_secs(10);

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    Ready,
    Serving,
    Draining,
    Stopping,
}

/// A worker process.
pub(super) struct Worker {
    pub(super) generation: u64,
    pub(super) pid: u32,
    pub(super) lane: u32,
    pub(super) state: State,
    pub(super) slots: Slots,
    /// Its own configuration, which an older generation does not share with the current one.
    pub(super) bundle: Arc<Bundle>,
    pub(super) channel: Arc<Channel>,
    /// Where it says its last words.
    pub(super) stderr: Option<OwnedFd>,
    pub(super) since: Instant,
    /// When it is killed, once it was told to end or to serve.
    pub(super) deadline: Option<Instant>,
    /// By when it has to say that it accepts no more, once it was told to drain.
    pub(super) retreat: Option<Instant>,
    /// The order to drain, as long as no successor has said that it serves.
    pub(super) relief: Option<ToWorker>,
    /// Its threads' heartbeats as they were seen last; none before the first look.
    pub(super) pulse: Option<Pulse>,
    /// One of its threads turns no more.
    pub(super) stalled: bool,
    pub(super) kill: Option<oneshot::Sender<()>>,
}

impl Worker {
    /// Ends the process, whatever it is doing.
    pub(super) fn kill(&mut self) {
        (self.deadline, self.retreat) = (None, None);
        if let Some(kill) = self.kill.take() {
            // Its receiver is gone when the process is.
            let _ = kill.send(());
        }
    }

    /// Whether the process has ended already.
    pub(super) fn is_gone(&self) -> bool {
        self.kill.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Waits until it does what it was told, and serves. Returns what it said beside that.
    pub(super) async fn serve(&self) -> Result<Vec<FromWorker>, MasterError> {
        let mut said = Vec::new();
        loop {
            let received = tokio::time::timeout(READY_PATIENCE, self.channel.recv::<FromWorker>()).await;
            match received.map_err(|_elapsed| MasterError::WorkerIdle(READY_PATIENCE.as_secs()))?? {
                None => return Err(MasterError::WorkerDied),
                Some((FromWorker::Serving, _)) => return Ok(said),
                Some((FromWorker::Failed(reason), _)) => return Err(MasterError::WorkerFailed(reason)),
                Some((message, _)) => said.push(message),
            }
        }
    }

    /// From now on what it says becomes events, and what it has said already.
    pub(super) fn listen(&self, said: Vec<FromWorker>, events: &mpsc::UnboundedSender<Event>) {
        let (channel, generation, events) = (Arc::clone(&self.channel), self.generation, events.clone());
        tokio::spawn(async move {
            let mut waiting = said.into_iter();
            loop {
                let message = match waiting.next() {
                    Some(message) => message,
                    None => match channel.recv::<FromWorker>().await {
                        Ok(Some((message, _fds))) => message,
                        // Something that this version does not know; what it knows it still wants to hear.
                        Err(HandoffError::Message(_)) => continue,
                        Ok(None) | Err(_) => return,
                    },
                };
                if events.send(Event::Worker(generation, message)).is_err() {
                    return;
                }
            }
        });
    }

    /// Gives it an order. A worker that is gone is noticed by its end, not here.
    pub(super) fn tell(&self, order: &ToWorker) {
        let _ = self.channel.send(order, &[]);
    }
}

/// What a new worker is given.
pub(super) struct Orders<'a> {
    pub(super) bundle: Arc<Bundle>,
    pub(super) generation: u64,
    pub(super) lane: u32,
    pub(super) slots: Slots,
    pub(super) counters: BorrowedFd<'a>,
    pub(super) ticket_keys: &'a [Vec<u8>],
    pub(super) maxconn: u32,
    pub(super) listeners: Vec<(ListenerOwner, BorrowedFd<'a>)>,
}

/// Starts a worker and waits until it could serve. Its end becomes an event.
pub(super) async fn spawn(orders: Orders<'_>, events: &mpsc::UnboundedSender<Event>) -> Result<Worker, MasterError> {
    fault::strike(Step::Spawn).map_err(|error| MasterError::Spawn(error.into()))?;
    let (channel, theirs) = Channel::pair()?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("proxy")
        .arg("worker")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(MasterError::Spawn)?;
    let pid = child.id().unwrap_or(0);
    let stderr = child.stderr.as_ref().and_then(|stderr| stderr.as_fd().try_clone_to_owned().ok());
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(relay(stderr, pid, events.clone()));
    }
    let (generation, lane, slots) = (orders.generation, orders.lane, orders.slots.clone());
    let bundle = Arc::clone(&orders.bundle);
    match hand_over(&channel, orders) {
        // It has ended already; what it said last is still there to be read.
        Err(MasterError::Channel(HandoffError::Channel(Errno::EPIPE | Errno::ECONNRESET))) => {}
        handed => handed?,
    }
    await_ready(&channel).await?;
    let channel = Arc::new(channel);
    let (kill, killed) = oneshot::channel();
    tokio::spawn(reap(child, killed, generation, events.clone()));
    let since = Instant::now();
    Ok(Worker {
        generation,
        pid,
        lane,
        state: State::Ready,
        slots,
        bundle,
        channel,
        stderr,
        since,
        deadline: None,
        retreat: None,
        relief: None,
        pulse: None,
        stalled: false,
        kill: Some(kill),
    })
}

/// What a worker says on stderr is a panic, as a rule: it belongs into the log, wherever our own stderr goes.
pub(super) async fn relay(stderr: impl AsyncRead + Unpin, pid: u32, events: mpsc::UnboundedSender<Event>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if events.send(Event::WorkerSaid(pid, line)).is_err() {
            return;
        }
    }
}

/// Waits for a worker's end and tells of it. Signals go through here: only who reaps a process knows
/// that its pid is still its own.
async fn reap(mut child: Child, killed: oneshot::Receiver<()>, generation: u64, events: mpsc::UnboundedSender<Event>) {
    let status = tokio::select! {
        status = child.wait() => status,
        // Somebody asked for it, or nobody wants this worker any more: the reload failed after its start.
        _asked = killed => {
            // Fails only for a process that has ended, which the next line sees.
            let _ = child.start_kill();
            child.wait().await
        }
    };
    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    // The receiver is gone only when the master ends.
    let _ = events.send(Event::WorkerEnded(generation, status));
}

fn hand_over(channel: &Channel, orders: Orders<'_>) -> Result<(), MasterError> {
    let logs: Vec<Option<OwnedFd>> = orders.bundle.logs.iter().map(|log| logging::connect(log).ok()).collect();
    let (uid, gid, chroot) = account(&orders.bundle)?;
    let start = Start {
        protocol: fault::announced(PROTOCOL_VERSION),
        generation: orders.generation,
        lane: orders.lane,
        slots: orders.slots,
        ticket_keys: orders.ticket_keys.to_vec(),
        logs_connected: logs.iter().map(Option::is_some).collect(),
        uid,
        gid,
        chroot,
        maxconn: orders.maxconn,
        threads: orders.bundle.global.threads(),
        listeners: u32::try_from(orders.listeners.len()).unwrap_or(u32::MAX),
    };
    let bundle = bundle_file(&orders.bundle)?;
    let mut fds = vec![bundle.as_fd(), orders.counters];
    fds.extend(logs.iter().flatten().map(AsFd::as_fd));
    channel.send(&ToWorker::Start(Box::new(start)), &fds)?;
    fault::strike(Step::HandedOver).map_err(HandoffError::Channel)?;
    for batch in orders.listeners.chunks(MAX_DESCRIPTORS) {
        let owners = batch.iter().map(|(owner, _)| *owner).collect();
        let fds: Vec<_> = batch.iter().map(|(_, fd)| *fd).collect();
        channel.send(&ToWorker::Listeners(owners), &fds)?;
    }
    Ok(())
}

fn bundle_file(bundle: &Bundle) -> Result<File, MasterError> {
    let failed = |source| MasterError::File { path: "bundle".into(), source };
    let mut file = memory_file("bundle").map_err(failed)?;
    file.write_all(&serde_json::to_vec(bundle)?).map_err(failed)?;
    file.rewind().map_err(failed)?;
    Ok(file)
}

type Account = (Option<u32>, Option<u32>, Option<String>);

/// User, group and chroot, as far as we may give them.
fn account(bundle: &Bundle) -> Result<Account, MasterError> {
    use nix::unistd::{Group, User};
    let folder = bundle.global.chroot.as_ref().filter(|_| may_confine());
    let chroot = folder.map(|path| path.to_string_lossy().into_owned());
    if !may_become_anybody() {
        return Ok((None, None, chroot));
    }
    let missing = |kind, name: &str| MasterError::Account { kind, name: name.to_owned() };
    let user = match &bundle.global.user {
        Some(name) => Some(User::from_name(name).ok().flatten().ok_or_else(|| missing("user", name))?),
        None => None,
    };
    let gid = match &bundle.global.group {
        Some(name) => Some(Group::from_name(name).ok().flatten().ok_or_else(|| missing("group", name))?.gid),
        None => user.as_ref().map(|user| user.gid),
    };
    Ok((user.map(|user| user.uid.as_raw()), gid.map(nix::unistd::Gid::as_raw), chroot))
}

async fn await_ready(channel: &Channel) -> Result<(), MasterError> {
    let silent = || MasterError::WorkerSilent(READY_PATIENCE.as_secs());
    loop {
        let received = tokio::time::timeout(READY_PATIENCE, channel.recv::<FromWorker>()).await;
        match received.map_err(|_elapsed| silent())?? {
            None => return Err(MasterError::WorkerDied),
            Some((FromWorker::Ready, _)) => return Ok(()),
            Some((FromWorker::Failed(reason), _)) => return Err(MasterError::WorkerFailed(reason)),
            // The others are said by those who serve.
            Some(_) => {}
        }
    }
}
