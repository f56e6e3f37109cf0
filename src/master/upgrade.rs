//! The master becomes the program that lies on disk: examined, rehearsed, then executed in place.
//! Called by `lifecycle` beside its event loop. Never lets go of anything before execve(2) has succeeded.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat, stat};
use nix::unistd::{dup2_stdin, execv};
use tokio::process::Command;
use tokio::sync::mpsc;

use super::admin::Caller;
use super::agenda::Wish;
use super::events::{self, Event};
use super::lifecycle::Master;
use super::manifest::{HeldAdmin, HeldCaller, HeldListener, HeldWish, HeldWorker, Luggage, Manifest};
use super::reload::Failed;
use super::request::{Answer, Outcome};
use super::retire::answer_all;
use super::spawn::Worker;
use super::{MasterError, Options};
use crate::config::Bundle;
use crate::handoff::Versions;
use crate::logging::Severity;

/// How long the new program may take for each question.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long processes that were killed get to be gone.
const STRAYS_PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two looks at them.
const STRAYS_PAUSE: Duration = Duration::from_millis(2);

/// A program that could take over.
pub(super) struct Program {
    path: PathBuf,
    /// What lies at the path must still be this when it is executed.
    file: OwnedFd,
    version: String,
    /// The manifest that it reads.
    manifest: u32,
}

/// Asks the program on disk whether it accepts the configuration, and what it speaks.
pub(super) async fn examine(options: Options) -> Result<Program, Failed> {
    let rejected = |error| (Outcome::Rejected, error);
    let path = options.program;
    let missing = |source| MasterError::Program { path: path.clone(), source };
    let file = open(&path).map_err(missing).map_err(rejected)?;
    let config = options.config.as_os_str();
    let check = ["check".as_ref(), "-q".as_ref(), "-f".as_ref(), config];
    ask(&path, "refuses the configuration", &check, Stdio::null()).await.map_err(rejected)?;
    let what = "does not say what it speaks";
    let said = ask(&path, what, &["version".as_ref(), "--json".as_ref()], Stdio::null()).await.map_err(rejected)?;
    let theirs: Versions = serde_json::from_slice(&said.stdout).map_err(|_other| {
        let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        rejected(MasterError::ProgramRefuses { path: path.clone(), what, said })
    })?;
    let manifest = Versions::ours().meet(&theirs).map_err(|error| rejected(error.into()))?;
    Ok(Program { path, file, version: theirs.program, manifest })
}

/// Lets the program read what it would take over, in a process of its own that changes nothing.
pub(super) async fn rehearse(
    program: Program,
    options: Options,
    estate: Result<OwnedFd, MasterError>,
) -> Result<Program, Failed> {
    let rejected = |error| (Outcome::Rejected, error);
    let estate = estate.map_err(rejected)?;
    let run = ["run".as_ref(), "--resume".as_ref(), "--rehearse".as_ref(), "-f".as_ref(), options.config.as_os_str()];
    ask(&program.path, "cannot take over", &run, estate.into()).await.map_err(rejected)?;
    Ok(program)
}

fn open(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(File::options().read(true).custom_flags(nix::libc::O_PATH).open(path)?.into())
}

async fn ask(
    path: &Path,
    what: &'static str,
    arguments: &[&std::ffi::OsStr],
    stdin: Stdio,
) -> Result<Output, MasterError> {
    let mut command = Command::new(path);
    command.args(arguments).stdin(stdin).kill_on_drop(true);
    let silent = |_elapsed| MasterError::ProgramSilent { path: path.to_owned(), what, seconds: PATIENCE.as_secs() };
    let output = tokio::time::timeout(PATIENCE, command.output()).await.map_err(silent)?;
    let output = output.map_err(|source| MasterError::Program { path: path.to_owned(), source })?;
    if output.status.success() {
        return Ok(output);
    }
    let mut said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.code().is_none() {
        let said = output.status.to_string();
        return Err(MasterError::ProgramRefuses { path: path.to_owned(), what: "does not run", said });
    }
    if said.is_empty() {
        said = output.status.to_string();
    }
    Err(MasterError::ProgramRefuses { path: path.to_owned(), what, said })
}

/// What a master that took over goes back to if it cannot serve.
pub(super) struct Predecessor {
    pub(super) file: OwnedFd,
    pub(super) version: String,
    /// The manifest that it wrote.
    pub(super) manifest: u32,
}

/// What is executed.
enum Image {
    New(Program),
    Old(Predecessor, String),
}

impl Master {
    /// What a successor would find now, queued for it.
    pub(super) fn rehearsal(&self, program: &Program) -> Result<OwnedFd, MasterError> {
        self.leave(program.manifest, None, &[])
    }

    /// Becomes another program. Returns only if that failed.
    pub(super) async fn become_program(&mut self, program: Program, receiver: &mut mpsc::UnboundedReceiver<Event>) {
        self.say(Severity::Notice, &format!("proxy {} is executed in place, pid stays", program.version));
        let Err((outcome, error)) = self.execute(&Image::New(program), receiver).await;
        self.upgrade_failed(outcome, &error);
    }

    /// Becomes the program before again, because no worker of this one could serve. Returns only if that failed.
    pub(super) async fn go_back(
        &mut self,
        old: Predecessor,
        reason: &str,
        receiver: &mut mpsc::UnboundedReceiver<Event>,
    ) {
        let reason = format!("proxy {} could not serve: {reason}", env!("CARGO_PKG_VERSION"));
        self.say(Severity::Error, &format!("{reason}; back to proxy {}", old.version));
        let Err((_, error)) = self.execute(&Image::Old(old, reason.clone()), receiver).await;
        let text = format!("{reason}; the old workers go on serving, but going back failed: {}", error.chain());
        self.upgrade_failed(Outcome::RolledBack, &MasterError::Returned(text));
    }

    /// Tells everybody who waits for the upgrade why there is none.
    pub(super) fn upgrade_failed(&mut self, outcome: Outcome, error: &MasterError) {
        let message = format!("the upgrade failed, proxy {} goes on: ", env!("CARGO_PKG_VERSION"));
        self.say(Severity::Error, &(message + &error.brief()));
        let mut answer = Answer::new(outcome, error.chain());
        answer.brief = Some(error.brief());
        answer_all(self.upgrades.drain(..), &answer);
    }

    async fn execute(
        &mut self,
        image: &Image,
        receiver: &mut mpsc::UnboundedReceiver<Event>,
    ) -> Result<Infallible, Failed> {
        if let Some(admin) = &mut self.admin {
            admin.pause().await;
        }
        // From here on they would find nobody: they wait for the next program to have its handlers.
        let signals = events::signals();
        let blocked = signals.thread_block();
        self.await_strays().await;
        // What was read and not handled would be lost: the successor finds only what is still in a socket.
        while let Ok(event) = receiver.try_recv() {
            self.handle(event);
        }
        let error = if self.is_ending() {
            (Outcome::Busy, MasterError::Returned("the daemon is stopping".into()))
        } else if self.workers.free_lane().is_none() && matches!(image, Image::New(_)) {
            // Its first generation would find none either.
            (Outcome::Busy, MasterError::NoLane)
        } else {
            let Err(error) = self.replace_image(image);
            (Outcome::RolledBack, error)
        };
        if blocked.is_ok() {
            // What could be blocked can be unblocked.
            let _ = signals.thread_unblock();
        }
        if let Some(Err(source)) = self.admin.as_mut().map(super::admin::AdminSocket::resume) {
            let path = self.bundle.admin.as_ref().map(|admin| admin.socket.clone()).unwrap_or_default();
            self.say(Severity::Critical, &MasterError::File { path, source }.chain());
        }
        Err(error)
    }

    /// Waits a little for the end of processes that are no workers any more: of whom the next program does not know, it
    /// cannot bury. At least as long as signals that have come take to become events.
    async fn await_strays(&self) {
        let deadline = Instant::now() + STRAYS_PATIENCE;
        loop {
            tokio::time::sleep(STRAYS_PAUSE).await;
            let mut strays = children().into_iter().filter(|one| self.workers.all().iter().all(|own| own.pid != *one));
            if strays.next().is_none() || deadline <= Instant::now() {
                return;
            }
        }
    }

    fn replace_image(&self, image: &Image) -> Result<Infallible, MasterError> {
        let (path, estate) = match image {
            Image::New(program) => {
                let same = |one: FileStat, other: FileStat| (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino);
                let unchanged =
                    stat(&program.path).is_ok_and(|now| fstat(&program.file).is_ok_and(|then| same(now, then)));
                if !unchanged {
                    return Err(MasterError::ProgramChanged(program.path.clone()));
                }
                (program.path.clone(), self.leave(program.manifest, None, &self.upgrades)?)
            }
            Image::Old(old, reason) => {
                let path = PathBuf::from(format!("/proc/self/fd/{}", old.file.as_raw_fd()));
                (path, self.leave(old.manifest, Some(reason.clone()), &self.upgrades)?)
            }
        };
        execute(&path, &self.options, &estate)
    }

    /// Queues everything that outlives this program.
    fn leave(&self, version: u32, returned: Option<String>, upgrades: &[Caller]) -> Result<OwnedFd, MasterError> {
        let itself = open(Path::new("/proc/self/exe"));
        let itself = itself.map_err(|source| MasterError::Program { path: "/proc/self/exe".into(), source })?;
        let mut luggage = Luggage::default();
        let (now, mut bundles) = (Instant::now(), vec![&self.bundle]);
        let mut workers = Vec::new();
        for worker in self.workers.all() {
            let known = bundles.iter().position(|bundle| Arc::ptr_eq(bundle, &worker.bundle));
            workers.push(held(worker, known.unwrap_or(bundles.len()), now, &mut luggage));
            if known.is_none() {
                bundles.push(&worker.bundle);
            }
        }
        let listeners = self.listeners.iter().map(|listener| HeldListener {
            bind: listener.bind.clone(),
            owner: listener.owner,
            socket: luggage.add(listener.socket.as_fd()),
            removes_path: listener.socket.removes_path(),
            name: listener.socket.name().map(str::to_owned),
        });
        let listeners = listeners.collect();
        let admin = self.admin.as_ref().map(|admin| {
            let (listener, inode) = admin.parts();
            HeldAdmin { socket: luggage.add(listener.as_fd()), inode }
        });
        let manifest = Manifest {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            messages: Versions::ours().messages.newest,
            generation: self.generation,
            uptime: self.began.elapsed(),
            maxconn: self.maxconn,
            bundles: bundles.into_iter().map(document).collect::<Result<_, _>>()?,
            last_reload: self.last_reload.clone(),
            ticket_keys: self.blank.tickets.keys().to_vec(),
            ticket_age: self.blank.tickets.age(now),
            counters: luggage.add(self.blank.counters.as_fd()),
            listeners,
            workers,
            logs_lost: self.log_sockets.all(),
            admin,
            pid_file: self.pid_file.as_ref().map(|(path, _)| path.clone()),
            callers: callers(upgrades, &self.wishes, &mut luggage),
            hangups: self.wishes.iter().filter(|wish| wish.caller.is_none()).count(),
            kept: self.store.kept.clone(),
            legacy: self.store.legacy.as_ref().map(|legacy| luggage.add(legacy.file.as_fd())),
            orphans: self.workers.orphans().to_vec(),
            previous: luggage.add(itself.as_fd()),
            returned,
        };
        luggage.send(version, &manifest)
    }
}

/// Our child processes, the dead ones included; none where the kernel keeps no list.
fn children() -> Vec<u32> {
    let list = format!("/proc/self/task/{}/children", std::process::id());
    let text = std::fs::read_to_string(list).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// A worker that the next program goes on with; `bundle` is the place of its configuration.
fn held<'a>(worker: &'a Worker, bundle: usize, now: Instant, luggage: &mut Luggage<'a>) -> HeldWorker {
    HeldWorker {
        generation: worker.generation,
        pid: worker.pid,
        lane: worker.lane,
        state: worker.state,
        slots: worker.slots.clone(),
        bundle,
        channel: luggage.add(worker.channel.as_fd()),
        stderr: worker.stderr.as_ref().map(|stderr| luggage.add(stderr.as_fd())),
        age: worker.since.elapsed(),
        left: worker.deadline.map(|deadline| deadline.saturating_duration_since(now)),
        retreat: worker.retreat.map(|retreat| retreat.saturating_duration_since(now)),
        relief: worker.relief.clone(),
    }
}

fn document(bundle: &Arc<Bundle>) -> serde_json::Result<serde_json::Value> {
    serde_json::to_value(bundle.as_ref())
}

fn callers<'a>(upgrades: &'a [Caller], wishes: &'a [Wish], luggage: &mut Luggage<'a>) -> Vec<HeldCaller> {
    let upgrades = upgrades.iter().map(|caller| (caller, HeldWish::Upgrade));
    let reloads = wishes.iter().filter_map(|wish| Some((wish.caller.as_ref()?, HeldWish::Reload(wish.mode))));
    let held = upgrades.chain(reloads).map(|(caller, wish)| {
        let (stream, trusted) = caller.parts();
        HeldCaller { stream: luggage.add(stream.as_fd()), trusted, wish }
    });
    held.collect()
}

/// execve(2) in place, with the estate as stdin and signals blocked as they are. Returns only if that failed, and then
/// everything is as it was.
pub(super) fn execute(path: &Path, options: &Options, estate: &OwnedFd) -> Result<Infallible, MasterError> {
    let failed = |source: Errno| MasterError::Program { path: path.to_owned(), source: source.into() };
    let text = |text: &std::ffi::OsStr| CString::new(text.as_bytes()).map_err(|_nul| failed(Errno::EINVAL));
    let program = text(path.as_os_str())?;
    let mut argv = vec![text(options.program.as_os_str())?, c"run".into(), c"--resume".into(), c"-f".into()];
    argv.push(text(options.config.as_os_str())?);
    if let Some(pid_file) = &options.pid_file {
        argv.extend([c"-p".into(), text(pid_file.as_os_str())?]);
    }
    if options.quiet {
        argv.push(c"-q".into());
    }
    // Closed on exec, unlike what dup(2) makes: it is for us alone.
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().ok();
    dup2_stdin(estate).map_err(failed)?;
    let Err(error) = execv(&program, &argv);
    if let Some(stdin) = stdin {
        // Without it, reading from the terminal, which nobody does, would read the estate.
        let _ = dup2_stdin(stdin);
    }
    Err(failed(error))
}
