//! Access-log formats: HAProxy's log-format text compiled once, a record rendered per request.
//! Compiled when a worker starts, rendered by the log thread. Pure: no clock, no socket.

use std::io::Write as _;

use super::clock::{Zone, epoch_seconds, milliseconds};
use super::error::FormatError;
use super::escape;
use super::line::LONG;
use super::names::Names;
use super::record::{Endpoint, Record};

const HTTPLOG: &str =
    "%ci:%cp [%tr] %ft %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %CC %CS %tsc %ac/%fc/%bc/%sc/%rc %sq/%bq %hr %hs %{+Q}r";
const TCPLOG: &str = "%ci:%cp [%t] %ft %b/%s %Tw/%Tc/%Tt %B %ts %ac/%fc/%bc/%sc/%rc %sq/%bq";
const CLF: &str = "%{+Q}o %{-Q}ci - - [%trg] %r %ST %B \"\" \"\" %cp %ms %ft %b %s %TR %Tw %Tc %Tr %Ta %tsc %ac %fc %bc %sc %rc %sq %bq %CC %CS %hrl %hsl";

/// What every line of a process shares.
#[derive(Debug, Clone)]
pub struct Context {
    /// Configured names.
    pub names: Names,
    /// Local time.
    pub zone: Zone,
    /// `%H`.
    pub hostname: String,
    /// `%pid`.
    pub pid: u32,
}

/// A compiled access format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    shape: Shape,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    Items(Vec<Item>),
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Text(String),
    /// Whitespace: runs of it, also across variables that show nothing, become one space.
    Space,
    Variable(Variable, Flags),
}

/// `%{+Q,+E}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Flags {
    quote: bool,
    escape: bool,
}

macro_rules! variables {
    ($($name:literal $variant:ident),+ $(,)?) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Variable { $($variant),+ }

        impl Variable {
            fn named(name: &str) -> Option<Self> {
                Some(match name { $($name => Self::$variant,)+ _ => return None })
            }
        }
    };
}

variables! {
    "ci" ClientIp, "cp" ClientPort, "fi" FrontendIp, "fp" FrontendPort,
    "t" Date, "tr" RequestDate, "T" DateUtc, "trg" RequestDateUtc, "Tl" DateLocal, "trl" RequestDateLocal,
    "Ts" Seconds, "ms" Milliseconds, "ft" FrontendTransport, "f" Frontend, "b" Backend, "s" Server,
    "Tq" RequestTime, "TR" RequestTimeAlone, "Tw" QueueTime, "Tc" ConnectTime, "Tr" ResponseTime,
    "Td" DataTime, "Ta" ActiveTime, "Tt" TotalTime, "ST" Status, "B" BytesOut, "U" BytesIn,
    "CC" RequestCookie, "CS" ResponseCookie, "ts" Termination, "tsc" TerminationCookie,
    "ac" Active, "fc" FrontendConns, "bc" BackendConns, "sc" ServerConns, "rc" Retries,
    "sq" ServerQueue, "bq" BackendQueue, "hr" RequestCaptures, "hrl" RequestCaptureList,
    "hs" ResponseCaptures, "hsl" ResponseCaptureList, "r" Request, "HM" Method, "HP" Path,
    "HQ" Query, "HU" Uri, "HV" Version, "pid" Pid, "H" Hostname,
}

impl Format {
    /// Compiles HAProxy log-format text, or one of the words `httplog`, `tcplog`, `clf`, `json`.
    ///
    /// # Errors
    /// An unknown variable or flag, an unclosed `%{`, a word that is no format.
    pub fn compile(text: &str) -> Result<Self, FormatError> {
        let text = match text {
            "json" => return Ok(Self { shape: Shape::Json }),
            "httplog" => HTTPLOG,
            "tcplog" => TCPLOG,
            "clf" => CLF,
            _ => text,
        };
        let items = parse(text)?;
        if !items.iter().any(|item| matches!(item, Item::Variable(..))) {
            return Err(FormatError::NoVariable { text: text.to_owned() });
        }
        Ok(Self { shape: Shape::Items(items) })
    }

    /// What is used when a worker is handed a format it does not know.
    pub(super) fn fallback() -> Self {
        Self { shape: Shape::Json }
    }

    /// Whether lines are JSON objects, which may be longer than RFC 3164's 1024 bytes.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.shape == Shape::Json
    }

    /// Appends the record's line, without a line end.
    pub fn render(&self, record: &Record, context: &Context, out: &mut Vec<u8>) {
        let Shape::Items(items) = &self.shape else { return json(record, context, out) };
        let start = out.len();
        for item in items {
            match item {
                Item::Text(text) => out.extend_from_slice(text.as_bytes()),
                Item::Space if out.len() == start || out.last() == Some(&b' ') => {}
                Item::Space => out.push(b' '),
                Item::Variable(variable, flags) => Line { record, context, out, flags: *flags }.show(*variable),
            }
        }
    }
}

fn parse(text: &str) -> Result<Vec<Item>, FormatError> {
    let bytes = text.as_bytes();
    let (mut items, mut standing, mut at) = (Vec::new(), Flags::default(), 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        match rest {
            [b'%', b'%', ..] => {
                add_text(&mut items, "%");
                at += 2;
            }
            [b'%', ..] => {
                let column = at + 1;
                at += 1;
                let mut flags = standing;
                if bytes.get(at) == Some(&b'{') {
                    let length = bytes[at..].iter().position(|&byte| byte == b'}');
                    let end = at + length.ok_or(FormatError::UnclosedFlags { column })?;
                    flags = parse_flags(&text[at + 1..end], standing, column)?;
                    at = end + 1;
                }
                let length = bytes[at..].iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
                let name = &text[at..at + length];
                at += length;
                match Variable::named(name) {
                    Some(variable) => items.push(Item::Variable(variable, flags)),
                    None if name == "o" => standing = flags,
                    None => return Err(FormatError::UnknownVariable { name: name.to_owned(), column }),
                }
            }
            [byte, ..] if byte.is_ascii_whitespace() => {
                items.push(Item::Space);
                at += 1;
            }
            _ => {
                let length = rest.iter().take_while(|byte| **byte != b'%' && !byte.is_ascii_whitespace()).count();
                add_text(&mut items, &text[at..at + length]);
                at += length;
            }
        }
    }
    Ok(items)
}

fn add_text(items: &mut Vec<Item>, text: &str) {
    // The administrator's own control bytes would break a line just as well as a client's.
    let clean: String = text.chars().filter(|character| !character.is_control()).collect();
    match items.last_mut() {
        Some(Item::Text(before)) => before.push_str(&clean),
        _ => items.push(Item::Text(clean)),
    }
}

fn parse_flags(text: &str, mut flags: Flags, column: usize) -> Result<Flags, FormatError> {
    for flag in text.split(',').map(str::trim) {
        match flag {
            "+Q" => flags.quote = true,
            "-Q" => flags.quote = false,
            "+E" => flags.escape = true,
            "-E" => flags.escape = false,
            _ => return Err(FormatError::UnknownFlag { flag: flag.to_owned(), column }),
        }
    }
    Ok(flags)
}

/// One variable on its way into a line.
struct Line<'a> {
    record: &'a Record,
    context: &'a Context,
    out: &'a mut Vec<u8>,
    flags: Flags,
}

impl Line<'_> {
    fn show(&mut self, variable: Variable) {
        use Variable as V;
        let (record, context) = (self.record, self.context);
        match variable {
            V::ClientIp => self.address(record.client),
            V::FrontendIp => self.address(record.local),
            V::Date | V::RequestDate => context.zone.with_milliseconds(self.out, record.accepted),
            V::DateUtc | V::RequestDateUtc => Zone::utc().with_offset(self.out, record.accepted),
            V::DateLocal | V::RequestDateLocal => context.zone.with_offset(self.out, record.accepted),
            V::Milliseconds => milliseconds(self.out, record.accepted),
            V::Frontend => self.text(context.names.frontend(record.frontend).as_bytes()),
            V::FrontendTransport => {
                self.quote();
                escape::url(self.out, context.names.frontend(record.frontend).as_bytes(), self.flags.escape);
                self.out.extend_from_slice(if record.tls { b"~" } else { b"" });
                self.quote();
            }
            V::Backend => self.text(context.names.backend(record.backend, record.frontend).as_bytes()),
            V::Server => self.text(context.names.server(record.backend, record.server).unwrap_or("<NOSRV>").as_bytes()),
            // No cookie is captured: HAProxy shows `-`, or an empty quoted field.
            V::RequestCookie | V::ResponseCookie => self.text(if self.flags.quote { b"" } else { b"-" }),
            V::Termination => self.out.extend(record.termination),
            V::TerminationCookie => self.out.extend([record.termination[0], record.termination[1], b'-', b'-']),
            V::Retries => {
                if record.redispatched {
                    self.out.push(b'+');
                }
                self.number(i64::from(record.retries));
            }
            // No header is captured: as in HAProxy, nothing is shown, not even quotes.
            V::RequestCaptures | V::RequestCaptureList | V::ResponseCaptures | V::ResponseCaptureList => {}
            V::Request | V::Method | V::Path | V::Query | V::Uri | V::Version => {
                self.text(request_part(variable, &record.request_line));
            }
            V::Hostname => self.text(context.hostname.as_bytes()),
            _ => self.number(numeric(variable, record, context)),
        }
    }

    fn text(&mut self, bytes: &[u8]) {
        self.quote();
        escape::url(self.out, bytes, self.flags.escape);
        self.quote();
    }

    /// What has no address is `unix`, as in HAProxy.
    fn address(&mut self, endpoint: Endpoint) {
        self.quote();
        // Writing to a vector cannot fail.
        let _ = match endpoint.ip() {
            Some(ip) => write!(self.out, "{ip}"),
            None => write!(self.out, "unix"),
        };
        self.quote();
    }

    fn quote(&mut self) {
        if self.flags.quote {
            self.out.push(b'"');
        }
    }

    fn number(&mut self, number: i64) {
        self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }
}

/// The variables that are a plain number; 0 for the queue positions, since no request queues yet
/// in front of a server.
fn numeric(variable: Variable, record: &Record, context: &Context) -> i64 {
    use Variable as V;
    match variable {
        V::ClientPort => i64::from(record.client.port()),
        V::FrontendPort => i64::from(record.local.port()),
        V::Seconds => epoch_seconds(record.accepted),
        // A record starts with its request, so there is no idle time to take away.
        V::RequestTime | V::RequestTimeAlone => record.request_ms,
        V::QueueTime => record.queue_ms,
        V::ConnectTime => record.connect_ms,
        V::ResponseTime => record.response_ms,
        V::DataTime if record.response_ms < 0 => -1,
        V::DataTime => {
            let before = [record.request_ms, record.queue_ms, record.connect_ms, record.response_ms];
            (record.total_ms - before.into_iter().map(|phase| phase.max(0)).sum::<i64>()).max(0)
        }
        V::ActiveTime | V::TotalTime => record.total_ms,
        V::Status => status(record),
        V::BytesOut => i64::try_from(record.bytes_out).unwrap_or(i64::MAX),
        V::BytesIn => i64::try_from(record.bytes_in).unwrap_or(i64::MAX),
        V::Active => i64::from(record.active),
        V::FrontendConns => i64::from(record.frontend_conns),
        V::BackendConns => i64::from(record.backend_conns),
        V::ServerConns => i64::from(record.server_conns),
        V::Pid => i64::from(context.pid),
        _ => 0,
    }
}

fn status(record: &Record) -> i64 {
    if record.status == 0 { -1 } else { i64::from(record.status) }
}

const BAD_REQUEST: &[u8] = b"<BADREQ>";

/// The parts of a request line as HAProxy cuts them (`log.c`, `LOG_FMT_HTTP_*`).
fn request_part(variable: Variable, line: &[u8]) -> &[u8] {
    if line.is_empty() {
        return BAD_REQUEST;
    }
    let (method, rest) = split_blank(line);
    let (uri, version) = split_blank(rest);
    let question = line.iter().position(|&byte| byte == b'?');
    match variable {
        Variable::Request => line,
        Variable::Query => question.map_or(b"", |at| split_blank(&line[at..]).0),
        _ if method.len() == line.len() => BAD_REQUEST,
        Variable::Method => method,
        Variable::Path => uri.split(|&byte| byte == b'?').next().unwrap_or(uri),
        Variable::Uri => uri,
        _ if version.is_empty() => b"HTTP/0.9",
        _ => version,
    }
}

/// What is before the first run of blanks, and what is after it.
fn split_blank(bytes: &[u8]) -> (&[u8], &[u8]) {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let end = bytes.iter().position(blank).unwrap_or(bytes.len());
    let rest = &bytes[end..];
    (&bytes[..end], &rest[rest.iter().position(|byte| !blank(byte)).unwrap_or(rest.len())..])
}

/// Encoded bytes of one text field; the request gets what the rest of a line leaves.
const FIELD: usize = 512;

fn json(record: &Record, context: &Context, out: &mut Vec<u8>) {
    let names = &context.names;
    let mut date = Vec::with_capacity(26);
    context.zone.with_offset(&mut date, record.accepted);
    let shown = |endpoint: Endpoint| endpoint.ip().map_or_else(|| String::from("unix"), |ip| ip.to_string());
    let (client, local) = (shown(record.client), shown(record.local));
    let numbers = [
        ("timestamp", epoch_seconds(record.accepted)),
        ("client_port", i64::from(record.client.port())),
        ("frontend_port", i64::from(record.local.port())),
        ("status", status(record)),
        ("bytes_out", numeric(Variable::BytesOut, record, context)),
        ("bytes_in", numeric(Variable::BytesIn, record, context)),
        ("time_request", record.request_ms),
        ("time_queue", record.queue_ms),
        ("time_connect", record.connect_ms),
        ("time_response", record.response_ms),
        ("time_total", record.total_ms),
        ("active_conns", i64::from(record.active)),
        ("frontend_conns", i64::from(record.frontend_conns)),
        ("backend_conns", i64::from(record.backend_conns)),
        ("server_conns", i64::from(record.server_conns)),
        ("retries", i64::from(record.retries)),
        ("pid", i64::from(context.pid)),
    ];
    let texts: [(&str, &[u8]); 8] = [
        ("date", &date),
        ("client_ip", client.as_bytes()),
        ("frontend_ip", local.as_bytes()),
        ("frontend", names.frontend(record.frontend).as_bytes()),
        ("backend", names.backend(record.backend, record.frontend).as_bytes()),
        ("server", names.server(record.backend, record.server).unwrap_or("<NOSRV>").as_bytes()),
        ("termination", &record.termination),
        ("method", request_part(Variable::Method, &record.request_line)),
    ];
    out.push(b'{');
    for (key, value) in numbers {
        json_key(out, key);
        out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        out.push(b',');
    }
    for (key, value) in [("tls", record.tls), ("redispatched", record.redispatched)] {
        json_key(out, key);
        out.extend_from_slice(if value { b"true," } else { b"false," });
    }
    for (key, value) in texts {
        json_key(out, key);
        escape::json(out, value, FIELD);
        out.push(b',');
    }
    json_key(out, "request");
    // Room for the priority, the tag and the closing members, so that no object is ever cut.
    let room = LONG.saturating_sub(out.len() + 256);
    let whole = escape::json(out, request_part(Variable::Request, &record.request_line), room);
    out.extend_from_slice(if whole { b"}" } else { b",\"truncated\":true}" });
}

pub(super) fn json_key(out: &mut Vec<u8>, key: &str) {
    out.push(b'"');
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}
