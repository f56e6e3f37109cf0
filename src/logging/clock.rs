//! Local time for log lines, without asking the C library from a threaded process.
//! Used by every formatter of this layer. Never reads the time-zone files after start.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, UtcOffset};

const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
const WEEK: i64 = 7 * 86_400;
/// A worker lives until the next reload; five years of clock changes outlast it.
const WEEKS: i64 = 5 * 53;

/// The offsets from UTC of the local time zone from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// First second (epoch) of an offset, ascending; the first entry also covers all before it.
    changes: Vec<(i64, UtcOffset)>,
}

impl Zone {
    /// The process's local zone. The first caller settles it, and has to be alone in the process:
    /// `localtime_r` reads the environment, so the `time` crate refuses it beside other threads
    /// and the zone is then UTC. Call it at the start of `main`, before chroot.
    pub fn local() -> &'static Self {
        static LOCAL: OnceLock<Zone> = OnceLock::new();
        LOCAL.get_or_init(|| Self::sampled(epoch_seconds(SystemTime::now()), local_offset))
    }

    /// Greenwich.
    #[must_use]
    pub fn utc() -> Self {
        Self { changes: vec![(0, UtcOffset::UTC)] }
    }

    /// Finds the changes ahead by weekly samples, each narrowed to the second: no zone changes
    /// its clock twice within a week.
    fn sampled(from: i64, offset_at: impl Fn(i64) -> Option<UtcOffset>) -> Self {
        let Some(mut offset) = offset_at(from) else { return Self::utc() };
        let mut changes = vec![(from, offset)];
        for week in 0..WEEKS {
            let (mut before, mut after) = (from + week * WEEK, from + (week + 1) * WEEK);
            let next = offset_at(after).unwrap_or(offset);
            if next == offset {
                continue;
            }
            while after - before > 1 {
                let middle = before + (after - before) / 2;
                if offset_at(middle) == Some(offset) { before = middle } else { after = middle }
            }
            changes.push((after, next));
            offset = next;
        }
        Self { changes }
    }

    fn offset(&self, second: i64) -> UtcOffset {
        let place = self.changes.partition_point(|(from, _)| *from <= second);
        self.changes.get(place.saturating_sub(1)).map_or(UtcOffset::UTC, |(_, offset)| *offset)
    }

    fn moment(&self, second: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(second).unwrap_or(OffsetDateTime::UNIX_EPOCH).to_offset(self.offset(second))
    }

    /// `Nov  3 09:08:07`, as RFC 3164 section 4.1.2 wants it: the day padded with a space.
    pub(super) fn rfc3164(&self, out: &mut Vec<u8>, second: i64) {
        let at = self.moment(second);
        out.extend_from_slice(month(at));
        out.extend([b' ', if at.day() < 10 { b' ' } else { b'0' + at.day() / 10 }, b'0' + at.day() % 10, b' ']);
        clock(out, at);
    }

    /// `03/Nov/2026:09:08:07.123`, HAProxy's `%t`.
    pub(super) fn with_milliseconds(&self, out: &mut Vec<u8>, time: SystemTime) {
        date(out, self.moment(epoch_seconds(time)));
        out.push(b'.');
        milliseconds(out, time);
    }

    /// `03/Nov/2026:09:08:07 +0100`, HAProxy's `%Tl`.
    pub(super) fn with_offset(&self, out: &mut Vec<u8>, time: SystemTime) {
        let at = self.moment(epoch_seconds(time));
        date(out, at);
        let (hours, minutes, _) = at.offset().as_hms();
        out.extend([b' ', if at.offset().is_negative() { b'-' } else { b'+' }]);
        two(out, hours.unsigned_abs());
        two(out, minutes.unsigned_abs());
    }
}

/// Whole seconds since the epoch; 0 before it.
pub(super) fn epoch_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0))
}

/// The three digits of `%ms`.
pub(super) fn milliseconds(out: &mut Vec<u8>, time: SystemTime) {
    let millis = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_millis());
    for digit in [millis / 100, millis / 10 % 10, millis % 10] {
        out.push(b'0' + u8::try_from(digit).unwrap_or(0));
    }
}

fn local_offset(second: i64) -> Option<UtcOffset> {
    UtcOffset::local_offset_at(OffsetDateTime::from_unix_timestamp(second).ok()?).ok()
}

fn month(at: OffsetDateTime) -> &'static [u8; 3] {
    MONTHS[usize::from(u8::from(at.month()) - 1)]
}

fn date(out: &mut Vec<u8>, at: OffsetDateTime) {
    two(out, at.day());
    out.push(b'/');
    out.extend_from_slice(month(at));
    out.push(b'/');
    out.extend_from_slice(itoa::Buffer::new().format(at.year()).as_bytes());
    out.push(b':');
    clock(out, at);
}

fn clock(out: &mut Vec<u8>, at: OffsetDateTime) {
    two(out, at.hour());
    out.push(b':');
    two(out, at.minute());
    out.push(b':');
    two(out, at.second());
}

fn two(out: &mut Vec<u8>, number: u8) {
    out.extend([b'0' + number / 10, b'0' + number % 10]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_clock_is_found_to_the_second() {
        let winter = UtcOffset::from_hms(1, 0, 0).unwrap();
        let summer = UtcOffset::from_hms(2, 0, 0).unwrap();
        let change = 1_800_012_345;
        let zone = Zone::sampled(1_790_000_000, |at| Some(if at < change { winter } else { summer }));
        assert_eq!(zone.changes, [(1_790_000_000, winter), (change, summer)]);
        assert_eq!(zone.offset(change - 1), winter);
        assert_eq!(zone.offset(change), summer);
        assert_eq!(zone.offset(0), winter);
        assert_eq!(Zone::sampled(0, |_| None), Zone::utc());
    }

    #[test]
    fn dates_are_padded_as_syslog_and_haproxy_pad_them() {
        let mut out = Vec::new();
        let zone = Zone::sampled(0, |_| UtcOffset::from_hms(-3, -30, 0).ok());
        let time = UNIX_EPOCH + std::time::Duration::from_millis(1_793_694_727_045);
        zone.rfc3164(&mut out, epoch_seconds(time));
        out.push(b'|');
        zone.with_milliseconds(&mut out, time);
        out.push(b'|');
        zone.with_offset(&mut out, time);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "Nov  3 05:02:07|03/Nov/2026:05:02:07.045|03/Nov/2026:05:02:07 -0330");
    }
}
