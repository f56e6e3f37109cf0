//! Sockets that a supervisor passes by name: `bind = { fd-name = "…" }`, from start to start.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use support::client::get;
use support::origin::Origin;
use support::supervisor::{Supervisor, asking, is_answered};
use support::{PATIENCE, Site, await_end, code, generation, output, pid, serving, text};

/// What a socket unit listens on, wherever the kernel wants.
fn unit() -> (TcpListener, SocketAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A site whose frontend listens where `bind` says.
fn bound(bind: &str) -> (Site, String) {
    let origin = Origin::echo().address;
    let text = move |bind: &str| Site::text(&[origin], "").replace("bind = \"{port}\"", &format!("bind = {bind}"));
    let site = Site::new(&text(bind));
    (site, text("BIND"))
}

fn listeners(site: &Site) -> Vec<String> {
    let status = site.status();
    status["listeners"].as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_socket_is_found_by_its_name_and_keeps_its_address() {
    let (site, _) = bound("{ fd-name = \"web-extra\" }");
    assert_eq!(code(&site.proxy(&["check"])), 0, "a check sees no descriptors");
    let (socket, address) = unit();
    let mut supervisor = Supervisor::new(&site);
    supervisor.start(&site, &[("web-extra", &socket)]);
    assert_eq!(get(address, "/").status(), 200);
    assert_eq!(listeners(&site), [address.to_string()]);
    supervisor.catch_up();
    assert_eq!(supervisor.count("proxy-listener-"), 0, "the supervisor has it already");
}

#[test]
fn promise_24_and_26_a_named_socket_outlives_reloads_crashes_upgrades_and_restarts() {
    let (site, _) = bound("[{ fd-name = \"web-extra\" }, \"{port}\"]");
    let (socket, address) = unit();
    let mut supervisor = Supervisor::new(&site);
    let master = supervisor.start(&site, &[("web-extra", &socket)]);
    let both = listeners(&site);
    assert_eq!(both, [address.to_string(), site.address().to_string()]);
    let serves = |now: u64| {
        assert_eq!((get(address, "/").status(), get(site.address(), "/").status()), (200, 200));
        assert_eq!((generation(&site.status()), listeners(&site)), (now, both.clone()));
    };
    for (mode, now) in [("handover", 2), ("rebind", 3)] {
        let reloaded = site.proxy(&["reload", "--mode", mode]);
        assert_eq!(code(&reloaded), 0, "{mode}: {}", text(&reloaded.stderr));
        if mode == "rebind" {
            // The other listener is another socket now; the old one listens until the supervisor lets go of it.
            supervisor.hear_until(|lines| lines.contains(&"FDSTOREREMOVE=1"));
        }
        serves(now);
    }
    let worker = serving(&site.status());
    kill(pid(worker), Signal::SIGKILL).unwrap();
    await_end(worker);
    site.await_status("a worker instead of the one that was killed", |status| {
        status["generations"].as_array().unwrap().iter().any(|one| one["state"] == "serving" && one["pid"] != worker)
    });
    serves(4);
    for now in [5, 6] {
        assert_eq!(code(&site.proxy(&["upgrade"])), 0);
        assert_eq!(site.status()["pid"], master);
        serves(now);
    }
    // By its name still: after an upgrade a reload finds it, too.
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    serves(7);
    supervisor.terminate();
    let queued: Vec<_> = (0..20).map(|_| asking(address)).collect();
    supervisor.start(&site, &[("web-extra", &socket)]);
    assert!(queued.into_iter().all(is_answered));
    assert_eq!(listeners(&site), both);
}

#[test]
fn a_name_may_have_several_sockets_and_a_socket_of_a_unit_is_found_by_its_address_too() {
    let ((one, first), (other, second)) = (unit(), unit());
    let (site, text) = bound("{ fd-name = \"web\" }");
    let mut supervisor = Supervisor::new(&site);
    supervisor.start(&site, &[("web", &one), ("web", &other)]);
    assert_eq!((get(first, "/").status(), get(second, "/").status()), (200, 200));
    // What was found by name is found by address, and the other way round.
    let addresses = format!("[\"{first}\", \"{second}\"]");
    for bind in [&addresses, "{ fd-name = \"web\" }", &addresses] {
        site.configure(&text.replace("BIND", bind));
        let reloaded = site.proxy(&["reload"]);
        assert_eq!(code(&reloaded), 0, "{}", support::text(&reloaded.stderr));
        assert_eq!(listeners(&site), [first.to_string(), second.to_string()]);
        assert_eq!((get(first, "/").status(), get(second, "/").status()), (200, 200));
    }
    // Not even when everything is bound anew: the supervisor's copies would listen on, and swallow clients.
    assert_eq!(code(&site.proxy(&["reload", "--mode", "rebind"])), 0);
    for _ in 0..20 {
        assert_eq!((get(first, "/").status(), get(second, "/").status()), (200, 200));
    }
    supervisor.terminate();
    supervisor.start(&site, &[("web", &one), ("unrelated", &other)]);
    assert_eq!((get(first, "/").status(), get(second, "/").status()), (200, 200));
}

#[test]
fn a_unix_socket_of_a_unit_keeps_its_path() {
    let (site, _) = bound("{ fd-name = \"local\" }");
    let path = site.path("unit.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let mut supervisor = Supervisor::new(&site);
    supervisor.start(&site, &[("local", &socket)]);
    for _ in 0..2 {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "http://test/", "--unix-socket"]).arg(&path);
        assert_eq!(text(&output(curl).stdout), "200");
        assert_eq!(listeners(&site), [format!("unix:{}", path.display())]);
        assert_eq!(code(&site.proxy(&["reload"])), 0);
    }
    supervisor.terminate();
    assert!(path.exists(), "whoever made it removes it");
}

#[test]
fn a_name_that_was_not_passed_is_an_error_with_the_place_and_the_names_that_were() {
    let (site, text) = bound("{ fd-name = \"web-extra\" }");
    let ((one, first), (other, _)) = (unit(), unit());
    let mut supervisor = Supervisor::new(&site);
    let said = supervisor.refused(&site, &[("web", &one), ("metrics", &other)]);
    let place = format!("{}:7:20: no listening socket is called `web-extra`", site.config().display());
    assert!(said.contains(&place) && said.contains("are `metrics`, `web`"), "{said}");
    let said = supervisor.refused(&site, &[]);
    assert!(said.contains(&place) && said.contains("there is none"), "{said}");
    // A reload changes nothing.
    site.configure(&text.replace("BIND", "{ fd-name = \"web\" }"));
    supervisor.start(&site, &[("web", &one)]);
    site.configure(&text.replace("BIND", "[{ fd-name = \"web\" }, { fd-name = \"web-extra\" }]"));
    let reloaded = site.proxy(&["reload"]);
    let said = support::text(&reloaded.stderr);
    assert!(code(&reloaded) != 0 && said.contains("called `web-extra`") && said.contains("is `web`"), "{said}");
    // Of one socket two binds are not made.
    site.configure(&text.replace("BIND", &format!("[\"{first}\", {{ fd-name = \"web\" }}]")));
    let reloaded = site.proxy(&["reload"]);
    let said = support::text(&reloaded.stderr);
    assert!(code(&reloaded) != 0 && said.contains(": fd-name `web` is the socket that"), "{said}");
    assert_eq!((generation(&site.status()), get(first, "/").status()), (1, 200));
}

#[test]
fn a_socket_that_no_bind_wants_is_closed_and_the_log_says_so() {
    let (site, _) = bound("\"{port}\"");
    let log = site.path("log");
    let events = std::os::unix::net::UnixDatagram::bind(&log).unwrap();
    events.set_read_timeout(Some(PATIENCE)).unwrap();
    let more = "[[log]]\ntarget = \"syslog:{dir}/log\"\n";
    let whole = std::fs::read_to_string(site.config()).unwrap();
    let more = more.replace("{dir}", &site.folder.path().display().to_string());
    std::fs::write(site.config(), whole + &more).unwrap();
    let (socket, address) = unit();
    let mut supervisor = Supervisor::new(&site);
    supervisor.start(&site, &[("stray", &socket)]);
    drop(socket);
    // A process that another test is just starting may have it for a moment.
    support::await_refusal(address);
    let mut buffer = [0; 2048];
    let unwanted = format!("the supervisor listens on `stray` ({address}), and no bind wants it");
    loop {
        let length = events.recv(&mut buffer).unwrap();
        if text(&buffer[..length]).contains(&unwanted) {
            break;
        }
    }
}
