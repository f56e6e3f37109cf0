//! Idle connections to servers: a pool for each server and thread, and one limit for all pools of a thread.
//! Filled and emptied by `proxy` around each request. Never opens a connection.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::{Call, ServerStream};

/// Idle connections that a thread keeps at most, whichever servers they lead to.
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

/// Idle connections that each thread may keep, so that all together are no more than there may be clients: what the
/// limit on descriptors is reckoned with.
#[must_use]
pub fn most_idle(maxconn: u32, threads: usize) -> usize {
    let share = usize::try_from(maxconn).unwrap_or(usize::MAX) / threads.max(1);
    share.clamp(1, MAX_IDLE)
}

struct Idle {
    since: Duration,
    connection: Connection,
}

/// What a thread keeps, a line for each server, last used last.
struct Lines {
    all: Vec<VecDeque<Idle>>,
    count: usize,
    most: usize,
}

impl Lines {
    /// The connection that has been idle for longest.
    fn oldest(&mut self) -> Option<Idle> {
        let since = |line: &VecDeque<Idle>| line.front().map(|idle| idle.since);
        let lines = self.all.iter().enumerate().filter_map(|(place, line)| Some((since(line)?, place)));
        let (_since, place) = lines.min()?;
        self.count -= 1;
        self.all[place].pop_front()
    }
}

/// All idle connections of a thread.
#[derive(Clone)]
pub(super) struct Reserve(Rc<RefCell<Lines>>);

impl Reserve {
    /// Room for so many.
    pub(super) fn new(most: usize) -> Self {
        Self(Rc::new(RefCell::new(Lines { all: Vec::new(), count: 0, most })))
    }

    /// The line of another server.
    pub(super) fn pool(&self) -> Pool {
        let mut lines = self.0.borrow_mut();
        lines.all.push(VecDeque::new());
        Pool { reserve: self.clone(), line: lines.all.len() - 1 }
    }
}

/// Idle connections to one server, last used first.
pub struct Pool {
    reserve: Reserve,
    line: usize,
}

impl Pool {
    /// Takes a connection that the server has not closed.
    ///
    /// `certain` asks the kernel itself rather than the event loop's memory: worth a system call
    /// when the request must not be sent twice.
    #[must_use]
    pub fn take(&self, certain: bool) -> Option<Connection> {
        loop {
            let Idle { connection, .. } = self.pop()?;
            if let Some(connection) = connection.if_idle(certain) {
                return Some(connection);
            }
        }
    }

    fn pop(&self) -> Option<Idle> {
        let mut lines = self.reserve.0.borrow_mut();
        let idle = lines.all[self.line].pop_back()?;
        lines.count -= 1;
        Some(idle)
    }

    /// Keeps a connection for the next request; where the thread has no room left, the one that has been idle for
    /// longest makes room, whichever server it leads to. `since` is a time of any one clock.
    pub fn put(&self, connection: Connection, since: Duration) {
        let mut lines = self.reserve.0.borrow_mut();
        let parted = if lines.count < lines.most { None } else { lines.oldest() };
        lines.count += 1;
        lines.all[self.line].push_back(Idle { since, connection });
        drop(lines);
        drop(parted);
    }

    fn empty(&self) -> VecDeque<Idle> {
        let mut lines = self.reserve.0.borrow_mut();
        let line = std::mem::take(&mut lines.all[self.line]);
        lines.count -= line.len();
        line
    }

    /// Gives up everything that is kept; of what is TLS nothing is left.
    pub(super) fn take_plain(&self) -> Vec<TcpStream> {
        self.empty().into_iter().filter_map(|idle| idle.connection.stream.into_plain()).collect()
    }

    /// Closes everything that is kept.
    pub(super) fn clear(&self) {
        drop(self.empty());
    }

    /// Closes what has been idle for too long, by the clock of [`Pool::put`].
    pub fn sweep(&self, now: Duration) {
        let mut lines = self.reserve.0.borrow_mut();
        let line = &mut lines.all[self.line];
        let before = line.len();
        line.retain_mut(|idle| now.saturating_sub(idle.since) < IDLE_TIMEOUT && idle.connection.stream.is_idle(false));
        let closed = before - line.len();
        lines.count -= closed;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_connection_that_is_idle_for_longest_makes_room_whichever_server_it_leads_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let reserve = Reserve::new(2);
        let (one, other) = (reserve.pool(), reserve.pool());
        let mut servers = Vec::new();
        let mut connection = async || {
            let stream = TcpStream::connect(address).await.unwrap();
            servers.push(listener.accept().await.unwrap().0);
            Connection::new(stream.into())
        };
        one.put(connection().await, at(1));
        one.put(connection().await, at(2));
        other.put(connection().await, at(3));
        assert!(one.take(true).is_some(), "the newer one of two is there");
        assert!(one.take(true).is_none(), "the older one has made room");
        other.put(connection().await, at(4));
        assert!(other.take(true).is_some() && other.take(true).is_some(), "whoever is taken leaves room");
        one.put(connection().await, at(5));
        one.sweep(at(5) + IDLE_TIMEOUT);
        other.put(connection().await, at(40));
        other.put(connection().await, at(40));
        other.clear();
        one.put(connection().await, at(41));
        one.put(connection().await, at(41));
        assert!(one.take(true).is_some() && one.take(true).is_some(), "whoever is closed leaves room");
        assert_eq!(reserve.0.borrow().count, 0);
    }

    #[test]
    fn all_threads_together_keep_no_more_than_there_may_be_clients() {
        let cases = [(100, 1, 100), (100, 8, 12), (1, 4, 1), (u32::MAX, 64, MAX_IDLE), (0, 0, 1)];
        for (maxconn, threads, most) in cases {
            assert_eq!(most_idle(maxconn, threads), most, "{maxconn} {threads}");
        }
    }
}
