//! Backends as one worker thread sees them: balancing, connecting, idle connections kept for reuse.
//! Called by `proxy` for each request. Never parses HTTP.

mod balance;
mod connect;
mod error;
mod pool;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpStream;

use crate::config::{self, Bundle, ConnectionMode};
use crate::handoff::messages::{MovingServer, Slots};
use crate::stats::{Counter, Memory, Slot};

pub use balance::{Attempt, next_server, round_robin};
pub use error::ConnectError;
pub use pool::{Connection, MAX_IDLE, Pool};

/// A backend with its counters and its servers' idle connections; one per thread.
pub struct Backend {
    /// Place in the bundle.
    pub index: usize,
    /// Shared counters.
    pub slot: Slot,
    /// Servers in bundle order.
    pub servers: Vec<Server>,
    bundle: Arc<Bundle>,
}

/// A server with its counters and this thread's idle connections.
pub struct Server {
    /// Shared counters.
    pub slot: Slot,
    /// Connections kept for the next request.
    pub pool: Pool,
}

impl Backend {
    /// The configuration of this backend.
    #[must_use]
    pub fn config(&self) -> &config::Backend {
        &self.bundle.backends[self.index]
    }

    /// Chooses the next server in the one order that all threads and generations share.
    /// `None` when the backend has no server.
    #[must_use]
    pub fn select(&self) -> Option<usize> {
        round_robin(self.slot.take(Counter::RoundRobin), self.servers.len())
    }

    /// Opens a new connection to a server.
    ///
    /// # Errors
    /// What connect(2) said, or that it took longer than `timeout.connect`.
    pub async fn connect(&self, server: usize) -> Result<Connection, ConnectError> {
        let config = self.config();
        let stream = connect::connect(config.servers[server].address, config.connect_timeout).await?;
        self.servers[server].slot.add(Counter::Connects, 1);
        self.slot.add(Counter::Connects, 1);
        Ok(Connection::new(stream))
    }

    /// How a connection to a server is named on its way to another worker.
    #[must_use]
    pub fn moving(&self, server: usize) -> MovingServer {
        let config = self.config();
        MovingServer { backend: config.name.clone(), server: config.servers[server].name.clone() }
    }

    /// Gives up all idle connections, each with its server.
    #[must_use]
    pub fn take_idle(&self) -> Vec<(usize, TcpStream)> {
        let servers = self.servers.iter().enumerate();
        servers.flat_map(|(index, server)| server.pool.take_all().into_iter().map(move |one| (index, one))).collect()
    }

    /// Keeps a connection that an older worker opened, if it still leads to that server and is wanted.
    pub fn adopt(&self, server: usize, stream: TcpStream) {
        let config = self.config();
        let wanted = config.connection_mode == ConnectionMode::KeepAlive;
        if wanted && stream.peer_addr().is_ok_and(|peer| peer == config.servers[server].address) {
            self.servers[server].pool.put(Connection::new(stream), Instant::now());
        }
    }

    /// Closes idle connections that were not used for a while.
    pub fn sweep(&self) {
        for server in &self.servers {
            server.pool.sweep();
        }
    }
}

/// Builds the backends of a bundle for one thread; `None` when a slot lies outside the shared memory.
#[must_use]
pub fn backends(bundle: &Arc<Bundle>, slots: &Slots, memory: &Memory, lane: u32) -> Option<Vec<Rc<Backend>>> {
    let mut all = Vec::with_capacity(bundle.backends.len());
    for index in 0..bundle.backends.len() {
        let mut servers = Vec::new();
        for slot in slots.servers.get(index)? {
            servers.push(Server { slot: memory.slot(lane, *slot)?, pool: Pool::default() });
        }
        let slot = memory.slot(lane, *slots.backends.get(index)?)?;
        all.push(Rc::new(Backend { index, slot, servers, bundle: Arc::clone(bundle) }));
    }
    Some(all)
}
