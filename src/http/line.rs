//! Lines of a head: where the head ends and what each field line holds (RFC 9112 sections 2 and 5).
//! Called by the request, response and trailer parsers.
//! Never repairs: a line that is not exactly right is refused.

use super::{Field, Name, Refusal, Span};

/// Limits on one head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the whole head, empty line included.
    pub size: usize,
    /// Field lines.
    pub fields: usize,
    /// Bytes of the request target.
    pub target: usize,
}

const TOKEN: u8 = 1;
const VALUE: u8 = 2;
const TARGET: u8 = 4;

/// Classes of every byte, so that a check is one load.
static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        if b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            )
        {
            table[byte] |= TOKEN;
        }
        if b == b'\t' || (b >= b' ' && b != 0x7f) {
            table[byte] |= VALUE;
        }
        if b > b' ' && b < 0x7f && b != b'#' {
            table[byte] |= TARGET;
        }
        byte += 1;
    }
    table
}

pub(super) fn is_token(byte: u8) -> bool {
    CLASS[byte as usize] & TOKEN != 0
}

pub(super) fn is_value(byte: u8) -> bool {
    CLASS[byte as usize] & VALUE != 0
}

pub(super) fn is_target(byte: u8) -> bool {
    CLASS[byte as usize] & TARGET != 0
}

/// Finds the end of the head that starts at `start` (offset past its empty line); `None` when it is not there yet.
/// Only line ends are looked at, so asking again after every read stays cheap.
pub(super) fn head_end(buf: &[u8], start: usize) -> Result<Option<usize>, Refusal> {
    let mut line = start;
    for lf in memchr::memchr_iter(b'\n', &buf[start..]).map(|at| at + start) {
        if lf == start || buf[lf - 1] != b'\r' {
            return Err(Refusal::BareLineEnd);
        }
        if lf == line + 1 {
            return Ok(Some(lf + 1));
        }
        line = lf + 1;
    }
    Ok(None)
}

/// Parses the field lines from `at` until the empty line, which `head_end` has found.
pub(super) fn parse_fields(buf: &[u8], mut at: usize, limit: usize, fields: &mut Vec<Field>) -> Result<(), Refusal> {
    loop {
        match buf.get(at) {
            Some(b'\r') => return if buf.get(at + 1) == Some(&b'\n') { Ok(()) } else { Err(Refusal::BareLineEnd) },
            Some(b' ' | b'\t') => return Err(Refusal::Folded),
            _ => {}
        }
        if fields.len() == limit {
            return Err(Refusal::TooManyFields);
        }
        let (field, next) = parse_field(buf, at)?;
        fields.push(field);
        at = next;
    }
}

/// Parses one field line; the offset returned is that of the next line.
pub(super) fn parse_field(buf: &[u8], start: usize) -> Result<(Field, usize), Refusal> {
    let rest = &buf[start..];
    let colon = rest.iter().position(|&b| !is_token(b)).ok_or(Refusal::FieldName)?;
    if colon == 0 || rest[colon] != b':' {
        return Err(Refusal::FieldName);
    }
    let blank = rest[colon + 1..].iter().take_while(|&&b| b == b' ' || b == b'\t').count();
    let value = colon + 1 + blank;
    let cr = value + rest[value..].iter().position(|&b| !is_value(b)).ok_or(Refusal::BareLineEnd)?;
    if rest[cr] != b'\r' {
        return Err(Refusal::FieldValue);
    }
    if rest.get(cr + 1) != Some(&b'\n') {
        return Err(Refusal::BareLineEnd);
    }
    let tail = rest[value..cr].iter().rev().take_while(|&&b| b == b' ' || b == b'\t').count();
    let field = Field {
        id: Name::of(&rest[..colon]),
        name: Span::new(start, start + colon),
        value: Span::new(start + value, start + cr - tail),
    };
    Ok((field, start + cr + 2))
}
