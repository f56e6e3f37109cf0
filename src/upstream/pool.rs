//! Idle connections to one server, one pool per thread.
//! Filled and emptied by `proxy` around each request. Never opens a connection.

use std::cell::RefCell;
use std::time::Duration;

use tokio::net::TcpStream;

use super::{Call, ServerStream};

/// Idle connections kept per server and thread.
pub const MAX_IDLE: usize = 64;
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

/// Idle connections, last used first.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<Vec<(Duration, Connection)>>,
}

impl Pool {
    /// Takes a connection that the server has not closed.
    ///
    /// `certain` asks the kernel itself rather than the event loop's memory: worth a system call
    /// when the request must not be sent twice.
    #[must_use]
    pub fn take(&self, certain: bool) -> Option<Connection> {
        loop {
            let (_, connection) = self.idle.borrow_mut().pop()?;
            if let Some(connection) = connection.if_idle(certain) {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request; `now` is a time of any one clock.
    pub fn put(&self, connection: Connection, now: Duration) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MAX_IDLE {
            idle.push((now, connection));
        }
    }

    /// Gives up everything that is kept; of what is TLS nothing is left.
    pub(super) fn take_plain(&self) -> Vec<TcpStream> {
        self.idle.take().into_iter().filter_map(|(_, connection)| connection.stream.into_plain()).collect()
    }

    /// Closes everything that is kept.
    pub(super) fn clear(&self) {
        drop(self.idle.take());
    }

    /// Closes what has been idle for too long, by the clock of [`Pool::put`].
    pub fn sweep(&self, now: Duration) {
        self.idle.borrow_mut().retain_mut(|(since, connection)| {
            now.saturating_sub(*since) < IDLE_TIMEOUT && connection.stream.is_idle(false)
        });
    }
}
