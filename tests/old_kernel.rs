//! What an old kernel lacks costs a line that says so, not the service.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]
#![cfg(target_arch = "x86_64")]

mod support;

use std::path::Path;
use std::process::Command;

use support::client::get;
use support::origin::Origin;
use support::tls::TlsClient;
use support::{PROXY, Site, code, text};

/// A command under Linux 3.13's system calls (`tests/support/old-kernel`).
fn on_linux_3_13(program: &str) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/old-kernel"));
    command.arg(program);
    command
}

#[test]
fn the_filter_of_these_tests_takes_memfd_away() {
    let output = support::output({
        let mut command = on_linux_3_13("perl");
        command.args(["-e", "my $name = 'x'; print syscall(319, $name, 0), ' ', $! + 0"]);
        command
    });
    assert_eq!(text(&output.stdout), "-1 38", "{}", text(&output.stderr));
}

#[test]
#[ignore = "needs root; .ci/run runs it"]
fn promise_40_a_kernel_without_getrandom_has_tls_in_a_chroot() {
    assert!(nix::unistd::geteuid().is_root(), "a chroot needs root");
    let (origin, jail) = (Origin::named("here"), tempfile::tempdir().unwrap());
    let jail = jail.path().display();
    let more = format!(
        "[frontend.web.tls]\ncertificates = [\"{{dir}}/cert.pem\"]\n[global]\nuser = \"nobody\"\nchroot = \"{jail}\""
    );
    let site = Site::proxying(&[origin.address], &more);
    support::certificate(site.folder.path(), "cert.pem", &["localhost"]);
    let mut command = on_linux_3_13(PROXY);
    command.arg("run").arg("-f").arg(site.config());
    let _daemon = site.launch_command(command).unwrap();
    let client = TlsClient::new(rustls::ALL_VERSIONS);
    for _ in 0..2 {
        assert!(client.get(site.address(), "localhost").response.text().contains("here"));
        let reload = site.proxy(&["reload-socket"]);
        assert_eq!(code(&reload), 0, "{}", support::text(&reload.stderr));
    }
    assert_eq!(site.status()["reloads"]["respawns"], 0);
}

#[test]
fn promise_40_a_kernel_without_memfd_serves_and_reloads_and_the_reason_is_printed() {
    let origin = Origin::named("here");
    let site = Site::proxying(&[origin.address], "");
    let mut command = on_linux_3_13(PROXY);
    command.arg("run").arg("-f").arg(site.config());
    let daemon = site.launch_command(command).unwrap();
    daemon.hear("this kernel has no memfd_create(2)");
    assert!(get(site.address(), "/").text().contains("here"));
    let before = support::serving(&site.status());
    for _ in 0..3 {
        let reload = site.proxy(&["reload-socket"]);
        assert_eq!(code(&reload), 0, "{}", text(&reload.stderr));
        assert!(get(site.address(), "/").text().contains("here"));
    }
    assert_ne!(support::serving(&site.status()), before);
}
