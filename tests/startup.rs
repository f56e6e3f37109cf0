//! How a daemon comes up: in the background, with its pid file, as which user, and what it says when it cannot.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::unistd::geteuid;
use serde_json::Value;
use support::client::{Client, get};
use support::kernel::listening;
use support::origin::Origin;
use support::{Daemon, PROXY, Site, code, output, serving, text};

/// A user without rights, on every system.
const NOBODY: u32 = 65_534;

/// A daemon in the background, which is nobody's child; stopped when dropped.
struct Background<'a>(&'a Site);

impl Background<'_> {
    fn pid(&self) -> u32 {
        fs::read_to_string(self.0.path("proxy.pid")).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        self.0.proxy(&["stop"]);
    }
}

/// Runs `proxy run -D` with a pid file.
fn start_behind(site: &Site) -> Background<'_> {
    let pid_file = site.path("proxy.pid");
    let daemon = Background(site);
    let output = site.proxy(&["run", "-D", "-p", &pid_file.to_string_lossy()]);
    assert_eq!(code(&output), 0, "{output:?}");
    daemon
}

#[test]
fn the_background_daemon_serves_when_the_command_returns_and_bears_its_name() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = start_behind(&site);
    assert_eq!(get(site.address(), "/").status(), 200);
    assert_eq!(site.status()["pid"], u64::from(daemon.pid()));
    for (pid, command) in [(daemon.pid(), "run"), (serving(&site.status()), "worker")] {
        let command_line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        let (program, rest) = command_line.split_once('\0').unwrap();
        assert_eq!(Path::new(program).file_name().unwrap(), "proxy", "{command_line:?}");
        assert!(rest.starts_with(&format!("{command}\0")), "{command_line:?}");
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "proxy\n", "what pgrep and top show");
    }
}

#[test]
fn the_background_daemon_lets_go_of_terminal_and_folder() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = start_behind(&site);
    let process = format!("/proc/{}", daemon.pid());
    assert_eq!(fs::read_link(format!("{process}/cwd")).unwrap(), Path::new("/"));
    for descriptor in 1..=2 {
        let open = fs::read_link(format!("{process}/fd/{descriptor}")).unwrap();
        assert_eq!(open, Path::new("/dev/null"), "{descriptor}");
    }
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap();
    assert_eq!(session, daemon.pid().to_string(), "it leads its own session");
}

#[test]
fn a_relative_path_on_the_command_line_survives_the_change_of_folder() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let mut command = Command::new(PROXY);
    command.current_dir(site.folder.path()).args(["-f", "proxy.toml", "-D", "-p", "proxy.pid"]);
    let daemon = Background(&site);
    let started = output(command);
    assert_eq!(code(&started), 0, "{started:?}");
    assert_eq!(site.status()["pid"], u64::from(daemon.pid()));
    assert_eq!(code(&site.proxy(&["reload"])), 0, "reloads find the file");
}

#[test]
fn a_relative_path_in_the_file_starts_at_its_folder_for_the_daemon_and_its_callers() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "[global]\npid-file = \"proxy.pid\"\n");
    let absolute = format!("{}/admin.sock", site.folder.path().display());
    let text = fs::read_to_string(site.config()).unwrap().replace(&absolute, "admin.sock");
    fs::write(site.config(), text).unwrap();
    let daemon = Background(&site);
    let started = site.proxy(&["run", "-D"]);
    assert_eq!(code(&started), 0, "{started:?}");
    assert_eq!(site.status()["pid"], u64::from(daemon.pid()), "asked from another folder");
    let mut command = Command::new(PROXY);
    command.current_dir(site.folder.path()).args(["reload", "-f", "proxy.toml"]);
    assert_eq!(code(&output(command)), 0, "asked from its folder");
}

#[test]
fn a_background_daemon_that_cannot_serve_says_why_to_who_started_it() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let pid_file = site.path("proxy.pid");
    let start = || site.proxy(&["run", "-D", "-p", &pid_file.to_string_lossy()]);

    let foreign = TcpListener::bind(site.address()).unwrap();
    let output = start();
    let said = text(&output.stderr);
    assert_eq!(code(&output), 1, "{said}");
    assert!(said.contains(&format!("cannot listen on {}", site.address())), "{said}");
    assert!(said.contains(&format!("held by pid {}", std::process::id())), "{said}");
    drop(foreign);

    site.configure(&Site::text(&[origin.address], "[defaults]\nretriez = 3"));
    let output = start();
    let said = text(&output.stderr);
    assert_eq!(code(&output), 6, "{said}");
    assert!(said.contains("unknown key `retriez`") && said.contains("did you mean `retries`?"), "{said}");
    assert!(!pid_file.exists() && !site.socket().exists(), "nothing is left of either");
}

#[test]
fn only_a_file_that_is_wrong_in_itself_is_not_worth_another_start() {
    let servers = [Origin::echo().address];
    let site = Site::proxying(&servers, "");
    fs::write(site.path("hash"), "still being written").unwrap();
    let absent = "[defaults.error-pages]\n503 = \"{dir}/absent.http\"";
    let mut cases = vec![
        ("[defaults]\nretriez = 3", 6),
        (absent, 1),
        ("[global]\npid-file = \"${NOBODY_SETS_THIS}\"", 1),
        ("[global]\npid-file = \"${NOBODY_SETS_THIS\"", 6),
        ("[users.ops]\nada = { file = \"{dir}/hash\" }", 1),
        ("[users.ops]\nada = \"no hash\"", 6),
    ];
    if geteuid().is_root() {
        // Who knows the accounts may come up later than we do.
        cases.extend([
            ("[global]\nuser = \"no-such-user\"", 1),
            ("[global]\ngroup = \"no-such-group\"", 1),
            ("[global]\nchroot = \"{dir}/nowhere\"", 1),
        ]);
    }
    for (extra, expected) in cases {
        site.configure(&Site::text(&servers, extra));
        let output = site.proxy(&["run"]);
        assert_eq!(code(&output), expected, "{extra}: {}", text(&output.stderr));
    }
}

#[test]
fn the_pid_file_holds_the_masters_pid_and_goes_with_it() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "[global]\npid-file = \"{dir}/run/proxy.pid\"\n");
    let daemon = site.start();
    let path = site.path("run/proxy.pid");
    let expected = format!("{}\n", daemon.pid());
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), expected, "a reload keeps the master");
    assert_eq!(fs::read_dir(site.path("run")).unwrap().count(), 1, "no draft is left beside it");
    assert_eq!(code(&site.proxy(&["stop"])), 0);
    assert!(!path.exists());
}

#[test]
fn a_pid_file_that_somebody_else_wrote_by_now_stays() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let path = site.path("proxy.pid");
    let daemon = site.start_with(&["-p", &path.to_string_lossy()]);
    fs::write(&path, "1\n").unwrap();
    drop(daemon);
    assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
}

#[test]
fn a_pid_file_that_cannot_be_written_stops_the_start() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let said = site.launch(&["-p", "/proc/no/such.pid"], &[]).err().unwrap();
    assert!(said.contains("cannot write /proc/no/such.pid"), "{said}");
}

#[test]
fn an_unknown_account_is_refused_with_its_place() {
    if !geteuid().is_root() {
        return;
    }
    let origin = Origin::echo();
    let global = "[global]\nuser = \"no-such-user\"\ngroup = \"no-such-group\"\nchroot = \"{dir}/nowhere\"\n";
    let site = Site::proxying(&[origin.address], global);
    let said = site.launch(&[], &[]).err().unwrap();
    for part in ["there is no user `no-such-user`", "there is no group `no-such-group`", "there is no chroot `"] {
        assert!(said.contains(part), "{said}");
    }
}

/// A line of /proc/PID/status.
fn status_line(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
}

#[test]
fn roots_worker_has_no_rights_and_sees_no_files() {
    if !geteuid().is_root() {
        return;
    }
    let origin = Origin::echo();
    let jail = tempfile::tempdir().unwrap();
    let place = jail.path().display();
    let global = format!("[global]\nuser = \"nobody\"\ngroup = \"nogroup\"\nchroot = \"{place}\"\n");
    let site = Site::proxying(&[origin.address], &global);
    let daemon = site.start();
    for _ in 0..2 {
        let worker = serving(&site.status());
        assert_eq!(status_line(worker, "Uid:"), "65534 65534 65534 65534");
        assert_eq!(status_line(worker, "Gid:"), "65534 65534 65534 65534");
        assert_eq!(status_line(worker, "Groups:"), "");
        assert_eq!(status_line(worker, "CapEff:"), "0000000000000000");
        assert_eq!(fs::read_link(format!("/proc/{worker}/root")).unwrap(), jail.path());
        assert_eq!(fs::read_link(format!("/proc/{worker}/cwd")).unwrap(), jail.path());
        assert_eq!(get(site.address(), "/").status(), 200);
        // The same holds after a reload: the master is still root.
        assert_eq!(code(&site.proxy(&["reload"])), 0);
    }
    assert_eq!(status_line(daemon.pid(), "Uid:"), "0 0 0 0");
    assert_eq!(fs::read_dir(jail.path()).unwrap().count(), 0, "it needs nothing in there");
}

/// A folder and a copy of the binary that an ordinary user can reach.
fn reachable_by_nobody(site: &Site) -> std::path::PathBuf {
    let binary = site.path("proxy");
    // By a process of its own: what we have open for writing, a child of another test has, too, and it is "busy".
    let mut copy = Command::new("cp");
    copy.arg(PROXY).arg(&binary);
    assert_eq!(code(&output(copy)), 0);
    fs::set_permissions(site.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    binary
}

#[test]
fn an_ordinary_user_can_run_reload_and_stop_it() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "[global]\nuser = \"nobody\"\nchroot = \"/var/empty\"\n");
    let binary = reachable_by_nobody(&site);
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new(&binary);
        command.args(arguments).arg("-f").arg(site.config());
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    };
    let mut daemon = site.launch_command(as_nobody(&["run"])).unwrap();
    let user = if geteuid().is_root() { NOBODY } else { geteuid().as_raw() };
    assert!(status_line(daemon.pid(), "Uid:").starts_with(&format!("{user} ")));
    assert_eq!(get(site.address(), "/").status(), 200);
    for mode in ["handover", "rebind"] {
        let reloaded = output(as_nobody(&["reload", "--mode", mode]));
        assert_eq!(code(&reloaded), 0, "{reloaded:?}");
    }
    assert_eq!(get(site.address(), "/").status(), 200);
    assert_eq!(code(&output(as_nobody(&["stop"]))), 0);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_stranger_may_not_use_the_admin_socket() {
    if !geteuid().is_root() {
        return;
    }
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let binary = reachable_by_nobody(&site);
    let try_as_nobody = |command: &str| {
        let mut stranger = Command::new(&binary);
        stranger.arg(command).arg("-f").arg(site.config()).uid(NOBODY).gid(NOBODY);
        output(stranger)
    };
    let refused = try_as_nobody("status");
    assert_eq!(code(&refused), 1, "{refused:?}");
    assert!(text(&refused.stderr).contains("not allowed to use"), "{refused:?}");

    // Whom the mode lets in may look, but not stop.
    fs::set_permissions(site.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(code(&try_as_nobody("status")), 0);
    let refused = try_as_nobody("stop");
    assert_eq!((code(&refused), text(&refused.stderr).trim()), (1, "permission denied"));
    assert_eq!(get(site.address(), "/").status(), 200);
}

/// A daemon as nobody, who cannot raise the limit on descriptors to more than this.
fn start_limited(site: &Site, limit: usize) -> Result<Daemon, String> {
    let binary = reachable_by_nobody(site);
    let mut command = Command::new("sh");
    let script = format!("ulimit -n {limit} && exec \"$0\" run -f \"$1\"");
    command.args(["-c", &script]).arg(&binary).arg(site.config());
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    site.launch_command(command)
}

#[test]
fn more_connections_than_the_system_allows_is_refused_with_the_number_that_fits() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "[global]\nmaxconn = 2000\n");
    let said = start_limited(&site, 1000).err().unwrap();
    assert!(said.contains("maxconn 2000 needs ") && said.contains("descriptors, the limit is 1000"), "{said}");
    let fits = said.split("lower maxconn to ").nth(1).unwrap().split(',').next().unwrap();
    site.configure(&Site::text(&[origin.address], &format!("[global]\nmaxconn = {fits}\n")));
    assert!(start_limited(&site, 1000).is_ok(), "{fits} was said to fit");
}

#[test]
fn without_strict_limits_more_connections_than_fit_wait_for_a_descriptor_and_none_is_lost() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "[global]\nmaxconn = 2000\nstrict-limits = false\nthreads = 1\n");
    let daemon = start_limited(&site, 200).unwrap();
    daemon.hear("warning: maxconn 2000 needs ");
    let mut clients: Vec<_> = (0..250).map(|_| Client::connect(site.address())).collect();
    let open = |status: &Value| usize::try_from(status["generations"][0]["connections"].as_u64().unwrap()).unwrap();
    let waiting = || listening(site.address()).iter().map(|socket| socket.queued).sum::<usize>();
    site.await_status("nobody more can be accepted", |status| waiting() > 0 && open(status) + waiting() == 250);
    assert_eq!(clients[0].get("/").status(), 503, "no descriptor is left for a connection to the server");
    // As many as there are descriptors for, and some of them have waited.
    clients.drain(..150);
    for client in &mut clients {
        assert_eq!(client.get("/").status(), 200);
    }
    let reloaded = site.proxy(&["reload"]);
    assert!(text(&reloaded.stderr).contains("maxconn 2000 needs "), "{reloaded:?}");
    assert_eq!(code(&reloaded), 0);
}
