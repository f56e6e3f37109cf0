//! Tests of the logging layer over real unix and UDP sockets, and the golden table of formats.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::*;
use crate::config::{self, Bundle, LogSink, LogTarget};

const ARTICLE: &str =
    "%ci:%cp [%t] %ft %b/%s %Tq/%Tw/%Tc/%Tr/%Tt %ST %B %CC %CS %tsc %ac/%fc/%bc/%sc/%rc %sq/%bq %hr %hs %{+Q}r";
const PATIENCE: Duration = Duration::from_secs(10);

fn record() -> Record {
    Record {
        accepted: UNIX_EPOCH + Duration::from_millis(1_793_694_727_045),
        client: Endpoint::Internet("192.0.2.7:41000".parse().unwrap()),
        local: Endpoint::Internet("192.0.2.1:443".parse().unwrap()),
        frontend: 0,
        tls: true,
        backend: Some(0),
        server: Some(1),
        request_ms: 1,
        queue_ms: 0,
        connect_ms: 2,
        response_ms: 30,
        total_ms: 35,
        status: 200,
        bytes_out: 1234,
        bytes_in: 321,
        termination: *b"--",
        active: 9,
        frontend_conns: 8,
        backend_conns: 7,
        server_conns: 6,
        retries: 0,
        redispatched: false,
        request_line: b"GET /foo?bar=baz HTTP/1.1".to_vec(),
    }
}

fn context() -> Context {
    let names = Names {
        frontends: vec!["www-https".into()],
        backends: vec!["www-backend".into()],
        servers: vec![vec!["mypool1".into(), "mypool2".into()]],
    };
    Context { names, zone: Zone::utc(), hostname: "edge".into(), pid: 42 }
}

fn render(format: &str, record: &Record) -> String {
    let mut out = Vec::new();
    Format::compile(format).unwrap().render(record, &context(), &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn a_client_without_a_session_is_told_of_in_haproxys_words_or_as_an_object() {
    let unserved = Unserved {
        accepted: record().accepted,
        client: record().client,
        frontend: 0,
        bind: 2,
        reason: String::from("no \"peer\"\r\ncertificate"),
    };
    let shown = |as_json| {
        let mut out = Vec::new();
        unserved.render(&context(), as_json, &mut out);
        String::from_utf8(out).unwrap()
    };
    let line =
        "192.0.2.7:41000 [03/Nov/2026:08:32:07.045] www-https/2: SSL handshake failure (no \"peer\"#0D#0Acertificate)";
    assert_eq!(shown(false), line);
    let object: serde_json::Value = serde_json::from_str(&shown(true)).unwrap();
    let expected = serde_json::json!({
        "timestamp": 1_793_694_727, "client_port": 41000, "date": "03/Nov/2026:08:32:07 +0000", "client_ip": "192.0.2.7",
        "frontend": "www-https", "handshake_failure": "no \"peer\"\r\ncertificate",
    });
    assert_eq!(object, expected);
}

#[test]
fn formats_render_as_haproxy_renders_them() {
    let cases = [
        (
            ARTICLE,
            "192.0.2.7:41000 [03/Nov/2026:08:32:07.045] www-https~ www-backend/mypool2 1/0/2/30/35 200 1234 - - ---- \
             9/8/7/6/0 0/0 \"GET /foo?bar=baz HTTP/1.1\"",
        ),
        (
            "httplog",
            "192.0.2.7:41000 [03/Nov/2026:08:32:07.045] www-https~ www-backend/mypool2 1/0/2/30/35 200 1234 - - ---- \
             9/8/7/6/0 0/0 \"GET /foo?bar=baz HTTP/1.1\"",
        ),
        ("%HM|%HP|%HQ|%HU|%HV", "GET|/foo|?bar=baz|/foo?bar=baz|HTTP/1.1"),
        ("%Ts.%ms %T %Tl", "1793694727.045 03/Nov/2026:08:32:07 +0000 03/Nov/2026:08:32:07 +0000"),
        ("%fi:%fp %f %ft %U %pid %H %ts %tsc", "192.0.2.1:443 www-https www-https~ 321 42 edge -- ----"),
        ("%TR %Ta %Td 100%% %{+Q}CC %{+Q}s", "1 35 2 100% \"\" \"mypool2\""),
        ("%{+Q}o %b %{-Q}s %f", " \"www-backend\" mypool2 \"www-https\""),
        ("a  %hr   %hs \t b%hrl%hsl%ST", "a b200"),
    ];
    let record = record();
    for (format, expected) in cases {
        assert_eq!(render(format, &record), expected.trim_start(), "{format}");
    }
}

#[test]
fn what_did_not_happen_is_shown_as_haproxy_shows_it() {
    let mut record = record();
    record.tls = false;
    (record.backend, record.server, record.status) = (None, None, 0);
    (record.request_ms, record.queue_ms, record.connect_ms, record.response_ms) = (-1, -1, -1, -1);
    (record.retries, record.redispatched, record.termination) = (3, true, *b"CR");
    record.request_line.clear();
    let line = render("%ft %b/%s %Tq/%Tw/%Tc/%Tr/%Td %ST %tsc %rc %{+Q}r %HM %HQ %HV", &record);
    assert_eq!(line, "www-https www-https/<NOSRV> -1/-1/-1/-1/-1 -1 CR-- +3 \"<BADREQ>\" <BADREQ> <BADREQ> <BADREQ>");
    record.request_line = b"GET".to_vec();
    assert_eq!(render("%r|%HM|%HP|%HU|%HV|%HQ", &record), "GET|<BADREQ>|<BADREQ>|<BADREQ>|<BADREQ>|");
    record.request_line = b"GET /x".to_vec();
    assert_eq!(render("%HM %HU %HV", &record), "GET /x HTTP/0.9");
}

#[test]
fn no_client_byte_leaves_its_field() {
    let mut record = record();
    record.request_line = b"GET /\"\n<134>Nov  3 forged\r\0#{\xC3\xA9\x7f\x1b[31m HTTP/1.1".to_vec();
    assert_eq!(render("%{+Q}r", &record), "\"GET /#22#0A<134>Nov  3 forged#0D#00#23{#C3#A9#7F#1B[31m HTTP/1.1\"");
    record.request_line = br"GET /a\b]c HTTP/1.1".to_vec();
    assert_eq!(render("%{+Q,+E}r", &record), r#""GET /a\\b\]c HTTP/1.1""#);
    record.request_line = "GET /\"é\u{85}\u{1F600}\n\\".as_bytes().to_vec();
    let line = render("json", &record);
    assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line}");
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["request"], "GET /\"é\u{85}\u{1F600}\n\\");
    assert_eq!((&value["status"], &value["server"]), (&200.into(), &"mypool2".into()));
    assert_eq!(value["tls"], true);
}

#[test]
fn a_long_request_leaves_json_whole() {
    let mut record = record();
    record.request_line = vec![0xFF; 16_000];
    let line = render("json", &record);
    assert!(line.len() < 8192, "{}", line.len());
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["truncated"], true);
}

#[test]
fn wrong_formats_are_refused() {
    let unknown = |name: &str, column| FormatError::UnknownVariable { name: name.into(), column };
    let cases = [
        ("%ci %xx", unknown("xx", 5)),
        ("%", unknown("", 1)),
        ("%[src]", unknown("", 1)),
        ("%Ti", unknown("Ti", 1)),
        ("a %{+Qr", FormatError::UnclosedFlags { column: 3 }),
        ("%{+Z}r", FormatError::UnknownFlag { flag: "+Z".into(), column: 1 }),
        ("htplog", FormatError::NoVariable { text: "htplog".into() }),
        ("100%%", FormatError::NoVariable { text: "100%%".into() }),
    ];
    for (text, expected) in cases {
        assert_eq!(Format::compile(text), Err(expected), "{text}");
    }
    for text in ["httplog", "tcplog", "clf", "json", ARTICLE] {
        assert!(Format::compile(text).is_ok(), "{text}");
    }
}

fn target(sink: LogSink) -> LogTarget {
    LogTarget {
        sink,
        facility: 16,
        level: 6,
        tag: "proxy".into(),
        access: true,
        events: true,
        access_format: Some("%Tt %r".into()),
    }
}

fn bundle(logs: Vec<LogTarget>) -> Bundle {
    Bundle {
        authorities: Vec::new(),
        sha256: String::new(),
        global: config::Global::default(),
        reload: config::Reload {
            strategy: config::ReloadMode::Handover,
            hard_stop_after: Duration::from_secs(1),
            max_old: 1,
        },
        systemd: config::Systemd::default(),
        admin: None,
        logs,
        metrics: None,
        stats: None,
        frontends: Vec::new(),
        backends: Vec::new(),
    }
}

struct Running {
    logger: Logger,
    thread: LogThread,
    lost: Receiver<usize>,
    dropped: Receiver<u64>,
}

fn start(target: &LogTarget, socket: Option<OwnedFd>) -> Running {
    let ((lost_in, lost), (dropped_in, dropped)) = (channel(), channel());
    let told = move |index| {
        let _ = lost_in.send(index);
    };
    let counted = move |count| {
        let _ = dropped_in.send(count);
    };
    let (logger, thread) = Logger::start(&bundle(vec![target.clone()]), vec![socket], told, counted);
    Running { logger, thread, lost, dropped }
}

fn numbered(number: i64) -> Record {
    Record { total_ms: number, ..record() }
}

fn unix(path: &Path) -> (UnixDatagram, LogTarget) {
    let receiver = UnixDatagram::bind(path).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    (receiver, target(LogSink::Unix(path.to_owned())))
}

fn read(receiver: &UnixDatagram) -> String {
    let mut buffer = [0; 9000];
    let length = receiver.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn every_record_is_one_datagram_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let (receiver, target) = unix(&directory.path().join("log"));
    let running = start(&target, Some(connect(&target).unwrap()));
    for number in 0..500 {
        running.logger.access(numbered(number));
    }
    running.logger.event(Severity::Notice, "reloaded\nforged é");
    running.logger.event(Severity::Debug, "too chatty");
    running.logger.access(numbered(500));
    let reading = std::thread::spawn(move || (0..502).map(|_| read(&receiver)).collect::<Vec<_>>());
    running.thread.finish(PATIENCE);
    let lines = reading.join().unwrap();
    let pid = std::process::id();
    for (number, line) in lines[..500].iter().enumerate() {
        assert!(line.starts_with("<134>"), "{line}");
        assert!(line.ends_with(&format!(" proxy[{pid}]: {number} GET /foo?bar=baz HTTP/1.1")), "{line}");
    }
    assert!(lines[500].starts_with("<133>") && lines[500].ends_with("]: reloaded#0Aforged é"), "{}", lines[500]);
    assert!(lines[501].contains("]: 500 GET"), "{}", lines[501]);
}

#[test]
fn udp_lines_are_short_and_arrive_one_by_one() {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let address: SocketAddr = receiver.local_addr().unwrap();
    let target = target(LogSink::Udp(address));
    let running = start(&target, Some(connect(&target).unwrap()));
    for number in 0..50 {
        running.logger.access(Record { request_line: vec![b'x'; 3000], ..numbered(number) });
    }
    running.thread.finish(PATIENCE);
    let mut buffer = [0; 4096];
    for number in 0..50 {
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(length, 1024);
        let line = String::from_utf8_lossy(&buffer[..length]);
        assert!(line.contains(&format!("]: {number} xxx")), "{line}");
    }
}

#[test]
fn a_blocked_receiver_blocks_nobody_and_its_drops_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let (receiver, target) = unix(&directory.path().join("log"));
    let running = start(&target, Some(connect(&target).unwrap()));
    let total = 20_000_u64;
    let begun = Instant::now();
    for number in 0..20_000 {
        running.logger.access(numbered(number));
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    running.thread.finish(Duration::from_millis(300));
    receiver.set_nonblocking(true).unwrap();
    let mut arrived = 0;
    let mut buffer = [0; 4096];
    while receiver.recv(&mut buffer).is_ok() {
        arrived += 1;
    }
    let mut dropped = 0;
    while dropped + 1024 + arrived < total {
        dropped += running.dropped.recv_timeout(PATIENCE).unwrap();
    }
    assert!(dropped > 0 && dropped + arrived <= total, "{dropped} dropped, {arrived} arrived");
}

#[test]
fn a_restarted_receiver_gets_what_waited() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let (receiver, target) = unix(&path);
    let running = start(&target, Some(connect(&target).unwrap()));
    running.logger.access(numbered(1));
    assert!(read(&receiver).contains("]: 1 GET"));
    drop(receiver);
    std::fs::remove_file(&path).unwrap();
    running.logger.access(numbered(2));
    assert_eq!(running.lost.recv_timeout(PATIENCE), Ok(0));
    running.logger.access(numbered(3));
    let (receiver, _) = unix(&path);
    running.logger.replace_socket(0, connect(&target).unwrap());
    assert!(read(&receiver).contains("]: 2 GET"));
    assert!(read(&receiver).contains("]: 3 GET"));
    running.thread.finish(PATIENCE);
}

#[test]
fn a_target_without_a_socket_asks_for_one() {
    let directory = tempfile::tempdir().unwrap();
    let (receiver, target) = unix(&directory.path().join("log"));
    let running = start(&target, None);
    running.logger.event(Severity::Error, "early");
    assert_eq!(running.lost.recv_timeout(PATIENCE), Ok(0));
    running.logger.replace_socket(0, connect(&target).unwrap());
    assert!(read(&receiver).ends_with("]: early"));
    running.thread.finish(PATIENCE);
}

#[test]
fn a_full_queue_drops_and_counts() {
    let shared = std::sync::Arc::new(queue::Shared::new(2));
    let logger = Logger::over(std::sync::Arc::clone(&shared));
    for _ in 0..5 {
        logger.access(record());
    }
    assert_eq!(shared.dropped.load(std::sync::atomic::Ordering::Relaxed), 3);
}

#[test]
fn the_masters_events_survive_a_restarted_receiver() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let (receiver, target) = unix(&path);
    let log = EventLog::open(&[target]);
    log.event(Severity::Warning, "one");
    log.event(Severity::Debug, "below the level");
    assert!(read(&receiver).ends_with("]: one"));
    drop(receiver);
    std::fs::remove_file(&path).unwrap();
    log.event(Severity::Warning, "nobody listens");
    let (receiver, _) = unix(&path);
    log.event(Severity::Warning, "two");
    assert!(read(&receiver).ends_with("]: two"));
}
