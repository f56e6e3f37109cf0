//! The accept loop of one listener on one thread.
//! Spawned by `thread`. Never closes a socket's queue unless told to empty it first.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, SockRef};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::capacity::{Limits, Permits};
use super::thread::Order;
use crate::config::Bind;
use crate::proxy;
use crate::socket::Socket;

/// Pause after accept(2) failed, for want of descriptors as a rule: trying at once would spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// A connection that was accepted, and the address of a TCP client. What is different for one of a Unix socket, addresses
/// and options of TCP, has its places: here, and `proxy::address`; reading, writing, shutdown and splice are the same.
pub type Accepted = (Socket, Option<SocketAddr>);

/// A listening socket, of TCP or Unix. The event loop asks of a `TcpStream` no more than that it is a descriptor, and of
/// all its types this one lets us call accept(2) ourselves.
pub struct Listener(TcpStream);

impl Listener {
    /// The listener of a descriptor, by what the kernel says of it.
    ///
    /// # Errors
    /// No room in the event loop.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let socket = SockRef::from(&fd);
        if socket.domain()? != Domain::UNIX {
            // Accepted sockets inherit it (tcp(7) leaves this unsaid, Linux has always done so).
            socket.set_tcp_nodelay(true)?;
        }
        socket.set_nonblocking(true)?;
        TcpStream::from_std(fd.into()).map(Self)
    }

    /// Which of a frontend's binds it belongs to.
    pub fn bind_of(&self, binds: &[Bind]) -> Option<usize> {
        proxy::bind_of(&self.0, binds)
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_io(Interest::READABLE, || take(&self.0)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                accepted => return Poll::Ready(accepted),
            }
        }
    }

    /// Everything that waits in a queue which is about to be closed.
    fn queued(&self) -> Vec<Accepted> {
        std::iter::from_fn(|| take(&self.0).ok()).collect()
    }
}

/// accept4(2).
fn take(listener: &TcpStream) -> io::Result<Accepted> {
    let (socket, peer) = acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    Ok((socket.into(), peer.and_then(|peer| SocketAddr::try_from(peer).ok())))
}

/// Accepts until ordered otherwise; every connection goes to `serve` with its permits, if the limits count for
/// it. `place` is that of the socket among those the worker was given.
pub async fn accept_all(
    (place, listener): (usize, Listener),
    limits: &Limits,
    mut orders: watch::Receiver<Order>,
    serve: impl Fn(Accepted, Option<Permits>),
) {
    loop {
        tokio::select! {
            biased;
            _changed = orders.wait_for(|order| *order != Order::Serve) => break,
            accepted = accept(&listener, limits) => match accepted {
                Ok((accepted, permits)) => serve(accepted, Some(permits)),
                // The client gave up while it was queued.
                Err(error) if is_aborted(&error) => {}
                Err(_exhausted) => tokio::time::sleep(EXHAUSTED_PAUSE).await,
            },
        }
    }
    let order = orders.borrow().clone();
    if matches!(order, Order::Drain { abandoned, .. } if abandoned.contains(&place)) {
        // The limits do not count here: who is not accepted now is reset.
        for accepted in listener.queued() {
            serve(accepted, None);
        }
    }
}

async fn accept(listener: &Listener, limits: &Limits) -> io::Result<(Accepted, Permits)> {
    poll_fn(|cx| {
        let Some(permits) = limits.poll_reserve(cx) else { return Poll::Pending };
        listener.poll_accept(cx).map_ok(|accepted| (accepted, permits))
    })
    .await
}

/// Errors of the one connection, not of the listener (accept(2), "Error handling").
fn is_aborted(error: &io::Error) -> bool {
    use nix::libc::{
        ECONNABORTED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT, EPROTO,
    };
    let of_the_connection =
        [ECONNABORTED, ECONNRESET, EHOSTDOWN, EHOSTUNREACH, ENETDOWN, ENETUNREACH, ENONET, ENOPROTOOPT, EPROTO];
    error.raw_os_error().is_some_and(|number| of_the_connection.contains(&number))
}
