//! The Prometheus view (text format 0.0.4): the names are those of HAProxy's exporter, with `proxy_` in front.
//! Called by the metrics listener. Never shows what other views count otherwise.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::counters::Counter as C;
use super::histogram::{BUCKETS, Histogram};
use super::ledger::{ReloadPath, ReloadResult};
use super::snapshot::{Kind, Row, Snapshot};

/// What the text is, for whoever scrapes it.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Name behind the kind's, type, help, and the value of a row.
type Metric = (&'static str, &'static str, &'static str, fn(&Row) -> Option<u64>);

/// Of every kind.
const COMMON: [Metric; 5] = [
    ("current_sessions", "gauge", "Open sessions.", |row| Some(row.sessions)),
    ("max_sessions", "counter", "Most sessions that were open at a time.", |row| Some(row.count(C::SessionsMax))),
    ("sessions_total", "counter", "Sessions.", |row| Some(row.count(C::Sessions))),
    ("bytes_in_total", "counter", "Bytes received from clients.", |row| Some(row.count(C::BytesIn))),
    ("bytes_out_total", "counter", "Bytes sent to clients.", |row| Some(row.count(C::BytesOut))),
];

const FRONTENDS: [Metric; 5] = [
    ("limit_sessions", "gauge", "Sessions a worker holds at most.", |row| row.limit.map(u64::from)),
    ("http_requests_total", "counter", "Requests received.", |row| Some(row.count(C::Requests))),
    ("requests_denied_total", "counter", "Requests refused by rules.", |row| Some(row.count(C::DeniedRequests))),
    ("request_errors_total", "counter", "Requests that were malformed or late.", |row| {
        Some(row.count(C::RequestErrors))
    }),
    ("tls_handshake_errors_total", "counter", "TLS handshakes that failed.", |row| Some(row.count(C::HandshakeErrors))),
];

/// Of backends and servers.
const BEHIND: [Metric; 15] = [
    ("http_requests_total", "counter", "Requests.", |row| Some(row.count(C::Requests))),
    ("current_queue", "gauge", "Waiting requests.", |row| Some(row.queued)),
    ("connection_attempts_total", "counter", "Connections opened.", |row| Some(row.count(C::Connects))),
    ("connection_reuses_total", "counter", "Connections used again.", |row| Some(row.count(C::Reuses))),
    ("connection_errors_total", "counter", "Connections that failed.", |row| Some(row.count(C::ConnectErrors))),
    ("response_errors_total", "counter", "Broken responses.", |row| Some(row.count(C::ResponseErrors))),
    ("retry_warnings_total", "counter", "Connections tried again.", |row| Some(row.count(C::Retries))),
    ("redispatch_warnings_total", "counter", "Requests sent to another server.", |row| {
        Some(row.count(C::Redispatches))
    }),
    ("client_aborts_total", "counter", "Transfers broken off by clients.", |row| Some(row.count(C::ClientAborts))),
    ("server_aborts_total", "counter", "Transfers broken off by servers.", |row| Some(row.count(C::ServerAborts))),
    ("loadbalanced_total", "counter", "Times chosen.", |row| Some(row.count(C::Selected))),
    ("weight", "gauge", "Weight in force.", |row| Some(row.weight)),
    ("check_up_down_total", "counter", "Times it went down.", |row| Some(row.count(C::TimesDown))),
    ("check_last_change_seconds", "gauge", "Time since it last went up or down.", |row| Some(row.last_change())),
    ("downtime_seconds_total", "counter", "Time it was down.", |row| Some(row.downtime())),
];

const BACKENDS: [Metric; 2] = [
    ("active_servers", "gauge", "Servers that take requests.", |row| Some(row.active as u64)),
    ("backup_servers", "gauge", "Backup servers that could.", |row| Some(row.backup as u64)),
];

const SERVERS: [Metric; 2] = [
    ("check_failures_total", "counter", "Checks that failed while it was up.", |row| {
        row.check.map(|_| row.count(C::ChecksFailed))
    }),
    ("check_code", "gauge", "HTTP status, or errno, of the last check.", |row| {
        row.check.and(row.standing.health).map(|health| health.code.into())
    }),
];

/// Words of the states a row can be in.
const STATES: [&str; 4] = ["UP", "DOWN", "MAINT", "DRAIN"];

/// Renders a snapshot.
#[must_use]
pub fn prometheus(snapshot: &Snapshot, now: SystemTime) -> String {
    let mut out = String::with_capacity(64 * 1024);
    daemon(&mut out, snapshot, now);
    certificates(&mut out, snapshot);
    for (kind, own) in [
        (Kind::Frontend, &[&COMMON[..], &FRONTENDS[..]][..]),
        (Kind::Backend, &[&COMMON[..], &BEHIND[..], &BACKENDS[..]]),
        (Kind::Server, &[&COMMON[..], &BEHIND[..], &SERVERS[..]]),
    ] {
        let rows: Vec<_> = snapshot.rows.iter().filter(|row| row.kind == kind).collect();
        for (name, form, help, value) in own.iter().copied().flatten() {
            let name = format!("{}_{name}", prefix(kind));
            head(&mut out, &name, form, help);
            for row in &rows {
                if let Some(value) = value(row) {
                    sample(&mut out, &name, &labels(row), value);
                }
            }
        }
        states(&mut out, kind, &rows);
        responses(&mut out, kind, &rows);
        histograms(&mut out, kind, &rows);
    }
    out
}

fn prefix(kind: Kind) -> &'static str {
    match kind {
        Kind::Frontend => "proxy_frontend",
        Kind::Backend => "proxy_backend",
        Kind::Server => "proxy_server",
    }
}

// Writing to a string cannot fail, here and below.
fn head(out: &mut String, name: &str, form: &str, help: &str) {
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {form}\n");
}

fn sample(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ =
        if labels.is_empty() { writeln!(out, "{name} {value}") } else { writeln!(out, "{name}{{{labels}}} {value}") };
}

fn labels(row: &Row) -> String {
    let mut labels = label("proxy", &row.proxy);
    if row.kind == Kind::Server {
        labels = labels + "," + &label("server", &row.service);
    }
    labels
}

fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

/// Microseconds as seconds.
fn seconds(micros: u64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

fn daemon(out: &mut String, snapshot: &Snapshot, now: SystemTime) {
    let mut one = |name: &str, form: &str, help: &str, value: String| {
        head(out, name, form, help);
        sample(out, name, "", value);
    };
    let epoch = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (uptime, reloads) = (snapshot.uptime, &snapshot.reloads);
    let started = epoch(now).saturating_sub(uptime.as_secs());
    let last = u64::try_from(reloads.last_took.as_micros()).unwrap_or(u64::MAX);
    one("proxy_process_start_time_seconds", "gauge", "When counting began.", started.to_string());
    one("proxy_process_uptime_seconds", "gauge", "Time since counting began.", uptime.as_secs().to_string());
    let dropped = snapshot.log_lines_dropped.to_string();
    one("proxy_process_log_lines_dropped_total", "counter", "Log lines that no target took.", dropped);
    one("proxy_reload_last_duration_seconds", "gauge", "Time that the last transaction took.", seconds(last));
    if let Some(second) = reloads.last_applied {
        let help = "When a reload or an upgrade was last applied.";
        one("proxy_reload_last_success_timestamp_seconds", "gauge", help, second.to_string());
    }
    head(out, "proxy_build_info", "gauge", "Version of this program.");
    sample(out, "proxy_build_info", &label("version", env!("CARGO_PKG_VERSION")), 1);
    head(out, "proxy_config_info", "gauge", "The configuration that serves.");
    sample(out, "proxy_config_info", &label("sha256", &reloads.config_sha256()), 1);
    let (name, mut count) = ("proxy_reload_duration_seconds", 0);
    head(out, "proxy_reload_total", "counter", "Transactions by path and result.");
    for (path, result) in ReloadPath::ALL.into_iter().flat_map(|path| ReloadResult::ALL.map(|result| (path, result))) {
        let labels = format!("{},{}", label("result", result.word()), label("path", path.word()));
        sample(out, "proxy_reload_total", &labels, reloads.count(path, result));
        count += reloads.count(path, result);
    }
    head(out, name, "summary", "Time that transactions took.");
    let total = u64::try_from(reloads.total_took.as_micros()).unwrap_or(u64::MAX);
    sample(out, &format!("{name}_sum"), "", seconds(total));
    sample(out, &format!("{name}_count"), "", count);
    head(out, "proxy_generation_connections", "gauge", "Open client connections of each living worker.");
    for life in &snapshot.lives {
        let state = if life.draining { "draining" } else { "serving" };
        let labels = format!("{},{}", label("generation", &life.generation.to_string()), label("state", state));
        sample(out, "proxy_generation_connections", &labels, life.connections);
    }
}

fn certificates(out: &mut String, snapshot: &Snapshot) {
    let name = "proxy_certificate_not_after_seconds";
    head(out, name, "gauge", "When a certificate ends, in seconds since 1970.");
    for expiry in &snapshot.certificates {
        let file = label("file", &expiry.path.to_string_lossy());
        let labels = format!("{},{},{file}", label("kind", expiry.kind), label("proxy", &expiry.proxy));
        sample(out, name, &labels, expiry.not_after);
    }
}

fn states(out: &mut String, kind: Kind, rows: &[&Row]) {
    let name = format!("{}_status", prefix(kind));
    head(out, &name, "gauge", "1 for the state it is in.");
    let states = if kind == Kind::Server { &STATES[..] } else { &STATES[..2] };
    for row in rows {
        let status = row.status();
        // An open frontend and a server that nobody checks are up.
        let own = states.iter().find(|state| status.starts_with(**state)).unwrap_or(&"UP");
        for state in states {
            let labels = format!("{},{}", labels(row), label("state", state));
            sample(out, &name, &labels, u8::from(state == own));
        }
    }
    if kind == Kind::Server {
        let checked = || rows.iter().filter_map(|row| Some((row, row.check.and(row.standing.health)?)));
        head(out, "proxy_server_check_status", "gauge", "1 for what the last check found.");
        for (row, health) in checked() {
            let labels = format!("{},{}", labels(row), label("state", health.status.words().0));
            sample(out, "proxy_server_check_status", &labels, 1);
        }
        head(out, "proxy_server_check_duration_seconds", "gauge", "Time that the last check took.");
        for (row, health) in checked() {
            let took = seconds(u64::from(health.millis) * 1000);
            sample(out, "proxy_server_check_duration_seconds", &labels(row), took);
        }
    }
}

fn responses(out: &mut String, kind: Kind, rows: &[&Row]) {
    let classes = [
        ("1xx", C::Status1xx),
        ("2xx", C::Status2xx),
        ("3xx", C::Status3xx),
        ("4xx", C::Status4xx),
        ("5xx", C::Status5xx),
        ("other", C::StatusOther),
    ];
    let name = format!("{}_http_responses_total", prefix(kind));
    head(out, &name, "counter", "Responses by class of status.");
    for (row, (class, counter)) in rows.iter().flat_map(|row| classes.map(|class| (row, class))) {
        sample(out, &name, &format!("{},{}", labels(row), label("code", class)), row.count(counter));
    }
}

fn histograms(out: &mut String, kind: Kind, rows: &[&Row]) {
    let (name, help) = match kind {
        Kind::Frontend => ("http_request_duration_seconds", "From a request's first byte to its answer's last."),
        Kind::Backend | Kind::Server => ("http_response_time_seconds", "From sending a request to its answer's head."),
    };
    let name = format!("{}_{name}", prefix(kind));
    head(out, &name, "histogram", help);
    for row in rows {
        let (labels, histogram) = (labels(row), row.histogram());
        let mut sum = 0;
        for (bucket, count) in histogram.counts.iter().enumerate().take(BUCKETS) {
            sum += count;
            let limit = Histogram::limit(bucket).map_or_else(|| String::from("+Inf"), seconds);
            sample(out, &format!("{name}_bucket"), &format!("{labels},{}", label("le", &limit)), sum);
        }
        sample(out, &format!("{name}_sum"), &labels, seconds(histogram.micros));
        sample(out, &format!("{name}_count"), &labels, sum);
    }
}
