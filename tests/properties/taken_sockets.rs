//! HAProxy's `_getsocks`: whatever the other daemon sends, there are as many sockets as it promised or there is a reason,
//! and none stays open that nobody holds.
//! Input: the promised number, then messages of two bytes: how many descriptors, and how many bytes.

use std::fs::File;
use std::io::{IoSlice, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use proxy::handoff::getsocks::take_from;

/// What fits into the socket, and what a process may have in flight.
const MOST: usize = 300;

pub fn holds(bytes: &[u8]) {
    let (watched, socket) = std::io::pipe().expect("a pipe");
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let (number, script) = bytes.split_at_checked(4).unwrap_or((bytes, b""));
    theirs.write_all(number).expect("room");
    // How many descriptors have come after each message that had any.
    let mut sums = vec![0];
    for message in script.chunks_exact(2) {
        let (descriptors, length) = (usize::from(message[0]).min(253), usize::from(message[1]).max(1));
        let sum = sums[sums.len() - 1] + descriptors;
        if sum > MOST || sums.len() > 100 {
            break;
        }
        if !send(&theirs, &vec![socket.as_raw_fd(); descriptors], &vec![0; length]) {
            break;
        }
        if descriptors > 0 {
            sums.push(sum);
        }
    }
    theirs.shutdown(Shutdown::Write).expect("open");
    let promised = number.try_into().map(i32::from_ne_bytes).ok().and_then(|number| usize::try_from(number).ok());
    let inode = inode(socket.as_fd());
    drop(socket);
    match take_from(ours) {
        Ok(taken) => {
            assert_eq!(Some(taken.len()), promised);
            for fd in taken {
                assert_eq!(self::inode(fd.as_fd()), inode);
                let flags = FdFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFD).expect("a descriptor"));
                assert!(flags.contains(FdFlag::FD_CLOEXEC), "a child would have it");
            }
            assert!(promised.is_some_and(|promised| sums.contains(&promised)));
        }
        Err(reason) => {
            assert!(!promised.is_some_and(|promised| sums.contains(&promised)), "{reason} though all came");
            assert!(!reason.to_string().is_empty());
        }
    }
    drop(theirs);
    let mut ended = [PollFd::new(watched.as_fd(), PollFlags::empty())];
    poll(&mut ended, PollTimeout::ZERO).expect("a pipe can be polled");
    assert_eq!(ended[0].revents(), Some(PollFlags::POLLHUP), "somebody still holds a descriptor");
}

/// False when no more fits: nobody reads yet.
fn send(to: &UnixStream, descriptors: &[RawFd], bytes: &[u8]) -> bool {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
    let sent = sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_DONTWAIT, None);
    assert!(sent == Ok(bytes.len()) || sent == Err(Errno::EAGAIN), "{sent:?}");
    sent.is_ok()
}

fn inode(fd: std::os::fd::BorrowedFd<'_>) -> u64 {
    File::from(fd.try_clone_to_owned().expect("a descriptor")).metadata().expect("a pipe").ino()
}
