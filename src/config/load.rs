//! A whole file: syntax, sections, what they say of each other.
//! Called by the master and `proxy check`. Never applies anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use toml::de::DeTable;

use super::authorities::Trust;
use super::backend::backend;
use super::ciphers::TlsDefaults;
use super::defaults::{Half, Settings};
use super::frontend::{Surroundings, frontend};
use super::report::Report;
use super::section::Section;
use super::server_tls::TlsFiles;
use super::{Bundle, CONFIG_VERSION, Loaded, Rejected, process, stats};

/// Reads and checks a file and everything it names. `check_format` says whether an access format can
/// be used; formats are compiled by a layer above.
///
/// # Errors
/// Every problem of the file at once.
pub fn load(path: &Path, check_format: &dyn Fn(&str) -> Result<(), String>) -> Result<Loaded, Rejected> {
    let source = std::fs::read_to_string(path).map_err(|error| {
        let brief = format!("cannot read {}: {error}", path.display());
        Rejected { rendered: format!("error: {brief}"), brief, errors: 1, lasting: false }
    })?;
    load_text(path, &source, check_format)
}

/// As [`load`], of a text that is, or might become, the file's.
///
/// # Errors
/// Every problem of the text at once.
pub fn load_text(
    path: &Path,
    source: &str,
    check_format: &dyn Fn(&str) -> Result<(), String>,
) -> Result<Loaded, Rejected> {
    let report = Report::new(path, source);
    let (table, syntax) = DeTable::parse_recoverable(source);
    for error in &syntax {
        report.error(error.span().unwrap_or(0..0), format!("not TOML: {}", error.message()), "here");
    }
    let span = 0..0;
    let bundle = read(Section::new(table.get_ref(), span, "", &report), source, check_format);
    let (rendered, errors) = report.errors();
    if errors > 0 {
        return Err(Rejected { rendered, brief: report.brief(), errors, lasting: report.lasting() });
    }
    Ok(Loaded { bundle, warnings: report.warnings() })
}

fn read(mut root: Section<'_>, source: &str, check: &dyn Fn(&str) -> Result<(), String>) -> Bundle {
    root.name = String::from("the file");
    if let Some(value) = root.value("config-version")
        && value.get_ref().as_integer().and_then(|number| number.as_str().parse().ok()) != Some(CONFIG_VERSION)
    {
        root.report.error(value.span(), "unknown config-version", format!("this version reads {CONFIG_VERSION}"));
    }
    root.name = String::new();
    let mut tls = TlsDefaults::default();
    let global = root.table("global").map(|section| process::global(section, &mut tls)).unwrap_or_default();
    let reload = process::reload(root.table("reload"));
    let systemd = process::systemd(root.table("systemd"));
    let admin = process::admin(root.table("admin"));
    let logs = root.tables("log").into_iter().filter_map(|section| process::log(section, check)).collect();
    let mut settings = Settings::default();
    if let Some(mut section) = root.table("defaults") {
        settings = settings.with(&mut section, Half::Both, check);
        section.finish();
    }
    let lists = stats::users(&mut root);
    let stats = stats::stats(root.table("stats"), &lists);
    let metrics = stats::metrics(root.table("metrics"));
    let trust = Trust::default();
    let files = TlsFiles { bases: &tls, trust: &trust };
    let backend_sections = root.named("backend");
    let backends: Vec<_> =
        backend_sections.into_iter().map(|(name, section)| backend(&name, section, &settings, files, check)).collect();
    let names: Vec<_> = backends.iter().map(|backend| (backend.name.clone(), backend.mode)).collect();
    let around = Surroundings { settings: &settings, files, backends: &names, check };
    let mut places = BTreeMap::new();
    let mut frontends = Vec::new();
    for (name, section) in root.named("frontend") {
        let (report, place) = (section.report, section.place("bind"));
        let frontend = frontend(&name, section, &around);
        for bind in &frontend.binds {
            if let Some(first) = places.insert((bind.address.clone(), bind.interface.clone()), place.clone()) {
                report.conflict(place.clone(), format!("{} is bound twice", bind.address), first);
            }
        }
        frontends.push(frontend);
    }
    if frontends.is_empty() && root.value("frontend").is_none() {
        root.report.error(0..0, "there is no frontend", "add [frontend.NAME] with bind and backend");
    }
    let stats_binds = stats.iter().flat_map(|stats| stats.binds.iter().map(|bind| ("stats", bind)));
    let metrics_binds = metrics.iter().flat_map(|metrics| metrics.binds.iter().map(|bind| ("metrics", bind)));
    for (section, bind) in stats_binds.chain(metrics_binds) {
        let place = root.place(section);
        if let Some(first) = places.insert((bind.address.clone(), bind.interface.clone()), place.clone()) {
            root.report.conflict(place, format!("{} is bound twice", bind.address), first);
        }
    }
    root.name = String::from("the file");
    root.finish();
    let hash = digest(&SHA256, source.as_bytes());
    let sha256 = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let authorities = trust.into_lists();
    Bundle { sha256, global, reload, systemd, admin, logs, stats, metrics, frontends, backends, authorities }
}

/// Finds the admin socket in a file that may otherwise be broken, so that clients of a running
/// daemon can reach it and have it report what is broken.
#[must_use]
pub fn admin_socket(path: &Path) -> Option<PathBuf> {
    let source = std::fs::read_to_string(path).ok()?;
    let (table, _problems) = DeTable::parse_recoverable(&source);
    let report = Report::new(path, &source);
    let mut root = Section::new(table.get_ref(), 0..0, "", &report);
    root.table("admin")?.string("socket").map(|path| report.resolve(&path))
}
