//! Access lines: whatever a client sends as its request line, the line stays one line and its fields stay apart.
#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use proxy::logging::{Context, Endpoint, Format, Names, Record, Zone};

fn record(request_line: &[u8]) -> Record {
    Record {
        accepted: SystemTime::UNIX_EPOCH + Duration::from_millis(1_234_567_890_123),
        client: Endpoint::Internet(([192, 0, 2, 1], 1024).into()),
        local: Endpoint::Unix(1),
        frontend: 0,
        tls: true,
        backend: None,
        server: None,
        request_ms: 1,
        queue_ms: -1,
        connect_ms: -1,
        response_ms: -1,
        total_ms: 2,
        status: 400,
        bytes_out: 3,
        bytes_in: 4,
        termination: *b"PR",
        active: 1,
        frontend_conns: 1,
        backend_conns: 0,
        server_conns: 0,
        retries: 0,
        redispatched: false,
        request_line: request_line.to_vec(),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let names = Names { frontends: vec![String::from("web")], ..Names::default() };
    let context = Context { names, zone: Zone::utc(), hostname: String::from("host"), pid: 1 };
    let record = record(bytes);
    let written = |format: &str| {
        let mut out = Vec::new();
        Format::compile(format).expect("a format").render(&record, &context, &mut out);
        assert!(out.iter().all(|byte| (b' '..=b'~').contains(byte)), "{}", out.escape_ascii());
        out
    };
    let quotes = written("httplog").iter().filter(|byte| **byte == b'"').count();
    assert_eq!(quotes, 2, "only the format's own");
    for format in ["clf", "%HM %HP %HQ %HU %HV %r", "%{+E}r", "%{+Q,+E}HU"] {
        written(format);
    }
    let object: serde_json::Value = serde_json::from_slice(&written("json")).expect("JSON");
    assert_eq!(object["status"], 400);
});
