//! A daemon whose program lies in the site's folder, where another one is installed as a package manager does it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::{Daemon, PROXY, Site, code, output, serving, text};

/// Where the program of a site lies.
pub fn program(site: &Site) -> PathBuf {
    site.path("proxy")
}

/// Puts a program in place as a package manager does, and in a process of its own: what this one has open for writing,
/// a child that another test just starts has too, and nobody can execute it.
pub fn install_file(site: &Site, source: &Path) {
    let draft = site.path("proxy.new");
    let mut copy = Command::new("install");
    copy.args(["-m", "755"]).arg(source).arg(&draft);
    assert_eq!(code(&output(copy)), 0);
    fs::rename(&draft, program(site)).unwrap();
}

pub fn install(site: &Site, content: &[u8]) {
    fs::write(site.path("source"), content).unwrap();
    install_file(site, &site.path("source"));
}

pub fn install_next(site: &Site) {
    install_file(site, Path::new(PROXY));
}

pub fn install_script(site: &Site, script: &str) {
    install(site, format!("#!/bin/sh\n{script}\n").as_bytes());
}

/// A daemon whose program lies in the site's folder.
pub fn launch(site: &Site, arguments: &[&str], environment: &[(&str, &str)]) -> Daemon {
    install_next(site);
    let mut command = Command::new(program(site));
    command.arg("run").arg("-f").arg(site.config()).args(arguments).envs(environment.iter().copied());
    site.launch_command(command).unwrap()
}

/// Whether a process runs the program that is installed.
pub fn runs_installed(site: &Site, process: u32) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).unwrap();
    file(&PathBuf::from(format!("/proc/{process}/exe"))) == file(&program(site))
}

/// Both master and serving worker run what is installed now.
pub fn has_become_it(site: &Site, daemon: &Daemon) {
    let status = site.status();
    assert_eq!(status["pid"], daemon.pid());
    assert!(runs_installed(site, daemon.pid()), "the master is another program than the installed one");
    assert!(runs_installed(site, serving(&status)), "the worker is another program than the installed one");
}

pub fn upgraded(site: &Site) {
    let output = site.proxy(&["upgrade"]);
    assert_eq!(code(&output), 0, "{output:?}");
    let said = text(&output.stdout);
    assert!(said.contains(&format!("proxy {} has taken over", env!("CARGO_PKG_VERSION"))), "{said}");
}

/// The old program goes on, and the caller knows why.
pub fn stays(site: &Site, daemon: &Daemon, expected: i32, reason: &str) {
    let before = site.status();
    let output = site.proxy(&["upgrade"]);
    let said = text(&output.stderr);
    assert_eq!(code(&output), expected, "{said}");
    assert!(said.contains(reason), "{said}");
    let after = site.status();
    assert_eq!((&after["pid"], serving(&after)), (&json!(daemon.pid()), serving(&before)));
    assert!(!fs::exists(program(site)).unwrap() || !runs_installed(site, daemon.pid()));
}

/// The same, which does what [`Site::fault`] says.
pub fn launch_faulty(site: &Site) -> Daemon {
    launch(site, &[], &[("PROXY_FAULT", &site.path("fault").to_string_lossy())])
}
