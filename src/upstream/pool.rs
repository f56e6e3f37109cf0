//! Idle connections to one server, one pool per thread; all pools of a thread share one allowance.
//! Filled and emptied by `proxy` around each request. Never opens a connection.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::{Call, ServerStream};

/// Idle connections that a thread keeps, whichever servers they lead to.
pub const MAX_IDLE: usize = 1024;
/// An idle connection is closed after this long.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to a server, with what was read from it and not consumed yet.
pub struct Connection {
    /// The stream.
    pub stream: ServerStream,
    /// Bytes read ahead.
    pub input: Vec<u8>,
    /// Whether it served a request before.
    pub reused: bool,
}

impl Connection {
    /// A connection nobody has read from.
    #[must_use]
    pub fn new(stream: ServerStream) -> Self {
        Self { stream, input: Vec::new(), reused: false }
    }

    /// The connection for another request, if the server has not closed it; `certain` as in [`Pool::take`].
    #[must_use]
    pub fn if_idle(mut self, certain: bool) -> Option<Self> {
        self.reused = true;
        self.stream.is_idle(certain).then_some(self)
    }
}

impl From<Call> for Connection {
    fn from(call: Call) -> Self {
        let reused = call.is_reused();
        Self { stream: ServerStream::Call(Box::new(call)), input: Vec::new(), reused }
    }
}

/// How many more idle connections a thread may keep.
#[derive(Clone)]
pub(super) struct Allowance(Rc<Cell<usize>>);

impl Allowance {
    /// Room for so many.
    pub(super) fn new(most: usize) -> Self {
        Self(Rc::new(Cell::new(most)))
    }

    fn place(&self) -> Option<Place> {
        let left = self.0.get().checked_sub(1)?;
        self.0.set(left);
        Some(Place(self.clone()))
    }
}

/// Room for one idle connection, given back when that is used or closed.
struct Place(Allowance);

impl Drop for Place {
    fn drop(&mut self) {
        let Allowance(left) = &self.0;
        left.set(left.get() + 1);
    }
}

struct Idle {
    since: Duration,
    connection: Connection,
    _place: Place,
}

/// Idle connections, last used first.
pub struct Pool {
    idle: RefCell<Vec<Idle>>,
    allowance: Allowance,
}

impl Pool {
    pub(super) fn new(allowance: &Allowance) -> Self {
        Self { idle: RefCell::default(), allowance: allowance.clone() }
    }

    /// Takes a connection that the server has not closed.
    ///
    /// `certain` asks the kernel itself rather than the event loop's memory: worth a system call
    /// when the request must not be sent twice.
    #[must_use]
    pub fn take(&self, certain: bool) -> Option<Connection> {
        loop {
            let Idle { connection, .. } = self.idle.borrow_mut().pop()?;
            if let Some(connection) = connection.if_idle(certain) {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request if the thread has room for it; `since` is a time of any one clock.
    pub fn put(&self, connection: Connection, since: Duration) {
        if let Some(place) = self.allowance.place() {
            self.idle.borrow_mut().push(Idle { since, connection, _place: place });
        }
    }

    /// Gives up everything that is kept; of what is TLS nothing is left.
    pub(super) fn take_plain(&self) -> Vec<TcpStream> {
        self.idle.take().into_iter().filter_map(|idle| idle.connection.stream.into_plain()).collect()
    }

    /// Closes everything that is kept.
    pub(super) fn clear(&self) {
        drop(self.idle.take());
    }

    /// Closes what has been idle for too long, by the clock of [`Pool::put`].
    pub fn sweep(&self, now: Duration) {
        self.idle
            .borrow_mut()
            .retain_mut(|idle| now.saturating_sub(idle.since) < IDLE_TIMEOUT && idle.connection.stream.is_idle(false));
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn all_servers_of_a_thread_share_what_it_may_keep() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let allowance = Allowance::new(2);
        let (one, other) = (Pool::new(&allowance), Pool::new(&allowance));
        let mut servers = Vec::new();
        let mut connection = async || {
            let stream = TcpStream::connect(address).await.unwrap();
            servers.push(listener.accept().await.unwrap().0);
            Connection::new(stream.into())
        };
        one.put(connection().await, Duration::ZERO);
        other.put(connection().await, Duration::ZERO);
        other.put(connection().await, Duration::ZERO);
        assert!(other.take(true).is_some(), "the second one is kept");
        assert!(other.take(true).is_none(), "the third one had no place");
        other.put(connection().await, Duration::ZERO);
        assert!(other.take(true).is_some(), "whoever is taken gives a place back");
        one.sweep(IDLE_TIMEOUT);
        other.put(connection().await, Duration::ZERO);
        other.put(connection().await, Duration::ZERO);
        assert!(other.take(true).is_some() && other.take(true).is_some(), "whoever is closed gives a place back");
    }
}
