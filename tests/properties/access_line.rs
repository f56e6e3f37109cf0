//! Access lines: whatever a client asks and an operator has logged, a line stays one line, its fields stay apart, and
//! what was asked can be read back from it.
//! Input: an access format, a line feed, and the request line.

use std::time::{Duration, SystemTime};

use proxy::logging::{Context, Endpoint, Format, Names, Record, Zone};

/// Longest line that syslog daemons take, less what stands before the message.
const LONGEST: usize = 8192 - 200;

pub fn holds(bytes: &[u8]) {
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let (format, asked) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    if let Some(format) = std::str::from_utf8(format).ok().and_then(|text| Format::compile(text).ok()) {
        let line = String::from_utf8(written(&format, asked)).expect("text");
        assert!(!line.contains(char::is_control), "{line:?}");
        assert_eq!(written(&format, b"x y z").is_ascii(), line.is_ascii(), "{line:?}");
    }
    let shown = |format: &str| {
        let line = written(&Format::compile(format).expect("a format"), asked);
        assert!(line.iter().all(|byte| (b' '..=b'~').contains(byte)), "{}", line.escape_ascii());
        line
    };
    for format in ["httplog", "clf", "%{+Q}r %{+Q,+E}HP"] {
        let quotes = |line: Vec<u8>| line.into_iter().filter(|byte| *byte == b'"').count();
        let own = quotes(written(&Format::compile(format).expect("a format"), b"GET / HTTP/1.1"));
        assert_eq!(quotes(shown(format)), own, "only the format's own");
    }
    let wanted = if asked.is_empty() { b"<BADREQ>" } else { asked };
    assert_eq!(unescaped(&shown("%r"), false).as_deref(), Some(wanted));
    assert_eq!(unescaped(&shown("%{+E}r"), true).as_deref(), Some(wanted));
    // As in HAProxy, what is left of the line is the version.
    for part in ["%HM", "%HU", "%HP", "%HQ"] {
        assert!(!shown(part).contains(&b' '), "{part} would be taken for two fields");
    }
    is_an_object(&shown("json"), wanted);
}

fn is_an_object(line: &[u8], asked: &[u8]) {
    assert!(line.len() <= LONGEST);
    let object: serde_json::Value = serde_json::from_slice(line).expect("JSON");
    assert_eq!(object["status"], 400);
    let (asked, shown) = (String::from_utf8_lossy(asked), object["request"].as_str().expect("a string"));
    if object.get("truncated").is_some() {
        assert!(asked.len() > shown.len() && asked.starts_with(shown));
        assert!(line.len() > LONGEST - 100, "cut without need");
    } else {
        assert_eq!(shown, asked);
    }
}

/// The bytes that `#XX`, and what follows backslashes, stand for; `None` where they are not as they have to be.
fn unescaped(mut line: &[u8], backslashes: bool) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        line = match line {
            [] => return Some(bytes),
            [b'#', high, low, rest @ ..] => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                bytes.push(u8::try_from(digit(high)? << 4 | digit(low)?).ok()?);
                rest
            }
            [b'#' | b'"', ..] => return None,
            [b'\\', byte @ (b'\\' | b']'), rest @ ..] if backslashes => {
                bytes.push(*byte);
                rest
            }
            [b'\\' | b']', ..] if backslashes => return None,
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        }
    }
}

fn written(format: &Format, asked: &[u8]) -> Vec<u8> {
    let names = Names { frontends: vec![String::from("web")], ..Names::default() };
    let context = Context { names, zone: Zone::utc(), hostname: String::from("host"), pid: 1 };
    let mut out = Vec::new();
    format.render(&record(asked), &context, &mut out);
    out
}

fn record(asked: &[u8]) -> Record {
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
        request_line: asked.to_vec(),
    }
}
