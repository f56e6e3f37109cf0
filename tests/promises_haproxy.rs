//! Listening sockets change hands with HAProxy, in both directions and under load (`_getsocks`).
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use support::client::{Client, get};
use support::haproxy::Haproxy;
use support::kernel::listening;
use support::load::{self, Habit, Load};
use support::origin::Origin;
use support::{Site, await_end};

/// HAProxy in front of a server at the site's address; and its statistics socket, which gives its listeners away.
fn haproxy(site: &Site, server: SocketAddr, arguments: &[&str]) -> (Haproxy, PathBuf) {
    let socket = site.path("haproxy.sock");
    let text = format!(
        "global\n  stats socket {} mode 600 level admin expose-fd listeners\n\
         defaults\n  mode http\n  timeout connect 10s\n  timeout client 20s\n  timeout server 20s\n\
         frontend web\n  bind {}\n  bind unix@{} mode 660\n  default_backend pool\n\
         backend pool\n  http-response set-header Served-By haproxy\n  server s1 {server}\n",
        socket.display(),
        site.address(),
        site.path("www.sock").display()
    );
    let serves = || UnixStream::connect(&socket).is_ok();
    let haproxy = Haproxy::start(site.folder.path(), &text, arguments, (site.address(), serves));
    (haproxy, socket)
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
    let (haproxy, socket) = haproxy(&site, origin.address, &[]);
    let before = listening(site.address());
    assert!(by_haproxy(site.address()));
    // What HAProxy ends in the middle of a kept connection is its own affair: it does so at every reload.
    let load = Load::start(site.address(), &[Habit::Fresh; 4]);
    load.more(200);
    let finish = haproxy.pid().to_string();
    let _daemon = site.start_with(&["-x", &socket.to_string_lossy(), "-sf", &finish]);
    await_end(haproxy.pid());
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
    let (first, socket) = haproxy(&site, origin.address, &[]);
    let before = seen();
    assert_eq!((before.1, served().as_deref()), (0o660, Some("haproxy")));
    let finish = first.pid().to_string();
    let mut daemon = site.start_with(&["-x", &socket.to_string_lossy(), "-sf", &finish]);
    await_end(first.pid());
    assert_eq!((seen(), served()), (before, None), "the very same socket");
    assert_eq!(support::code(&site.proxy(&["reload"])), 0);
    assert_eq!((seen(), served()), (before, None));
    let (socket, finish) = (site.socket(), daemon.pid().to_string());
    let arguments = ["-x", &socket.to_string_lossy(), "-sf", &finish];
    let _second = haproxy(&site, origin.address, &arguments);
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
    let _haproxy = haproxy(&site, origin.address, &arguments);
    await_end(daemon.pid());
    load.more(200);
    load.must_have_succeeded(400);
    assert!(by_haproxy(site.address()));
    assert_eq!(listening(site.address())[0].inode, before[0].inode, "it is the very same queue");
}
