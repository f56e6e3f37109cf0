//! Messages and descriptors over a `SOCK_SEQPACKET` pair: one JSON document a message.
//! Used by master and worker on their common channel. Never looks into a document.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::sync::OnceLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, sendmsg, shutdown, socketpair,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::HandoffError;

/// Descriptors the kernel passes in one message (`SCM_MAX_FD`, unix(7)).
pub const MAX_DESCRIPTORS: usize = 253;
/// Largest document; real ones are a few KiB, the bundle itself travels in a memfd.
const MAX_MESSAGE: usize = 256 * 1024;
/// How long a full socket buffer is waited for.
const SEND_PATIENCE: Duration = Duration::from_secs(2);

/// One end of the channel.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
    registered: OnceLock<UnixDatagram>,
}

impl Channel {
    /// A channel and the descriptor for the other end.
    ///
    /// # Errors
    /// What socketpair(2) says.
    pub fn pair() -> Result<(Self, OwnedFd), HandoffError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(HandoffError::Channel)?;
        Ok((Self::from_fd(ours), theirs))
    }

    /// The end that another process was given.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd, registered: OnceLock::new() }
    }

    /// The descriptor, to be passed on.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends a document with descriptors; waits a bounded time while the peer's buffer is full.
    ///
    /// # Errors
    /// A peer that is gone or does not read; more than [`MAX_DESCRIPTORS`] descriptors.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), HandoffError> {
        if fds.len() > MAX_DESCRIPTORS {
            return Err(HandoffError::TooManyDescriptors { count: fds.len() });
        }
        let text = serde_json::to_vec(message)?;
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<()>(self.fd.as_raw_fd(), &[IoSlice::new(&text)], control, flags, None) {
                Ok(_whole) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, SEND_PATIENCE)?,
                Err(error) => return Err(HandoffError::Channel(error)),
            }
        }
    }

    /// Receives the next document; `None` when the peer is gone.
    ///
    /// # Errors
    /// Nothing within `patience`, or something that is not a `T`.
    pub fn recv_blocking<T: DeserializeOwned>(
        &self,
        patience: Duration,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, HandoffError> {
        loop {
            match self.receive() {
                Err(HandoffError::Channel(Errno::EAGAIN)) => self.wait(PollFlags::POLLIN, patience)?,
                other => return other,
            }
        }
    }

    /// Receives the next document; `None` when the peer is gone.
    ///
    /// # Errors
    /// Something that is not a `T`, or a broken socket.
    pub async fn recv<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, HandoffError> {
        let socket = self.registered()?;
        loop {
            socket.readable().await.map_err(HandoffError::Io)?;
            let received = socket.try_io(Interest::READABLE, || match self.receive() {
                Err(HandoffError::Channel(Errno::EAGAIN)) => Err(io::ErrorKind::WouldBlock.into()),
                other => Ok(other),
            });
            match received {
                Ok(result) => return result,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(HandoffError::Io(error)),
            }
        }
    }

    /// Gets ready to receive asynchronously, while descriptors are still to be had.
    ///
    /// # Errors
    /// No descriptor left, or no room in the event loop.
    pub fn register(&self) -> Result<(), HandoffError> {
        self.registered().map(drop)
    }

    /// Ends the conversation for both sides; what has arrived can still be received.
    pub fn shut(&self) {
        // Fails only for a peer that is gone, and then nothing is left to end.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
    }

    /// The event loop's view of the socket; a datagram socket is what a `SOCK_SEQPACKET` one behaves like.
    fn registered(&self) -> Result<&UnixDatagram, HandoffError> {
        if self.registered.get().is_none() {
            let copy = StdUnixDatagram::from(self.fd.try_clone().map_err(HandoffError::Io)?);
            let socket = UnixDatagram::from_std(copy).map_err(HandoffError::Io)?;
            // Lost only to another registration of the same socket, which serves as well.
            let _ = self.registered.set(socket);
        }
        self.registered.get().ok_or_else(|| HandoffError::Io(io::ErrorKind::NotConnected.into()))
    }

    fn wait(&self, events: PollFlags, patience: Duration) -> Result<(), HandoffError> {
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.fd.as_fd(), events)], timeout) {
            Ok(0) => Err(HandoffError::Silent { waited: patience }),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(HandoffError::Channel(error)),
        }
    }

    fn receive<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, HandoffError> {
        let mut text = vec![0; MAX_MESSAGE];
        let mut received = receive_descriptors(self.fd.as_fd(), &mut text, RecvFlags::DONTWAIT);
        if matches!(received, Err(HandoffError::Channel(Errno::ECONNRESET))) {
            // The peer ended with our messages unread. The kernel says so once, before its last words.
            received = receive_descriptors(self.fd.as_fd(), &mut text, RecvFlags::DONTWAIT);
        }
        let (length, fds) = match received {
            Ok((0, _)) | Err(HandoffError::Channel(Errno::ECONNRESET)) => return Ok(None),
            received => received?,
        };
        Ok(Some((serde_json::from_slice(&text[..length])?, fds)))
    }
}

/// One recvmsg(2): bytes and every descriptor that came along, each closed on exec. Where not all of them
/// fitted, those that did are closed again: rustix owns each from the moment it is seen.
pub(super) fn receive_descriptors(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Vec<OwnedFd>), HandoffError> {
    let mut space = [MaybeUninit::<u8>::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(bytes)];
    let message = rustix::net::recvmsg(socket, &mut parts, &mut control, flags | RecvFlags::CMSG_CLOEXEC)
        .map_err(|error| HandoffError::Channel(Errno::from_raw(error.raw_os_error())))?;
    let mut fds = Vec::new();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = item {
            fds.extend(received);
        }
    }
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(HandoffError::Truncated);
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn pair() -> (Channel, Channel) {
        let (ours, theirs) = Channel::pair().unwrap();
        (ours, Channel::from_fd(theirs))
    }

    #[test]
    fn descriptors_arrive_in_order_and_do_not_leak_into_children() {
        let (ours, theirs) = pair();
        let pipes: Vec<_> = (0..MAX_DESCRIPTORS).map(|_| io::pipe().unwrap()).collect();
        let readers: Vec<_> = pipes.iter().map(|(reader, _)| reader.as_fd()).collect();
        ours.send(&"these", &readers).unwrap();
        let (text, fds) = theirs.recv_blocking::<String>(PATIENCE).unwrap().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("these", MAX_DESCRIPTORS));
        for (number, (fd, (reader, mut writer))) in fds.into_iter().zip(pipes).enumerate() {
            let flags = FdFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC), "descriptor {number}");
            drop(reader);
            let byte = u8::try_from(number).unwrap();
            writer.write_all(&[byte]).unwrap();
            let mut read = [0];
            File::from(fd).read_exact(&mut read).unwrap();
            assert_eq!(read, [byte]);
        }
    }

    #[test]
    fn more_descriptors_than_the_kernel_passes_are_refused_before_anything_is_sent() {
        let (ours, theirs) = pair();
        let (reader, _writer) = io::pipe().unwrap();
        let refused = ours.send(&"too many", &vec![reader.as_fd(); MAX_DESCRIPTORS + 1]);
        assert!(matches!(refused, Err(HandoffError::TooManyDescriptors { count: 254 })), "{refused:?}");
        ours.send(&"next", &[]).unwrap();
        assert_eq!(theirs.recv_blocking::<String>(PATIENCE).unwrap().unwrap().0, "next");
    }

    #[test]
    fn messages_keep_their_boundaries_and_a_broken_one_does_not_spoil_the_next() {
        let (ours, theirs) = pair();
        ours.send(&1, &[]).unwrap();
        ours.send(&"two", &[]).unwrap();
        ours.send(&3, &[]).unwrap();
        assert_eq!(theirs.recv_blocking::<u8>(PATIENCE).unwrap().unwrap().0, 1);
        assert!(matches!(theirs.recv_blocking::<u8>(PATIENCE), Err(HandoffError::Message(_))));
        assert_eq!(theirs.recv_blocking::<u8>(PATIENCE).unwrap().unwrap().0, 3);
    }

    #[test]
    fn last_words_are_heard_of_a_peer_that_ended_with_messages_unread() {
        let (ours, theirs) = pair();
        ours.send(&"unread", &[]).unwrap();
        theirs.send(&"why I end", &[]).unwrap();
        drop(theirs);
        assert_eq!(ours.recv_blocking::<String>(PATIENCE).unwrap().unwrap().0, "why I end");
        assert!(ours.recv_blocking::<String>(PATIENCE).unwrap().is_none());
    }

    #[test]
    fn a_peer_that_is_gone_and_one_that_is_silent_are_told_apart() {
        let (ours, theirs) = pair();
        let silent = theirs.recv_blocking::<u8>(Duration::from_millis(1));
        assert!(matches!(silent, Err(HandoffError::Silent { .. })), "{silent:?}");
        drop(ours);
        assert!(theirs.recv_blocking::<u8>(PATIENCE).unwrap().is_none());
        assert!(theirs.send(&1, &[]).is_err());
    }
}
