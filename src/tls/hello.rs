//! The name a TLS client asks for, read from its first message (RFC 8446 section 4.1.2, RFC 6066 section 3).
//! Called by `proxy` where connections are passed on still encrypted. Pure: never answers, never
//! judges what only the server behind has to understand.

use super::bytes::Reader;

/// Longest ClientHello that is waited for; with post-quantum key shares real ones have 2 KiB.
const MOST: usize = 16 * 1024;
/// Longest record (RFC 8446 section 5.1).
const RECORD: usize = 1 << 14;

/// What a client's first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// Not enough of them yet.
    Incomplete,
    /// No TLS, or broken.
    Alien,
    /// A ClientHello without a name, or with one that no DNS name can be.
    Anonymous,
    /// A ClientHello for this name, lower case.
    Name(String),
}

/// Reads a ClientHello, however it is cut into records.
#[must_use]
pub fn read_hello(bytes: &[u8]) -> Hello {
    let Some((handshake, whole)) = handshake(bytes) else { return Hello::Alien };
    let (kind, length) = match handshake[..] {
        [kind, a, b, c, ..] => (kind, usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)),
        [] => return Hello::Incomplete,
        [kind, ..] => (kind, 0),
    };
    if kind != 1 || length > MOST {
        return Hello::Alien;
    }
    match handshake.get(4..4 + length).filter(|_| handshake.len() >= 4) {
        Some(body) => client_hello(body).unwrap_or(Hello::Alien),
        // A handshake message that is not over when something else begins never will be.
        None if whole => Hello::Incomplete,
        None => Hello::Alien,
    }
}

/// The handshake bytes of all records that are there, and whether more may follow; `None` where there is
/// anything else than handshake records before enough of them.
fn handshake(bytes: &[u8]) -> Option<(Vec<u8>, bool)> {
    let (mut handshake, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() && !is_enough(&handshake) {
        if rest[0] != 22 || rest.get(1).is_some_and(|major| *major != 3) {
            return if handshake.is_empty() { None } else { Some((handshake, false)) };
        }
        let Some(length) = rest.get(3..5).map(|length| usize::from(length[0]) << 8 | usize::from(length[1])) else {
            break;
        };
        if length == 0 || length > RECORD {
            return None;
        }
        let end = rest.len().min(5 + length);
        handshake.extend_from_slice(&rest[5..end]);
        rest = &rest[end..];
    }
    Some((handshake, true))
}

/// Whether the first message is complete, or will never be read.
fn is_enough(handshake: &[u8]) -> bool {
    match handshake {
        [_, a, b, c, body @ ..] => {
            body.len() >= (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c)) || body.len() > MOST
        }
        _ => false,
    }
}

/// `None` where the message contradicts itself.
fn client_hello(body: &[u8]) -> Option<Hello> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    let session = reader.byte_vector()?;
    let suites = reader.short_vector()?;
    let compression = reader.byte_vector()?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compression.is_empty() {
        return None;
    }
    if reader.0.is_empty() {
        return Some(Hello::Anonymous);
    }
    let mut extensions = Reader(reader.short_vector()?);
    if !reader.0.is_empty() {
        return None;
    }
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.short()?;
        let value = extensions.short_vector()?;
        if kind == 0 && name.replace(server_name(value)?).is_some() {
            return None;
        }
    }
    Some(name.unwrap_or(Hello::Anonymous))
}

/// The first host name of the list; RFC 6066 allows one.
fn server_name(value: &[u8]) -> Option<Hello> {
    let mut whole = Reader(value);
    let mut list = Reader(whole.short_vector()?);
    if !whole.0.is_empty() || list.0.is_empty() {
        return None;
    }
    let mut found = None;
    while !list.0.is_empty() {
        let kind = list.take(1)?[0];
        let name = list.short_vector()?;
        if kind == 0 && found.replace(name).is_some() {
            return None;
        }
    }
    let is_name = |name: &&[u8]| {
        (1..=255).contains(&name.len())
            && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
    };
    let name = found.filter(is_name).and_then(|name| std::str::from_utf8(name).ok());
    Some(name.map_or(Hello::Anonymous, |name| Hello::Name(name.trim_end_matches('.').to_ascii_lowercase())))
}
