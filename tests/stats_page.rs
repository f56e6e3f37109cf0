//! The statistics page from outside: who may see it, that it counts right, that a reload forgets nothing.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Instant;

use base64::Engine as _;
use serde_json::Value;
use support::client::{Client, Message, get};
use support::load::{self, Load};
use support::origin::Origin;
use support::{PATIENCE, Port, Site, code};

/// A site with a statistics page for the user `admin`, and where that is.
fn site_with_page(origin: SocketAddr) -> (Site, Port) {
    let page = Port::new();
    let extra = format!(
        r#"
[stats]
bind = "{}"
uri = "/admin?stats"
auth = "ops"
realm = "Strictly Private"

[users.ops]
admin = {{ insecure-password = "s3cret:with colon" }}
"#,
        page.address
    );
    (Site::proxying(&[origin], &extra), page)
}

/// Asks for the page as somebody.
fn ask(page: &Port, view: &str, user: Option<&str>) -> Message {
    let credentials = user.map(|user| base64::engine::general_purpose::STANDARD.encode(user));
    let field = credentials.map(|text| format!("Authorization: Basic {text}\r\n")).unwrap_or_default();
    let mut client = Client::connect(page.address);
    client.send(format!("GET /admin?stats{view} HTTP/1.1\r\nHost: test\r\n{field}\r\n"));
    client.response().unwrap()
}

const ADMIN: Option<&str> = Some("admin:s3cret:with colon");

/// A row of the JSON view.
fn row(page: &Port, proxy: &str, service: &str) -> Value {
    let answer = ask(page, ";json", ADMIN);
    let rows: Vec<Value> = serde_json::from_slice(&answer.body).unwrap();
    rows.into_iter().find(|row| row["pxname"] == proxy && row["svname"] == service).unwrap()
}

/// Waits until the frontend's row has a number: a client may have its answer before it is counted.
fn await_number(page: &Port, column: &str, wanted: u64) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let front = row(page, "web", "FRONTEND");
        if number(&front, column) == wanted {
            return front;
        }
        assert!(Instant::now() < deadline, "{column} never becomes {wanted}: {front}");
    }
}

fn number(row: &Value, column: &str) -> u64 {
    row[column].as_u64().unwrap_or_else(|| panic!("no number `{column}` in {row}"))
}

#[test]
fn only_who_knows_the_password_sees_the_page() {
    let origin = Origin::echo();
    let (site, page) = site_with_page(origin.address);
    let _daemon = site.start();
    for user in [None, Some("admin:wrong"), Some("admin:"), Some("nobody:s3cret:with colon"), Some("admin")] {
        for view in ["", ";csv", ";json"] {
            let refused = ask(&page, view, user);
            assert_eq!(refused.status(), 401, "{user:?} {view}");
            let challenge = refused.field("www-authenticate").unwrap();
            assert!(challenge.starts_with("Basic realm=\"Strictly Private\""), "{challenge}");
            assert!(!refused.text().contains("pool"), "a refusal shows nothing: {}", refused.text());
        }
    }
    let shown = ask(&page, "", ADMIN);
    assert_eq!(shown.status(), 200);
    assert!(shown.text().contains("<h2>pool</h2>"), "{}", shown.text());
    assert_eq!(get(page.address, "/elsewhere").status(), 404);
}

#[test]
fn machines_get_haproxys_columns() {
    let origin = Origin::echo();
    let (site, page) = site_with_page(origin.address);
    let _daemon = site.start();
    let csv = ask(&page, ";csv", ADMIN);
    assert!(csv.field("content-type").unwrap().starts_with("text/plain"));
    let text = csv.text();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("# pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,"), "{}", lines[0]);
    let columns = lines[0].matches(',').count();
    assert!(lines.iter().all(|line| line.matches(',').count() == columns), "{text}");
    let names: Vec<_> =
        lines[1..].iter().map(|line| line.splitn(3, ',').take(2).collect::<Vec<_>>().join("/")).collect();
    assert_eq!(names, ["web/FRONTEND", "pool/s1", "pool/BACKEND"]);
    let json = ask(&page, ";json", ADMIN);
    assert_eq!(json.field("content-type"), Some("application/json"));
    assert_eq!(row(&page, "pool", "s1")["addr"], origin.address.to_string());
}

#[test]
fn every_request_and_byte_is_counted_once() {
    let origin = Origin::answering(|request| {
        let status = if request.line.contains("/missing") { "404 Not Found" } else { "200 OK" };
        format!("HTTP/1.1 {status}\r\nContent-Length: 10\r\n\r\n0123456789").into_bytes()
    });
    let (site, page) = site_with_page(origin.address);
    let _daemon = site.start();
    let request = "POST /a HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello";
    let mut sent = 0;
    for _ in 0..3 {
        let mut client = Client::connect(site.address());
        for _ in 0..4 {
            client.send(request);
            assert_eq!(client.response().unwrap().status(), 200);
            sent += request.len() as u64;
        }
    }
    assert_eq!(get(site.address(), "/missing").status(), 404);
    sent += "GET /missing HTTP/1.1\r\nHost: test\r\n\r\n".len() as u64;
    // An answer is counted when it has been sent, by the thread that sent it: all have to be waited for.
    await_number(&page, "hrsp_2xx", 12);
    let front = await_number(&page, "hrsp_4xx", 1);
    assert_eq!((number(&front, "stot"), number(&front, "req_tot")), (4, 13));
    assert_eq!((number(&front, "hrsp_2xx"), number(&front, "hrsp_4xx"), number(&front, "hrsp_5xx")), (12, 1, 0));
    assert_eq!(number(&front, "bin"), sent);
    let heads = 13 * "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n".len() as u64;
    assert!(number(&front, "bout") >= heads + 130, "{front}");
    for service in ["s1", "BACKEND"] {
        let behind = row(&page, "pool", service);
        assert_eq!((number(&behind, "hrsp_2xx"), number(&behind, "hrsp_4xx")), (12, 1), "{service}");
        assert_eq!(number(&behind, "bin"), sent, "{service}");
        assert_eq!(number(&behind, "bout"), number(&front, "bout"), "{service}");
    }
}

#[test]
fn open_connections_are_shown_while_they_are_open() {
    let (origin, gate) = Origin::gated();
    let (site, page) = site_with_page(origin.address);
    let _daemon = site.start();
    let mut slow = Client::connect(site.address());
    slow.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    gate.arrived();
    assert_eq!(number(&row(&page, "web", "FRONTEND"), "scur"), 1);
    assert_eq!(number(&row(&page, "pool", "s1"), "scur"), 1);
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    assert_eq!(number(&row(&page, "web", "FRONTEND"), "scur"), 1, "the old worker's connections count, too");
    gate.release();
    assert!(slow.response().unwrap().complete);
    drop(slow);
    site.await_status("the old worker has ended", |status| status["generations"].as_array().unwrap().len() == 1);
    assert_eq!(number(&row(&page, "web", "FRONTEND"), "scur"), 0);
    assert_eq!(number(&row(&page, "web", "FRONTEND"), "smax"), 1);
}

#[test]
fn a_worker_that_is_killed_leaves_no_connection_behind_in_the_numbers() {
    let (origin, gate) = Origin::gated();
    let (site, page) = site_with_page(origin.address);
    let _daemon = site.start();
    let mut slow = Client::connect(site.address());
    slow.send("GET /slow HTTP/1.1\r\nHost: test\r\n\r\n");
    gate.arrived();
    let worker = support::serving(&site.status());
    nix::sys::signal::kill(support::pid(worker), nix::sys::signal::Signal::SIGKILL).unwrap();
    site.await_status("a new worker serves", |status| status["reloads"]["respawns"] == 1);
    let front = row(&page, "web", "FRONTEND");
    assert_eq!((number(&front, "scur"), number(&front, "stot")), (0, 1));
}

#[test]
fn counters_survive_reloads_under_load_and_lose_nothing() {
    let origin = Origin::echo();
    let (site, page) = site_with_page(origin.address);
    let _daemon = site.start();
    let load = Load::start(site.address(), &load::ALL);
    for mode in ["handover", "handover", "rebind"] {
        load.more(60);
        let before = number(&row(&page, "web", "FRONTEND"), "req_tot");
        assert_eq!(code(&site.proxy(&["reload", "--mode", mode])), 0);
        assert!(number(&row(&page, "web", "FRONTEND"), "req_tot") >= before);
    }
    let (requests, failures) = load.stop();
    let succeeded = (requests - failures.len()) as u64;
    site.await_status("the old workers have ended", |status| status["generations"].as_array().unwrap().len() == 1);
    await_number(&page, "hrsp_2xx", succeeded);
    assert_eq!(number(&row(&page, "pool", "s1"), "hrsp_2xx"), succeeded);
}

#[test]
fn every_serving_thread_counts_in_a_shard_of_its_own() {
    let origin = Origin::echo();
    let (site, _page) = site_with_page(origin.address);
    let daemon = site.start();
    let mut fds = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().map(|entry| entry.unwrap().path());
    let counters =
        |path: &PathBuf| std::fs::read_link(path).is_ok_and(|it| it.to_string_lossy().contains("proxy-stats"));
    let file = File::open(fds.find(counters).unwrap()).unwrap();
    // Words of the header: how many shards there are, and a bit for each that a thread has taken.
    let [made, taken] = [10, 11].map(|word| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, word * 8).unwrap();
        u64::from_ne_bytes(bytes)
    });
    // As many threads serve, as nothing else is configured.
    let processors = std::thread::available_parallelism().unwrap().get().min(64) as u64;
    assert_eq!((made, u64::from(taken.count_ones())), (processors, processors));
}

#[test]
fn a_server_that_comes_later_starts_at_zero_and_the_others_keep_theirs() {
    let (one, two) = (Origin::named("one"), Origin::named("two"));
    let (site, page) = site_with_page(one.address);
    let _daemon = site.start();
    assert_eq!(get(site.address(), "/").text(), "one");
    let file = std::fs::read_to_string(site.config()).unwrap();
    let added = format!("  {{ name = \"s2\", address = \"{}\" }},\n]", two.address);
    std::fs::write(site.config(), file.replacen("]\n\n[stats]", &format!("{added}\n\n[stats]"), 1)).unwrap();
    assert_eq!(code(&site.proxy(&["reload-socket"])), 0);
    // With the old worker gone, the new one shows the page.
    site.await_status("the old worker has ended", |status| status["generations"].as_array().unwrap().len() == 1);
    assert_eq!((number(&row(&page, "pool", "s1"), "stot"), number(&row(&page, "pool", "s2"), "stot")), (1, 0));
}
