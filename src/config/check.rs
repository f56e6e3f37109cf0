//! `[backend.NAME.check]`: how servers are checked, the types and their reading.
//! Called by `backend`, looked at by `upstream`. Never connects.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::de::DeValue;

use super::section::{Section, Text, as_text};
use super::{Backend, Server};

/// `[backend.NAME.check]`: how servers are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What is asked once connected.
    pub question: Question,
    /// Port instead of the server's.
    pub port: Option<u16>,
    /// Time between two checks of a server.
    pub interval: Duration,
    /// The same while its state is changing.
    pub fast: Duration,
    /// Failures in a row that take it down.
    pub fall: u16,
    /// Successes in a row that bring it up.
    pub rise: u16,
    /// A check that takes longer has failed.
    pub timeout: Duration,
}

impl Check {
    /// The level of a server that is surely up.
    #[must_use]
    pub fn full(&self) -> u16 {
        self.rise + self.fall - 1
    }
}

/// What a check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Nothing: a connection is enough.
    Nothing,
    /// A request.
    Http(HttpCheck),
    /// The health of a service, by gRPC's own protocol for it (grpc.health.v1); that of the whole server by an empty name.
    Grpc(String),
}

/// An HTTP check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpCheck {
    /// Method.
    pub method: CheckMethod,
    /// Request target.
    pub path: String,
    /// `Host`; the server's address when absent.
    pub host: Option<String>,
    /// Statuses that pass, as ranges with both ends.
    pub statuses: Vec<(u16, u16)>,
    /// What the body has to contain.
    pub body: Option<String>,
}

/// Methods of an HTTP check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckMethod {
    /// The whole answer.
    #[default]
    Get,
    /// Its head.
    Head,
    /// What HAProxy's `option httpchk` asks where it is not told.
    Options,
}

impl CheckMethod {
    /// As it is sent.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
        }
    }
}

impl Backend {
    /// How one of its servers is checked; `None` when it is not.
    #[must_use]
    pub fn check_of(&self, server: &Server) -> Option<&Check> {
        self.check.as_ref().filter(|_| server.checked)
    }
}

/// HAProxy's `inter`, `fall` and `rise` where nothing is said.
const INTERVAL: Duration = Duration::from_secs(2);
const FALL: u16 = 3;
const RISE: u16 = 2;
/// What HAProxy's `option httpchk` is content with.
const STATUSES: [(u16, u16); 1] = [(200, 399)];
/// Most bytes of an answer that are looked at for `expect.body`.
pub(super) const LONGEST_BODY: usize = 4096;

/// `timeout` is that of `timeout.check`; without one a check has as long as there is until the next.
pub(super) fn check(mut section: Section<'_>, timeout: Option<Duration>) -> Check {
    let kind = section.choice("type", &[("tcp", "tcp"), ("http", "http"), ("grpc", "grpc")]).unwrap_or("tcp");
    if kind != "http" {
        let because = "means something only where a request is made";
        section.refuse(&["path", "host", "method", "expect"], because, "add type = \"http\"");
    }
    if kind != "grpc" {
        let because = "means something only where a service is asked for";
        section.refuse(&["service"], because, "add type = \"grpc\"");
    }
    let question = match kind {
        "http" => Question::Http(http_check(&mut section)),
        "grpc" => Question::Grpc(service(&mut section)),
        _ => Question::Nothing,
    };
    let interval = section.duration("interval").unwrap_or(INTERVAL);
    let count = |count: Option<u32>, usual| count.and_then(|count| u16::try_from(count).ok()).unwrap_or(usual);
    let check = Check {
        question,
        port: section.integer("port", 1..=65_535).and_then(|port| u16::try_from(port).ok()),
        interval,
        fast: section.duration("fast").unwrap_or(interval),
        fall: count(section.integer("fall", 1..=1000), FALL),
        rise: count(section.integer("rise", 1..=1000), RISE),
        timeout: timeout.unwrap_or(interval),
    };
    section.finish();
    check
}

/// The name of a gRPC service, short enough for the one byte that its length has in a message.
fn service(section: &mut Section<'_>) -> String {
    let name = section.text("service").filter(|name| {
        let fine = name.text.len() < 128 && name.text.bytes().all(|byte| byte.is_ascii_graphic());
        if !fine {
            let message = format!("`{}` is no name of a service", name.text);
            section.report.error(name.span.clone(), message, "write \"package.v1.Service\"");
        }
        fine
    });
    name.map(|name| name.text).unwrap_or_default()
}

fn http_check(section: &mut Section<'_>) -> HttpCheck {
    let methods = [("GET", CheckMethod::Get), ("HEAD", CheckMethod::Head), ("OPTIONS", CheckMethod::Options)];
    let method = section.choice("method", &methods).unwrap_or_default();
    let path = section.text("path").filter(|path| {
        let fine = path.text.starts_with('/') && path.text.bytes().all(|byte| byte.is_ascii_graphic());
        if !fine {
            let message = format!("`{}` is not a path", path.text);
            section.report.error(path.span.clone(), message, "write \"/healthz\", blanks as %20");
        }
        fine
    });
    let host = section.text("host").filter(|host| {
        let fine = !host.text.is_empty()
            && host.text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte));
        if !fine {
            section.report.error(host.span.clone(), "`host` is not a host name", "write \"www.example.com\"");
        }
        fine
    });
    let mut http = HttpCheck {
        method,
        path: path.map_or_else(|| String::from("/"), |path| path.text),
        host: host.map(|host| host.text),
        statuses: STATUSES.to_vec(),
        body: None,
    };
    if let Some(expect) = section.table("expect") {
        read_expectations(expect, &mut http);
    }
    http
}

fn read_expectations(mut section: Section<'_>, http: &mut HttpCheck) {
    if section.value("status").is_some() {
        let report = section.report;
        let words = section.items("status").into_iter().filter_map(|item| match item.get_ref() {
            DeValue::Integer(number) => Some(Text { text: number.as_str().to_owned(), span: item.span() }),
            _ => as_text(item, report, "a status or a range"),
        });
        http.statuses.clear();
        for word in words.collect::<Vec<_>>() {
            for part in word.text.split(',') {
                match range(part.trim()) {
                    Some(range) => http.statuses.push(range),
                    None => section.report.error(
                        word.span.clone(),
                        format!("`{part}` is no status"),
                        "write 200, \"200-299\" or [\"200-299\", 404]",
                    ),
                }
            }
        }
    }
    if let Some(body) = section.text("body") {
        let (length, method) = (body.text.len(), http.method);
        if method == CheckMethod::Head {
            section.report.error(body.span.clone(), "an answer to HEAD has no body", "use GET, or expect a status");
        } else if length == 0 || length > LONGEST_BODY {
            let advice = format!("write 1 to {LONGEST_BODY} bytes of it");
            section.report.error(body.span.clone(), "every body, or none, holds this", advice);
        }
        http.body = Some(body.text);
    }
    section.finish();
}

/// `200` or `200-299`.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| text.trim().parse().ok().filter(|status| (200..=599).contains(status));
    let (first, last) = (status(first)?, status(last)?);
    (first <= last).then_some((first, last))
}
