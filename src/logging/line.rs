//! One syslog line: RFC 3164 priority, time, tag and pid before the message, and its longest length.
//! Used by the log thread and the master's event log. Never touches a socket.
//!
//! The `syslog` crate's formatter is not used: on unix it stamps UTC where syslog daemons expect
//! local time, and pads the day with a zero where RFC 3164 section 4.1.2 demands a space.

use super::clock::Zone;
use super::escape;
use crate::config::{LogSink, LogTarget};

/// Syslog severity (RFC 5424 section 6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are syslog's")]
pub enum Severity {
    Emergency = 0,
    Alert = 1,
    Critical = 2,
    Error = 3,
    Warning = 4,
    Notice = 5,
    Info = 6,
    Debug = 7,
}

impl Severity {
    /// The severity of a number, the least urgent for one that is none.
    #[must_use]
    pub fn of(number: u8) -> Self {
        use Severity::{Alert, Critical, Debug, Emergency, Error, Info, Notice, Warning};
        let all = [Emergency, Alert, Critical, Error, Warning, Notice, Info];
        all.into_iter().find(|severity| *severity as u8 == number).unwrap_or(Debug)
    }
}

/// Longest line to a local socket, and longest JSON line anywhere: what rsyslog takes by default.
pub(super) const LONG: usize = 8192;
/// Longest text line over UDP: RFC 3164 section 4.1, and HAProxy's default `len`.
const SHORT: usize = 1024;

/// Longest line a target gets; a longer one is cut.
pub(super) fn longest(sink: &LogSink, json: bool) -> usize {
    match sink {
        LogSink::Udp(_) if !json => SHORT,
        _ => LONG,
    }
}

/// The part before the message; rebuilt only when the second or the severity changes.
#[derive(Debug)]
pub(super) struct Prefix {
    facility: u8,
    tag: String,
    pid: u32,
    made_for: Option<(i64, Severity)>,
    text: Vec<u8>,
}

impl Prefix {
    pub(super) fn of(target: &LogTarget, pid: u32) -> Self {
        Self { facility: target.facility, tag: target.tag.clone(), pid, made_for: None, text: Vec::new() }
    }

    /// `<134>Nov  3 09:08:07 proxy[42]: `.
    pub(super) fn at(&mut self, zone: &Zone, second: i64, severity: Severity) -> &[u8] {
        if self.made_for != Some((second, severity)) {
            self.made_for = Some((second, severity));
            let priority = u32::from(self.facility) * 8 + u32::from(severity as u8);
            self.text.clear();
            self.text.push(b'<');
            self.text.extend_from_slice(itoa::Buffer::new().format(priority).as_bytes());
            self.text.push(b'>');
            zone.rfc3164(&mut self.text, second);
            self.text.push(b' ');
            escape::event(&mut self.text, &self.tag);
            self.text.push(b'[');
            self.text.extend_from_slice(itoa::Buffer::new().format(self.pid).as_bytes());
            self.text.extend_from_slice(b"]: ");
        }
        &self.text
    }
}

/// Cuts a line, never inside a UTF-8 character.
pub(super) fn cut(line: &mut Vec<u8>, longest: usize) {
    if line.len() > longest {
        let mut end = longest;
        while end > 0 && line[end] & 0xC0 == 0x80 {
            end -= 1;
        }
        line.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_between_characters() {
        for (longest, expected) in [(2, "a"), (3, "aé"), (4, "aéb"), (5, "aéb")] {
            let mut line = "aéb".as_bytes().to_vec();
            cut(&mut line, longest);
            assert_eq!(line, expected.as_bytes(), "{longest}");
        }
    }
}
