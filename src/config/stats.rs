//! `[stats]` with the `[users.LIST]` it names, and `[metrics]`.
//! Called by `load`. Never checks a password.

use std::collections::BTreeMap;

use toml::de::DeValue;

use super::listen::binds;
use super::report::suggestion;
use super::section::{Section, Text, as_section, as_text};
use super::{Metrics, Secret, Stats, User};

/// What helps where there is no hash.
const MAKE_ONE: &str = "make one: mkpasswd -m sha-512";

/// User lists by name.
pub(super) fn users(root: &mut Section<'_>) -> BTreeMap<String, Vec<User>> {
    let mut lists = BTreeMap::new();
    for (name, section) in root.named("users") {
        let mut users = Vec::new();
        for (user, value) in section.entries() {
            let secret = match value.get_ref() {
                DeValue::Table(_) => {
                    as_section(value, format!("user {}", user.text), section.report).and_then(table_secret)
                }
                _ => as_text(value, section.report, "a password hash").and_then(|hash| written(hash, &section)),
            };
            users.extend(secret.map(|secret| User { name: user.text, secret }));
        }
        // No accounts would mean that everybody may look.
        if section.entries().is_empty() {
            let message = format!("{} holds nobody", section.name);
            section.report.error(section.span.clone(), message, "add an account");
        }
        lists.insert(name.text, users);
    }
    lists
}

fn table_secret(mut section: Section<'_>) -> Option<Secret> {
    let secret = if let Some(clear) = section.text("insecure-password") {
        section.report.warning(clear.span, "a password in clear text", "better a hash: mkpasswd -m sha-512");
        Some(Secret::Clear(clear.text))
    } else if let Some(file) = section.text("file") {
        match std::fs::read_to_string(section.report.resolve(&file.text)) {
            Ok(hash) => {
                let secret = crypt(hash.trim());
                if secret.is_none() {
                    let problem = format!("`{}` holds no password hash we know", file.text);
                    section.report.outside(file.span, problem, MAKE_ONE);
                }
                secret
            }
            Err(error) => {
                section.report.outside(file.span, format!("cannot read `{}`", file.text), error.to_string());
                None
            }
        }
    } else {
        section.report.error(section.span.clone(), "a user without a password", "add insecure-password or file");
        None
    };
    section.finish();
    secret
}

/// A hash that stands in the configuration itself.
fn written(hash: Text, section: &Section<'_>) -> Option<Secret> {
    let secret = crypt(&hash.text);
    if secret.is_none() {
        section.report.error(hash.span, "this is not a password hash we know", MAKE_ONE);
    }
    secret
}

fn crypt(hash: &str) -> Option<Secret> {
    (hash.starts_with("$5$") || hash.starts_with("$6$")).then(|| Secret::Crypt(hash.to_owned()))
}

pub(super) fn stats(section: Option<Section<'_>>, lists: &BTreeMap<String, Vec<User>>) -> Option<Stats> {
    let mut section = section?;
    let binds = binds(&mut section);
    let mut users = Vec::new();
    if let Some(auth) = section.text("auth") {
        match lists.get(&auth.text) {
            Some(list) => users.clone_from(list),
            None => {
                let known: Vec<_> = lists.keys().map(String::as_str).collect();
                let label = suggestion(&auth.text, &known);
                section.report.error(auth.span, format!("there is no [users.{}]", auth.text), label);
            }
        }
    }
    let stats = Stats {
        binds,
        uri: section.string("uri").unwrap_or_else(|| String::from("/admin?stats")),
        users,
        realm: section.string("realm").unwrap_or_else(|| String::from("Statistics")),
        refresh: section.duration("refresh"),
    };
    section.finish();
    Some(stats)
}

pub(super) fn metrics(section: Option<Section<'_>>) -> Option<Metrics> {
    let mut section = section?;
    let binds = binds(&mut section);
    let path = section.text("path").filter(|path| {
        let fine = path.text.starts_with('/') && path.text.bytes().all(|byte| byte.is_ascii_graphic());
        let fine = fine && !path.text.contains(['?', '#']);
        if !fine {
            section.report.error(path.span.clone(), format!("`{}` is not a path", path.text), "write \"/metrics\"");
        }
        fine
    });
    section.finish();
    Some(Metrics { binds, path: path.map_or_else(|| String::from("/metrics"), |path| path.text) })
}
