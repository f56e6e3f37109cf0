//! The accept loop of one listener on one thread.
//! Spawned by `thread`. Never closes a socket's queue unless told to empty it first.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Domain, SockRef};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;

use super::capacity::{Limits, Permits};
use super::thread::Order;
use crate::config::Bind;
use crate::proxy;

/// Pause after accept(2) failed, for want of descriptors as a rule: trying at once would spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// A connection that was accepted. The address is that of a TCP client; a Unix socket's stream is a `TcpStream`
/// all the same, because reading, writing, shutdown and splice are the same calls for both. What differs, addresses
/// and options of TCP, has its places: here, and `proxy::address`.
pub type Accepted = (TcpStream, Option<SocketAddr>);

/// A listening socket.
pub enum Listener {
    /// TCP.
    Internet(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl Listener {
    /// The listener of a descriptor, by what the kernel says of it.
    ///
    /// # Errors
    /// No room in the event loop.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        if SockRef::from(&fd).domain()? == Domain::UNIX {
            return UnixListener::from_std(StdUnixListener::from(fd)).map(Self::Unix);
        }
        // Accepted sockets inherit it (tcp(7) leaves this unsaid, Linux has always done so).
        SockRef::from(&fd).set_tcp_nodelay(true)?;
        TcpListener::from_std(StdTcpListener::from(fd)).map(Self::Internet)
    }

    /// Which of a frontend's binds it belongs to.
    pub fn bind_of(&self, binds: &[Bind]) -> Option<usize> {
        match self {
            Self::Internet(listener) => proxy::bind_of(listener, binds),
            Self::Unix(listener) => proxy::bind_of(listener, binds),
        }
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        Poll::Ready(match self {
            Self::Internet(listener) => ready!(listener.poll_accept(cx)).map(|(stream, peer)| (stream, Some(peer))),
            Self::Unix(listener) => {
                let accepted = ready!(listener.poll_accept(cx));
                accepted.and_then(|(stream, _unnamed)| Ok((local(stream.into_std()?)?, None)))
            }
        })
    }

    /// Everything that waits in a queue which is about to be closed.
    fn queued(self) -> Vec<Accepted> {
        match self {
            Self::Internet(listener) => {
                let Ok(listener) = listener.into_std() else { return Vec::new() };
                let next = || listener.accept().ok();
                let stream = |(stream, peer): (StdTcpStream, _)| {
                    stream.set_nonblocking(true).ok()?;
                    Some((TcpStream::from_std(stream).ok()?, Some(peer)))
                };
                std::iter::from_fn(next).filter_map(stream).collect()
            }
            Self::Unix(listener) => {
                let Ok(listener) = listener.into_std() else { return Vec::new() };
                let next = || listener.accept().ok();
                let stream = |(stream, _): (StdUnixStream, _)| {
                    stream.set_nonblocking(true).ok()?;
                    Some((local(stream).ok()?, None))
                };
                std::iter::from_fn(next).filter_map(stream).collect()
            }
        }
    }
}

fn local(stream: StdUnixStream) -> io::Result<TcpStream> {
    TcpStream::from_std(StdTcpStream::from(OwnedFd::from(stream)))
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
