//! The accept loop of one listener on one thread.
//! Spawned by `thread`. Never closes a socket's queue unless told to empty it first.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::capacity::{Capacity, Permit};
use super::thread::Order;

/// Pause after accept(2) failed, for want of descriptors as a rule: trying at once would spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until ordered otherwise; every connection goes to `serve` with its permits. `place` is that
/// of the socket among those the worker was given.
pub async fn accept_all(
    (place, listener): (usize, TcpListener),
    limits: &[Arc<Capacity>],
    mut orders: watch::Receiver<Order>,
    serve: impl Fn(TcpStream, SocketAddr, Vec<Permit>),
) {
    loop {
        tokio::select! {
            biased;
            _changed = orders.wait_for(|order| *order != Order::Serve) => break,
            accepted = accept(&listener, limits) => match accepted {
                Ok((stream, peer, permits)) => serve(stream, peer, permits),
                // The client gave up while it was queued.
                Err(error) if is_aborted(&error) => {}
                Err(_exhausted) => tokio::time::sleep(EXHAUSTED_PAUSE).await,
            },
        }
    }
    let order = orders.borrow().clone();
    if matches!(order, Order::Drain { abandoned, .. } if abandoned.contains(&place)) {
        for (stream, peer) in queued(listener) {
            serve(stream, peer, Vec::new());
        }
    }
}

async fn accept(listener: &TcpListener, limits: &[Arc<Capacity>]) -> io::Result<(TcpStream, SocketAddr, Vec<Permit>)> {
    poll_fn(|cx| {
        let mut permits = Vec::with_capacity(limits.len());
        for limit in limits {
            match limit.poll_reserve(cx) {
                Some(permit) => permits.push(permit),
                None => return Poll::Pending,
            }
        }
        listener.poll_accept(cx).map(|accepted| {
            let (stream, peer) = accepted?;
            stream.set_nodelay(true)?;
            Ok((stream, peer, permits))
        })
    })
    .await
}

/// Everything that waits in a queue which is about to be closed. The limits do not count here: who is
/// not accepted now is reset.
fn queued(listener: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let mut all = Vec::new();
    let Ok(listener) = listener.into_std() else { return all };
    while let Ok((stream, peer)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && stream.set_nodelay(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            all.push((stream, peer));
        }
    }
    all
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
