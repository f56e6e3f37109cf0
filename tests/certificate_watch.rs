//! Certificates whose files change, folders of them, strict names, and warnings before they end.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use rcgen::{CertificateParams, KeyPair};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, SupportedProtocolVersion};

use support::authority::Authority;
use support::client::{get, read_message};
use support::origin::Origin;
use support::tls::{Pair, TlsClient};
use support::{PATIENCE, Port, Site, code, generation, pid, serving, text};

const BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

/// One TLS frontend with this text in its TLS section.
fn site(settings: &str) -> Site {
    Site::proxying(&[Origin::named("one").address], &format!("[frontend.web.tls]\n{settings}"))
}

/// The certificate a new client is shown.
fn shown(site: &Site, name: &str) -> Vec<u8> {
    TlsClient::new(&BOTH).get(site.address(), name).leaf().to_vec()
}

/// Waits until new clients are shown this certificate; returns how long that took.
fn await_shown(site: &Site, name: &str, pair: &Pair) -> Duration {
    let began = Instant::now();
    while shown(site, name) != pair.der {
        assert!(began.elapsed() < PATIENCE, "the new certificate is never served");
    }
    began.elapsed()
}

fn fresh(name: &str) -> Pair {
    Pair::new(name, &[name], &KeyPair::generate().unwrap())
}

/// Puts a file in place as careful programs do.
fn put(folder: &Path, file: &str, content: &str) {
    let draft = folder.join(format!(".{file}.draft"));
    fs::write(&draft, content).unwrap();
    fs::rename(draft, folder.join(file)).unwrap();
}

/// A pair for `localhost` that ends so many seconds from now.
fn ending_in(seconds: i64) -> (String, i64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let end = now.checked_add_signed(seconds).unwrap();
    let mut params = CertificateParams::new(vec![String::from("localhost")]).unwrap();
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem() + &key.serialize_pem(), i64::try_from(end).unwrap())
}

const DAY: i64 = 24 * 3600;

#[test]
fn a_new_certificate_is_served_without_a_reload_and_by_every_worker_to_come() {
    let site = site("certificates = [\"a.pem\"]\nwatch = true");
    let old = Pair::written(site.folder.path(), "a.pem", "localhost");
    let daemon = site.start();
    let before = (generation(&site.status()), serving(&site.status()));
    let mut open = TlsClient::new(&BOTH).get(site.address(), "localhost");
    assert!(open.leaf() == old.der);

    let new = fresh("localhost");
    put(site.folder.path(), "a.pem", &new.text());
    let took = await_shown(&site, "localhost", &new);
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    daemon.hear("frontend web: new certificates for localhost");
    assert_eq!((generation(&site.status()), serving(&site.status())), before);
    open.reader.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    assert_eq!(read_message(&mut open.reader, true).unwrap().text(), "one");

    // A worker that replaces a dead one has its configuration from the master.
    kill(pid(before.1), Signal::SIGKILL).unwrap();
    let replaced = site.await_status("a new worker", |status| {
        let all = status["generations"].as_array().unwrap();
        all.iter().any(|one| one["state"] == "serving" && one["pid"] != before.1)
    });
    assert!(shown(&site, "localhost") == new.der);
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    assert!(generation(&site.status()) > generation(&replaced));
    assert!(shown(&site, "localhost") == new.der);

    // The watch goes on with the worker that serves now; this one writes into the file itself.
    let newest = fresh("localhost");
    fs::write(site.path("a.pem"), newest.text()).unwrap();
    await_shown(&site, "localhost", &newest);
}

/// Makes something of a folder's files that cannot be served.
type Spoil = fn(&Path, &Pair);

#[test]
fn files_that_cannot_be_served_leave_the_old_certificate_and_one_line_each() {
    let other = Port::new();
    let second = format!(
        "[frontend.clock]\nbind = \"{}\"\nbackend = \"pool\"\n\
         [frontend.clock.tls]\ncertificates = [\"clock.pem\"]\nwatch = true\n",
        other.address
    );
    let site = site(&format!("certificates = [{{ cert = \"a.crt\", key = \"a.key\" }}]\nwatch = true\n{second}"));
    let folder = site.folder.path();
    let mut current = fresh("localhost");
    put(folder, "a.crt", &current.certificate);
    put(folder, "a.key", &current.key);
    Pair::written(folder, "clock.pem", "clock.example");
    let daemon = site.start();
    let cases: [(&str, Spoil); 4] = [
        ("is not PEM", |folder, new| put(folder, "a.crt", &new.certificate[..new.certificate.len() / 2])),
        ("holds no certificate", |folder, _| put(folder, "a.crt", "")),
        ("belongs to its private key", |folder, new| put(folder, "a.crt", &new.certificate)),
        ("cannot read", |folder, _| fs::remove_file(folder.join("a.key")).unwrap()),
    ];
    for (problem, spoil) in cases {
        let new = fresh("localhost");
        spoil(folder, &new);
        let line = daemon.hear("frontend web: the certificates stay as they are");
        assert!(line.contains(problem), "{problem}: {line}");
        assert!(shown(&site, "localhost") == current.der, "{problem}");
        // Another frontend's files are looked at in the same rounds: these are several of them.
        for round in 0..3 {
            put(folder, "clock.pem", &fresh(&format!("round-{round}.example")).text());
            let lines = daemon.heard_up_to(&format!("frontend clock: new certificates for round-{round}.example"));
            assert_eq!(lines.len(), 1, "{problem} is told once: {lines:?}");
        }
        assert!(shown(&site, "localhost") == current.der, "{problem}");
        put(folder, "a.crt", &new.certificate);
        put(folder, "a.key", &new.key);
        await_shown(&site, "localhost", &new);
        daemon.hear("frontend web: new certificates for localhost");
        current = new;
    }
}

#[test]
fn a_broken_revocation_list_does_not_hold_up_the_renewal_of_a_certificate() {
    let auth = "{ mode = \"optional\", ca-file = \"ca.pem\", crl-file = \"revoked.pem\" }";
    let site = site(&format!("certificates = [\"a.pem\"]\nclient-auth = {auth}\nwatch = true"));
    let folder = site.folder.path();
    Pair::written(folder, "a.pem", "localhost");
    let authority = Authority::written(folder, "ca.pem");
    fs::write(site.path("revoked.pem"), authority.revoke(&[66], 2101)).unwrap();
    let daemon = site.start();
    put(folder, "revoked.pem", "-----BEGIN X509 CRL-----");
    let line = daemon.hear("revoked.pem");
    let said = "frontend web: the authorities and revocation lists for clients stay as they are: ";
    assert!(line.contains(said), "{line}");
    for _ in 0..2 {
        let new = fresh("localhost");
        put(folder, "a.pem", &new.text());
        await_shown(&site, "localhost", &new);
        let lines = daemon.heard_up_to("frontend web: new certificates for localhost");
        assert_eq!(lines.len(), 1, "what is wrong with the list is told once: {lines:?}");
    }
    put(folder, "revoked.pem", &authority.revoke(&[66, 1], 2101));
    daemon.hear("frontend web: other revocation lists for clients");
}

#[test]
fn files_come_into_and_leave_the_folder_of_certificates() {
    let site = site("certificates = [\"first.pem\"]\ncert-dir = \"more\"\nwatch = true");
    let first = Pair::written(site.folder.path(), "first.pem", "first.example");
    let more = site.path("more");
    fs::create_dir(&more).unwrap();
    let there = Pair::written(&more, "there.pem", "there.example");
    fs::write(more.join("README"), "no certificate").unwrap();
    let daemon = site.start();
    assert!(shown(&site, "there.example") == there.der);
    assert!(shown(&site, "added.example") == first.der);
    let added = fresh("added.example");
    put(&more, "added.pem", &added.text());
    await_shown(&site, "added.example", &added);
    assert!(shown(&site, "there.example") == there.der);
    fs::remove_file(more.join("added.pem")).unwrap();
    await_shown(&site, "added.example", &first);
    daemon.hear("frontend web: no more certificates for added.example");
    assert!(shown(&site, "there.example") == there.der);
}

#[test]
fn without_watch_a_new_file_waits_for_a_reload() {
    let site = site("certificates = [\"a.pem\"]");
    let old = Pair::written(site.folder.path(), "a.pem", "localhost");
    let daemon = site.start();
    let new = fresh("localhost");
    put(site.folder.path(), "a.pem", &new.text());
    assert!(shown(&site, "localhost") == old.der);
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    assert!(shown(&site, "localhost") == new.der);
    let said: Vec<_> = daemon.said.try_iter().collect();
    assert!(!said.iter().any(|line| line.contains("new certificates")), "{said:?}");
}

#[test]
fn a_folder_without_certificates_and_one_that_is_missing_are_errors() {
    let site = site("cert-dir = \"none\"");
    let missing = site.proxy(&["check"]);
    assert!(code(&missing) != 0 && text(&missing.stderr).contains("cannot read"), "{}", text(&missing.stderr));
    fs::create_dir(site.path("none")).unwrap();
    let empty = site.proxy(&["check"]);
    assert!(code(&empty) != 0 && text(&empty.stderr).contains("there is no *.pem in"), "{}", text(&empty.stderr));
    Pair::written(&site.path("none"), "a.pem", "localhost");
    let good = site.proxy(&["check"]);
    assert_eq!(code(&good), 0, "{}", text(&good.stderr));
}

#[test]
fn strict_sni_refuses_names_without_a_certificate() {
    let site = site("certificates = [\"first.pem\", \"wild.pem\"]\nstrict-sni = true");
    let first = Pair::written(site.folder.path(), "first.pem", "first.example");
    let wild = Pair::written(site.folder.path(), "wild.pem", "*.wild.example");
    let _daemon = site.start();
    for versions in [[&TLS12], [&TLS13]] {
        let refused = |client: &TlsClient, name| client.try_get(site.address(), name).map(|_| ()).unwrap_err();
        for name in ["unknown.example", "wild.example", "a.b.wild.example"] {
            let alert = refused(&TlsClient::new(&versions), name);
            assert_eq!(alert, rustls::Error::AlertReceived(AlertDescription::UnrecognisedName), "{name}");
        }
        let mut nameless = TlsClient::new(&versions);
        nameless.config.enable_sni = false;
        let alert = refused(&nameless, "first.example");
        assert_eq!(alert, rustls::Error::AlertReceived(AlertDescription::MissingExtension));
        for (name, expected) in [("first.example", &first), ("FIRST.example", &first), ("a.wild.example", &wild)] {
            let answer = TlsClient::new(&versions).get(site.address(), name);
            assert!(answer.leaf() == expected.der && answer.response.text() == "one", "{name}");
        }
    }
}

#[test]
fn an_end_that_is_near_or_past_is_told_by_check_and_in_the_log() {
    let site = site("certificates = [\"good.pem\", \"near.pem\", \"past.pem\"]\ncert-dir = \"more\"");
    fs::write(site.path("good.pem"), ending_in(15 * DAY).0).unwrap();
    fs::write(site.path("near.pem"), ending_in(5 * DAY + 3600).0).unwrap();
    fs::write(site.path("past.pem"), ending_in(-DAY).0).unwrap();
    fs::create_dir(site.path("more")).unwrap();
    fs::write(site.path("more/soon.pem"), ending_in(DAY + 3600).0).unwrap();
    let check = site.proxy(&["check"]);
    let said = text(&check.stdout) + &text(&check.stderr);
    for expected in ["`near.pem` expires in 5 days", "`past.pem` has expired", "soon.pem` expires in 1 day"] {
        assert!(said.contains(expected), "{expected} is not in {said}");
    }
    assert!(!said.contains("good.pem"), "{said}");
    let daemon = site.start();
    for expected in ["near.pem` expires in 5 days", "past.pem` has expired", "soon.pem` expires in 1 day"] {
        let line = daemon.hear("frontend web: the certificate of `");
        assert!(line.contains(expected), "{line}");
    }
    // The day's warnings have been given: a reload does not repeat them, a certificate that is new has its own.
    fs::write(site.path("good.pem"), ending_in(7 * DAY + 3600).0).unwrap();
    assert_eq!(code(&site.proxy(&["reload"])), 0);
    let lines = daemon.heard_up_to("good.pem` expires in 7 days");
    assert!(!lines.iter().any(|line| line.contains("near.pem` expires")), "{lines:?}");
}

#[test]
fn metrics_and_status_tell_when_the_certificate_in_use_ends() {
    let (metrics, stats) = (Port::new(), Port::new());
    let site = site(&format!(
        "certificates = [\"a.pem\"]\nwatch = true\n[metrics]\nbind = \"{}\"\n[stats]\nbind = \"{}\"\nuri = \"/s\"\n",
        metrics.address, stats.address
    ));
    let (pem, first) = ending_in(100 * DAY);
    fs::write(site.path("a.pem"), pem).unwrap();
    let daemon = site.start();
    let path = site.path("a.pem").display().to_string();
    let told = |end: i64| {
        let labels = format!("{{kind=\"frontend\",proxy=\"web\",file=\"{path}\"}}");
        let scraped = get(metrics.address, "/metrics").text();
        let samples: Vec<_> =
            scraped.lines().filter(|line| line.starts_with("proxy_certificate_not_after_seconds{")).collect();
        let list = serde_json::json!([{ "kind": "frontend", "proxy": "web", "path": path, "not_after": end }]);
        let info: serde_json::Value = serde_json::from_slice(&get(stats.address, "/s;info").body).unwrap();
        assert_eq!(site.status()["certificates"], list);
        (samples == [format!("proxy_certificate_not_after_seconds{labels} {end}")]) && info["certificates"] == list
    };
    assert!(told(first));
    let (pem, second) = ending_in(200 * DAY);
    put(site.folder.path(), "a.pem", &pem);
    daemon.hear("frontend web: new certificates");
    support::until("the new end in the metrics", || told(second));
}
