//! Where a frontend's connections go: `backend`, `[[frontend.NAME.route]]`, and what has to be looked at first.
//! Called by `frontend`. Never sees a backend's settings, only its name and mode.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Mode;
use super::report::suggestion;
use super::section::{Section, Text, as_section};

/// How long a ClientHello is waited for where nothing else is said.
const WITHIN: Duration = Duration::from_secs(5);

/// One `[[frontend.NAME.route]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Route {
    /// Any of these; never empty.
    pub when: Vec<When>,
    /// Index of its backend in `Bundle::backends`.
    pub backend: usize,
}

/// A condition: what it names has to fit, each by one of its values.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct When {
    /// Names a TLS client may ask for, lower case; `*.` stands for one label or more.
    pub sni: Vec<String>,
    /// Hosts of a request, likewise, without port.
    pub host: Vec<String>,
    /// Methods.
    pub method: Vec<String>,
    /// Whole paths, without query.
    pub path: Vec<String>,
    /// How a path begins.
    pub path_prefix: Vec<String>,
    /// How a path ends.
    pub path_suffix: Vec<String>,
}

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

/// Routes of a frontend, and how long its connections are looked into.
pub(super) fn routes(
    section: &mut Section<'_>,
    mode: Mode,
    backends: &[(String, Mode)],
) -> (Option<Duration>, Vec<Route>) {
    let routes = section.tables("route").into_iter().filter_map(|table| route(table, mode, backends)).collect();
    if mode == Mode::Http {
        let fix = "write mode = \"tcp\" where TLS is to be passed on, or leave it out";
        section.refuse(&["inspect"], "looks into what is passed on unopened; here it is opened", fix);
        return (None, routes);
    }
    let inspect = section.table("inspect").map(inspect);
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

fn route(mut section: Section<'_>, mode: Mode, backends: &[(String, Mode)]) -> Option<Route> {
    let report = section.report;
    let mut when = Vec::new();
    for item in section.items("when") {
        let Some(table) = as_section(item, format!("{}.when", section.name), report) else { continue };
        when.push(condition(table, mode));
    }
    if section.value("when").is_none() {
        let fix = format!("write when = {}; for all else there is the frontend's own `backend`", example(mode));
        report.error(section.span.clone(), "a route without a condition", fix);
    }
    let backend = section.text("backend").and_then(|name| named_backend(&name, mode, backends, &section));
    if section.value("backend").is_none() {
        report.error(section.span.clone(), "a route that leads nowhere", "add backend = \"NAME\"");
    }
    section.finish();
    backend.map(|backend| Route { when, backend })
}

fn example(mode: Mode) -> &'static str {
    if mode == Mode::Tcp { "{ sni = \"name\" }" } else { "{ host = \"name\", path-prefix = \"/path/\" }" }
}

fn condition(mut section: Section<'_>, mode: Mode) -> When {
    let mut when = When::default();
    let keys: &[_] = if mode == Mode::Tcp {
        when.sni = asked(&mut section, "sni", pattern);
        &["sni"]
    } else {
        when.host = asked(&mut section, "host", pattern);
        when.method = asked(&mut section, "method", method);
        when.path = asked(&mut section, "path", path_from_start);
        when.path_prefix = asked(&mut section, "path-prefix", path_from_start);
        when.path_suffix = asked(&mut section, "path-suffix", path_to_end);
        &["host", "method", "path", "path-prefix", "path-suffix"]
    };
    if keys.iter().all(|key| section.value(key).is_none()) {
        let fix = format!("write when = {}", example(mode));
        section.report.error(section.span.clone(), "a condition that asks for nothing", fix);
    }
    section.finish();
    when
}

/// The values of one key.
fn asked(section: &mut Section<'_>, key: &'static str, read: fn(&Text, &Section<'_>) -> Option<String>) -> Vec<String> {
    let texts = section.texts(key);
    if section.value(key).is_some() && texts.is_empty() {
        // As "no condition" it would let everything through, as "none of these" nothing.
        section.report.error(section.place(key), format!("`{key}` names nothing"), "name one, or leave it out");
    }
    texts.iter().filter_map(|text| read(text, section)).collect()
}

fn method(text: &Text, section: &Section<'_>) -> Option<String> {
    if !text.text.is_empty() && text.text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
        return Some(text.text.clone());
    }
    section.report.error(text.span.clone(), format!("`{}` is no method", text.text), "write \"GET\"");
    None
}

/// A path as clients send it, or its beginning.
fn path_from_start(text: &Text, section: &Section<'_>) -> Option<String> {
    let fix = "begin with \"/\", percent-encode the rest, leave the query out";
    path(text, section, (text.text.starts_with('/'), fix))
}

/// The end of such a path.
fn path_to_end(text: &Text, section: &Section<'_>) -> Option<String> {
    path(text, section, (true, "write \".css\""))
}

fn path(text: &Text, section: &Section<'_>, (begins_well, fix): (bool, &str)) -> Option<String> {
    let sent = |byte: u8| byte.is_ascii_graphic() && byte != b'?' && byte != b'#';
    if begins_well && !text.text.is_empty() && text.text.bytes().all(sent) {
        return Some(text.text.clone());
    }
    section.report.error(text.span.clone(), format!("`{}` is in no path that a client can send", text.text), fix);
    None
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

/// What of a request decides about its way.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// Host without port.
    pub host: &'a [u8],
    /// Method.
    pub method: &'a [u8],
    /// Path without query.
    pub path: &'a [u8],
}

impl Route {
    /// Whether a TLS client that asks for this name, in lower case, goes this way.
    #[must_use]
    pub fn leads_client(&self, name: &str) -> bool {
        self.when.iter().any(|when| is_named(&when.sni, name.as_bytes()))
    }

    /// Whether a request goes this way.
    #[must_use]
    pub fn leads_request(&self, to: Destination<'_>) -> bool {
        self.when.iter().any(|when| when.fits(to))
    }
}

impl When {
    fn fits(&self, to: Destination<'_>) -> bool {
        let any = |values: &[String], fits: &dyn Fn(&[u8]) -> bool| {
            values.is_empty() || values.iter().any(|value| fits(value.as_bytes()))
        };
        (self.host.is_empty() || is_named(&self.host, to.host))
            && any(&self.method, &|method| method == to.method)
            && any(&self.path, &|path| path == to.path)
            && any(&self.path_prefix, &|prefix| to.path.starts_with(prefix))
            && any(&self.path_suffix, &|suffix| to.path.ends_with(suffix))
    }
}

/// Whether one of the patterns fits a name; `*.` stands for one label or more.
fn is_named(patterns: &[String], name: &[u8]) -> bool {
    let name = name.strip_suffix(b".").unwrap_or(name);
    patterns.iter().any(|pattern| match pattern.strip_prefix('*') {
        Some(suffix) => {
            let labels = name.len().checked_sub(suffix.len()).filter(|labels| *labels > 0);
            labels.is_some_and(|labels| name[labels..].eq_ignore_ascii_case(suffix.as_bytes()))
        }
        None => name.eq_ignore_ascii_case(pattern.as_bytes()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_label_or_more() {
        let patterns = [String::from("*.apps.example.com"), String::from("example.com")];
        for name in ["a.apps.example.com", "a.b.Apps.example.com", "example.com", "EXAMPLE.com."] {
            assert!(is_named(&patterns, name.as_bytes()), "{name}");
        }
        for name in
            ["apps.example.com", ".apps.example.com", "xapps.example.com", "a.example.com", "example.com.evil", ""]
        {
            assert!(!is_named(&patterns, name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn every_key_has_to_fit_by_one_of_its_values() {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let when = When {
            host: texts(&["a.test", "b.test"]),
            method: texts(&["GET"]),
            path_prefix: texts(&["/x/", "/y/"]),
            ..When::default()
        };
        let fits = |host: &str, method: &str, path: &str| {
            when.fits(Destination { host: host.as_bytes(), method: method.as_bytes(), path: path.as_bytes() })
        };
        assert!(fits("a.test", "GET", "/x/1") && fits("B.test", "GET", "/y/"));
        assert!(!fits("c.test", "GET", "/x/1") && !fits("a.test", "get", "/x/1") && !fits("a.test", "GET", "/x"));
    }
}
