//! Reloads of every kind, under load, with real processes: no client notices, nothing is half applied.

mod support;

use support::client::{Client, get};
use support::origin::Origin;
use support::{Site, code};

#[test]
fn a_reload_by_handover_brings_a_new_worker_and_keeps_the_master() {
    let origin = Origin::named("one");
    let site = Site::proxying(&[origin.address], "");
    let daemon = site.start();
    let before = site.status();
    assert_eq!(get(site.address(), "/").text(), "one");
    let output = site.proxy(&["reload-socket"]);
    assert_eq!(code(&output), 0, "{output:?}");
    let after = site.status();
    assert_eq!(after["pid"], u64::from(daemon.pid()));
    assert_eq!(before["pid"], after["pid"]);
    assert_ne!(support::serving(&before), support::serving(&after));
    assert_eq!(get(site.address(), "/").text(), "one");
}

#[test]
fn a_kept_connection_survives_and_is_told_to_close_with_its_next_answer() {
    let origin = Origin::named("one");
    let site = Site::proxying(&[origin.address], "");
    let _daemon = site.start();
    let mut client = Client::connect(site.address());
    assert_eq!(client.get("/").field("connection"), None);
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    let answer = client.get("/");
    assert_eq!((answer.status(), answer.field("connection")), (200, Some("close")));
    assert!(client.at_end());
}
