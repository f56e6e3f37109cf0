//! The admin socket: one command a connection, one JSON line as its answer; `_getsocks` as HAProxy's.
//! Bound by `lifecycle`. Never lets a stranger have a listening socket.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::events::Event;
use super::request::{Answer, Outcome, parse, permitted};
use crate::config::{Admin, AdminLevel, may_give_to};
use crate::handoff::getsocks::COMMAND;
use crate::socket::beside;

/// Callers served at a time; the others wait in the kernel's queue.
const MOST_CALLERS: usize = 256;
/// Callers that wait there.
const QUEUE: i32 = 1024;
/// Pause after accept(2) failed.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest command line.
const LONGEST: u64 = 1024;
/// How long callers that have connected get to say what they want when nobody more is let in.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Who asked for something and waits for the answer.
pub(super) struct Caller {
    stream: StdUnixStream,
    trusted: bool,
    /// Counts against [`MOST_CALLERS`].
    _seat: Option<OwnedSemaphorePermit>,
}

impl Caller {
    /// One whose request another process has read.
    pub(super) fn adopt(stream: OwnedFd, trusted: bool) -> Self {
        Self { stream: stream.into(), trusted, _seat: None }
    }

    /// To be handed on to the process that will answer.
    pub(super) fn parts(&self) -> (&StdUnixStream, bool) {
        (&self.stream, self.trusted)
    }

    /// Answers. One that broke off has nobody left to be told.
    pub(super) fn answer(self, answer: &Answer) {
        self.reply(answer, false);
    }

    /// Answers and holds the line: its end is how the caller learns that the daemon is gone.
    pub(super) fn answer_and_hold(self, answer: &Answer) {
        self.reply(answer, true);
    }

    fn reply(mut self, answer: &Answer, hold: bool) {
        let Ok(text) = line(answer, self.trusted) else { return };
        // At once, as a rule: an answer takes less room than a fresh socket has.
        let written = self.stream.write(&text).unwrap_or(0);
        if written == text.len() {
            return let_go(self.stream, hold);
        }
        tokio::spawn(async move {
            let Ok(mut stream) = UnixStream::from_std(self.stream) else { return };
            if stream.write_all(&text[written..]).await.is_ok() {
                let_go(stream, hold);
            }
        });
    }
}

/// One that is held is the kernel's to close, when the process has ended: we ourselves would close it too early.
fn let_go<S>(stream: S, hold: bool) {
    if hold {
        std::mem::forget(stream);
    }
}

/// A bound admin socket; its path goes away with it unless a successor has taken it.
pub(super) struct AdminSocket {
    path: PathBuf,
    /// Where it is as long as it is not in its place.
    draft: Option<PathBuf>,
    inode: u64,
    listener: StdUnixListener,
    rights: Admin,
    events: mpsc::UnboundedSender<Event>,
    /// A permit each for callers that have not said yet what they want.
    asking: Arc<Semaphore>,
    task: tokio::task::JoinHandle<()>,
}

impl AdminSocket {
    /// Binds beside the path: [`AdminSocket::publish`] renames, so that the path never blinks.
    pub(super) fn open(admin: &Admin, events: mpsc::UnboundedSender<Event>) -> io::Result<Self> {
        if let Some(folder) = admin.socket.parent() {
            fs::create_dir_all(folder)?;
        }
        if fs::metadata(&admin.socket).is_ok_and(|found| !found.file_type().is_socket()) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is no socket"));
        }
        let draft = beside(&admin.socket, "tmp");
        let _absent = fs::remove_file(&draft);
        let socket = bind(admin, &draft)?;
        let inode = fs::metadata(&draft)?.ino();
        socket.listen(QUEUE)?;
        let mut socket = Self::serve(socket.into(), inode, admin.clone(), events)?;
        socket.draft = Some(draft);
        Ok(socket)
    }

    /// Goes on with the socket that this process had before it became another program.
    pub(super) fn adopt(
        listener: OwnedFd,
        inode: u64,
        admin: &Admin,
        events: mpsc::UnboundedSender<Event>,
    ) -> io::Result<Self> {
        Self::serve(listener.into(), inode, admin.clone(), events)
    }

    fn serve(
        listener: StdUnixListener,
        inode: u64,
        rights: Admin,
        events: mpsc::UnboundedSender<Event>,
    ) -> io::Result<Self> {
        let asking = Arc::new(Semaphore::new(MOST_CALLERS));
        let task = accepting(&listener, &rights, &asking, &events)?;
        Ok(Self { path: rights.socket.clone(), draft: None, inode, listener, rights, events, asking, task })
    }

    /// Callers find it from now on.
    pub(super) fn publish(&mut self) -> io::Result<()> {
        if let Some(draft) = &self.draft {
            fs::rename(draft, &self.path)?;
            self.draft = None;
        }
        Ok(())
    }

    /// What it was made for.
    pub(super) fn rights(&self) -> &Admin {
        &self.rights
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What a successor needs to go on with it.
    pub(super) fn parts(&self) -> (&StdUnixListener, u64) {
        (&self.listener, self.inode)
    }

    /// Lets nobody more in, and returns when everybody who is in has said what he wants; new callers wait in the
    /// kernel's queue.
    pub(super) async fn pause(&mut self) {
        self.task.abort();
        // Who connects and says nothing gains nothing by it; what he says too late, he has to say again.
        let everybody = self.asking.acquire_many(MOST_CALLERS as u32);
        let _ = tokio::time::timeout(LAST_WORDS, everybody).await;
    }

    /// Lets callers in again.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        self.task = accepting(&self.listener, &self.rights, &self.asking, &self.events)?;
        Ok(())
    }
}

/// A socket that has its rights and does not listen yet: until it has them, whoever the umask lets in is refused.
fn bind(admin: &Admin, path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(admin.mode))?;
    if let Some(group) = &admin.group
        && let Ok(Some(group)) = nix::unistd::Group::from_name(group)
        && may_give_to(group.gid)
    {
        nix::unistd::chown(path, None, Some(group.gid))?;
    }
    Ok(socket)
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        self.task.abort();
        let path = self.draft.as_ref().unwrap_or(&self.path);
        if fs::metadata(path).is_ok_and(|found| found.ino() == self.inode) {
            // Nothing is left to do about a path that cannot be removed.
            let _ = fs::remove_file(path);
        }
    }
}

/// Lets callers in, as a task of its own.
fn accepting(
    listener: &StdUnixListener,
    rights: &Admin,
    asking: &Arc<Semaphore>,
    events: &mpsc::UnboundedSender<Event>,
) -> io::Result<tokio::task::JoinHandle<()>> {
    let listener = UnixListener::from_std(listener.try_clone()?)?;
    let (rights, asking, events) = (rights.clone(), Arc::clone(asking), events.clone());
    Ok(tokio::spawn(async move {
        let room = Arc::new(Semaphore::new(MOST_CALLERS));
        loop {
            let Ok(seat) = Arc::clone(&room).acquire_owned().await else { return };
            let Ok(turn) = Arc::clone(&asking).acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                // For want of descriptors; trying at once would spin.
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let (rights, events) = (rights.clone(), events.clone());
            tokio::spawn(async move {
                // A caller that breaks off has nobody left to be told.
                let _ = hear(stream, seat, &rights, &events).await;
                drop(turn);
            });
        }
    }))
}

/// Hears what a caller wants, and passes it on with him.
async fn hear(
    stream: UnixStream,
    seat: OwnedSemaphorePermit,
    admin: &Admin,
    events: &mpsc::UnboundedSender<Event>,
) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let trusted = peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw();
    let mut reading = BufReader::new(stream).take(LONGEST);
    let mut line = String::new();
    tokio::time::timeout(admin.timeout, reading.read_line(&mut line)).await??;
    let stream = reading.into_inner().into_inner();
    let cut = line.len() as u64 == LONGEST && !line.ends_with('\n');
    let line = line.trim();
    let refused = |what: &str| {
        let message = format!("uid {} was refused `{what}` on the admin socket", peer.uid());
        // Without a receiver the master is ending.
        let _ = events.send(Event::Refused(message));
    };
    if line == COMMAND {
        if trusted && admin.expose_listeners && admin.level == AdminLevel::Admin {
            let _ = events.send(Event::GiveSockets(stream));
        } else {
            refused(COMMAND);
        }
        return Ok(());
    }
    let caller = Caller { stream: stream.into_std()?, trusted, _seat: Some(seat) };
    // What is left of a longer one may be another order.
    let understood = if cut { Err(format!("a command has at most {LONGEST} bytes")) } else { parse(line) };
    match understood {
        Err(problem) => caller.answer(&Answer::new(Outcome::Rejected, problem)),
        Ok(request) if !permitted(&request, admin.level, trusted) => {
            refused(line);
            caller.answer(&Answer::new(Outcome::Rejected, "permission denied"));
        }
        // Without a receiver the master is ending.
        Ok(request) => drop(events.send(Event::Admin(request, caller))),
    }
    Ok(())
}

/// An answer as it is sent.
fn line(answer: &Answer, trusted: bool) -> serde_json::Result<Vec<u8>> {
    let mut answer = answer.clone();
    if let Some(brief) = answer.brief.take_if(|_| !trusted) {
        answer.message = brief;
    }
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_let_in_before_the_socket_has_its_rights() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let admin = Admin {
            socket: path.clone(),
            mode: 0o600,
            group: None,
            level: AdminLevel::Admin,
            timeout: PAUSE,
            expose_listeners: false,
        };
        let socket = bind(&admin, &path).unwrap();
        let early = std::os::unix::net::UnixStream::connect(&path).unwrap_err();
        assert_eq!(early.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        socket.listen(QUEUE).unwrap();
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    }
}
