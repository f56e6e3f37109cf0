//! What master and worker say to each other, one JSON document per SEQPACKET message.
//! Sent by `master` and `worker` through `handoff::Channel`. Pure: holds no descriptor.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::logging::Endpoint;

/// Version of these messages; a peer that speaks another major version is refused.
pub const PROTOCOL_VERSION: u32 = 1;

/// Where each configured name keeps its counters in the shared memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// Slot per frontend, in bundle order.
    pub frontends: Vec<u32>,
    /// Slot per backend, in bundle order.
    pub backends: Vec<u32>,
    /// Slot per server, per backend, in bundle order.
    pub servers: Vec<Vec<u32>>,
}

impl Slots {
    /// Every slot.
    pub fn all(&self) -> impl Iterator<Item = u32> {
        self.frontends.iter().chain(&self.backends).chain(self.servers.iter().flatten()).copied()
    }
}

/// First message to a new worker. Descriptors that travel with it, in this order:
/// the bundle (memfd, JSON), the shared counters (memfd), one connected datagram socket per
/// entry of `Bundle::logs` whose `connected` flag is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub protocol: u32,
    /// Generation of this worker, counted from 1.
    pub generation: u64,
    /// Gauge lane of this worker in the shared counters.
    pub lane: u32,
    /// Slots of the shared counters.
    pub slots: Slots,
    /// TLS ticket keys, newest first, 80 random bytes each.
    pub ticket_keys: Vec<Vec<u8>>,
    /// Which of the bundle's log targets could be connected.
    pub logs_connected: Vec<bool>,
    /// Numeric user and group to become, when the master is root.
    pub uid: Option<u32>,
    /// Group, see `uid`.
    pub gid: Option<u32>,
    /// Directory to chroot into, when the master is root.
    pub chroot: Option<String>,
    /// Client connections held at most, already settled against the descriptor limit.
    pub maxconn: u32,
    /// Serving threads. In its chroot a worker does not see how many its control group allows.
    pub threads: usize,
    /// Listeners that follow in [`ToWorker::Listeners`] messages.
    pub listeners: u32,
}

/// Whose listener a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListenerOwner {
    /// Frontend with this index in the bundle.
    Frontend(usize),
    /// The statistics page.
    Stats,
    /// The counters for Prometheus.
    Metrics,
}

/// Master to worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToWorker {
    /// See [`Start`].
    Start(Box<Start>),
    /// A batch of listening sockets, one descriptor per entry, at most 253.
    Listeners(Vec<ListenerOwner>),
    /// Accept: the reload is decided. A worker that is ready touches no client before this.
    Serve,
    /// The servers are yours to check, until the shared memory says that they are another generation's.
    Check,
    /// Stop accepting, finish what is open, then exit.
    Drain {
        /// Places of the listening sockets, as they were handed over, that no new worker has: their
        /// queues are accepted until they are empty. The others belong to a new worker already.
        abandoned: Vec<usize>,
        /// End what is still open after this long.
        hard_stop_after: Duration,
    },
    /// From now on idle connections go to the worker behind this channel; one descriptor.
    Successor,
    /// An older worker sends its idle connections through this channel; one descriptor.
    Predecessor,
    /// TLS ticket keys from now on, newest first.
    TicketKeys(Vec<Vec<u8>>),
    /// Other certificates for the frontend of this name; one descriptor, a memfd with their list in JSON.
    Certificates(String),
    /// Others who vouch for clients of the frontend of this name; one descriptor, a memfd with them in JSON.
    Clients(String),
    /// Another file for the servers of the backend of this name; one descriptor, a memfd with what it holds in JSON.
    Servers(String),
    /// End at once.
    Stop,
    /// A fresh socket for the log target with this index; one descriptor.
    LogSocket(usize),
}

/// Worker to master.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromWorker {
    /// Everything is taken over and every thread waits for [`ToWorker::Serve`].
    Ready,
    /// The answer to [`ToWorker::Serve`]: from now on an older worker can be spared.
    Serving,
    /// The worker cannot serve; it exits after this.
    Failed(String),
    /// The log target with this index refuses datagrams; a new socket is wanted.
    LogLost(usize),
    /// Listening sockets are closed; only open connections remain.
    Draining,
    /// Something that happened to a server, for the log: syslog severity and text.
    Event(u8, String),
    /// The way to the successor broke while connections were still to move; another one is wanted.
    Stranded,
}

/// Worker to worker: connections that change hands, one descriptor each, in the order of the lists.
/// The sender goes on owning them until it has the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moving {
    /// Between requests, or inside a request head.
    Clients(Vec<MovingClient>),
    /// Idle connections to servers.
    Servers(Vec<MovingServer>),
    /// Plain tunnels; two descriptors each, the client's first.
    Tunnels(Vec<MovingTunnel>),
}

/// A plain client connection on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovingClient {
    /// Name of its frontend.
    pub frontend: String,
    /// What was read of the next request's head.
    #[serde(with = "crate::config::base64_bytes")]
    pub unread: Vec<u8>,
    /// Requests served so far.
    pub requests: u64,
    /// How long the current wait has lasted.
    pub waited: Duration,
    /// How much of its time-out is left.
    pub left: Duration,
    /// The client's end and ours, where who passed it on has said so.
    #[serde(default)]
    pub ends: Option<(Endpoint, Endpoint)>,
}

/// An idle server connection on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovingServer {
    /// Name of its backend.
    pub backend: String,
    /// Name of its server.
    pub server: String,
}

/// A tunnel on its way, both of whose sides are plain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovingTunnel {
    /// Name of its frontend.
    pub frontend: String,
    /// Where it leads.
    pub server: MovingServer,
    /// Client's address.
    pub peer: Endpoint,
    /// Ours, towards the client.
    pub local: Endpoint,
    /// Client to server.
    pub up: MovingFlow,
    /// Server to client.
    pub down: MovingFlow,
    /// Whether data has flown both ways.
    pub settled: bool,
    /// How much of its time-out is left.
    pub left: Duration,
    /// What its access line will say.
    pub account: MovingAccount,
}

impl MovingTunnel {
    /// Bytes that make its message longer than others.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.up.held.len() + self.down.held.len() + self.account.request_line.len()
    }
}

/// One direction of a tunnel on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovingFlow {
    /// Read and not written.
    #[serde(with = "crate::config::base64_bytes")]
    pub held: Vec<u8>,
    /// Whether the sender has ended.
    pub ended: bool,
}

/// What a connection that is logged at its end has been so far; as in [`crate::logging::Record`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is the one of that name in the record")]
pub struct MovingAccount {
    pub accepted: SystemTime,
    /// Time since then.
    pub lasted: Duration,
    /// Whether it began as a request.
    pub http: bool,
    #[serde(with = "crate::config::base64_bytes")]
    pub request_line: Vec<u8>,
    pub request_ms: i64,
    pub connect_ms: i64,
    pub response_ms: i64,
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub retries: u32,
    pub redispatched: bool,
}

/// The answer to [`Moving`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Which ones, by place in the list, the receiver did not take.
    pub refused: Vec<usize>,
}
