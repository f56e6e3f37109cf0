//! One access-log record: what the request path knows when a request ends.
//! Filled by `proxy`, formatted by the log thread. Never holds formatted text.

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// One end of a client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// TCP.
    Internet(SocketAddr),
    /// A Unix socket, known by the number of its `bind` in the frontend, from 1: what HAProxy shows as the port
    /// of `unix`.
    Unix(u16),
}

impl Endpoint {
    /// The IP address; an IPv4 client of a dual-stack listener has an IPv4 one.
    #[must_use]
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Internet(address) => Some(address.ip().to_canonical()),
            Self::Unix(_) => None,
        }
    }

    /// The port, or the number of the Unix socket.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Internet(address) => address.port(),
            Self::Unix(number) => number,
        }
    }
}

/// One finished request (or connection that failed before one). Times are milliseconds, -1 where
/// the phase was not reached, as HAProxy's configuration manual section 8.2.3 defines them.
#[derive(Debug, Clone)]
pub struct Record {
    /// When the connection was accepted (first request) or the request's first byte came.
    pub accepted: SystemTime,
    /// Client address.
    pub client: Endpoint,
    /// Address the client connected to.
    pub local: Endpoint,
    /// Index of the frontend in the bundle.
    pub frontend: usize,
    /// Whether the client's connection is TLS.
    pub tls: bool,
    /// Index of the backend; `None` shows the frontend's name.
    pub backend: Option<usize>,
    /// Index of the server in the backend; `None` shows `<NOSRV>`.
    pub server: Option<usize>,
    /// `%Tq`: until the whole request head was there.
    pub request_ms: i64,
    /// `%Tw`: waiting in queues.
    pub queue_ms: i64,
    /// `%Tc`: connecting to the server, retries included.
    pub connect_ms: i64,
    /// `%Tr`: until the server's whole response head was there.
    pub response_ms: i64,
    /// `%Tt`: from accept to the end.
    pub total_ms: i64,
    /// Status sent to the client, 0 when none (shown -1).
    pub status: u16,
    /// Bytes sent to the client, head included (`%B`).
    pub bytes_out: u64,
    /// Bytes received from the client, head included (`%U`).
    pub bytes_in: u64,
    /// `%ts`: termination state; the third and fourth character of `%tsc` are `--`.
    pub termination: [u8; 2],
    /// `%ac`: connections of the worker.
    pub active: u32,
    /// `%fc`.
    pub frontend_conns: u32,
    /// `%bc`.
    pub backend_conns: u32,
    /// `%sc`.
    pub server_conns: u32,
    /// `%rc`.
    pub retries: u32,
    /// Whether a retry went to another server (`+` before `%rc`).
    pub redispatched: bool,
    /// Method, target and version exactly as received, without the line end; empty is `<BADREQ>`.
    pub request_line: Vec<u8>,
}
