//! The loaded configuration: every value checked, every file it names read into memory.
//! Made by `config::load` in the master, sent to workers in a memfd, read by every layer.
//! Never refers to a file that still has to be opened: a worker has no file system.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::expression::Template;
use super::route::Route;
use super::rule::Rule;
use super::tls::{Authorities, TlsServer};
use super::{Backend, Bind};

/// Everything one generation of workers needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bundle {
    /// SHA-256 of the configuration text, lower-case hex.
    pub sha256: String,
    /// Process-wide settings.
    pub global: Global,
    /// How reloads behave.
    pub reload: Reload,
    /// What systemd is asked for.
    #[serde(default)]
    pub systemd: Systemd,
    /// The admin socket, if configured.
    pub admin: Option<Admin>,
    /// Log targets in file order.
    pub logs: Vec<LogTarget>,
    /// The statistics listener, if configured.
    pub stats: Option<Stats>,
    /// The listener for Prometheus, if configured.
    #[serde(default)]
    pub metrics: Option<Metrics>,
    /// Frontends in file order.
    pub frontends: Vec<Frontend>,
    /// Backends in file order.
    pub backends: Vec<Backend>,
    /// Authorities that certificates are checked with.
    #[serde(default)]
    pub authorities: Vec<Authorities>,
}

/// Serving threads at most.
pub const MAX_THREADS: u32 = 256;

/// `[global]`: what HAProxy's `global` section holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Global {
    /// User the workers run as; only honoured when the master is root.
    pub user: Option<String>,
    /// Group the workers run as; the user's own group when absent.
    pub group: Option<String>,
    /// Directory workers are confined to.
    pub chroot: Option<PathBuf>,
    /// Pid file of the master.
    pub pid_file: Option<PathBuf>,
    /// Worker threads; `None` is one per available core.
    pub threads: Option<usize>,
    /// Client connections a worker holds at most; `None` is what the descriptor limit allows.
    pub maxconn: Option<u32>,
    /// A descriptor limit that is too low for `maxconn` is only warned of: HAProxy's `no strict-limits`.
    #[serde(default)]
    pub lax_limits: bool,
    /// Session tickets.
    pub tickets: Tickets,
}

impl Global {
    /// Serving threads: as configured, else one per core that may be used.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS as usize))
    }
}

/// `[global.tls]` `tickets`: how long TLS sessions can be resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tickets {
    /// A new key after this long.
    pub rotate: Duration,
    /// Keys known at a time; all decrypt, the newest encrypts.
    pub keep: usize,
}

impl Default for Tickets {
    fn default() -> Self {
        Self { rotate: Duration::from_secs(12 * 3600), keep: 3 }
    }
}

impl Tickets {
    /// How long a ticket is certain to be understood; at most the 7 days of RFC 8446 section 4.6.1.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        let rotations = u32::try_from(self.keep.saturating_sub(1)).unwrap_or(u32::MAX).max(1);
        self.rotate.saturating_mul(rotations).min(Duration::from_secs(7 * 24 * 3600))
    }
}

/// `[reload]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reload {
    /// What `proxy reload` does without `--mode`.
    pub strategy: ReloadMode,
    /// A draining worker is ended after this long.
    pub hard_stop_after: Duration,
    /// Draining workers kept at most; one more ends the oldest.
    pub max_old: usize,
}

/// `[systemd]`: none of it does anything where the daemon was not started by systemd.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Systemd {
    /// Listening sockets, counters and ticket keys are given to systemd to keep.
    pub fdstore: bool,
    /// The unit's `WatchdogSec=` is answered as long as the serving threads turn; else as long as the master does.
    pub watchdog: bool,
}

impl Default for Systemd {
    fn default() -> Self {
        Self { fdstore: true, watchdog: true }
    }
}

/// How listeners reach the new worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReloadMode {
    /// The very same listening sockets.
    Handover,
    /// Freshly bound `SO_REUSEPORT` sockets.
    Rebind,
}

/// `[admin]`: HAProxy's `stats socket`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admin {
    /// Path of the unix socket.
    pub socket: PathBuf,
    /// Permission bits, for example `0o600`.
    pub mode: u32,
    /// Group that owns the socket.
    pub group: Option<String>,
    /// Most that a caller may do.
    pub level: AdminLevel,
    /// A silent caller is dropped after this long.
    pub timeout: Duration,
    /// Whether `_getsocks` (`-x`) is answered.
    pub expose_listeners: bool,
}

/// Rights on the admin socket, ascending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdminLevel {
    /// May look.
    User,
    /// May look and reload.
    Operator,
    /// May everything, stopping and taking listeners included.
    Admin,
}

/// One `[[log]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogTarget {
    /// Where lines go.
    pub sink: LogSink,
    /// Syslog facility number, 0 (kern) to 23 (local7).
    pub facility: u8,
    /// Least urgent syslog severity passed on, 0 (emerg) to 7 (debug).
    pub level: u8,
    /// Program name in each line.
    pub tag: String,
    /// Access lines wanted.
    pub access: bool,
    /// Event lines (start, reload, server down …) wanted.
    pub events: bool,
    /// Access format of this target; the frontend's own when absent.
    pub access_format: Option<String>,
}

/// Transport of a log target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogSink {
    /// Datagrams to a unix socket such as `/dev/log`.
    Unix(PathBuf),
    /// UDP datagrams (RFC 3164 over port 514).
    Udp(SocketAddr),
}

/// `[stats]`: HAProxy's `listen stats`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stats {
    /// Addresses listened on.
    pub binds: Vec<Bind>,
    /// URI prefix, may hold a `?`.
    pub uri: String,
    /// Accounts that may look; everyone when empty.
    pub users: Vec<User>,
    /// Realm of the basic authentication.
    pub realm: String,
    /// Page refreshes itself this often.
    pub refresh: Option<Duration>,
}

/// `[metrics]`: the counters for Prometheus.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Metrics {
    /// Addresses listened on.
    pub binds: Vec<Bind>,
    /// The one path that is answered.
    pub path: String,
}

/// One account of a `[users.NAME]` list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct User {
    /// Login name.
    pub name: String,
    /// What the password is checked against.
    pub secret: Secret,
}

/// How a password is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Secret {
    /// Clear text (`insecure-password`).
    Clear(String),
    /// crypt(3) `$5$` or `$6$`.
    Crypt(String),
}

/// One `[frontend.NAME]` with defaults applied.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Frontend {
    /// Name.
    pub name: String,
    /// What is understood of what passes.
    #[serde(default)]
    pub mode: Mode,
    /// Listening addresses.
    pub binds: Vec<Bind>,
    /// Index of its backend in `Bundle::backends`; `None` when every request is redirected.
    pub backend: Option<usize>,
    /// How long a ClientHello is waited for before a way is chosen; `None` where none depends on it.
    #[serde(default)]
    pub inspect: Option<Duration>,
    /// Ways that some connections go instead; the first that fits.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Client connections held at most by one worker.
    pub maxconn: Option<u32>,
    /// TLS, when certificates are given.
    pub tls: Option<TlsServer>,
    /// What clients speak where no TLS lets them choose.
    #[serde(default)]
    pub proto: Proto,
    /// Edits of the request's header on its way to the server.
    pub request_headers: HeaderEdits,
    /// Edits of the response's header on its way to the client.
    pub response_headers: HeaderEdits,
    /// Rules, first to last.
    pub rules: Vec<Rule>,
    /// keep-alive, server-close or close.
    pub connection_mode: ConnectionMode,
    /// Whether X-Forwarded-For is appended.
    pub forwarded_for: bool,
    /// Whether connections without a byte are logged.
    pub log_empty: bool,
    /// Access format: HAProxy log-format text, `httplog` or `json`.
    pub access_format: String,
    /// Timeouts of the client side.
    pub timeout: ClientTimeouts,
    /// Limits on request heads.
    pub limit: Limits,
    /// Raw responses by status.
    pub error_pages: Vec<ErrorPage>,
}

/// What is understood of what passes; a frontend and its backends agree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Requests and responses.
    #[default]
    Http,
    /// Bytes both ways.
    Tcp,
}

/// What clients of a frontend without TLS speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// HTTP/1.
    #[default]
    H1,
    /// HTTP/2 by prior knowledge (RFC 9113 section 3.3).
    H2,
    /// Either, as their first bytes say.
    Auto,
}

/// Client-side timeouts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientTimeouts {
    /// Inactivity while sending or receiving a body.
    pub client: Duration,
    /// Whole request head, TLS handshake included.
    pub http_request: Duration,
    /// Idle time between requests.
    pub http_keep_alive: Duration,
}

/// Limits on message heads.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of a whole head.
    pub header_size: usize,
    /// Header fields in a head.
    pub headers: usize,
    /// Bytes of a request target.
    pub uri_length: usize,
    /// Requests of one HTTP/2 connection under way at a time.
    #[serde(default = "streams")]
    pub streams: u32,
}

pub(super) fn streams() -> u32 {
    100
}

/// A raw HTTP response that replaces the built-in page of a status.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorPage {
    /// Status it stands for.
    pub status: u16,
    /// The bytes sent, status line included.
    #[serde(with = "super::base64_bytes")]
    pub raw: Vec<u8>,
}

/// What remains open after a response, the stricter of frontend and backend counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectionMode {
    /// Both sides.
    KeepAlive,
    /// The client's side only.
    ServerClose,
    /// Neither side.
    Close,
}

/// Header edits: removals first, then replacements, then additions.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct HeaderEdits {
    /// Names removed (lower case).
    pub del: Vec<String>,
    /// Replaced by exactly one field.
    pub set: Vec<(String, String)>,
    /// Added after what is there.
    pub add: Vec<(String, String)>,
    /// Values that are made of what is known of a connection; in `set` and `add` they hold their places.
    #[serde(default)]
    pub made: Vec<Made>,
}

/// A value that is made anew for each connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Made {
    /// Whether its place is in `add`, else in `set`.
    pub added: bool,
    /// Place there.
    pub place: usize,
    /// What it is made of.
    pub template: Template,
}
