//! `[global]`, `[reload]`, `[admin]` and `[[log]]`.
//! Called by `load`. Never looks at frontends or backends.

use std::net::ToSocketAddrs as _;
use std::path::PathBuf;
use std::time::Duration;

use super::ciphers::TlsDefaults;
use super::report::suggestion;
use super::rights;
use super::section::{Section, Text};
use super::{Admin, AdminLevel, Global, LogSink, LogTarget, MAX_THREADS, Reload, ReloadMode, Systemd, Tickets};

pub(super) fn global(mut section: Section<'_>, tls: &mut TlsDefaults) -> Global {
    let user = checked(&mut section, "user", rights::is_user, |name| uid(name).is_some());
    let group = checked(&mut section, "group", rights::is_in_group, |name| gid(name).is_some());
    let chroot =
        checked(&mut section, "chroot", |_folder| rights::may_confine(), |path| std::path::Path::new(path).is_dir());
    let threads = match section.value("threads").map(|value| value.get_ref().as_str()) {
        Some(Some("auto")) | None => None,
        Some(_) => section.integer("threads", 1..=MAX_THREADS).map(|count| count as usize),
    };
    let mut tickets = Tickets::default();
    if let Some(mut section) = section.table("tls") {
        *tls = tls.with(&mut section);
        tls.cert_base = section.string("cert-base").map(PathBuf::from);
        tls.ca_base = section.string("ca-base").map(PathBuf::from);
        tickets = self::tickets(section.table("tickets"));
        section.finish();
    }
    let maxconn = section.integer("maxconn", 1..=10_000_000);
    if section.value("maxconn").is_none() {
        let because = "means something only beside `maxconn`, which is otherwise what the limits allow";
        section.refuse(&["strict-limits"], because, "add maxconn, or leave it out");
    }
    let global = Global {
        user,
        group,
        chroot: chroot.map(PathBuf::from),
        pid_file: section.string("pid-file").map(|path| section.report.resolve(&path)),
        threads,
        maxconn,
        lax_limits: section.boolean("strict-limits") == Some(false),
        tickets,
    };
    section.finish();
    global
}

/// `tickets` of `[global.tls]`.
fn tickets(section: Option<Section<'_>>) -> Tickets {
    let usual = Tickets::default();
    let Some(mut section) = section else { return usual };
    let rotate = section.duration("rotate").unwrap_or(usual.rotate);
    let keep = section.integer("keep", 1..=16).map_or(usual.keep, |keep| keep as usize);
    section.finish();
    Tickets { rotate, keep }
}

/// The number of a user.
pub(super) fn uid(name: &str) -> Option<u32> {
    nix::unistd::User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
}

/// The number of a group.
pub(super) fn gid(name: &str) -> Option<u32> {
    nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
}

/// Permission bits in octal digits.
pub(super) fn octal(mode: &Text, section: &Section<'_>) -> Option<u32> {
    let bits = u32::from_str_radix(&mode.text, 8).ok().filter(|bits| *bits <= 0o777);
    if bits.is_none() {
        section.report.error(mode.span.clone(), "`mode` is not understood", "write octal digits: \"0660\"");
    }
    bits
}

/// What root can do, and anybody else only where he may already; and what has to exist for it.
pub(super) fn checked(
    section: &mut Section<'_>,
    key: &'static str,
    allowed: impl Fn(&str) -> bool,
    exists: impl Fn(&str) -> bool,
) -> Option<String> {
    let value = section.text(key)?;
    if !rights::may_become_anybody() && !allowed(&value.text) {
        section.report.warning(value.span, format!("`{key}` has no effect"), "only root can do that");
    } else if !exists(&value.text) {
        // Accounts may come from a service that is not up yet.
        section.report.outside(value.span, format!("there is no {key} `{}`", value.text), "create it or name another");
    }
    Some(value.text)
}

pub(super) fn reload(section: Option<Section<'_>>) -> Reload {
    let mut reload =
        Reload { strategy: ReloadMode::Handover, hard_stop_after: Duration::from_secs(30 * 60), max_old: 50 };
    if let Some(mut section) = section {
        let modes = [("handover", ReloadMode::Handover), ("rebind", ReloadMode::Rebind)];
        reload.strategy = section.choice("strategy", &modes).unwrap_or(reload.strategy);
        reload.hard_stop_after = section.duration("hard-stop-after").unwrap_or(reload.hard_stop_after);
        reload.max_old = section.integer("max-old", 1..=60).map_or(reload.max_old, |count| count as usize);
        section.finish();
    }
    reload
}

pub(super) fn systemd(section: Option<Section<'_>>) -> Systemd {
    let mut systemd = Systemd::default();
    if let Some(mut section) = section {
        systemd.fdstore = section.boolean("fdstore").unwrap_or(systemd.fdstore);
        systemd.watchdog = section.boolean("watchdog").unwrap_or(systemd.watchdog);
        section.finish();
    }
    systemd
}

pub(super) fn admin(section: Option<Section<'_>>) -> Option<Admin> {
    let mut section = section?;
    let socket = section.string("socket");
    if socket.is_none() && section.value("socket").is_none() {
        section.report.error(
            section.span.clone(),
            "the admin socket has no path",
            "add socket = \"/run/proxy/admin.sock\"",
        );
    }
    let mode = section.text("mode");
    let bits = mode.as_ref().and_then(|mode| {
        let bits = octal(mode, &section);
        if bits.is_some_and(|bits| bits & 0o007 != 0) {
            section.report.warning(
                mode.span.clone(),
                "everybody on this machine may use the admin socket",
                "whoever connects can read the status and reload; write \"0660\" and a group",
            );
        }
        bits
    });
    let levels = [("user", AdminLevel::User), ("operator", AdminLevel::Operator), ("admin", AdminLevel::Admin)];
    let admin = Admin {
        socket: section.report.resolve(&socket.unwrap_or_default()),
        mode: bits.unwrap_or(0o600),
        group: checked(&mut section, "group", rights::is_in_group, |name| gid(name).is_some()),
        level: section.choice("level", &levels).unwrap_or(AdminLevel::Admin),
        timeout: section.duration("timeout").unwrap_or(Duration::from_secs(30)),
        expose_listeners: section.boolean("expose-listeners").unwrap_or(true),
    };
    section.finish();
    Some(admin)
}

const FACILITIES: [(&str, u8); 20] = [
    ("kern", 0),
    ("user", 1),
    ("mail", 2),
    ("daemon", 3),
    ("auth", 4),
    ("syslog", 5),
    ("lpr", 6),
    ("news", 7),
    ("uucp", 8),
    ("cron", 9),
    ("authpriv", 10),
    ("ftp", 11),
    ("local0", 16),
    ("local1", 17),
    ("local2", 18),
    ("local3", 19),
    ("local4", 20),
    ("local5", 21),
    ("local6", 22),
    ("local7", 23),
];

/// As RFC 5424 has it for APP-NAME (section 6).
const LONGEST_TAG: usize = 48;

const LEVELS: [(&str, u8); 8] =
    [("emerg", 0), ("alert", 1), ("crit", 2), ("err", 3), ("warning", 4), ("notice", 5), ("info", 6), ("debug", 7)];

/// One `[[log]]`; `check` knows whether an access format can be compiled.
pub(super) fn log(mut section: Section<'_>, check: &dyn Fn(&str) -> Result<(), String>) -> Option<LogTarget> {
    let sink = log_sink(&mut section);
    section.choice("format", &[("rfc3164", ())]);
    let mut wanted = (false, false);
    let only = section.texts("only");
    for word in &only {
        match word.text.as_str() {
            "access" => wanted.0 = true,
            "event" => wanted.1 = true,
            other => section.report.error(
                word.span.clone(),
                format!("`only` cannot hold `{other}`"),
                suggestion(other, &["access", "event"]),
            ),
        }
    }
    if only.is_empty() {
        wanted = (true, true);
    }
    let target = LogTarget {
        sink: sink.unwrap_or(LogSink::Unix(PathBuf::new())),
        facility: section.choice("facility", &FACILITIES).unwrap_or(16),
        level: section.choice("level", &LEVELS).unwrap_or(6),
        tag: tag(&mut section),
        access: wanted.0,
        events: wanted.1,
        access_format: access_format(&mut section, check),
    };
    section.finish();
    Some(target)
}

/// What other daemons find their lines by; where a line is cut, it is in front and never goes.
fn tag(section: &mut Section<'_>) -> String {
    let Some(Text { text, span }) = section.text("tag") else { return String::from("proxy") };
    if !(1..=LONGEST_TAG).contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!("a tag has 1 to {LONGEST_TAG} visible characters of ASCII");
        section.report.error(span, message, "write the name of a program, \"proxy\"");
    }
    text
}

fn log_sink(section: &mut Section<'_>) -> Option<LogSink> {
    let Some(target) = section.text("target") else {
        if section.value("target").is_none() {
            section.report.error(section.span.clone(), "a log without a target", "add target = \"syslog:/dev/log\"");
        }
        return None;
    };
    if let Some(path) = target.text.strip_prefix("syslog:/") {
        return Some(LogSink::Unix(PathBuf::from(format!("/{path}"))));
    }
    let Some(host) = target.text.strip_prefix("syslog+udp:") else {
        let message = format!("log target `{}` is not understood", target.text);
        section.report.error(target.span, message, "write \"syslog:/dev/log\" or \"syslog+udp:127.0.0.1:514\"");
        return None;
    };
    let with_port = if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:514")
    };
    match with_port.to_socket_addrs().ok().and_then(|mut found| found.next()) {
        Some(address) => Some(LogSink::Udp(address)),
        None => {
            section.report.outside(
                target.span,
                format!("`{host}` has no address"),
                "write \"syslog+udp:127.0.0.1:514\"",
            );
            None
        }
    }
}

/// An access format that can be compiled.
pub(super) fn access_format(section: &mut Section<'_>, check: &dyn Fn(&str) -> Result<(), String>) -> Option<String> {
    let format = section.text("access-format")?;
    if let Err(problem) = check(&format.text) {
        section.report.error(format.span, "the access format cannot be used", problem);
    }
    Some(format.text)
}
