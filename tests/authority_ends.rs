//! When authorities end: told by the check, in the log and in the metrics, for servers as for clients.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair};
use support::client::get;
use support::{Port, Site, put, text};

const DAY: i64 = 24 * 3600;

/// So many seconds from now, since the epoch.
fn ahead(seconds: i64) -> (u64, i64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let end = now.checked_add_signed(seconds).unwrap();
    (end, i64::try_from(end).unwrap())
}

/// A certificate that a server made itself, which ends so many seconds from now.
fn ending_in(seconds: i64) -> (String, i64) {
    let (end, told) = ahead(seconds);
    let mut params = CertificateParams::new(vec![String::from("localhost")]).unwrap();
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem() + &key.serialize_pem(), told)
}

#[test]
fn ends_of_authorities_and_of_our_own_certificate_are_told_by_check_log_and_metrics() {
    let (metrics, site) = (Port::new(), Site::new(""));
    let own = |days: i64| {
        let (pem, end) = ending_in(days * DAY + 3600);
        put(&site, "edge.pem", &pem);
        end
    };
    // Of several, the first end counts that is still to come.
    let trusted = |days: i64| {
        let (near, end) = ending_in(days * DAY + 3600);
        put(&site, "ca.pem", &(ending_in(300 * DAY).0 + &ending_in(-40 * DAY).0 + &near));
        end
    };
    let mut ends = [own(5), trusted(6)];
    let tls = "{ ca-file = \"ca.pem\", client-cert = \"edge.pem\", watch = true }";
    let extra = format!("tls = {tls}\n[metrics]\nbind = \"{}\"\n", metrics.address);
    site.configure(&Site::text(&["127.0.0.1:9".parse().unwrap()], &extra).replace("\"127.0.0.1:9", "\"localhost:9"));
    let check = site.proxy(&["check"]);
    let said = text(&check.stdout) + &text(&check.stderr);
    for line in ["the certificate of `edge.pem` expires in 5 days", "an authority of `ca.pem` expires in 6 days"] {
        assert!(said.contains(line), "{line} is not in {said}");
    }
    let daemon = site.start();
    let (edge, ca) = (site.path("edge.pem").display().to_string(), site.path("ca.pem").display().to_string());
    daemon.hear(&format!("backend pool: the certificate of `{edge}` expires in 5 days"));
    daemon.hear(&format!("backend pool: an authority of `{ca}` expires in 6 days"));
    let told = |ends: [i64; 2]| {
        let scraped = get(metrics.address, "/metrics").text();
        [&edge, &ca].into_iter().zip(ends).all(|(file, end)| {
            let labels = format!("{{kind=\"backend\",proxy=\"pool\",file=\"{file}\"}}");
            scraped.lines().any(|line| line == format!("proxy_certificate_not_after_seconds{labels} {end}"))
        })
    };
    assert!(told(ends));
    ends[0] = own(7);
    daemon.hear(&format!("backend pool: the certificate of `{edge}` expires in 7 days"));
    ends[1] = trusted(8);
    daemon.hear(&format!("backend pool: an authority of `{ca}` expires in 8 days"));
    support::until("the new ends in the metrics", || told(ends));
    let list: Vec<_> = [(edge, ends[0]), (ca, ends[1])]
        .map(|(path, end)| serde_json::json!({ "kind": "backend", "proxy": "pool", "path": path, "not_after": end }))
        .into();
    assert_eq!(site.status()["certificates"], serde_json::json!(list));
}
