//! Addresses to listen on.
//! Called by `frontend` and `stats`. Never binds.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use nix::unistd::Gid;
use serde::{Deserialize, Serialize};
use toml::de::DeValue;

use super::network::Network;
use super::process::{checked, gid, octal, uid};
use super::rights;
use super::section::{Section, Text, as_section, as_text};

/// Backlog where none is given: the kernel cuts it to net.core.somaxconn.
const BACKLOG: u32 = 4096;
/// Bytes of a Unix socket's path (unix(7): 107), less what the name it is bound under first has on top.
const LONGEST_PATH: usize = 107 - ".4294967295.tmp".len();
/// Bytes of the name that a descriptor can have (systemd's FDNAME_MAX).
const LONGEST_NAME: usize = 255;

/// How the names of descriptors begin that the daemon itself has the supervisor keep: counters, legacy, listeners.
pub const KEPT_NAMES: [&str; 3] = ["proxy-counters-", "proxy-legacy-", "proxy-listener-"];

/// One listening address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Where. `*` is `0.0.0.0`, `[::]` is dual stack unless `v6only`.
    pub address: Address,
    /// `IPV6_V6ONLY`.
    pub v6only: bool,
    /// `SO_BINDTODEVICE`.
    pub interface: Option<String>,
    /// Rights of a Unix socket's path.
    pub access: Access,
    /// listen(2) backlog.
    pub backlog: u32,
    /// Whose connections begin with a header of the PROXY protocol.
    #[serde(default)]
    pub accept_proxy: Vec<Source>,
    /// Where the configuration says so, `file:line:column`, for messages about binding.
    pub origin: String,
}

/// Who passes connections on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Whoever has an address of it.
    Network(Network),
    /// Whoever may connect to the Unix socket.
    Unix,
}

/// Where a socket is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Address {
    /// TCP.
    Internet(SocketAddr),
    /// A path in the file system.
    Unix(PathBuf),
    /// Wherever the supervisor put the sockets that it passes under this name (sd_listen_fds(3)).
    Passed(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internet(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Passed(name) => write!(f, "fd-name `{name}`"),
        }
    }
}

/// Who may connect to a Unix socket; what is not given stays as the kernel made it (umask, our own user).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner's uid.
    pub user: Option<u32>,
    /// Group's gid.
    pub group: Option<u32>,
}

/// The `bind` of a section: a string, a table, or a list of both.
pub(super) fn binds(section: &mut Section<'_>) -> Vec<Bind> {
    let report = section.report;
    let mut binds = Vec::new();
    for item in section.items("bind") {
        let parsed = match item.get_ref() {
            DeValue::Table(_) => as_section(item, String::from("bind"), report).and_then(table),
            _ => as_text(item, report, "an address").and_then(|text| {
                let origin = report.place(text.span.start);
                address(&text, section).map(|address| Bind {
                    address,
                    v6only: false,
                    interface: None,
                    access: Access::default(),
                    backlog: BACKLOG,
                    accept_proxy: Vec::new(),
                    origin,
                })
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
    let passed = section.value("fd-name").is_some();
    let text = section.text(if passed { "fd-name" } else { "address" });
    let address = if passed { fd_name(text.as_ref(), &mut section) } else { written(text.as_ref(), &mut section) };
    let v6only = section.boolean("v6only").unwrap_or(false);
    let interface = section.text("interface").and_then(|name| interface(name, &section));
    let access = access(&mut section);
    let accept_proxy = address.as_ref().map_or_else(Vec::new, |address| sources(address, &mut section));
    let backlog = section.integer("backlog", 1..=1_000_000).unwrap_or(BACKLOG);
    let origin = section.report.place(text.map_or(section.span.start, |text| text.span.start));
    section.finish();
    Some(Bind { address: address?, v6only, interface, access, backlog, accept_proxy, origin })
}

/// `accept-proxy`: networks, or for a Unix socket "unix".
fn sources(address: &Address, section: &mut Section<'_>) -> Vec<Source> {
    let mut sources = Vec::new();
    for text in section.texts("accept-proxy") {
        let (source, fix) = match (address, text.text.as_str()) {
            (Address::Unix(_), "unix") => (Some(Source::Unix), String::new()),
            (Address::Unix(_), _) => (None, String::from("who comes by a Unix socket has no address: write \"unix\"")),
            (Address::Internet(_) | Address::Passed(_), text) => match Network::parse(text) {
                Ok(network) => (Some(Source::Network(network)), String::new()),
                Err(fix) => (None, fix),
            },
        };
        match source {
            Some(source) => sources.push(source),
            None => section.report.error(text.span, format!("`{}` names no source", text.text), fix),
        }
    }
    if section.value("accept-proxy").is_some_and(|value| value.get_ref().as_array().is_some_and(|all| all.is_empty())) {
        let fix = "name the networks whose word is taken, or leave it out";
        section.report.error(section.place("accept-proxy"), "nobody is named", fix);
    }
    sources
}

fn written(text: Option<&Text>, section: &mut Section<'_>) -> Option<Address> {
    if section.value("address").is_none() {
        let fix = "add address = \"*:80\", or fd-name = \"proxy.socket\"";
        section.report.error(section.span.clone(), "a bind without an address", fix);
    }
    let address = text.and_then(|text| address(text, section));
    if let Some(address) = &address {
        suit(address, section);
    }
    address
}

/// The name of sockets that the supervisor passes: what systemd takes for one, and none that is ours.
fn fd_name(text: Option<&Text>, section: &mut Section<'_>) -> Option<Address> {
    section.refuse(
        &["address", "v6only", "interface", "mode", "user", "group"],
        "is for whoever makes the socket to say",
        "leave it out, or leave `fd-name` out",
    );
    let instead = "write the address instead of `fd-name`: sockets of a unit are found by theirs, too";
    section.refuse(&["accept-proxy"], "belongs to an address", instead);
    let text = text?;
    let name = &text.text;
    let is_one = (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        && !name.contains(':');
    let (problem, fix) = if !is_one {
        ("cannot be the name of a descriptor", "write what FileDescriptorName= of the socket unit says")
    } else if KEPT_NAMES.iter().any(|ours| name.starts_with(ours)) {
        ("is a name for what the daemon itself has the supervisor keep", "give the socket another FileDescriptorName=")
    } else {
        return Some(Address::Passed(name.clone()));
    };
    section.report.error(text.span.clone(), format!("`{name}` {problem}"), fix);
    None
}

/// Refuses what an address of this kind cannot have.
fn suit(address: &Address, section: &mut Section<'_>) {
    match address {
        Address::Unix(_) => section.refuse(
            &["v6only", "interface"],
            "means nothing for a Unix socket",
            "leave it out, or listen on an address",
        ),
        Address::Internet(address) => {
            section.refuse(
                &["mode", "user", "group"],
                "is for Unix sockets alone",
                "leave it out, or write address = \"unix:/run/proxy/www.sock\"",
            );
            if address.is_ipv4() {
                section.refuse(&["v6only"], "means nothing for an IPv4 address", "leave it out");
            }
        }
        // Says all of that itself.
        Address::Passed(_) => {}
    }
}

/// The name of a network interface; it need not be there yet (IFNAMSIZ: 15 bytes).
fn interface(name: Text, section: &Section<'_>) -> Option<String> {
    if name.text.is_empty() || name.text.len() > 15 || name.text.contains(['/', ' ']) {
        let message = format!("`{}` is not the name of an interface", name.text);
        section.report.error(name.span, message, "write \"eth0\"");
        return None;
    }
    Some(name.text)
}

fn access(section: &mut Section<'_>) -> Access {
    let mode = section.text("mode").and_then(|mode| octal(&mode, section));
    let user = checked(section, "user", rights::is_user, |name| uid(name).is_some());
    let group = checked(section, "group", rights::is_in_group, |name| gid(name).is_some());
    // To anybody else a warning has said that these have no effect.
    let user = user.as_deref().and_then(uid).filter(|_| rights::may_become_anybody());
    let group = group.as_deref().and_then(gid).filter(|group| rights::may_give_to(Gid::from_raw(*group)));
    Access { mode, user, group }
}

/// `*:80`, `:80`, `127.0.0.1:80`, `[::]:80`, `unix:/run/proxy/www.sock`.
fn address(text: &Text, section: &Section<'_>) -> Option<Address> {
    if let Some(path) = text.text.strip_prefix("unix:") {
        return unix(path, text, section).map(Address::Unix);
    }
    let parsed = match text.text.strip_prefix('*').or(Some(text.text.as_str()).filter(|text| text.starts_with(':'))) {
        Some(port) => port
            .strip_prefix(':')
            .and_then(|port| port.parse().ok())
            .map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)),
        None => text.text.parse().ok(),
    };
    match parsed {
        Some(address) if address.port() > 0 => Some(Address::Internet(address)),
        _ => {
            let message = format!("`{}` is not an address to listen on", text.text);
            let fix = "write \"*:80\", \"127.0.0.1:80\", \"[::]:80\" or \"unix:/run/proxy/www.sock\"";
            section.report.error(text.span.clone(), message, fix);
            None
        }
    }
}

/// The path of a Unix socket, from where the file is.
pub(super) fn unix(path: &str, text: &Text, section: &Section<'_>) -> Option<PathBuf> {
    let whole = section.report.resolve(path);
    let length = whole.as_os_str().len();
    let (problem, fix) = if path.is_empty() || path.ends_with('/') || path.contains('\0') {
        ("is not the path of a socket".into(), "write \"unix:/run/proxy/www.sock\"".into())
    } else if length > LONGEST_PATH {
        (format!("is a path of {length} bytes"), format!("{LONGEST_PATH} are the most for a socket"))
    } else {
        return Some(whole);
    };
    section.report.error(text.span.clone(), format!("`{}` {problem}", text.text), fix);
    None
}
