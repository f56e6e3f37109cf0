//! `[backend.NAME]`: servers and how they are used.
//! Called by `load`. Never connects.

use std::net::{SocketAddr, ToSocketAddrs as _};

use super::defaults::{Half, Settings};
use super::section::{Section, Text};
use super::{Backend, Balance, Mode, Server};

const BALANCES: [Balance; 4] = [Balance::RoundRobin, Balance::LeastConn, Balance::Random, Balance::Source];

/// A server's share where it says nothing, as in HAProxy.
const WEIGHT: u16 = 1;

pub(super) fn backend(
    name: &Text,
    mut section: Section<'_>,
    defaults: &Settings,
    check: &dyn Fn(&str) -> Result<(), String>,
) -> Backend {
    let settings = defaults.with(&mut section, Half::Backend, check);
    if settings.mode == Mode::Tcp {
        section.refuse(&["connection-mode"], "means nothing where no request is understood", "leave it out");
    }
    let balance =
        section.choice("balance", &BALANCES.map(|balance| (balance.word(), balance))).unwrap_or(Balance::RoundRobin);
    let servers = servers(&mut section);
    section.finish();
    Backend {
        name: name.text.clone(),
        mode: settings.mode,
        balance,
        check: None,
        servers,
        retries: settings.retries,
        redispatch: settings.redispatch,
        connection_mode: settings.connection_mode,
        connect_timeout: settings.connect,
        server_timeout: settings.server,
        tunnel_timeout: settings.tunnel,
    }
}

fn servers(section: &mut Section<'_>) -> Vec<Server> {
    let mut servers = Vec::new();
    let mut names: Vec<Text> = Vec::new();
    for mut table in section.tables("server") {
        let (name, address) = (table.text("name"), table.text("address"));
        if table.value("name").is_none() || table.value("address").is_none() {
            let fix = "write { name = \"s1\", address = \"127.0.0.1:9000\" }";
            table.report.error(table.span.clone(), "a server needs a name and an address", fix);
        }
        let weight = table.integer("weight", 0..=256).and_then(|weight| u16::try_from(weight).ok()).unwrap_or(WEIGHT);
        let backup = table.boolean("backup").unwrap_or(false);
        if let Some(name) = &name {
            once(name, &mut names, &table);
        }
        if let (Some(name), Some(address)) = (name, address.and_then(|text| resolve(&text, &table))) {
            servers.push(Server { name: name.text, address, weight, backup });
        }
        table.finish();
    }
    for (index, text) in section.texts("servers").into_iter().enumerate() {
        let name = format!("s{}", index + 1);
        once(&Text { text: name.clone(), span: text.span.clone() }, &mut names, section);
        servers.extend(resolve(&text, section).map(|address| Server { name, address, weight: WEIGHT, backup: false }));
    }
    if section.value("server").is_none() && section.value("servers").is_none() {
        let message = format!("{} has no server", section.name);
        section.report.error(section.span.clone(), message, "add servers = [\"127.0.0.1:9000\"]");
    }
    servers
}

/// Two servers of one name could not be told apart in logs and statistics.
fn once(name: &Text, names: &mut Vec<Text>, section: &Section<'_>) {
    if let Some(first) = names.iter().find(|known| known.text == name.text) {
        let message = format!("server `{}` is defined twice", name.text);
        section.report.conflict(name.span.clone(), message, first.span.clone());
    }
    names.push(name.clone());
}

fn resolve(text: &Text, section: &Section<'_>) -> Option<SocketAddr> {
    let has_port = text.text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0));
    if !has_port {
        let message = format!("`{}` is not a server's address", text.text);
        section.report.error(text.span.clone(), message, "write \"127.0.0.1:9000\" or \"name:9000\"");
        return None;
    }
    match text.text.to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(address)) => Some(address),
        Ok(None) => {
            section.report.error(text.span.clone(), format!("`{}` has no address", text.text), "is the name right?");
            None
        }
        Err(error) => {
            let message = format!("`{}` cannot be resolved", text.text);
            section.report.error(text.span.clone(), message, error.to_string());
            None
        }
    }
}
