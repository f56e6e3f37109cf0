//! Chunked transfer coding (RFC 9112 section 7.1), both directions.
//! Called by `proxy` with body bytes as they arrive.
//! Never forwards sizes, extensions or trailers as received: everything is written anew.

use std::borrow::Cow;
use std::io::Write as _;
use std::ops::Range;

use super::line::{is_value, parse_field};
use super::{Name, Refusal};

const MAX_DIGITS: u8 = 16;
/// Bytes of one chunk's extension.
const MAX_EXTENSION: u16 = 256;
/// Bytes of extensions a body may hold beyond twice its data: one that is mostly extensions is an attack.
const MAX_EXTENSIONS: u64 = 16 * 1024;
const MAX_TRAILERS: usize = 8192;

/// What one call of [`Chunked::decode`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Bytes of the input that are done with, data included.
    pub consumed: usize,
    /// Body bytes within the input; may be empty.
    pub data: Range<usize>,
    /// The body and its trailers are complete.
    pub done: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Size { value: u64, digits: u8 },
    Extension { value: u64, len: u16 },
    SizeLf { value: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailers,
    Done,
}

/// Incremental, strict decoder of one chunked body.
#[derive(Debug)]
pub struct Chunked {
    state: State,
    /// Trailer line that has not ended yet.
    line: Vec<u8>,
    /// Bytes of the trailer section so far, dropped fields included.
    seen: usize,
    trailers: Vec<u8>,
    /// Names of fields that do not pass.
    dropped: Vec<String>,
    /// Bytes of extensions so far that no data made up for.
    extensions: u64,
}

impl Default for Chunked {
    fn default() -> Self {
        Self::new()
    }
}

impl Chunked {
    /// A decoder at the start of a body.
    #[must_use]
    pub fn new() -> Self {
        let state = State::Size { value: 0, digits: 0 };
        Self { state, line: Vec::new(), seen: 0, trailers: Vec::new(), dropped: Vec::new(), extensions: 0 }
    }

    /// Lets no trailer of these names pass: what an operator removes from the header must not come back
    /// behind the body.
    pub fn drop_trailers(&mut self, names: impl Iterator<Item = String>) {
        self.dropped.extend(names);
    }

    /// Decodes until the next piece of data, the end of the body or the end of the input.
    ///
    /// # Errors
    /// Any deviation from the grammar, oversized extensions and trailers.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, Refusal> {
        let mut at = 0;
        while at < input.len() {
            match self.state {
                State::Done => break,
                State::Data { left } => {
                    let len = usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - at);
                    let left = left - len as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                    return Ok(Decoded { consumed: at + len, data: at..at + len, done: false });
                }
                State::Trailers => at += self.take_trailers(&input[at..])?,
                state => {
                    self.state = step(state, input[at])?;
                    at += 1;
                    if let (State::Extension { value, len }, State::SizeLf { .. }) = (state, self.state) {
                        self.charge(value, len)?;
                    }
                }
            }
        }
        Ok(Decoded { consumed: at, data: at..at, done: matches!(self.state, State::Done) })
    }

    /// Trailer fields worth passing on, `Name: value\r\n` each, without the final empty line.
    #[must_use]
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// Counts an extension of `len` bytes before `size` bytes of data (RFC 9112 section 7.1.1 asks for a limit).
    fn charge(&mut self, size: u64, len: u16) -> Result<(), Refusal> {
        self.extensions = (self.extensions + u64::from(len)).saturating_sub(size.saturating_mul(2));
        if self.extensions > MAX_EXTENSIONS { Err(Refusal::ChunkExtension) } else { Ok(()) }
    }

    /// Takes at most one trailer line and returns the bytes used.
    fn take_trailers(&mut self, input: &[u8]) -> Result<usize, Refusal> {
        let lf = memchr::memchr(b'\n', input);
        let used = lf.map_or(input.len(), |lf| lf + 1);
        self.seen += used;
        if self.seen > MAX_TRAILERS {
            return Err(Refusal::TrailersTooLarge);
        }
        self.line.extend_from_slice(&input[..used]);
        if lf.is_none() {
            return Ok(used);
        }
        match self.line.as_slice() {
            b"\r\n" => self.state = State::Done,
            [b' ' | b'\t', ..] => return Err(Refusal::Folded),
            line => {
                let (field, _) = parse_field(line, 0)?;
                let name = field.name.of(line);
                let dropped = self.dropped.iter().any(|dropped| dropped.as_bytes().eq_ignore_ascii_case(name));
                if may_trail(name, field.id) && !dropped {
                    write_field(&mut self.trailers, name, field.value.of(line));
                }
            }
        }
        self.line.clear();
        Ok(used)
    }
}

fn step(state: State, byte: u8) -> Result<State, Refusal> {
    match (state, byte) {
        (State::Size { value, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if digits < MAX_DIGITS => {
            let digit = (byte as char).to_digit(16).ok_or(Refusal::ChunkSize)?;
            Ok(State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 })
        }
        (State::Size { value, digits: 1.. }, b'\r') => Ok(State::SizeLf { value }),
        (State::Size { value, digits: 1.. }, b';') => Ok(State::Extension { value, len: 0 }),
        (State::Size { .. }, _) => Err(Refusal::ChunkSize),
        (State::Extension { value, len: 1.. }, b'\r') => Ok(State::SizeLf { value }),
        (State::Extension { value, len }, _) if is_value(byte) && len < MAX_EXTENSION => {
            Ok(State::Extension { value, len: len + 1 })
        }
        (State::Extension { .. }, _) => Err(Refusal::ChunkExtension),
        (State::SizeLf { value: 0 }, b'\n') => Ok(State::Trailers),
        (State::SizeLf { value }, b'\n') => Ok(State::Data { left: value }),
        (State::SizeLf { .. }, _) => Err(Refusal::ChunkSize),
        (State::DataCr, b'\r') => Ok(State::DataLf),
        (State::DataLf, b'\n') => Ok(State::Size { value: 0, digits: 0 }),
        _ => Err(Refusal::ChunkEnd),
    }
}

/// Fields that frame, route, authenticate or describe content may not trail (RFC 9110 section 6.5.1).
pub(super) fn may_trail(name: &[u8], id: Name) -> bool {
    const FORBIDDEN: [&[u8]; 14] = [
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"cookie",
        b"forwarded",
        b"location",
        b"max-forwards",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"set-cookie",
        b"www-authenticate",
        b"x-forwarded-for",
    ];
    id == Name::Other && !FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden))
}

pub(super) fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Lines of a trailer section without those of these names.
#[must_use]
pub fn without_fields<'a>(lines: &'a [u8], dropped: &[String]) -> Cow<'a, [u8]> {
    if dropped.is_empty() || lines.is_empty() {
        return Cow::Borrowed(lines);
    }
    let mut kept = Vec::new();
    let mut at = 0;
    while let Ok((field, next)) = parse_field(lines, at) {
        let name = field.name.of(lines);
        if !dropped.iter().any(|dropped| dropped.as_bytes().eq_ignore_ascii_case(name)) {
            kept.extend_from_slice(&lines[at..next]);
        }
        at = next;
        if at == lines.len() {
            break;
        }
    }
    Cow::Owned(kept)
}

/// Writes `1f\r\n`; the caller appends the data and `\r\n`. `len` must not be 0, that is the last chunk.
pub fn write_chunk_header(out: &mut Vec<u8>, len: usize) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{len:x}\r\n");
}

/// Writes the last chunk, `trailers` (see [`Chunked::trailers`]) and the final empty line.
pub fn write_last_chunk(out: &mut Vec<u8>, trailers: &[u8]) {
    out.extend_from_slice(b"0\r\n");
    out.extend_from_slice(trailers);
    out.extend_from_slice(b"\r\n");
}
