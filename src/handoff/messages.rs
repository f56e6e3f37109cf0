//! What master and worker say to each other, one JSON document per SEQPACKET message.
//! Sent by `master` and `worker` through `handoff::Channel`. Pure: holds no descriptor.

use std::time::Duration;

use serde::{Deserialize, Serialize};

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
    /// Master's process id, for log lines.
    pub master_pid: u32,
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
    /// Stop accepting, finish what is open, then exit.
    Drain {
        /// Accept what is queued until the queues are empty before closing them (rebind);
        /// otherwise the queues belong to a new worker already.
        empty_queues: bool,
        /// End what is still open after this long.
        hard_stop_after: Duration,
    },
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
    /// The worker cannot serve; it exits after this.
    Failed(String),
    /// The log target with this index refuses datagrams; a new socket is wanted.
    LogLost(usize),
    /// Listening sockets are closed; only open connections remain.
    Draining,
}
