//! All counters at one moment, a row per frontend, server and backend.
//! Taken for every view and for `proxy status`. Never keeps anything between two snapshots.

use std::time::{Duration, SystemTime};

use super::counters::{Counter, Gauge, Slot};
use super::memory::Memory;
use crate::config::{Bundle, Mode};
use crate::handoff::messages::Slots;

/// What a row is about; the numbers are HAProxy's `type` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A frontend.
    Frontend = 0,
    /// A backend as a whole.
    Backend = 1,
    /// One server.
    Server = 2,
}

/// One frontend, server or backend.
#[derive(Debug, Clone)]
pub struct Row {
    /// Name of the frontend or backend.
    pub proxy: String,
    /// `FRONTEND`, `BACKEND` or the server's name.
    pub service: String,
    /// What the row is about.
    pub kind: Kind,
    /// Whether requests are understood there.
    pub mode: Mode,
    /// Number of the proxy, unique among frontends and backends, from 1.
    pub proxy_id: usize,
    /// Number of the server in its backend from 1, 0 for the others.
    pub server_id: usize,
    /// Servers that take requests (backends), 1 for a server.
    pub active: usize,
    /// Address (servers).
    pub address: Option<String>,
    /// Open sessions of all workers.
    pub sessions: u64,
    /// Waiting requests of all workers.
    pub queued: u64,
    /// Configured session limit of one worker.
    pub limit: Option<u32>,
    /// Time since counting began, reloads included.
    pub uptime: Duration,
    /// Seconds since the last session, if there was one.
    pub last_session: Option<u64>,
    slot: Option<Slot>,
}

impl Row {
    /// A counter of this row; 0 when it has no slot yet.
    #[must_use]
    pub fn count(&self, counter: Counter) -> u64 {
        self.slot.map_or(0, |slot| slot.value(counter))
    }

    /// Status as HAProxy words it; nothing is checked, so servers have no other.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self.kind {
            Kind::Frontend => "OPEN",
            Kind::Backend if self.active == 0 => "DOWN",
            Kind::Backend => "UP",
            Kind::Server => "no check",
        }
    }
}

/// Every row, frontends first, then each backend after its servers.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Rows in HAProxy's order.
    pub rows: Vec<Row>,
    /// Time since counting began.
    pub uptime: Duration,
}

impl Snapshot {
    /// Reads all counters.
    #[must_use]
    pub fn take(bundle: &Bundle, slots: &Slots, memory: &Memory, now: SystemTime) -> Self {
        let uptime = now.duration_since(memory.started()).unwrap_or_default();
        let reader = Reader { memory, now, uptime };
        let mut rows = Vec::new();
        for (index, frontend) in bundle.frontends.iter().enumerate() {
            let mut row = reader.row((&frontend.name, "FRONTEND"), Kind::Frontend, slots.frontends.get(index));
            (row.proxy_id, row.mode) = (index + 1, frontend.mode);
            row.limit = frontend.maxconn.or(bundle.global.maxconn);
            rows.push(row);
        }
        for (index, backend) in bundle.backends.iter().enumerate() {
            let proxy_id = bundle.frontends.len() + index + 1;
            for (place, server) in backend.servers.iter().enumerate() {
                let slot = slots.servers.get(index).and_then(|servers| servers.get(place));
                let mut row = reader.row((&backend.name, &server.name), Kind::Server, slot);
                (row.proxy_id, row.server_id, row.active) = (proxy_id, place + 1, 1);
                row.mode = backend.mode;
                row.address = Some(server.address.to_string());
                rows.push(row);
            }
            let mut row = reader.row((&backend.name, "BACKEND"), Kind::Backend, slots.backends.get(index));
            (row.proxy_id, row.active) = (proxy_id, backend.servers.len());
            row.mode = backend.mode;
            rows.push(row);
        }
        Self { rows, uptime }
    }
}

struct Reader<'a> {
    memory: &'a Memory,
    now: SystemTime,
    uptime: Duration,
}

impl Reader<'_> {
    fn row(&self, (proxy, service): (&str, &str), kind: Kind, index: Option<&u32>) -> Row {
        // Lane 0 serves for reading: counters are common to all lanes and gauges are summed.
        let slot = index.and_then(|index| self.memory.slot(0, *index));
        let gauge = |gauge| index.map_or(0, |index| self.memory.gauge_total(*index, gauge));
        let last = slot.map_or(0, |slot| slot.value(Counter::LastSession));
        let now = self.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Row {
            proxy: proxy.to_owned(),
            service: service.to_owned(),
            kind,
            mode: Mode::Http,
            proxy_id: 0,
            server_id: 0,
            active: 0,
            address: None,
            sessions: gauge(Gauge::Sessions),
            queued: gauge(Gauge::Queued),
            limit: None,
            uptime: self.uptime,
            last_session: (last != 0).then(|| now.saturating_sub(last)),
            slot,
        }
    }
}
