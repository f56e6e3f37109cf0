//! Listening sockets change hands with HAProxy, in both directions and under load (`_getsocks`).
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use support::client::{Client, get};
use support::kernel::listening;
use support::load::{self, Habit, Load};
use support::origin::Origin;
use support::{PATIENCE, Site, await_end, pid};

/// Where distributions put it; not everybody's PATH has this folder.
const HAPROXY: &str = "/usr/sbin/haproxy";

/// A running HAProxy; killed when dropped.
struct Haproxy {
    child: Child,
    socket: PathBuf,
}

impl Haproxy {
    /// Starts it in front of a server; returns when its statistics socket answers.
    fn start(folder: &Path, address: SocketAddr, server: SocketAddr, arguments: &[&str]) -> Self {
        assert!(Path::new(HAPROXY).exists(), "{HAPROXY} is not installed, and this test is about it");
        let (file, socket) = (folder.join("haproxy.cfg"), folder.join("haproxy.sock"));
        let text = format!(
            "global\n  stats socket {} mode 600 level admin expose-fd listeners\n\
             defaults\n  mode http\n  timeout connect 10s\n  timeout client 20s\n  timeout server 20s\n\
             frontend web\n  bind {address}\n  bind unix@{} mode 660\n  default_backend pool\n\
             backend pool\n  http-response set-header Served-By haproxy\n  server s1 {server}\n",
            socket.display(),
            folder.join("www.sock").display()
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new(HAPROXY);
        command.args(["-db", "-f"]).arg(&file).args(arguments).stdin(Stdio::null());
        let mut haproxy = Self { child: command.spawn().unwrap(), socket };
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(&haproxy.socket).is_err() || TcpStream::connect(address).is_err() {
            assert!(haproxy.child.try_wait().unwrap().is_none(), "haproxy has ended");
            assert!(Instant::now() < deadline, "haproxy does not serve");
        }
        haproxy
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill(pid(self.child.id()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Whether HAProxy answered.
fn by_haproxy(address: SocketAddr) -> bool {
    let answer = get(address, "/");
    assert_eq!(answer.status(), 200);
    answer.field("served-by") == Some("haproxy")
}

#[test]
#[ignore = "needs haproxy; .ci/run runs it"]
fn haproxys_listeners_are_taken_over_under_load_without_an_error() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let haproxy = Haproxy::start(site.folder.path(), site.address(), origin.address, &[]);
    let before = listening(site.address());
    assert!(by_haproxy(site.address()));
    // What HAProxy ends in the middle of a kept connection is its own affair: it does so at every reload.
    let load = Load::start(site.address(), &[Habit::Fresh; 4]);
    load.more(200);
    let finish = haproxy.child.id().to_string();
    let _daemon = site.start_with(&["-x", &haproxy.socket.to_string_lossy(), "-sf", &finish]);
    await_end(haproxy.child.id());
    load.more(200);
    load.must_have_succeeded(400);
    assert!(!by_haproxy(site.address()));
    assert_eq!(listening(site.address())[0].inode, before[0].inode, "it is the very same queue");
    // What we took over goes on like what we bound.
    assert_eq!(support::code(&site.proxy(&["reload"])), 0);
    assert_eq!(listening(site.address())[0].inode, before[0].inode);
}

#[test]
#[ignore = "needs haproxy; .ci/run runs it"]
fn promise_12_a_unix_socket_goes_from_haproxy_to_us_and_back() {
    let origin = Origin::echo();
    let unix = "[frontend.local]\nbind = { address = \"unix:{dir}/www.sock\", mode = \"0660\" }\nbackend = \"pool\"\n";
    let site = Site::proxying(&[origin.address], unix);
    let path = site.path("www.sock");
    let seen = || fs::metadata(&path).map(|found| (found.ino(), found.mode() & 0o777)).unwrap();
    let served = || Client::connect_unix(&path).get("/").field("served-by").map(str::to_owned);
    let first = Haproxy::start(site.folder.path(), site.address(), origin.address, &[]);
    let before = seen();
    assert_eq!((before.1, served().as_deref()), (0o660, Some("haproxy")));
    let (socket, finish) = (first.socket.to_string_lossy().into_owned(), first.child.id().to_string());
    let mut daemon = site.start_with(&["-x", &socket, "-sf", &finish]);
    await_end(first.child.id());
    assert_eq!((seen(), served()), (before, None), "the very same socket");
    assert_eq!(support::code(&site.proxy(&["reload"])), 0);
    assert_eq!((seen(), served()), (before, None));
    let (socket, finish) = (site.socket(), daemon.pid().to_string());
    let arguments = ["-x", &socket.to_string_lossy(), "-sf", &finish];
    let _second = Haproxy::start(site.folder.path(), site.address(), origin.address, &arguments);
    daemon.wait();
    assert_eq!((seen(), served().as_deref()), (before, Some("haproxy")), "still the very same socket");
}

#[test]
#[ignore = "needs haproxy; .ci/run runs it"]
fn our_listeners_are_given_to_haproxy_under_load_without_an_error() {
    let origin = Origin::echo();
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    let before = listening(site.address());
    let load = Load::start(site.address(), &[&load::ALL[..], &[Habit::Fresh; 3]].concat());
    load.more(200);
    let (socket, finish) = (site.socket(), daemon.pid().to_string());
    let arguments = ["-x", &socket.to_string_lossy(), "-sf", &finish];
    let _haproxy = Haproxy::start(site.folder.path(), site.address(), origin.address, &arguments);
    await_end(daemon.pid());
    load.more(200);
    load.must_have_succeeded(400);
    assert!(by_haproxy(site.address()));
    assert_eq!(listening(site.address())[0].inode, before[0].inode, "it is the very same queue");
}
