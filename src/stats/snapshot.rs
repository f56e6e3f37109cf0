//! All counters at one moment, a row per frontend, server and backend.
//! Taken for every view and for `proxy status`. Never keeps anything between two snapshots.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use super::counters::{Counter, Gauge};
use super::histogram::Histogram;
use super::ledger::{Life, Reloads};
use super::memory::Memory;
use super::standing::{Admin, Standing};
use crate::config::{self, Bundle, Expiry, Mode};
use crate::handoff::messages::Slots;

/// What a row is about; the numbers are HAProxy's `type` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A frontend.
    Frontend = 0,
    /// A backend as a whole.
    Backend = 1,
    /// One server.
    Server = 2,
}

impl Kind {
    /// The kind of a slot's owner by the word that says so.
    pub(super) fn of(word: u64) -> Option<Self> {
        [Self::Frontend, Self::Backend, Self::Server].into_iter().find(|kind| *kind as u64 + 1 == word)
    }
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
    /// Servers that take requests and are no backup (backends), 1 for a server that is none.
    pub active: usize,
    /// The same of backup servers.
    pub backup: usize,
    /// Weight in the balance, of all that take requests (backends) or of a server.
    pub weight: u64,
    /// Weight as configured or ordered, whether requests are taken or not.
    pub user_weight: u64,
    /// What operator and checks say (servers).
    pub standing: Standing,
    /// Rise and fall of its checks, where it is checked (servers).
    pub check: Option<(u16, u16)>,
    /// How servers are chosen (backends).
    pub balance: Option<config::Balance>,
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
    /// Second (epoch) of the snapshot.
    now: u64,
    place: Option<(Memory, u32)>,
}

impl Row {
    /// A counter of this row; 0 when it has no slot yet.
    #[must_use]
    pub fn count(&self, counter: Counter) -> u64 {
        self.place.map_or(0, |(memory, index)| memory.count(index, counter))
    }

    /// How long its requests took; nothing when it has no slot yet.
    #[must_use]
    pub fn histogram(&self) -> Histogram {
        self.place.map(|(memory, index)| memory.histogram(index)).unwrap_or_default()
    }

    /// Status as HAProxy words it.
    #[must_use]
    pub fn status(&self) -> Cow<'static, str> {
        match self.kind {
            Kind::Frontend => "OPEN".into(),
            Kind::Backend if self.active + self.backup == 0 => "DOWN".into(),
            Kind::Backend => "UP".into(),
            Kind::Server => self.server_status(),
        }
    }

    fn server_status(&self) -> Cow<'static, str> {
        let drained = self.standing.orders.admin == Admin::Drain || self.user_weight == 0;
        match (self.standing.orders.admin, self.check, self.standing.health) {
            (Admin::Maint, _, _) => "MAINT".into(),
            (_, Some((rise, _)), Some(health)) if !health.up && health.level > 0 => {
                format!("DOWN {}/{rise}", health.level).into()
            }
            (_, Some(_), Some(health)) if !health.up => "DOWN".into(),
            (_, Some((rise, fall)), Some(health)) if health.level + 1 < rise + fall => {
                let word = if drained { "DRAIN" } else { "UP" };
                format!("{word} {}/{fall}", (health.level + 1).saturating_sub(rise)).into()
            }
            _ if drained => "DRAIN".into(),
            (_, Some(_), _) => "UP".into(),
            (_, None, _) => "no check".into(),
        }
    }

    /// Seconds since it last went up or down, or since counting began.
    #[must_use]
    pub fn last_change(&self) -> u64 {
        match self.count(Counter::LastChange) {
            0 => self.uptime.as_secs(),
            second => self.now.saturating_sub(second),
        }
    }

    /// Seconds it was down, up to now.
    #[must_use]
    pub fn downtime(&self) -> u64 {
        let down = match self.kind {
            Kind::Frontend => false,
            Kind::Backend => self.active + self.backup == 0,
            Kind::Server => self.standing.orders.admin == Admin::Maint || !self.standing.is_up(self.check.is_some()),
        };
        let running = if down && self.count(Counter::LastChange) > 0 { self.last_change() } else { 0 };
        self.count(Counter::Downtime) + running
    }
}

/// Every row, frontends first, then each backend after its servers.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Rows in HAProxy's order.
    pub rows: Vec<Row>,
    /// Time since counting began.
    pub uptime: Duration,
    /// Transactions since then.
    pub reloads: Reloads,
    /// The living workers, oldest first.
    pub lives: Vec<Life>,
    /// Log lines that no target took.
    pub log_lines_dropped: u64,
    /// When certificates end.
    pub certificates: Vec<Expiry>,
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
            let first = rows.len();
            for (place, server) in backend.servers.iter().enumerate() {
                let slot = slots.servers.get(index).and_then(|servers| servers.get(place));
                let mut row = reader.row((&backend.name, &server.name), Kind::Server, slot);
                (row.proxy_id, row.server_id) = (proxy_id, place + 1);
                row.mode = backend.mode;
                row.address = Some(server.address.to_string());
                row.describe(backend, server);
                rows.push(row);
            }
            let mut row = reader.row((&backend.name, "BACKEND"), Kind::Backend, slots.backends.get(index));
            (row.proxy_id, row.balance) = (proxy_id, Some(backend.balance));
            row.sum(&rows[first..]);
            row.mode = backend.mode;
            rows.push(row);
        }
        let (reloads, lives) = (memory.reloads(), memory.lives());
        let (log_lines_dropped, certificates) = (memory.log_lines_dropped(), bundle.expiries(now));
        Self { rows, uptime, reloads, lives, log_lines_dropped, certificates }
    }
}

impl Row {
    fn describe(&mut self, backend: &config::Backend, server: &config::Server) {
        // Lane 0 serves for reading: standings are common to all lanes.
        let slot = self.place.and_then(|(memory, index)| memory.slot(0, index));
        self.standing = slot.map(|slot| slot.standing()).unwrap_or_default();
        self.check = backend.check_of(server).map(|check| (check.rise, check.fall));
        self.weight = self.standing.share(server.weight, self.check.is_some()).into();
        self.user_weight = self.standing.orders.weight.unwrap_or(server.weight).into();
        (self.active, self.backup) = if server.backup { (0, 1) } else { (1, 0) };
    }

    /// What a backend's servers have together.
    fn sum(&mut self, servers: &[Self]) {
        let usable = || servers.iter().filter(|row| row.weight > 0);
        self.active = usable().map(|row| row.active).sum();
        self.backup = usable().map(|row| row.backup).sum();
        // As long as others serve, backup servers carry no weight.
        let carrying = |row: &&Self| self.active == 0 || row.backup == 0;
        self.weight = usable().filter(carrying).map(|row| row.weight).sum();
        self.user_weight = self.weight;
    }
}

struct Reader<'a> {
    memory: &'a Memory,
    now: SystemTime,
    uptime: Duration,
}

impl Reader<'_> {
    fn row(&self, (proxy, service): (&str, &str), kind: Kind, index: Option<&u32>) -> Row {
        let gauge = |gauge| index.map_or(0, |index| self.memory.gauge_total(*index, gauge));
        let last = index.map_or(0, |index| self.memory.count(*index, Counter::LastSession));
        let now = self.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Row {
            proxy: proxy.to_owned(),
            service: service.to_owned(),
            kind,
            mode: Mode::Http,
            proxy_id: 0,
            server_id: 0,
            active: 0,
            backup: 0,
            weight: 0,
            user_weight: 0,
            standing: Standing::default(),
            check: None,
            balance: None,
            now,
            address: None,
            sessions: gauge(Gauge::Sessions),
            queued: gauge(Gauge::Queued),
            limit: None,
            uptime: self.uptime,
            last_session: (last != 0).then(|| now.saturating_sub(last)),
            place: index.map(|index| (*self.memory, *index)),
        }
    }
}
