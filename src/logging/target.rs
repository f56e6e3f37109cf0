//! One log target's socket and the lines waiting for it.
//! Driven by the log thread; `connect` also by the master. Never blocks, never reconnects itself.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};

use crate::config::{LogSink, LogTarget};

/// Lines kept for a target that is full or away; more are dropped and counted.
const BACKLOG: usize = 1024;
/// Datagrams per system call.
const BATCH: usize = 64;
/// A line that fails this often in a row is dropped, so that no line can block those behind it.
const ATTEMPTS: u32 = 3;

/// Connects a nonblocking datagram socket to a target.
///
/// # Errors
/// What socket(2), bind(2) or connect(2) said; a unix target needs a listening daemon.
pub fn connect(target: &LogTarget) -> io::Result<OwnedFd> {
    match &target.sink {
        LogSink::Unix(path) => {
            let socket = UnixDatagram::unbound()?;
            socket.connect(path)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        }
        LogSink::Udp(address) => {
            let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
            socket.connect(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        }
    }
}

/// How a target stands after a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing waits.
    Clear,
    /// The receiver is slow; lines wait.
    Full,
    /// A new socket is needed.
    Lost,
}

/// A socket with its backlog.
#[derive(Debug)]
pub(super) struct Outlet {
    socket: Option<OwnedFd>,
    datagram_errors_are_passing: bool,
    waiting: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl Outlet {
    pub(super) fn new(sink: &LogSink, socket: Option<OwnedFd>) -> Self {
        Self {
            socket,
            datagram_errors_are_passing: matches!(sink, LogSink::Udp(_)),
            waiting: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    pub(super) fn replace(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < BACKLOG
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a whole batch has come together; a full receiver is not asked for each line.
    pub(super) fn wants_flush(&self) -> bool {
        self.waiting.len().is_multiple_of(BATCH)
    }

    /// An empty buffer to write a line into, for [`Outlet::push`].
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(512))
    }

    pub(super) fn push(&mut self, line: Vec<u8>) {
        self.waiting.push_back(line);
    }

    /// Sends what can be sent now, in order; adds lines given up to `dropped`.
    pub(super) fn flush(&mut self, dropped: &mut u64) -> Standing {
        let mut attempts = 0;
        // The kernel took a part of a batch: its reason is that the receiver is full, which the next attempt says
        // again, or that an earlier datagram found no receiver, which nobody says twice.
        let mut stopped = false;
        while !self.waiting.is_empty() {
            let Some(socket) = &self.socket else { return Standing::Lost };
            match send(socket, &self.waiting) {
                Ok(sent) => {
                    attempts = 0;
                    *dropped += u64::from(stopped);
                    stopped = self.datagram_errors_are_passing && sent < self.waiting.len().min(BATCH);
                    self.discard(sent);
                }
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return Standing::Full,
                Err(Errno::EINTR) => {}
                // A UDP socket reports that an earlier datagram found no receiver; it stays usable.
                Err(Errno::ECONNREFUSED) if self.datagram_errors_are_passing && attempts < ATTEMPTS => {
                    attempts += 1;
                    *dropped += 1;
                    stopped = false;
                }
                Err(Errno::ENOTCONN | Errno::EPIPE | Errno::ECONNRESET | Errno::EBADF | Errno::ENOTSOCK) => {
                    self.socket = None;
                    return Standing::Lost;
                }
                Err(Errno::ECONNREFUSED) if !self.datagram_errors_are_passing => {
                    self.socket = None;
                    return Standing::Lost;
                }
                Err(_) => {
                    attempts = 0;
                    *dropped += 1;
                    self.discard(1);
                }
            }
        }
        if self.socket.is_none() { Standing::Lost } else { Standing::Clear }
    }

    fn discard(&mut self, count: usize) {
        for mut line in self.waiting.drain(..count) {
            if self.spare.len() < BATCH {
                line.clear();
                self.spare.push(line);
            }
        }
    }
}

/// One sendmmsg(2) of up to [`BATCH`] lines; returns how many the kernel took.
fn send(socket: &OwnedFd, lines: &VecDeque<Vec<u8>>) -> nix::Result<usize> {
    let slices: Vec<[IoSlice<'_>; 1]> = lines.iter().take(BATCH).map(|line| [IoSlice::new(line)]).collect();
    let mut headers = MultiHeaders::<()>::preallocate(slices.len(), None);
    let addresses = [None; BATCH];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    Ok(sendmmsg(socket.as_raw_fd(), &mut headers, &slices, addresses, [], flags)?.count())
}
