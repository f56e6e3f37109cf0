//! Backends as one worker thread sees them: balancing, connecting, idle connections kept for reuse.
//! Called by `proxy` for each request. Never parses HTTP.

mod balance;
mod calls;
mod checks;
mod connect;
mod error;
mod farm;
mod pool;
mod probe;
mod stream;
mod verdict;

use std::cell::RefCell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::config::{self, Balance, Bundle, ConnectionMode, Protocol};
use crate::handoff::messages::{MovingServer, Slots};
use crate::stats::{Admin, Counter, Gauge, Memory, Slot};
use crate::tls::ClientSettings;

pub use balance::{Attempt, Schedule, Share};
pub use calls::{Call, CallError};
use calls::{Calls, Place};
pub use checks::Checks;
pub use connect::Way;
pub use error::ConnectError;
pub use farm::{Farm, Lines};
use pool::Reserve;
pub use pool::{Connection, MAX_IDLE, Pool, most_idle};
pub use stream::ServerStream;

/// A backend with its counters and its servers' idle connections; one per thread.
pub struct Backend {
    /// Place in the bundle.
    pub index: usize,
    /// Shared counters.
    pub slot: Slot,
    /// Servers in bundle order.
    pub servers: Vec<Server>,
    /// Who takes requests, as of so many announced changes.
    schedule: RefCell<(u64, Schedule)>,
    memory: Memory,
    bundle: Arc<Bundle>,
}

/// A server with its counters and this thread's idle connections.
pub struct Server {
    /// Shared counters.
    pub slot: Slot,
    /// Connections kept for the next request.
    pub pool: Pool,
    /// Connections that requests share.
    calls: Calls,
    /// How it is reached.
    pub way: Way,
    /// Place of its counters.
    place: u32,
    /// What `balance = "source"` knows it by.
    identity: u64,
}

impl Backend {
    /// The configuration of this backend.
    #[must_use]
    pub fn config(&self) -> &config::Backend {
        &self.bundle.backends[self.index]
    }

    /// Chooses the server of a new request; round robin is one order that all threads and generations
    /// share. `None` when no server takes requests.
    #[must_use]
    pub fn select(&self, client: Option<IpAddr>) -> Option<usize> {
        self.refresh();
        let schedule = &self.schedule.borrow().1;
        let ticket = || self.slot.take(Counter::RoundRobin);
        let load = |server: usize| self.memory.gauge_total(self.servers[server].place, Gauge::Sessions);
        match self.config().balance {
            Balance::RoundRobin => schedule.round_robin(ticket()),
            Balance::LeastConn => schedule.least(ticket(), load),
            Balance::Random => schedule.random(ticket(), load),
            Balance::Source => match client {
                Some(client) => schedule.source(key(client), |server| self.servers[server].identity),
                // Clients of a Unix socket have no address to be told apart by.
                None => schedule.round_robin(ticket()),
            },
        }
    }

    /// What to do after so many failed attempts to connect, the last one to `server`.
    #[must_use]
    pub fn after_failure(&self, server: usize, failed: u32) -> Attempt {
        self.refresh();
        let (config, schedule) = (self.config(), &self.schedule.borrow().1);
        let other = if config.redispatch { schedule.after(server) } else { None };
        balance::next_attempt(failed, config.retries, schedule.holds(server), other)
    }

    /// The server to go to instead of one that takes no requests any more, where that may be.
    #[must_use]
    pub fn instead_of(&self, server: usize) -> Option<usize> {
        self.refresh();
        let schedule = &self.schedule.borrow().1;
        if schedule.holds(server) || !self.config().redispatch { None } else { schedule.after(server) }
    }

    /// Makes the schedule anew if a server's standing has changed since.
    fn refresh(&self) {
        // Read before the standings: a change in between is seen next time.
        let announced = self.slot.announced();
        if self.schedule.borrow().0 != announced {
            *self.schedule.borrow_mut() = (announced, self.current_schedule());
        }
    }

    fn current_schedule(&self) -> Schedule {
        let config = self.config();
        let both = config.servers.iter().zip(&self.servers);
        let shares: Vec<_> = both
            .map(|(its, server)| Share {
                weight: server.slot.standing().share(its.weight, config.check_of(its).is_some()),
                backup: its.backup,
            })
            .collect();
        Schedule::new(&shares)
    }

    /// Opens a new connection to a server, and introduces us as somebody else where that is wanted.
    ///
    /// # Errors
    /// What connect(2) or the TLS handshake said, or that it took longer than `timeout.connect`.
    pub async fn connect(&self, server: usize, introduction: &[u8]) -> Result<Connection, ConnectError> {
        let known = &self.servers[server];
        if !self.config().protocol.is_shared() {
            return Ok(Connection::new(self.open(server, introduction).await?));
        }
        // Who comes later may be faster: nobody waits for ever.
        let turn = match tokio::time::timeout(self.config().connect_timeout, known.calls.place()).await {
            Ok(Place::Found(call)) => return Ok(call.into()),
            Ok(Place::Turn(turn)) => turn,
            Err(_elapsed) => return Err(ConnectError::TimedOut),
        };
        if let Some(connection) = known.pool.take(false) {
            return Ok(connection);
        }
        let opened = self.open_shared(server, introduction).await;
        if opened.is_err() {
            turn.fail();
        }
        opened
    }

    /// Opens a connection that requests share, where the server does.
    async fn open_shared(&self, server: usize, introduction: &[u8]) -> Result<Connection, ConnectError> {
        let (known, protocol) = (&self.servers[server], self.config().protocol);
        let stream = self.open(server, introduction).await?;
        if protocol == Protocol::Auto && stream.protocol() != Some(b"h2") {
            known.calls.refuse();
            return Ok(Connection::new(stream));
        }
        let call = tokio::time::timeout(self.config().connect_timeout, known.calls.open(stream)).await;
        let call = call.map_err(|_elapsed| ConnectError::TimedOut)?;
        Ok(call.map_err(|error| ConnectError::Failed(io::Error::other(error)))?.into())
    }

    async fn open(&self, server: usize, introduction: &[u8]) -> Result<ServerStream, ConnectError> {
        let stream = self.servers[server].way.open_with(introduction, self.config().connect_timeout).await?;
        self.servers[server].slot.add(Counter::Connects, 1);
        self.slot.add(Counter::Connects, 1);
        Ok(stream)
    }

    /// How a connection to a server is named on its way to another worker.
    #[must_use]
    pub fn moving(&self, server: usize) -> MovingServer {
        let config = self.config();
        MovingServer { backend: config.name.clone(), server: config.servers[server].name.clone() }
    }

    /// Gives up all idle connections, the plain ones each with its server: TLS keys cannot be handed over.
    #[must_use]
    pub fn take_idle(&self) -> Vec<(usize, TcpStream)> {
        let servers = self.servers.iter().enumerate();
        servers.flat_map(|(index, server)| server.pool.take_plain().into_iter().map(move |one| (index, one))).collect()
    }

    /// Keeps a connection that an older worker opened, if it still leads to that server and is wanted; `now` as in
    /// [`Pool::put`].
    pub fn adopt(&self, server: usize, stream: TcpStream, now: Duration) {
        let config = self.config();
        let (mode, known) = (config.connection_mode, &self.servers[server]);
        let wanted = config.protocol == Protocol::H1
            && mode == ConnectionMode::KeepAlive
            && known.way.tls.is_none()
            && known.way.send_proxy.is_none()
            && !known.is_kept_away();
        if wanted && stream.peer_addr().is_ok_and(|peer| peer == config.servers[server].address) {
            known.pool.put(Connection::new(stream.into()), now);
        }
    }

    /// Closes idle connections that were not used for a while, and those to servers in maintenance; `now` as in
    /// [`Pool::put`].
    pub fn sweep(&self, now: Duration) {
        for server in &self.servers {
            if server.is_kept_away() {
                server.pool.clear();
            } else {
                server.pool.sweep(now);
            }
            server.calls.sweep(server.is_kept_away());
        }
    }
}

impl Server {
    /// A connection that is there already: room on one that is shared, else one that is idle.
    #[must_use]
    pub fn take(&self, certain: bool) -> Option<Connection> {
        self.calls.take().map(Connection::from).or_else(|| self.pool.take(certain))
    }

    /// Whether the operator wants nothing of ours to touch it.
    fn is_kept_away(&self) -> bool {
        self.slot.standing().orders.admin == Admin::Maint
    }
}

fn key(client: IpAddr) -> u64 {
    match client {
        IpAddr::V4(address) => balance::digest(&address.octets()),
        // A dual-stack listener's IPv4 clients are the same clients.
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => balance::digest(&address.octets()),
            None => balance::digest(&address.octets()),
        },
    }
}

/// Builds the backends of a bundle for one thread, which keeps so many idle connections; `None` when a slot lies outside
/// the shared memory.
#[must_use]
pub fn backends(
    bundle: &Arc<Bundle>,
    slots: &Slots,
    (memory, lane): (&Memory, u32),
    secured: &[Option<ClientSettings>],
    idle: usize,
) -> Option<Vec<Rc<Backend>>> {
    let mut all = Vec::with_capacity(bundle.backends.len());
    let reserve = Reserve::new(idle);
    for index in 0..bundle.backends.len() {
        let mut servers = Vec::new();
        let config = &bundle.backends[index];
        for (server, place) in slots.servers.get(index)?.iter().enumerate().take(config.servers.len()) {
            let name = config.servers[server].name.as_bytes();
            let (slot, identity) = (memory.slot(lane, *place)?, balance::digest(name));
            let way = Way::to(config, server, secured.get(index)?.as_ref())?;
            servers.push(Server { slot, pool: reserve.pool(), calls: Calls::default(), way, place: *place, identity });
        }
        let slot = memory.slot(lane, *slots.backends.get(index)?)?;
        let (memory, bundle) = (*memory, Arc::clone(bundle));
        let backend = Backend { index, slot, servers, schedule: RefCell::default(), memory, bundle };
        *backend.schedule.borrow_mut() = (slot.announced(), backend.current_schedule());
        all.push(Rc::new(backend));
    }
    Some(all)
}
