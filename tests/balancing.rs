//! Which server gets a request, with real processes: weights, backups, algorithms; one order over threads and reloads.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::collections::BTreeMap;

use support::client::Client;
use support::origin::Origin;
use support::{Site, code};

const NAMES: [&str; 3] = ["one", "two", "three"];

/// A site whose servers have these settings; `extra` goes into the backend.
fn site(settings: &[&str], extra: &str) -> (Site, Vec<Origin>) {
    let origins: Vec<_> = NAMES.iter().take(settings.len()).map(|name| Origin::named(name)).collect();
    let site = Site::new(&file(&origins, settings, extra));
    (site, origins)
}

fn file(origins: &[Origin], settings: &[&str], extra: &str) -> String {
    let server = |(number, (origin, settings)): (usize, (&Origin, &&str))| {
        format!("{{ name = \"s{number}\", address = \"{}\"{settings} }},", origin.address)
    };
    let list: String = origins.iter().zip(settings).enumerate().map(server).collect();
    format!(
        "[global]\nthreads = 2\n[frontend.web]\nbind = \"{{port}}\"\nbackend = \"pool\"\n\
         [backend.pool]\nserver = [{list}]\n{extra}\n"
    )
}

/// How often each server answers so many requests, each on a connection of its own.
fn answers(site: &Site, count: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..count {
        *answers.entry(Client::connect(site.address()).get("/").text()).or_default() += 1;
    }
    answers
}

fn expected(counts: &[usize]) -> BTreeMap<String, usize> {
    let named = NAMES.iter().zip(counts).filter(|(_, count)| **count > 0);
    named.map(|(name, count)| (String::from(*name), *count)).collect()
}

#[test]
fn every_round_gives_each_server_exactly_its_weight_over_threads_and_reloads() {
    let (site, _origins) = site(&[", weight = 3", ", weight = 2", ", weight = 1"], "");
    let _daemon = site.start();
    for _ in 0..3 {
        assert_eq!(answers(&site, 60), expected(&[30, 20, 10]));
        assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    }
}

#[test]
fn a_server_of_weight_0_gets_nothing_and_one_without_a_weight_counts_as_1() {
    let (site, _origins) = site(&["", ", weight = 0", ", weight = 2"], "");
    let _daemon = site.start();
    assert_eq!(answers(&site, 30), expected(&[10, 0, 20]));
}

#[test]
fn new_weights_of_the_configuration_count_after_a_reload() {
    let (site, origins) = site(&[", weight = 1", ", weight = 1"], "");
    let _daemon = site.start();
    assert_eq!(answers(&site, 20), expected(&[10, 10]));
    site.configure(&file(&origins, &[", weight = 256", ", weight = 64"], ""));
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    assert_eq!(answers(&site, 20), expected(&[16, 4]));
}

#[test]
fn backup_servers_wait_until_nobody_else_serves() {
    let (site, origins) = site(&["", ", backup = true", ", backup = true"], "");
    let _daemon = site.start();
    assert_eq!(answers(&site, 10), expected(&[10, 0, 0]));
    site.configure(&file(&origins, &[", weight = 0", ", backup = true", ", backup = true"], ""));
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    assert_eq!(answers(&site, 10), expected(&[0, 10, 0]), "the first backup alone");
}

#[test]
fn leastconn_avoids_the_server_that_is_busy_in_whatever_generation() {
    let (busy, gate) = Origin::gated();
    let free = Origin::named("free");
    let leastconn = "balance = \"leastconn\"";
    let site = Site::proxying(&[busy.address], leastconn);
    let _daemon = site.start();
    // Three: an answer may be with its client before its session has ended.
    let mut held = [0; 3].map(|_| {
        let mut client = Client::connect(site.address());
        client.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
        gate.arrived();
        client
    });
    site.configure(&Site::text(&[busy.address, free.address], leastconn));
    for _ in 0..2 {
        assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
        for _ in 0..10 {
            assert_eq!(Client::connect(site.address()).get("/").text(), "free");
        }
    }
    held.iter().for_each(|_| gate.release());
    for client in &mut held {
        assert!(client.response().unwrap().complete);
    }
}

#[test]
fn source_keeps_a_client_at_its_server_also_when_another_one_leaves() {
    let (site, origins) = site(&["", "", ""], "balance = \"source\"");
    let _daemon = site.start();
    let served = answers(&site, 10);
    assert_eq!(served.len(), 1, "{served:?}");
    let home = served.keys().next().unwrap().clone();
    let settings = NAMES.map(|name| if name == home { "" } else { ", weight = 0" });
    site.configure(&file(&origins, &settings, "balance = \"source\""));
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    assert_eq!(answers(&site, 10), served);
}

#[test]
fn random_reaches_everybody() {
    let (site, _origins) = site(&["", "", ""], "balance = \"random\"");
    let _daemon = site.start();
    let served = answers(&site, 90);
    assert_eq!(served.len(), 3, "{served:?}");
    assert!(served.values().all(|count| *count > 9), "{served:?}");
}

#[test]
fn without_a_server_of_any_weight_the_answer_is_503() {
    let (site, _origins) = site(&[", weight = 0"], "");
    let _daemon = site.start();
    assert_eq!(Client::connect(site.address()).get("/").status(), 503);
}
