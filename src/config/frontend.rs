//! `[frontend.NAME]`: listening, TLS, rules, header edits.
//! Called by `load`. Never sees a backend's settings, only its name.

use super::defaults::{Half, Settings};
use super::frontend_tls::tls_server;
use super::listen::binds;
use super::route::{named_backend, routes};
use super::rule::rule;
use super::section::{Section, Text, as_text};
use super::server_tls::TlsFiles;
use super::{Frontend, HeaderEdits, Made, Mode, Proto, Template};

/// Fields that belong to a connection or to framing: editing them would break messages.
const PROTECTED: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What a frontend is read with.
pub(super) struct Surroundings<'a> {
    pub(super) settings: &'a Settings,
    pub(super) files: TlsFiles<'a>,
    /// Names and modes of all backends.
    pub(super) backends: &'a [(String, Mode)],
    pub(super) check: &'a dyn Fn(&str) -> Result<(), String>,
}

pub(super) fn frontend(name: &Text, mut section: Section<'_>, around: &Surroundings<'_>) -> Frontend {
    let mut settings = around.settings.with(&mut section, Half::Frontend, around.check);
    if settings.mode == Mode::Tcp {
        suit_tcp(&mut section, &mut settings);
    }
    let binds = binds(&mut section);
    let rules: Vec<_> = section.tables("rule").into_iter().filter_map(rule).collect();
    let (inspect, routes) = routes(&mut section, settings.mode, around.backends);
    let elsewhere = !routes.is_empty() || rules.iter().any(|rule| rule.tls.is_none());
    let frontend = Frontend {
        name: name.text.clone(),
        mode: settings.mode,
        binds,
        backend: backend(&mut section, (settings.mode, around.backends), elsewhere),
        inspect,
        routes,
        maxconn: section.integer("maxconn", 1..=10_000_000),
        proto: proto(&mut section),
        tls: section.table("tls").map(|tls| tls_server(tls, (settings.mode, around.files))),
        request_headers: edits(section.table("request-headers")),
        response_headers: edits(section.table("response-headers")),
        rules,
        connection_mode: settings.connection_mode,
        forwarded_for: settings.forwarded_for,
        log_empty: settings.log_empty,
        access_format: settings.access_format,
        timeout: settings.client,
        limit: settings.limit,
        error_pages: settings.error_pages,
    };
    let edits = frontend.request_headers.made.iter().chain(&frontend.response_headers.made);
    let shown = frontend.tls.as_ref().is_some_and(|tls| tls.client_auth.is_some());
    if !shown && edits.clone().any(|made| made.template.asks_for_certificate()) {
        let problem = "no client shows a certificate here, a field that is made of it stays empty";
        section.report.warning(section.place("request-headers"), problem, "add tls.client-auth");
    }
    section.finish();
    frontend
}

/// Keys of a frontend that say something of requests.
const OF_REQUESTS: [&str; 8] = [
    "proto",
    "rule",
    "request-headers",
    "response-headers",
    "connection-mode",
    "forwarded-for",
    "limit",
    "error-pages",
];

/// Takes out of the settings what bytes alone cannot give, and refuses what asks for more.
fn suit_tcp(section: &mut Section<'_>, settings: &mut Settings) {
    section.refuse(
        &OF_REQUESTS,
        "means nothing where no request is understood",
        "leave it out, or write mode = \"http\"",
    );
    let of_requests = ["httplog", "clf"].contains(&settings.access_format.as_str());
    if section.value("access-format").is_some() {
        if of_requests {
            let message = format!("`{}` shows requests, and none is understood here", settings.access_format);
            section.report.error(section.place("access-format"), message, "write \"tcplog\"");
        }
    } else if settings.access_format != "json" {
        // As in HAProxy: what [defaults] says is meant for frontends that have requests.
        settings.access_format = String::from("tcplog");
    }
}

/// The backend that is named, which understands as much as the frontend does.
fn backend(section: &mut Section<'_>, (mode, backends): (Mode, &[(String, Mode)]), elsewhere: bool) -> Option<usize> {
    let Some(name) = section.text("backend") else {
        if section.value("backend").is_none() && !elsewhere {
            let message = format!("{} has no backend", section.name);
            let or = if mode == Mode::Tcp { "routes" } else { "routes, or a rule without `when`" };
            section.report.error(section.span.clone(), message, format!("add backend = \"NAME\", or {or}"));
        }
        return None;
    };
    named_backend(&name, mode, backends, section)
}

/// What clients speak; over TLS they say so themselves.
fn proto(section: &mut Section<'_>) -> Proto {
    let words = [("h1", Proto::H1), ("h2", Proto::H2), ("auto", Proto::Auto)];
    let proto = section.choice("proto", &words);
    if proto.is_some() && section.value("tls").is_some() {
        let fix = "write tls.alpn = [\"h2\", \"http/1.1\"], or leave `proto` out";
        section.report.error(section.place("proto"), "over TLS clients choose by ALPN", fix);
    }
    proto.unwrap_or_default()
}

fn edits(section: Option<Section<'_>>) -> HeaderEdits {
    let mut edits = HeaderEdits::default();
    let Some(mut section) = section else { return edits };
    for name in section.texts("del") {
        if field_name(&name, &section) {
            edits.del.push(name.text.to_ascii_lowercase());
        }
    }
    for added in [false, true] {
        let pairs = pairs(section.table(if added { "add" } else { "set" }));
        let made = pairs
            .iter()
            .enumerate()
            .filter_map(|(place, (_, _, template))| Some(Made { added, place, template: template.clone()? }));
        edits.made.extend(made);
        let plain = pairs.into_iter().map(|(name, value, _)| (name, value)).collect();
        if added { edits.add = plain } else { edits.set = plain }
    }
    section.finish();
    edits
}

/// Names, values, and what a value is made of.
fn pairs(section: Option<Section<'_>>) -> Vec<(String, String, Option<Template>)> {
    let Some(section) = section else { return Vec::new() };
    let mut pairs = Vec::new();
    for (name, value) in section.entries() {
        let Some(value) = as_text(value, section.report, "a field value") else { continue };
        if value.text.chars().any(|c| c.is_control() && c != '\t') {
            let fix = "write plain text without control characters";
            section.report.error(value.span, "this cannot be a field value", fix);
            continue;
        }
        match Template::parse(&value.text) {
            Ok(template) if field_name(&name, &section) => pairs.push((name.text, value.text, template)),
            Ok(_) => {}
            Err((problem, fix)) => section.report.error(value.span, problem, fix),
        }
    }
    pairs
}

fn field_name(name: &Text, section: &Section<'_>) -> bool {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.text.is_empty() || !name.text.chars().all(token) {
        section.report.error(
            name.span.clone(),
            format!("`{}` cannot be a field name", name.text),
            "letters, digits and -",
        );
        return false;
    }
    if PROTECTED.contains(&name.text.to_ascii_lowercase().as_str()) {
        let message = format!("`{}` belongs to the connection and is made anew for each side", name.text);
        section.report.error(name.span.clone(), message, "leave it out");
        return false;
    }
    true
}
