//! Where a frontend's connections go: `backend`, `[[frontend.NAME.route]]`, and what has to be looked at first.
//! Called by `frontend`. Never sees a backend's settings, only its name and mode.

use std::time::Duration;

use super::report::suggestion;
use super::section::{Section, Text, as_section};
use super::{Mode, Route};

/// How long a ClientHello is waited for where nothing else is said.
const WITHIN: Duration = Duration::from_secs(5);

/// The place of a backend, which understands as much as the frontend does.
pub(super) fn named_backend(
    name: &Text,
    mode: Mode,
    backends: &[(String, Mode)],
    section: &Section<'_>,
) -> Option<usize> {
    let found = backends.iter().position(|(backend, _)| *backend == name.text);
    match found {
        None => {
            let known: Vec<_> = backends.iter().map(|(backend, _)| backend.as_str()).collect();
            let label = suggestion(&name.text, &known);
            section.report.error(name.span.clone(), format!("there is no [backend.{}]", name.text), label);
        }
        Some(place) if backends[place].1 != mode => {
            let words = |mode| if mode == Mode::Tcp { "tcp" } else { "http" };
            let theirs = words(backends[place].1);
            let message =
                format!("{} has mode \"{}\", [backend.{}] \"{theirs}\"", section.name, words(mode), name.text);
            section.report.error(name.span.clone(), message, format!("write mode = \"{}\" in both", words(mode)));
        }
        Some(_) => {}
    }
    found
}

/// Routes of a frontend in TCP mode, and how long their connections are looked into.
pub(super) fn routes(section: &mut Section<'_>, backends: &[(String, Mode)]) -> (Option<Duration>, Vec<Route>) {
    let inspect = section.table("inspect").map(inspect);
    let routes: Vec<_> = section.tables("route").into_iter().filter_map(|table| route(table, backends)).collect();
    let (inspected, routed) = (section.value("inspect").is_some(), section.value("route").is_some());
    if routed && !inspected {
        let fix = "add inspect = { tls-hello = true, within = \"5s\" }";
        section.report.error(section.place("route"), "nobody reads the name that a client asks for", fix);
    }
    if inspected && !routed {
        let fix = "add [[frontend.NAME.route]], or leave `inspect` out";
        section.report.error(section.place("inspect"), "nothing depends on what is looked at", fix);
    }
    if inspected && section.value("tls").is_some() {
        let fix = "leave `inspect` out, or `tls`";
        section.report.error(section.place("inspect"), "where TLS is taken off, no hello is left to look at", fix);
    }
    (inspect, routes)
}

fn inspect(mut section: Section<'_>) -> Duration {
    if section.boolean("tls-hello") != Some(true) {
        section.report.error(section.span.clone(), "nothing to look at", "write inspect = { tls-hello = true }");
    }
    let within = section.duration("within").unwrap_or(WITHIN);
    section.finish();
    within
}

fn route(mut section: Section<'_>, backends: &[(String, Mode)]) -> Option<Route> {
    let report = section.report;
    let mut sni = Vec::new();
    for item in section.items("when") {
        let Some(mut when) = as_section(item, format!("{}.when", section.name), report) else { continue };
        let names = when.texts("sni");
        if when.value("sni").is_none() {
            report.error(when.span.clone(), "a condition that asks for nothing", "write when = { sni = \"name\" }");
        }
        sni.extend(names.into_iter().filter_map(|name| pattern(&name, &when)));
        when.finish();
    }
    if section.value("when").is_none() {
        let fix = "write when = { sni = \"name\" }; for everything else there is the frontend's own `backend`";
        report.error(section.span.clone(), "a route without a condition", fix);
    }
    let backend = section.text("backend").and_then(|name| named_backend(&name, Mode::Tcp, backends, &section));
    if section.value("backend").is_none() {
        report.error(section.span.clone(), "a route that leads nowhere", "add backend = \"NAME\"");
    }
    section.finish();
    backend.map(|backend| Route { sni, backend })
}

/// A DNS name, or `*.` before one.
fn pattern(name: &Text, section: &Section<'_>) -> Option<String> {
    let plain = name.text.strip_prefix("*.").unwrap_or(&name.text);
    let fits = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if plain.split('.').all(fits) {
        return Some(name.text.to_ascii_lowercase());
    }
    let message = format!("`{}` is no name a client can ask for", name.text);
    section.report.error(name.span.clone(), message, "write \"name.example.com\" or \"*.example.com\"");
    None
}

impl Route {
    /// Whether a client that asks for this name, in lower case, goes this way. `*.` stands for one label or more.
    #[must_use]
    pub fn leads(&self, name: &str) -> bool {
        self.sni.iter().any(|pattern| match pattern.strip_prefix('*') {
            Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            None => pattern == name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_label_or_more() {
        let route = Route { sni: vec![String::from("*.apps.example.com"), String::from("example.com")], backend: 0 };
        for name in ["a.apps.example.com", "a.b.apps.example.com", "example.com"] {
            assert!(route.leads(name), "{name}");
        }
        for name in ["apps.example.com", ".apps.example.com", "xapps.example.com", "a.example.com", "example.com.evil"]
        {
            assert!(!route.leads(name), "{name}");
        }
    }
}
