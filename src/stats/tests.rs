//! Tests of snapshot, views, authentication and the listener over an in-memory connection.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::auth::{Gate, challenge};
use super::*;
use crate::config::{self, Bundle, Secret, User};
use crate::handoff::messages::Slots;

const HEADER: &str = "# pxname,svname,qcur,qmax,scur,smax,slim,stot,bin,bout,dreq,dresp,ereq,econ,eresp,wretr,wredis,status,weight,act,bck,chkfail,chkdown,lastchg,downtime,qlimit,pid,iid,sid,throttle,lbtot,tracked,type,rate,rate_lim,rate_max,check_status,check_code,check_duration,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,hrsp_other,hanafail,req_rate,req_rate_max,req_tot,cli_abrt,srv_abrt,comp_in,comp_out,comp_byp,comp_rsp,lastsess,last_chk,last_agt,qtime,ctime,rtime,ttime,agent_status,agent_code,agent_duration,check_desc,agent_desc,check_rise,check_fall,check_health,agent_rise,agent_fall,agent_health,addr,cookie,mode,algo,conn_rate,conn_rate_max,conn_tot,intercepted,dcon,dses,wrew,connect,reuse,cache_lookups,cache_hits,srv_icur,src_ilim,qtime_max,ctime_max,rtime_max,ttime_max,eint,idle_conn_cur,safe_conn_cur,used_conn_cur,need_conn_est,uweight,agg_server_status,agg_server_check_status,agg_check_status,-,";

fn stats(users: Vec<User>) -> config::Stats {
    config::Stats {
        binds: Vec::new(),
        uri: "/admin?stats".into(),
        users,
        realm: "Haproxy \"Statistics\"\r\nX: y".into(),
        refresh: Some(Duration::from_secs(20)),
    }
}

fn bundle(frontend: &str, users: Vec<User>) -> Bundle {
    let (mode, second) = (config::ConnectionMode::KeepAlive, Duration::from_secs(1));
    Bundle {
        authorities: Vec::new(),
        sha256: String::new(),
        global: config::Global { maxconn: Some(2000), ..config::Global::default() },
        reload: config::Reload { strategy: config::ReloadMode::Handover, hard_stop_after: second, max_old: 1 },
        systemd: config::Systemd::default(),
        admin: None,
        logs: Vec::new(),
        metrics: None,
        stats: Some(stats(users)),
        frontends: vec![config::Frontend {
            mode: config::Mode::Http,
            name: frontend.into(),
            binds: Vec::new(),
            backend: Some(0),
            inspect: None,
            routes: Vec::new(),
            maxconn: None,
            tls: None,
            proto: config::Proto::H1,
            request_headers: config::HeaderEdits::default(),
            response_headers: config::HeaderEdits::default(),
            rules: Vec::new(),
            connection_mode: mode,
            forwarded_for: true,
            log_empty: false,
            access_format: "httplog".into(),
            timeout: config::ClientTimeouts { client: second, http_request: second, http_keep_alive: second },
            limit: config::Limits { header_size: 16_384, headers: 100, uri_length: 8192, streams: 100 },
            error_pages: Vec::new(),
        }],
        backends: vec![config::Backend {
            mode: config::Mode::Http,
            protocol: config::Protocol::H1,
            name: "www-backend".into(),
            balance: config::Balance::RoundRobin,
            check: None,
            tls: None,
            servers: vec![config::Server {
                host: String::new(),
                name: "mypool1".into(),
                address: "127.0.0.1:9000".parse().unwrap(),
                weight: 1,
                backup: false,
                checked: true,
                send_proxy: None,
            }],
            retries: 3,
            redispatch: true,
            retry_on: config::RetryOn::default(),
            connection_mode: mode,
            connect_timeout: second,
            server_timeout: second,
            tunnel_timeout: second,
        }],
    }
}

fn slots() -> Slots {
    Slots { frontends: vec![0], backends: vec![1], servers: vec![vec![2]] }
}

fn memory() -> Memory {
    let (memory, _fd) = Memory::create(4).unwrap();
    let front = memory.slot(3, 0).unwrap();
    front.add(Counter::Sessions, 11);
    front.add(Counter::BytesIn, 1234);
    front.status(200);
    front.enter(Gauge::Sessions);
    let server = memory.slot(5, 2).unwrap();
    server.add(Counter::Connects, 5);
    server.set(Counter::LastSession, 1);
    memory
}

fn snapshot(frontend: &str) -> Snapshot {
    let memory = memory();
    Snapshot::take(&bundle(frontend, Vec::new()), &slots(), &memory, memory.started() + Duration::from_secs(77))
}

fn field<'a>(text: &'a str, row: usize, column: &str) -> &'a str {
    let place = HEADER.trim_start_matches("# ").split(',').position(|name| name == column).unwrap();
    text.lines().nth(row).unwrap().split(',').nth(place).unwrap()
}

#[test]
fn csv_has_haproxys_columns_in_haproxys_order() {
    let text = csv(&snapshot("www"));
    assert_eq!(text.lines().next(), Some(HEADER));
    assert!(text.lines().all(|line| line.split(',').count() == HEADER.split(',').count()), "{text}");
    let cases = [
        (1, "pxname", "www"),
        (1, "svname", "FRONTEND"),
        (1, "scur", "1"),
        (1, "slim", "2000"),
        (1, "stot", "11"),
        (1, "bin", "1234"),
        (1, "hrsp_2xx", "1"),
        (1, "status", "OPEN"),
        (1, "qcur", ""),
        (1, "lastsess", ""),
        (1, "type", "0"),
        (2, "svname", "mypool1"),
        (2, "status", "no check"),
        (2, "connect", "5"),
        (2, "lastchg", "77"),
        (2, "addr", "127.0.0.1:9000"),
        (2, "type", "2"),
        (2, "sid", "1"),
        (3, "svname", "BACKEND"),
        (3, "status", "UP"),
        (3, "algo", "roundrobin"),
        (3, "lastsess", "-1"),
        (3, "type", "1"),
        (3, "iid", "2"),
        (3, "rate", ""),
    ];
    for (row, column, expected) in cases {
        assert_eq!(field(&text, row, column), expected, "row {row} {column}");
    }
    assert!(csv(&snapshot("a,\"b\"")).contains("\n\"a,\"\"b\"\"\",FRONTEND,"));
}

#[test]
fn json_says_the_same() {
    let rows: Vec<serde_json::Map<String, serde_json::Value>> = serde_json::from_str(&json(&snapshot("www"))).unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!((&rows[0]["pxname"], &rows[0]["stot"]), (&"www".into(), &11.into()));
    assert_eq!(rows[2]["lastsess"], -1);
    assert!(!rows[0].contains_key("rate"));
}

#[test]
fn the_page_escapes_every_name() {
    let about = About { generation: 7, pid: 42, uri: "/a\"><b>", refresh: Some(Duration::from_secs(20)) };
    let text = html(&snapshot("<script>'x'&\"y\""), &about);
    assert!(text.contains("&lt;script&gt;&#39;x&#39;&amp;&quot;y&quot;"), "{text}");
    assert!(!text.contains("<script>") && !text.contains("<b>>"), "{text}");
    assert!(text.contains("href=\"/a&quot;&gt;&lt;b&gt;;csv\""), "{text}");
    assert!(text.contains("http-equiv=\"refresh\" content=\"20\""), "{text}");
    let unrefreshed = html(&snapshot("x"), &About { refresh: None, ..about });
    assert!(!unrefreshed.contains("http-equiv"));
}

fn basic(credentials: &str) -> String {
    format!("Basic {}", STANDARD.encode(credentials))
}

fn crypt(password: &[u8]) -> String {
    use sha_crypt::{CustomizedPasswordHasher as _, Params, ShaCrypt};
    let params = Params::new(Params::ROUNDS_MIN).unwrap();
    let hash = ShaCrypt::SHA512.hash_password_customized(password, b"0123456789ab", None, None, params).unwrap();
    assert!(hash.as_str().starts_with("$6$"));
    hash.as_str().to_owned()
}

fn accounts() -> Vec<User> {
    vec![
        User { name: "Admin".into(), secret: Secret::Clear("pass:word".into()) },
        User { name: "alice".into(), secret: Secret::Crypt(crypt(b"secret")) },
        User { name: "broken".into(), secret: Secret::Crypt("$6$nonsense".into()) },
    ]
}

#[tokio::test]
async fn only_the_right_credentials_open_the_gate() {
    let gate = Gate::new(&accounts());
    let cases = [
        (Some(basic("Admin:pass:word")), true),
        (Some(basic("Admin:pass:word").replace("Basic", "bAsIc")), true),
        (Some(basic("alice:secret")), true),
        (Some(basic("alice:secret")), true),
        (Some(basic("alice:Secret")), false),
        (Some(basic("admin:pass:word")), false),
        (Some(basic("Admin:pass")), false),
        (Some(basic("Admin:")), false),
        (Some(basic("broken:")), false),
        (Some(basic("nobody:pass:word")), false),
        (Some(basic("Admin")), false),
        (Some("Basic !!!".into()), false),
        (Some("Bearer x".into()), false),
        (Some("é".into()), false),
        (Some(basic(&format!("alice:{}", "x".repeat(5000)))), false),
        (None, false),
    ];
    for (authorization, expected) in cases {
        let admitted = gate.admits(authorization.as_deref().map(str::as_bytes)).await;
        assert_eq!(admitted, expected, "{authorization:?}");
    }
    assert!(Gate::new(&[]).admits(None).await);
}

#[test]
fn crypt_hashes_of_glibc_are_understood() {
    // Ulrich Drepper's published test vector for rounds=1400.
    let hash = "$6$rounds=1400$anotherlongsaltstring$POfYwTEok97VWcjxIiSOjiykti.o/pQs.wPvMxQ6Fm7I6IoYN3CmLs66x9t0oSwbtEW7o7UmJEiDwGqd8p4ur1";
    let password = b"a very much longer text to encrypt.  This one even stretches over morethan one line.";
    assert!(super::auth::matches_crypt(password, hash));
    assert!(!super::auth::matches_crypt(b"another", hash));
}

#[test]
fn a_realm_cannot_end_its_field() {
    assert_eq!(challenge("a\"b\\c\r\nd"), r#"Basic realm="a\"b\\cd", charset="UTF-8""#);
}

async fn exchange(users: Vec<User>, request: String) -> String {
    let (mut client, server) = tokio::io::duplex(256 * 1024);
    let page = StatsPage::new(Arc::new(bundle("www", users)), slots(), memory(), 7);
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let (_, read) = tokio::join!(serve(server, Arc::new(page), Door::Page), client.read_to_string(&mut answer));
    read.unwrap();
    answer
}

async fn ask(method: &str, target: &str, credentials: &str) -> String {
    let authorization = basic(credentials);
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {authorization}\r\n\r\n");
    exchange(accounts(), request).await
}

#[tokio::test]
async fn the_listener_answers_each_target() {
    let right = "Admin:pass:word";
    let cases = [
        ("GET", "/admin?stats", right, "200 OK", "text/html", "www-backend"),
        ("GET", "/admin?stats;csv", right, "200 OK", "text/plain", HEADER),
        ("GET", "/admin?stats;json", right, "200 OK", "application/json", "\"pxname\": \"www\""),
        ("GET", "http://x/admin?stats;norefresh", right, "200 OK", "text/html", "generation <b>7</b>"),
        ("GET", "/", right, "404 Not Found", "text/plain", ""),
        ("GET", "/admin", right, "404 Not Found", "text/plain", ""),
        ("GET", "/admin?stats", "Admin:wrong", "401 Unauthorized", "text/plain", ""),
        ("POST", "/admin?stats", right, "405 Method Not Allowed", "text/plain", ""),
        ("POST", "/admin?stats", "x:y", "401 Unauthorized", "text/plain", ""),
    ];
    for (method, target, credentials, status, kind, content) in cases {
        let answer = ask(method, target, credentials).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{target}: {answer}");
        assert!(answer.contains(&format!("content-type: {kind}")), "{target}: {answer}");
        assert!(answer.contains("cache-control: no-cache\r\n") && answer.contains(content), "{target}: {answer}");
        assert_eq!(answer.contains("http-equiv=\"refresh\""), target == "/admin?stats" && status == "200 OK");
        assert_eq!(
            answer.contains("www-authenticate: Basic realm=\"Haproxy \\\"Statistics\\\"X: y\", charset=\"UTF-8\"\r\n"),
            status.starts_with("401"),
            "{target}: {answer}"
        );
    }
}

#[tokio::test]
async fn head_sends_no_body() {
    let answer = ask("HEAD", "/admin?stats;csv", "Admin:pass:word").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("content-length: "), "{answer}");
}

#[tokio::test]
async fn a_silent_client_is_let_go() {
    let (client, server) = tokio::io::duplex(1024);
    let page = StatsPage::new(Arc::new(bundle("www", Vec::new())), slots(), memory(), 1);
    let served = super::server::serve_within(server, (Arc::new(page), Door::Page), Duration::from_millis(20));
    tokio::time::timeout(Duration::from_secs(10), served).await.unwrap();
    drop(client);
}

#[test]
fn a_clock_that_went_back_is_no_uptime() {
    let memory = memory();
    let taken = Snapshot::take(&bundle("www", Vec::new()), &slots(), &memory, SystemTime::UNIX_EPOCH);
    assert_eq!(taken.uptime, Duration::ZERO);
}

#[test]
fn every_sample_for_prometheus_belongs_to_a_declared_metric_and_no_name_can_forge_one() {
    let memory = memory();
    memory.slot(0, 0).unwrap().observe(Duration::from_millis(3));
    memory.count_reload(ReloadPath::Rebind, ReloadResult::Applied, Duration::from_millis(1500));
    memory.set_lives([(3, 7, false)]);
    let name = "w\"} 1\\\nx{";
    let taken =
        Snapshot::take(&bundle(name, Vec::new()), &slots(), &memory, memory.started() + Duration::from_secs(77));
    let text = prometheus(&taken, memory.started() + Duration::from_secs(77));
    let mut declared = std::collections::HashSet::new();
    for line in text.lines() {
        if let Some(metric) = line.strip_prefix("# TYPE ") {
            assert!(declared.insert(metric.split(' ').next().unwrap()), "declared twice: {line}");
        } else if !line.starts_with('#') {
            let metric = line.split(['{', ' ']).next().unwrap();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| metric.strip_suffix(end));
            assert!(declared.contains(metric) || base.is_some_and(|base| declared.contains(base)), "{line}");
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
    for expected in [
        "proxy_frontend_sessions_total{proxy=\"w\\\"} 1\\\\\\nx{\"} 11",
        "proxy_frontend_http_request_duration_seconds_bucket{proxy=\"w\\\"} 1\\\\\\nx{\",le=\"0.002048\"} 0",
        "proxy_frontend_http_request_duration_seconds_bucket{proxy=\"w\\\"} 1\\\\\\nx{\",le=\"0.004096\"} 1",
        "proxy_frontend_http_request_duration_seconds_bucket{proxy=\"w\\\"} 1\\\\\\nx{\",le=\"+Inf\"} 1",
        "proxy_frontend_http_request_duration_seconds_sum{proxy=\"w\\\"} 1\\\\\\nx{\"} 0.003000",
        "proxy_server_status{proxy=\"www-backend\",server=\"mypool1\",state=\"UP\"} 1",
        "proxy_server_status{proxy=\"www-backend\",server=\"mypool1\",state=\"DOWN\"} 0",
        "proxy_reload_total{result=\"applied\",path=\"rebind\"} 1",
        "proxy_reload_total{result=\"rejected\",path=\"rebind\"} 0",
        "proxy_reload_duration_seconds_sum 1.500000",
        "proxy_generation_connections{generation=\"7\",state=\"serving\"} 0",
        "proxy_process_uptime_seconds 77",
    ] {
        assert!(text.lines().any(|line| line == expected), "{expected} is not in {text}");
    }
}
