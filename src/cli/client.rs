//! The admin socket from the caller's side: find it, send a command, wait for the answer.
//! Used by `reload`, `server`, `status`, `stop` and `upgrade`. Never judges an answer.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::args::Target;
use super::find;
use crate::config;
use crate::master::Answer;

/// Why there is no answer; each knows its exit code.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The configuration names no admin socket.
    #[error("{0} names no admin socket: give --socket, or -f with the daemon's configuration")]
    NoSocket(PathBuf),
    /// Nobody listens there.
    #[error("not running: nobody answers on {0}")]
    NotRunning(PathBuf),
    /// We may not connect.
    #[error("not allowed to use {0}")]
    Forbidden(PathBuf),
    /// Nothing came in time.
    #[error("no answer within {0:?}; the daemon may still carry it out")]
    TimedOut(Duration),
    /// The daemon went away.
    #[error("the daemon ended before it answered")]
    Ended,
    /// Somebody else answers.
    #[error("{0} answers something else than proxy")]
    Foreign(PathBuf),
    /// Input or output failed.
    #[error("admin socket: {0}")]
    Io(#[source] io::Error),
}

impl ClientError {
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::NotRunning(_) | Self::Ended => super::NOT_RUNNING,
            Self::TimedOut(_) => super::BUSY,
            Self::NoSocket(_) | Self::Forbidden(_) | Self::Foreign(_) | Self::Io(_) => super::REFUSED,
        }
    }

    /// Says what happened; returns the exit code.
    pub(super) fn report(&self) -> u8 {
        eprintln!("proxy: {self}");
        self.code()
    }
}

/// A daemon that has answered, and whose end can be waited for.
pub(super) struct Conversation {
    pub(super) answer: Answer,
    stream: BufReader<UnixStream>,
}

/// Connects to the daemon that is meant: where the command line or the configuration says, else where the daemon
/// that runs with this configuration really is.
fn connect(target: &Target) -> Result<(PathBuf, UnixStream), ClientError> {
    if let Some(path) = &target.socket {
        return reach(path);
    }
    let named = config::admin_socket(&target.config);
    let reached = named.map_or_else(|| Err(ClientError::NoSocket(target.config.clone())), |path| reach(&path));
    reached.or_else(|error| match error {
        ClientError::NoSocket(_) | ClientError::NotRunning(_) => find::daemon(&target.config).ok_or(error),
        error => Err(error),
    })
}

/// Connects to a path.
fn reach(path: &Path) -> Result<(PathBuf, UnixStream), ClientError> {
    let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning(path.to_owned()),
        io::ErrorKind::PermissionDenied => ClientError::Forbidden(path.to_owned()),
        _ => ClientError::Io(error),
    })?;
    Ok((path.to_owned(), stream))
}

/// Sends a command to the daemon that is meant.
pub(super) fn ask(target: &Target, command: &str) -> Result<Conversation, ClientError> {
    let deadline = Instant::now() + target.timeout;
    let (path, stream) = connect(target)?;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::TimedOut(target.timeout),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Ended,
        _ => ClientError::Io(error),
    };
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left)).map_err(ClientError::Io)?;
    stream.set_write_timeout(Some(left)).map_err(ClientError::Io)?;
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(format!("{command}\n").as_bytes()).map_err(failed)?;
    let mut line = String::new();
    if stream.read_line(&mut line).map_err(failed)? == 0 {
        return Err(ClientError::Ended);
    }
    let answer = serde_json::from_str(&line).map_err(|_other| ClientError::Foreign(path))?;
    Ok(Conversation { answer, stream })
}

impl Conversation {
    /// Waits until the daemon is gone; `None` waits as long as it takes.
    pub(super) fn until_end(mut self, patience: Option<Duration>) -> Result<(), ClientError> {
        self.stream.get_mut().set_read_timeout(patience).map_err(ClientError::Io)?;
        match self.stream.read(&mut [0; 1]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(ClientError::TimedOut(patience.unwrap_or_default()))
            }
            // Its end, however it looks.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
