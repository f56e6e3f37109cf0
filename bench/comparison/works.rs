//! The works: what is asked of each product, through which door, and what one unit of it is.
//! Used by `main`. Never measures.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

use super::load::{self, Handshake, Outcome, Plan};
use super::process;
use super::products::{Door, Running};

/// How a work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// wrk with so many connections.
    Wrk(u64),
    /// So many users on connections of their own that they keep.
    Kept(usize),
    /// So many users with a connection per request.
    Fresh(usize),
    /// The same with handshakes by ticket.
    Resumed(usize),
    /// h2load with 10 streams on each of 10 connections, so many requests.
    H2(u64),
    /// Half of the rate HAProxy reaches in the first work.
    HalfRate(usize),
    /// Connections that do nothing, [`idle_count`] of them.
    Idle,
}

/// What a work is compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Microseconds of CPU per request.
    CpuPerRequest,
    /// Milliseconds of CPU per GiB of bodies.
    CpuPerGib,
    /// Microseconds that 99 of 100 requests stay within.
    P99,
    /// KiB of resident memory per connection.
    Memory,
}

impl Measure {
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::CpuPerRequest => "µs CPU/request",
            Self::CpuPerGib => "ms CPU/GiB",
            Self::P99 => "µs p99",
            Self::Memory => "KiB/connection",
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// What `--only` calls it.
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) door: Door,
    pub(crate) path: &'static str,
    /// Bytes sent with each request.
    pub(crate) upload: usize,
    pub(crate) how: How,
    pub(crate) measure: Measure,
    /// What the ratio to the better of the others should be at most; none where HAProxy alone is the yardstick.
    pub(crate) target: Option<f64>,
    /// What the ratio to HAProxy should be at most, where that is not the same.
    pub(crate) target_haproxy: Option<f64>,
}

const fn get(key: &'static str, title: &'static str, door: Door, how: How, target: f64) -> Work {
    let (measure, target) = (Measure::CpuPerRequest, Some(target));
    Work { key, title, door, path: "/120", upload: 0, how, measure, target, target_haproxy: None }
}

/// No dearer than HAProxy by another measure.
const fn as_haproxy(measure: Measure, work: Work) -> Work {
    Work { measure, target: None, target_haproxy: Some(1.0), ..work }
}

const fn body(key: &'static str, title: &'static str, door: Door, path: &'static str, target: f64) -> Work {
    let work = get(key, title, door, How::Kept(16), target);
    Work { path, measure: Measure::CpuPerGib, ..work }
}

/// All works, in the order they are done and printed.
pub(crate) const WORKS: [Work; 17] = [
    Work {
        target_haproxy: Some(0.80),
        ..get("keep-alive", "keep-alive GET, 120 B, 64 connections", Door::Plain, How::Wrk(64), 0.85)
    },
    Work {
        target_haproxy: Some(0.60),
        ..get("keep-alive-tls", "the same over TLS 1.3", Door::P256, How::Wrk(64), 0.75)
    },
    get("new", "new plain connection per request", Door::Plain, How::Fresh(32), 0.90),
    get("full-rsa", "full TLS 1.3 handshake, RSA-2048", Door::Rsa, How::Fresh(16), 0.70),
    get("full-p256", "full TLS 1.3 handshake, P-256", Door::P256, How::Fresh(16), 0.50),
    get("resumed", "resumed TLS 1.3 handshake", Door::P256, How::Resumed(16), 0.90),
    body("64k", "64 KiB bodies", Door::Plain, "/64k", 1.0),
    body("1m", "1 MiB bodies", Door::Plain, "/1m", 1.0),
    body("64k-tls", "64 KiB bodies over TLS", Door::P256, "/64k", 0.90),
    body("1m-tls", "1 MiB bodies over TLS", Door::P256, "/1m", 0.90),
    Work { upload: 64 * 1024, ..get("upload", "64 KiB uploads", Door::Plain, How::Kept(16), 1.0) },
    get("h2", "HTTP/2, 10 streams on each of 10 connections", Door::P256, How::H2(50_000), 1.0),
    Work { how: How::Fresh(16), ..body("tcp", "TCP mode, 1 MiB a connection", Door::Tcp, "/1m", 1.0) },
    as_haproxy(Measure::Memory, get("idle", "idle connections", Door::Plain, How::Idle, 1.0)),
    as_haproxy(Measure::Memory, get("idle-tls", "idle TLS connections", Door::P256, How::Idle, 1.0)),
    as_haproxy(Measure::P99, get("p99", "p99 at half of HAProxy's top rate", Door::Plain, How::HalfRate(64), 1.0)),
    as_haproxy(Measure::P99, get("p99-tls", "the same rate over TLS", Door::P256, How::HalfRate(64), 1.0)),
];

/// 10,000, or what the limit on descriptors leaves. An idle connection has no counterpart at a server; the two products
/// that reckon with one are told that it does not matter (`strict-limits`).
pub(crate) fn idle_count() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(800).min(10_000)
}

impl Work {
    fn request(&self) -> Vec<u8> {
        let close = if matches!(self.how, How::Fresh(_) | How::Resumed(_)) { "Connection: close\r\n" } else { "" };
        let (method, length) = match self.upload {
            0 => ("GET", String::new()),
            length => ("POST", format!("Content-Length: {length}\r\n")),
        };
        let head = format!("{method} {} HTTP/1.1\r\nHost: localhost\r\n{close}{length}\r\n", self.path);
        let mut bytes = head.into_bytes();
        bytes.resize(bytes.len() + self.upload, b'u');
        bytes
    }

    fn plan(&self, running: &Running, lasting: Duration) -> Plan {
        let (users, fresh) = match self.how {
            How::Kept(users) | How::HalfRate(users) => (users, false),
            How::Fresh(users) | How::Resumed(users) => (users, true),
            How::Wrk(_) | How::H2(_) | How::Idle => (32, true),
        };
        let secured = match (self.door, self.how) {
            (Door::Plain | Door::Tcp, _) => None,
            (_, How::Resumed(_)) => Some(Handshake::Resumed),
            _ => Some(Handshake::Full),
        };
        let address = running.doors.address(self.door);
        Plan { address, secured, request: self.request(), users, fresh, lasting }
    }

    /// Has one product do it. `rate`: requests a second for [`How::HalfRate`].
    pub(crate) fn run(
        &self,
        running: &Running,
        lasting: Duration,
        rate: f64,
        folder: &Path,
    ) -> Result<Outcome, Box<dyn std::error::Error>> {
        let plan = self.plan(running, lasting);
        let scheme = if plan.secured.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}{}", plan.address, self.path);
        Ok(match self.how {
            How::Wrk(connections) => load::wrk(&url, connections, lasting)?,
            How::H2(requests) => load::h2load(&url, requests, &folder.join("h2load.log").to_string_lossy())?,
            How::Kept(_) | How::Fresh(_) | How::Resumed(_) => load::closed_loop(&plan)?,
            How::HalfRate(_) => load::constant_rate(&plan, rate)?,
            How::Idle => return Err("idle connections are not run".into()),
        })
    }

    /// KiB per idle connection, and all there is.
    pub(crate) fn memory(&self, running: &Running) -> io::Result<(f64, u64)> {
        let count = idle_count();
        let plan = self.plan(running, Duration::ZERO);
        let warm = Plan { fresh: false, lasting: Duration::from_millis(200), ..plan.clone() };
        load::closed_loop(&warm)?;
        let before = process::resident(running.pid(), "VmRSS")?;
        let after = load::idle(&plan, count, || {
            // Whatever is given back a little later is given back.
            std::thread::sleep(Duration::from_millis(500));
            process::resident(running.pid(), "VmRSS")
        })?;
        Ok((after.saturating_sub(before) as f64 / count as f64, after))
    }
}
