//! Settings that `[defaults]` gives and that a frontend or backend may change.
//! Called by `load`, `frontend` and `backend`. Never names a default twice.

use std::time::Duration;

use super::backend::tunnel_timeout;
use super::bundle::streams;
use super::process::access_format;
use super::retry::{RetryOn, retry_on};
use super::section::Section;
use super::{ClientTimeouts, ConnectionMode, ErrorPage, Limits, Mode};

/// Statuses that can have a page.
const STATUSES: [&str; 20] = [
    "400", "401", "403", "404", "405", "407", "408", "410", "413", "414", "421", "425", "429", "431", "500", "501",
    "502", "503", "504", "505",
];

/// Every setting with a default.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) mode: Mode,
    pub(super) retries: u32,
    pub(super) redispatch: bool,
    pub(super) retry_on: RetryOn,
    pub(super) connection_mode: ConnectionMode,
    pub(super) forwarded_for: bool,
    pub(super) log_empty: bool,
    pub(super) access_format: String,
    pub(super) connect: Duration,
    pub(super) server: Duration,
    pub(super) tunnel: Duration,
    pub(super) check: Option<Duration>,
    pub(super) client: ClientTimeouts,
    pub(super) limit: Limits,
    pub(super) error_pages: Vec<ErrorPage>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Http,
            retries: 3,
            redispatch: true,
            retry_on: RetryOn::default(),
            connection_mode: ConnectionMode::KeepAlive,
            forwarded_for: false,
            log_empty: false,
            access_format: String::from("httplog"),
            connect: Duration::from_secs(5),
            server: Duration::from_secs(50),
            tunnel: tunnel_timeout(),
            check: None,
            client: ClientTimeouts {
                client: Duration::from_secs(50),
                http_request: Duration::from_secs(10),
                http_keep_alive: Duration::from_secs(60),
            },
            limit: Limits { header_size: 16 * 1024, headers: 100, uri_length: 8 * 1024, streams: streams() },
            error_pages: Vec::new(),
        }
    }
}

/// Which half of the settings a section may change.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Frontend,
    Backend,
    Both,
}

impl Settings {
    /// These settings as changed by a section.
    pub(super) fn with(
        &self,
        section: &mut Section<'_>,
        half: Half,
        check: &dyn Fn(&str) -> Result<(), String>,
    ) -> Self {
        let mut new = self.clone();
        set(&mut new.mode, section.choice("mode", &[("http", Mode::Http), ("tcp", Mode::Tcp)]));
        let modes = [
            ("keep-alive", ConnectionMode::KeepAlive),
            ("server-close", ConnectionMode::ServerClose),
            ("close", ConnectionMode::Close),
        ];
        set(&mut new.connection_mode, section.choice("connection-mode", &modes));
        let mut timeout = section.table("timeout");
        if half != Half::Frontend {
            set(&mut new.retries, section.integer("retries", 0..=100));
            set(&mut new.redispatch, section.boolean("redispatch"));
            set(&mut new.retry_on, retry_on(section));
            if let Some(timeout) = &mut timeout {
                set(&mut new.connect, timeout.duration("connect"));
                set(&mut new.server, timeout.duration("server"));
                set(&mut new.tunnel, timeout.duration("tunnel"));
                new.check = timeout.duration("check").or(new.check);
            }
        }
        if half != Half::Backend {
            new.read_client_side(section, timeout.as_mut(), check);
            if new.mode == Mode::Http || half == Half::Both {
                new.read_requests(section, timeout.as_mut());
            }
        }
        if let Some(timeout) = timeout {
            timeout.finish();
        }
        new
    }

    fn read_client_side(
        &mut self,
        section: &mut Section<'_>,
        timeout: Option<&mut Section<'_>>,
        check: &dyn Fn(&str) -> Result<(), String>,
    ) {
        set(&mut self.log_empty, section.boolean("log-empty"));
        set(&mut self.access_format, access_format(section, check));
        if let Some(timeout) = timeout {
            set(&mut self.client.client, timeout.duration("client"));
        }
    }

    /// What means something only where requests are understood.
    fn read_requests(&mut self, section: &mut Section<'_>, timeout: Option<&mut Section<'_>>) {
        set(&mut self.forwarded_for, section.boolean("forwarded-for"));
        if let Some(timeout) = timeout {
            set(&mut self.client.http_request, timeout.duration("http-request"));
            set(&mut self.client.http_keep_alive, timeout.duration("http-keep-alive"));
        }
        if let Some(mut limit) = section.table("limit") {
            set(&mut self.limit.header_size, limit.size("header-size"));
            set(&mut self.limit.headers, limit.integer("headers", 1..=10_000).map(|count| count as usize));
            set(&mut self.limit.uri_length, limit.size("uri-length"));
            set(&mut self.limit.streams, limit.integer("streams", 1..=10_000));
            limit.finish();
        }
        if let Some(pages) = section.table("error-pages") {
            self.read_pages(pages);
        }
    }

    fn read_pages(&mut self, mut section: Section<'_>) {
        for status in STATUSES {
            let Some(file) = section.text(status) else { continue };
            let path = section.report.resolve(&file.text);
            let raw = match std::fs::read(&path) {
                Ok(raw) => raw,
                Err(error) => {
                    section.report.outside(file.span, format!("cannot read `{}`", path.display()), error.to_string());
                    continue;
                }
            };
            if let Err(problem) = check_page(&raw) {
                section.report.error(file.span, format!("`{}` cannot be an error page", path.display()), problem);
                continue;
            }
            let status = status.parse().unwrap_or(500);
            self.error_pages.retain(|page| page.status != status);
            self.error_pages.push(ErrorPage { status, raw });
        }
        section.finish();
    }
}

/// A raw page must be a response on its own, and its Content-Length true.
fn check_page(raw: &[u8]) -> Result<(), String> {
    if !raw.starts_with(b"HTTP/1.") {
        return Err(String::from("the file holds a whole response: begin with \"HTTP/1.1 503 Service Unavailable\""));
    }
    let end = raw
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .map(|end| end + 4)
        .or_else(|| raw.windows(2).position(|bytes| bytes == b"\n\n").map(|end| end + 2));
    let Some(end) = end else { return Err(String::from("the header does not end with an empty line")) };
    let head = String::from_utf8_lossy(&raw[..end]).to_ascii_lowercase();
    let declared = head.lines().find_map(|line| line.strip_prefix("content-length:")).map(str::trim);
    match declared.map(str::parse::<usize>) {
        Some(Ok(length)) if length != raw.len() - end => {
            Err(format!("Content-Length says {length}, the body has {} bytes", raw.len() - end))
        }
        Some(Err(_error)) => Err(String::from("Content-Length is not a number")),
        _ => Ok(()),
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_page_is_a_whole_true_response() {
        assert_eq!(check_page(b"HTTP/1.0 503 X\r\nContent-Length: 2\r\n\r\nhi"), Ok(()));
        assert_eq!(check_page(b"HTTP/1.0 503 X\r\nConnection: close\r\n\r\nhi"), Ok(()));
        for bad in [&b"<html>"[..], b"HTTP/1.0 503 X\r\n", b"HTTP/1.0 503 X\r\nContent-Length: 3\r\n\r\nhi"] {
            assert!(check_page(bad).is_err());
        }
    }
}
