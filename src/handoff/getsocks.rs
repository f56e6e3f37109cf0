//! HAProxy's `_getsocks`: one daemon asks another for its listening sockets over a unix socket.
//! Called by `master` on both sides of `-x`. Never trusts what the peer says a socket is.

use std::io::{IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use rustix::net::RecvFlags;

use super::HandoffError;
use super::channel::receive_descriptors;

/// The command as HAProxy sends it.
pub const COMMAND: &str = "_getsocks";
/// Descriptors per message (HAProxy's `MAX_SEND_FD`).
const BATCH: usize = 252;
/// How long each step may take (HAProxy: one second).
const PATIENCE: Duration = Duration::from_secs(1);
/// What describes one descriptor: no namespace, no interface, four zero bytes.
const DESCRIPTION: [u8; 6] = [0; 6];
/// More than any daemon has; a larger count is a peer that speaks something else.
const MOST: i32 = 100_000;

/// Takes the listening sockets of the daemon behind `path`; it keeps its own copies.
///
/// # Errors
/// Nobody there, refused, or another protocol.
pub fn take(path: &Path) -> Result<Vec<OwnedFd>, HandoffError> {
    take_from(UnixStream::connect(path).map_err(HandoffError::Io)?)
}

/// As [`take`], over a connection.
///
/// # Errors
/// Refused, or another protocol.
pub fn take_from(mut stream: UnixStream) -> Result<Vec<OwnedFd>, HandoffError> {
    stream.set_read_timeout(Some(PATIENCE)).map_err(HandoffError::Io)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(HandoffError::Io)?;
    stream.write_all(format!("{COMMAND}\n").as_bytes()).map_err(HandoffError::Io)?;
    let mut number = [0; 4];
    stream.read_exact(&mut number).map_err(HandoffError::Io)?;
    let count = i32::from_ne_bytes(number);
    if !(0..=MOST).contains(&count) {
        return Err(HandoffError::GetSocks("it does not begin with a number of sockets"));
    }
    let count = usize::try_from(count).unwrap_or(0);
    let mut taken = Vec::with_capacity(count);
    let mut description = vec![0; 64 * 1024];
    while taken.len() < count {
        let (length, fds) = receive_descriptors(stream.as_fd(), &mut description, RecvFlags::empty())?;
        if length == 0 || fds.is_empty() {
            return Err(HandoffError::GetSocks("it ended before all sockets were sent"));
        }
        if fds.len() > count - taken.len() {
            return Err(HandoffError::GetSocks("it sent more sockets than it had said"));
        }
        taken.extend(fds);
        let so_far = i32::try_from(taken.len()).unwrap_or(i32::MAX);
        let acknowledged = stream.write_all(&so_far.to_ne_bytes());
        // HAProxy does not wait for the last acknowledgement.
        if taken.len() < count {
            acknowledged.map_err(HandoffError::Io)?;
        }
    }
    Ok(taken)
}

/// Gives copies of our listening sockets to whoever asked; the caller has checked who it is.
///
/// # Errors
/// A peer that goes away or does not acknowledge.
pub fn give(mut stream: UnixStream, listeners: &[BorrowedFd<'_>]) -> Result<(), HandoffError> {
    stream.set_nonblocking(false).map_err(HandoffError::Io)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(HandoffError::Io)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(HandoffError::Io)?;
    let count = i32::try_from(listeners.len()).unwrap_or(0);
    stream.write_all(&count.to_ne_bytes()).map_err(HandoffError::Io)?;
    let mut left = listeners.len();
    for batch in listeners.chunks(BATCH) {
        let raw: Vec<RawFd> = batch.iter().map(|fd| fd.as_raw_fd()).collect();
        let description = DESCRIPTION.repeat(batch.len());
        let rights = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&description)], &rights, MsgFlags::MSG_NOSIGNAL, None)
            .map_err(HandoffError::Channel)?;
        left -= batch.len();
        if left > 0 {
            stream.read_exact(&mut [0; 4]).map_err(HandoffError::Io)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn three_hundred_listeners_cross_in_two_batches() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let server = UnixListener::bind(&path).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let giver = std::thread::spawn({
            let listener = listener.try_clone().unwrap();
            move || {
                let (mut stream, _) = server.accept().unwrap();
                let mut line = [0; 10];
                stream.read_exact(&mut line).unwrap();
                assert_eq!(&line, b"_getsocks\n");
                give(stream, &vec![listener.as_fd(); 300]).unwrap();
            }
        });
        let taken = take(&path).unwrap();
        giver.join().unwrap();
        assert_eq!(taken.len(), 300);
        let address = TcpListener::from(taken.into_iter().next_back().unwrap()).local_addr().unwrap();
        assert_eq!(address, listener.local_addr().unwrap());
    }

    #[test]
    fn a_peer_that_speaks_something_else_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let server = UnixListener::bind(&path).unwrap();
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            stream.read_exact(&mut [0; COMMAND.len() + 1]).unwrap();
            stream.write_all(b"Unknown command\n").unwrap();
        });
        assert!(matches!(take(&path), Err(HandoffError::GetSocks(_))));
        peer.join().unwrap();
    }

    #[test]
    fn a_peer_that_gives_more_sockets_than_it_says_is_refused_and_none_of_them_is_kept() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&2_i32.to_ne_bytes()).unwrap();
        let (mut watched, given) = std::io::pipe().unwrap();
        let rights = [ControlMessage::ScmRights(&[given.as_raw_fd(); 3])];
        let text = [IoSlice::new(&[0; 18])];
        sendmsg::<()>(theirs.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).unwrap();
        drop(given);
        let taken = take_from(ours);
        assert!(matches!(taken, Err(HandoffError::GetSocks(_))), "{taken:?}");
        assert_eq!(watched.read(&mut [0]).unwrap(), 0, "the pipe has ended");
    }

    #[test]
    fn a_peer_whose_count_is_wrong_is_refused_and_none_at_all_is_no_error() {
        let cases: [(i32, &[u8], Option<usize>); 5] =
            [(0, b"", Some(0)), (-1, b"", None), (MOST + 1, b"", None), (1, b"", None), (1, b"\0\0\0\0\0\0", None)];
        for (count, then, wanted) in cases {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s");
            let server = UnixListener::bind(&path).unwrap();
            let peer = std::thread::spawn(move || {
                let (mut stream, _) = server.accept().unwrap();
                stream.read_exact(&mut [0; COMMAND.len() + 1]).unwrap();
                stream.write_all(&[&count.to_ne_bytes(), then].concat()).unwrap();
            });
            let taken = take(&path).map(|taken| taken.len());
            peer.join().unwrap();
            match (wanted, taken) {
                (Some(wanted), Ok(taken)) => assert_eq!(taken, wanted),
                (None, Err(HandoffError::GetSocks(_))) => {}
                (_, taken) => panic!("{count} sockets, then {then:?}: {taken:?}"),
            }
        }
    }
}
