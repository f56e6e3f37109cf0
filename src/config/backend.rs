//! `[backend.NAME]`: servers and how they are used, the types and their reading.
//! Called by `load`. Never connects.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{Check, Question, check as checks};
use super::defaults::{Half, Settings};
use super::section::{Section, Text};
use super::server_tls::{TlsFiles, tls_client};
use super::{ConnectionMode, Mode, RetryOn, TlsClient};

/// Versions of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SendProxy {
    /// A line of text.
    V1,
    /// Bytes, with what is known of the client's TLS.
    V2,
}

/// What the servers of a backend speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    H1,
    /// HTTP/2 over TLS.
    H2,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
    /// HTTP/2 over TLS where a server offers it, else HTTP/1.1.
    Auto,
}

impl Protocol {
    /// Whether requests share a connection, or may.
    #[must_use]
    pub fn is_shared(self) -> bool {
        self != Self::H1
    }
}

/// One `[backend.NAME]` with defaults applied.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Backend {
    /// Name.
    pub name: String,
    /// What is understood of what passes.
    #[serde(default)]
    pub mode: Mode,
    /// What the servers speak.
    #[serde(default)]
    pub protocol: Protocol,
    /// How a server is chosen.
    pub balance: Balance,
    /// How servers are checked; `None` when they are not.
    pub check: Option<Check>,
    /// Servers in file order.
    pub servers: Vec<Server>,
    /// TLS towards them.
    #[serde(default)]
    pub tls: Option<TlsClient>,
    /// Connection attempts after the first.
    pub retries: u32,
    /// The last retry goes to another server.
    pub redispatch: bool,
    /// What is tried again.
    #[serde(default)]
    pub retry_on: RetryOn,
    /// keep-alive, server-close or close.
    pub connection_mode: ConnectionMode,
    /// connect(2) time-out.
    pub connect_timeout: Duration,
    /// Inactivity of the server.
    pub server_timeout: Duration,
    /// Inactivity of a tunnel through which data has flown both ways.
    #[serde(default = "tunnel_timeout")]
    pub tunnel_timeout: Duration,
}

impl Backend {
    /// The protocols its servers are offered over TLS, preferred first.
    #[must_use]
    pub fn alpn(&self) -> &'static [&'static str] {
        match (self.mode, self.protocol) {
            (Mode::Tcp, _) | (Mode::Http, Protocol::H2c) => &[],
            (Mode::Http, Protocol::H1) => &["http/1.1"],
            (Mode::Http, Protocol::H2) => &["h2"],
            (Mode::Http, Protocol::Auto) => &["h2", "http/1.1"],
        }
    }
}

fn yes() -> bool {
    true
}

pub(super) fn tunnel_timeout() -> Duration {
    Duration::from_secs(3600)
}

/// Balancing algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// One global order over all threads, every server as often as its weight.
    RoundRobin,
    /// The server with the fewest sessions for its weight.
    LeastConn,
    /// The less loaded of two servers drawn by weight.
    Random,
    /// The same server for the same client address.
    Source,
}

impl Balance {
    /// Its name in the configuration and in statistics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::RoundRobin => "roundrobin",
            Self::LeastConn => "leastconn",
            Self::Random => "random",
            Self::Source => "source",
        }
    }
}

/// One server of a backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Server {
    /// Name.
    pub name: String,
    /// Address, resolved when the configuration was loaded.
    pub address: SocketAddr,
    /// The host part of the address as it is written.
    #[serde(default)]
    pub host: String,
    /// Its share of requests among the servers, 0 to 256; 0 takes none.
    pub weight: u16,
    /// Takes requests only while no other server does.
    pub backup: bool,
    /// Whether it is checked, where the backend's servers are.
    #[serde(default = "yes")]
    pub checked: bool,
    /// How it is told whom a connection is for.
    #[serde(default)]
    pub send_proxy: Option<SendProxy>,
}

const BALANCES: [Balance; 4] = [Balance::RoundRobin, Balance::LeastConn, Balance::Random, Balance::Source];

/// A server's share where it says nothing, as in HAProxy.
const WEIGHT: u16 = 1;

pub(super) fn backend(
    name: &Text,
    mut section: Section<'_>,
    defaults: &Settings,
    files: TlsFiles<'_>,
    check: &dyn Fn(&str) -> Result<(), String>,
) -> Backend {
    let settings = defaults.with(&mut section, Half::Backend, check);
    if settings.mode == Mode::Tcp {
        section.refuse(
            &["connection-mode", "protocol", "retry-on"],
            "means nothing where no request is understood",
            "leave it out",
        );
    }
    let balance =
        section.choice("balance", &BALANCES.map(|balance| (balance.word(), balance))).unwrap_or(Balance::RoundRobin);
    let its_check = section.table("check").map(|section| checks(section, settings.check));
    let protocol = protocol(&mut section);
    let send_proxy = section.choice("send-proxy", &[("v1", SendProxy::V1), ("v2", SendProxy::V2)]);
    let grpc = its_check.as_ref().is_some_and(|check| matches!(check.question, Question::Grpc(_)));
    if protocol == Protocol::H1 && grpc {
        let fix = "write protocol = \"h2c\", or \"h2\" with tls = { … }";
        section.report.error(
            section.place("check"),
            "gRPC is spoken over HTTP/2, which these servers do not speak",
            fix,
        );
    }
    let servers = servers(&mut section, its_check.is_some(), send_proxy);
    let tls = section.table("tls").map(|tls| tls_client(tls, files, &servers));
    if protocol != Protocol::H1 && servers.iter().any(|server| server.send_proxy.is_some()) {
        let place =
            section.value("send-proxy").map_or_else(|| section.place("server"), |_| section.place("send-proxy"));
        let fix = "write protocol = \"h1\", or leave `send-proxy` out";
        section.report.error(place, "a connection of HTTP/2 is shared by clients", fix);
    }
    section.finish();
    Backend {
        name: name.text.clone(),
        mode: settings.mode,
        protocol,
        balance,
        check: its_check,
        servers,
        tls,
        retries: settings.retries,
        redispatch: settings.redispatch,
        retry_on: settings.retry_on,
        connection_mode: settings.connection_mode,
        connect_timeout: settings.connect,
        server_timeout: settings.server,
        tunnel_timeout: settings.tunnel,
    }
}

/// What the servers speak; which of HTTP/2's names is right depends on TLS.
fn protocol(section: &mut Section<'_>) -> Protocol {
    let words = [("h1", Protocol::H1), ("h2", Protocol::H2), ("h2c", Protocol::H2c), ("auto", Protocol::Auto)];
    let protocol = section.choice("protocol", &words).unwrap_or_default();
    let tls = section.value("tls").is_some();
    let (problem, fix) = match protocol {
        Protocol::H2c if tls => ("`h2c` is HTTP/2 without TLS", "write protocol = \"h2\", or leave `tls` out"),
        Protocol::H2 if !tls => ("`h2` is HTTP/2 over TLS", "write protocol = \"h2c\", or add tls = { … }"),
        Protocol::Auto if !tls => ("without TLS a server cannot say what it speaks", "write \"h1\" or \"h2c\""),
        _ => return protocol,
    };
    section.report.error(section.place("protocol"), problem, fix);
    protocol
}

fn servers(section: &mut Section<'_>, are_checked: bool, send_proxy: Option<SendProxy>) -> Vec<Server> {
    let versions = [("v1", Some(SendProxy::V1)), ("v2", Some(SendProxy::V2)), ("off", None)];
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
        let checked = table.boolean("check");
        if checked == Some(true) && !are_checked {
            let fix = "add check = { type = \"tcp\" } to the backend";
            table.report.error(table.place("check"), "nothing says how this server is checked", fix);
        }
        let send_proxy = table.choice("send-proxy", &versions).unwrap_or(send_proxy);
        if let Some(name) = &name {
            once(name, &mut names, &table);
        }
        if let (Some(name), Some(address)) = (name, address.and_then(|text| resolve(&text, &table))) {
            let (address, host) = address;
            let checked = checked.unwrap_or(true);
            servers.push(Server { name: name.text, address, host, weight, backup, checked, send_proxy });
        }
        table.finish();
    }
    for (index, text) in section.texts("servers").into_iter().enumerate() {
        let name = format!("s{}", index + 1);
        once(&Text { text: name.clone(), span: text.span.clone() }, &mut names, section);
        let resolved = resolve(&text, section);
        servers.extend(resolved.map(|(address, host)| Server {
            name,
            address,
            host,
            weight: WEIGHT,
            backup: false,
            checked: true,
            send_proxy,
        }));
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

/// Address and host.
fn resolve(text: &Text, section: &Section<'_>) -> Option<(SocketAddr, String)> {
    let parts = text.text.rsplit_once(':');
    let Some((host, _)) = parts.filter(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0)) else {
        let message = format!("`{}` is not a server's address", text.text);
        section.report.error(text.span.clone(), message, "write \"127.0.0.1:9000\" or \"name:9000\"");
        return None;
    };
    match text.text.to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(address)) => Some((address, host.trim_matches(['[', ']']).to_owned())),
        Ok(None) => {
            section.report.outside(text.span.clone(), format!("`{}` has no address", text.text), "is the name right?");
            None
        }
        Err(error) => {
            let message = format!("`{}` cannot be resolved", text.text);
            section.report.outside(text.span.clone(), message, error.to_string());
            None
        }
    }
}
