//! The admin socket: one command a connection, one JSON line as its answer; `_getsocks` as HAProxy's.
//! Bound by `lifecycle`. Never lets a stranger have a listening socket.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::events::Event;
use crate::config::{Admin, AdminLevel, ReloadMode, may_give_to};
use crate::handoff::getsocks::COMMAND;

/// Callers served at a time; the others wait in the kernel's queue.
const MOST_CALLERS: usize = 256;
/// Callers that wait there.
const QUEUE: i32 = 1024;
/// Pause after accept(2) failed.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest command line.
const LONGEST: u64 = 256;

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Status,
    Reload(Option<ReloadMode>),
    Stop { graceful: bool },
}

/// How a request ended; the discriminant is the exit code of the command that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Done.
    Applied = 0,
    /// Refused before anything was changed.
    Rejected = 1,
    /// Tried and undone.
    RolledBack = 2,
    /// Busy or timed out.
    Busy = 3,
}

/// The answer to a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// How it ended.
    pub outcome: Outcome,
    /// What to tell the caller.
    pub message: String,
    /// What the caller should know beside it.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Facts, for `status`.
    #[serde(default)]
    pub facts: serde_json::Value,
    /// What a stranger is told instead of `message`, which may quote the configuration.
    #[serde(skip)]
    pub(super) brief: Option<String>,
}

impl Answer {
    pub(super) fn new(outcome: Outcome, message: impl Into<String>) -> Self {
        Self { outcome, message: message.into(), warnings: Vec::new(), facts: serde_json::Value::Null, brief: None }
    }
}

/// A bound admin socket; its path goes away with it unless a successor has taken it.
pub(super) struct AdminSocket {
    path: PathBuf,
    /// Where it is as long as it is not in its place.
    draft: Option<PathBuf>,
    inode: u64,
    task: tokio::task::JoinHandle<()>,
}

impl AdminSocket {
    /// Binds beside the path: [`AdminSocket::publish`] renames, so that the path never blinks.
    pub(super) fn open(admin: &Admin, events: mpsc::UnboundedSender<Event>) -> io::Result<Self> {
        if let Some(folder) = admin.socket.parent() {
            fs::create_dir_all(folder)?;
        }
        let draft = admin.socket.with_extension(format!("sock.{}", std::process::id()));
        let _absent = fs::remove_file(&draft);
        let socket = bind(admin, &draft)?;
        let inode = fs::metadata(&draft)?.ino();
        socket.listen(QUEUE)?;
        let listener = UnixListener::from_std(socket.into())?;
        let rights = admin.clone();
        let task = tokio::spawn(async move {
            let room = Arc::new(Semaphore::new(MOST_CALLERS));
            loop {
                let Ok(seat) = Arc::clone(&room).acquire_owned().await else { return };
                let Ok((stream, _)) = listener.accept().await else {
                    // For want of descriptors; trying at once would spin.
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                let (rights, events) = (rights.clone(), events.clone());
                tokio::spawn(async move {
                    let _seat = seat;
                    let limit = rights.timeout;
                    // A caller that breaks off has nobody left to be told.
                    let _ = converse(stream, &rights, limit, &events).await;
                });
            }
        });
        Ok(Self { path: admin.socket.clone(), draft: Some(draft), inode, task })
    }

    /// Callers find it from now on.
    pub(super) fn publish(&mut self) -> io::Result<()> {
        if let Some(draft) = &self.draft {
            fs::rename(draft, &self.path)?;
            self.draft = None;
        }
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
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

async fn converse(
    stream: UnixStream,
    admin: &Admin,
    limit: Duration,
    events: &mpsc::UnboundedSender<Event>,
) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let trusted = peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    let reading = tokio::io::AsyncReadExt::take(&mut stream, LONGEST);
    tokio::time::timeout(limit, BufReader::new(reading).read_line(&mut line)).await??;
    let mut stream = stream.into_inner();
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
    let request = match parse(line) {
        None => return reply(&mut stream, &Answer::new(Outcome::Rejected, format!("unknown command `{line}`"))).await,
        Some(request) if !permitted(request, admin.level, trusted) => {
            refused(line);
            return reply(&mut stream, &Answer::new(Outcome::Rejected, "permission denied")).await;
        }
        Some(request) => request,
    };
    let (sender, receiver) = oneshot::channel();
    if events.send(Event::Admin(request, sender)).is_ok()
        && let Ok(mut answer) = receiver.await
    {
        if let Some(brief) = answer.brief.take_if(|_| !trusted) {
            answer.message = brief;
        }
        reply(&mut stream, &answer).await?;
    }
    if matches!(request, Request::Stop { .. }) {
        // The end of this connection is how the caller learns that the daemon is gone.
        std::future::pending::<()>().await;
    }
    Ok(())
}

async fn reply(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    stream.write_all(&text).await
}

fn parse(line: &str) -> Option<Request> {
    Some(match line {
        "status" => Request::Status,
        "reload" => Request::Reload(None),
        "reload handover" => Request::Reload(Some(ReloadMode::Handover)),
        "reload rebind" => Request::Reload(Some(ReloadMode::Rebind)),
        "stop" => Request::Stop { graceful: false },
        "stop graceful" => Request::Stop { graceful: true },
        _ => return None,
    })
}

/// Looking needs `user`, reloading `operator`, stopping `admin`; strangers whom the socket's mode lets
/// in never stop anything.
fn permitted(request: Request, level: AdminLevel, trusted: bool) -> bool {
    match request {
        Request::Status => true,
        Request::Reload(_) => level >= AdminLevel::Operator,
        Request::Stop { .. } => level >= AdminLevel::Admin && trusted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_follow_level_and_caller() {
        let stop = Request::Stop { graceful: false };
        for (request, level, trusted, expected) in [
            (Request::Status, AdminLevel::User, false, true),
            (Request::Reload(None), AdminLevel::User, true, false),
            (Request::Reload(None), AdminLevel::Operator, false, true),
            (stop, AdminLevel::Operator, true, false),
            (stop, AdminLevel::Admin, false, false),
            (stop, AdminLevel::Admin, true, true),
        ] {
            assert_eq!(permitted(request, level, trusted), expected, "{request:?} {level:?} {trusted}");
        }
    }

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

    #[test]
    fn commands_are_words_not_prefixes() {
        assert_eq!(parse("reload rebind"), Some(Request::Reload(Some(ReloadMode::Rebind))));
        assert_eq!(parse("reload  rebind"), None);
        assert_eq!(parse("stopp"), None);
    }
}
