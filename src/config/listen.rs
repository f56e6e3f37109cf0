//! Addresses to listen on.
//! Called by `frontend` and `stats`. Never binds.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use toml::de::DeValue;

use super::Bind;
use super::section::{Section, Text, as_section, as_text};

/// Backlog where none is given: the kernel cuts it to net.core.somaxconn.
const BACKLOG: u32 = 4096;

/// The `bind` of a section: a string, a table, or a list of both.
pub(super) fn binds(section: &mut Section<'_>) -> Vec<Bind> {
    let report = section.report;
    let mut binds = Vec::new();
    for item in section.items("bind") {
        let parsed = match item.get_ref() {
            DeValue::Table(_) => as_section(item, String::from("bind"), report).and_then(table),
            _ => as_text(item, report, "an address").and_then(|text| {
                let (address, v6only) = address(&text, section)?;
                Some(Bind { address, v6only, backlog: BACKLOG, origin: report.place(text.span.start) })
            }),
        };
        binds.extend(parsed);
    }
    if section.value("bind").is_none() {
        report.error(section.span.clone(), format!("{} has no bind", section.name), "add bind = [\"*:80\"]");
    }
    binds
}

fn table(mut section: Section<'_>) -> Option<Bind> {
    let text = section.text("address");
    if section.value("address").is_none() {
        section.report.error(section.span.clone(), "a bind without an address", "add address = \"*:80\"");
    }
    let parsed = text.as_ref().and_then(|text| address(text, &section));
    let v6only = section.boolean("v6only");
    let backlog = section.integer("backlog", 1..=1_000_000).unwrap_or(BACKLOG);
    let origin = section.report.place(text.map_or(section.span.start, |text| text.span.start));
    section.finish();
    let (address, only) = parsed?;
    Some(Bind { address, v6only: v6only.unwrap_or(only), backlog, origin })
}

/// `*:80`, `:80`, `127.0.0.1:80`, `[::]:80`.
fn address(text: &Text, section: &Section<'_>) -> Option<(SocketAddr, bool)> {
    let parsed = match text.text.strip_prefix('*').or(Some(text.text.as_str()).filter(|text| text.starts_with(':'))) {
        Some(port) => port
            .strip_prefix(':')
            .and_then(|port| port.parse().ok())
            .map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)),
        None => text.text.parse().ok(),
    };
    match parsed {
        Some(address) if address.port() > 0 => Some((address, false)),
        _ => {
            let message = format!("`{}` is not an address to listen on", text.text);
            section.report.error(text.span.clone(), message, "write \"*:80\", \"127.0.0.1:80\" or \"[::]:80\"");
            None
        }
    }
}
