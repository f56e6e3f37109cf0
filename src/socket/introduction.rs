//! The PROXY protocol as we read it, versions 1 and 2: who a connection is for, said by whoever passes it on.
//! Read by `proxy` from named sources. Pure: bytes in, value out. Never believes a header that contradicts itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// First bytes of a version 2 header.
pub(super) const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// First bytes of a version 1 header.
const WORD: &[u8] = b"PROXY ";
/// Longest version 1 header, line end included.
const LONGEST_LINE: usize = 107;
/// Longest version 2 header that is waited for: room for the certificate of a client.
pub const LONGEST: usize = 16 * 1024;

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Introduction {
    /// Bytes it takes; what follows is the connection's own.
    pub length: usize,
    /// Source and destination; `None` where the connection is the sender's own (LOCAL), or of a kind that
    /// has no such addresses (UNKNOWN, Unix sockets, datagrams).
    pub addresses: Option<(SocketAddr, SocketAddr)>,
}

/// Why a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadIntroduction {
    /// Something else than a header came first.
    #[error("no PROXY header")]
    Alien,
    /// The line of version 1 is not as it has to be.
    #[error("malformed PROXY line")]
    Line,
    /// A version, command or family that does not exist.
    #[error("unknown kind of PROXY header")]
    Kind,
    /// Addresses or values reach beyond the header's end, or the header is longer than anybody needs.
    #[error("impossible length in a PROXY header")]
    Length,
    /// It was damaged on the way.
    #[error("checksum of a PROXY header is wrong")]
    Checksum,
}

/// Reads a header; `None` when more bytes are needed.
///
/// # Errors
/// Bytes that no header begins with, or a header that is not valid.
pub fn read_introduction(bytes: &[u8]) -> Result<Option<Introduction>, BadIntroduction> {
    if begins(bytes, &SIGNATURE) {
        binary(bytes)
    } else if begins(bytes, WORD) {
        line(bytes)
    } else {
        Err(BadIntroduction::Alien)
    }
}

/// Whether as much of `bytes` as there is agrees with the start.
fn begins(bytes: &[u8], start: &[u8]) -> bool {
    let length = bytes.len().min(start.len());
    bytes[..length] == start[..length]
}

/// Version 1: `PROXY TCP4 source destination port port`, single spaces, CR LF.
fn line(bytes: &[u8]) -> Result<Option<Introduction>, BadIntroduction> {
    let within = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = within.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if within.len() == LONGEST_LINE { Err(BadIntroduction::Line) } else { Ok(None) };
    };
    match within.get(end..end + 2) {
        Some(b"\r\n") => {}
        None if within[end] == b'\r' && within.len() < LONGEST_LINE => return Ok(None),
        _ => return Err(BadIntroduction::Line),
    }
    let text = std::str::from_utf8(&within[WORD.len()..end]).map_err(|_not_ascii| BadIntroduction::Line)?;
    let length = end + 2;
    // What follows the word is to be ignored.
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Ok(Some(Introduction { length, addresses: None }));
    }
    let addresses = addresses(text).ok_or(BadIntroduction::Line)?;
    Ok(Some(Introduction { length, addresses: Some(addresses) }))
}

fn addresses(text: &str) -> Option<(SocketAddr, SocketAddr)> {
    let mut words = text.split(' ');
    let parse: fn(&str) -> Option<IpAddr> = match words.next()? {
        "TCP4" => |word| word.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => |word| word.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => return None,
    };
    let (source, destination) = (parse(words.next()?)?, parse(words.next()?)?);
    let (from, to) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then(|| (SocketAddr::new(source, from), SocketAddr::new(destination, to)))
}

/// A port in decimal, without sign or needless zeros.
fn port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    if plain { word.parse().ok() } else { None }
}

/// Version 2: signature, version and command, family, length, addresses, values.
fn binary(bytes: &[u8]) -> Result<Option<Introduction>, BadIntroduction> {
    let Some([command, family, high, low]) = bytes.get(12..16) else {
        // A wrong version need not be waited for.
        return match bytes.get(12) {
            Some(command) if command >> 4 != 2 => Err(BadIntroduction::Kind),
            _ => Ok(None),
        };
    };
    // "Receivers must drop connections presenting unexpected values" of command, family or protocol.
    if command >> 4 != 2 || command & 15 > 1 || family >> 4 > 3 || family & 15 > 2 {
        return Err(BadIntroduction::Kind);
    }
    let length = 16 + (usize::from(*high) << 8 | usize::from(*low));
    if length > LONGEST {
        return Err(BadIntroduction::Length);
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    if command & 15 == 0 {
        return Ok(Some(Introduction { length, addresses: None }));
    }
    let (addresses, size) = match (family, &header[16..]) {
        (0x11, rest) => (pair::<4>(rest), 12),
        (0x21, rest) => (pair::<16>(rest), 36),
        // Of a Unix socket, or of datagrams: nothing that a TCP client could be called by.
        (family, _) => (
            None,
            match family >> 4 {
                1 => 12,
                2 => 36,
                3 => 216,
                _ => 0,
            },
        ),
    };
    let values = header.get(16 + size..).ok_or(BadIntroduction::Length)?;
    check_values(header, values)?;
    Ok(Some(Introduction { length, addresses }))
}

/// Source and destination, then their ports.
fn pair<const SIZE: usize>(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)>
where
    IpAddr: From<[u8; SIZE]>,
{
    let ip = |at: usize| <[u8; SIZE]>::try_from(bytes.get(at..at + SIZE)?).ok().map(IpAddr::from);
    let port = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let source = SocketAddr::new(ip(0)?, port(2 * SIZE)?);
    Some((source, SocketAddr::new(ip(SIZE)?, port(2 * SIZE + 2)?)))
}

/// The value that is a checksum of the header.
const CHECKSUM: u8 = 0x03;

/// Walks the values, of which only the checksum means something here.
fn check_values(header: &[u8], mut values: &[u8]) -> Result<(), BadIntroduction> {
    while let [kind, high, low, rest @ ..] = values {
        let length = usize::from(*high) << 8 | usize::from(*low);
        let (value, behind) = rest.split_at_checked(length).ok_or(BadIntroduction::Length)?;
        if *kind == CHECKSUM {
            let told = <[u8; 4]>::try_from(value).map_err(|_size| BadIntroduction::Length)?;
            // Computed over the whole header, its own place taken as zeros.
            let at = header.len() - behind.len() - 4;
            let parts = [&header[..at], &[0; 4], behind];
            if crc32c(parts) != u32::from_be_bytes(told) {
                return Err(BadIntroduction::Checksum);
            }
        }
        values = behind;
    }
    if values.is_empty() { Ok(()) } else { Err(BadIntroduction::Length) }
}

/// CRC-32C (RFC 3720, appendix B.4), bit by bit: a header is short and rarely has one.
fn crc32c(parts: [&[u8]; 3]) -> u32 {
    let bytes = parts.into_iter().flatten();
    !bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & 0_u32.wrapping_sub(crc & 1)))
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::socket::introduce::binary_header as v2;

    pub(in crate::socket) fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Every cut of a good header is waited for; with anything behind it is the same header.
    pub(in crate::socket) fn read(header: &[u8]) -> Introduction {
        for length in 0..header.len() {
            assert_eq!(read_introduction(&header[..length]), Ok(None), "after {length} bytes");
        }
        let whole = read_introduction(header).unwrap().unwrap();
        let followed = [header, b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(read_introduction(&followed), Ok(Some(whole)));
        assert_eq!(whole.length, header.len());
        whole
    }

    #[test]
    fn a_line_says_who_is_there() {
        let addresses = read(b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n").addresses;
        assert_eq!(addresses, Some((at("192.0.2.1:56324"), at("198.51.100.7:443"))));
        let addresses = read(b"PROXY TCP6 2001:db8::1 ::1 0 65535\r\n").addresses;
        assert_eq!(addresses, Some((at("[2001:db8::1]:0"), at("[::1]:65535"))));
        for unknown in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN ffff::1 ::1 1 2\r\n", b"PROXY UNKNOWN  x\r\n"] {
            assert_eq!(read(unknown).addresses, None);
        }
        let longest = format!("PROXY TCP6 {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
        assert!(longest.len() <= LONGEST_LINE && read(longest.as_bytes()).addresses.is_some());
    }

    #[test]
    fn a_line_that_is_not_as_it_has_to_be_is_refused() {
        for text in [
            "PROXY TCP4 192.0.2.1 198.51.100.7 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 1\r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.7 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 \r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 56324 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 +1 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 01 443\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.7 1 443\r\n",
            "PROXY TCP4 ::1 ::1 1 443\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.7 1 443\r\n",
            "PROXY TCP6 ::1%lo ::1 1 443\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.7 1 443\r\n",
            "PROXY UNKNOWNx\r\n",
            "PROXY \r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\rx",
            "PROXY TCP4\t192.0.2.1 198.51.100.7 1 443\r\n",
        ] {
            assert_eq!(read_introduction(text.as_bytes()), Err(BadIntroduction::Line), "{text:?}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(LONGEST_LINE));
        assert_eq!(read_introduction(endless.as_bytes()), Err(BadIntroduction::Line));
        let edge = &endless.as_bytes()[..LONGEST_LINE - 1];
        assert_eq!(read_introduction(edge), Ok(None));
        assert_eq!(read_introduction(&[edge, b"\r"].concat()), Err(BadIntroduction::Line), "no room for its LF");
        for alien in [&b"GET / HTTP/1.1\r\n"[..], b"proxy TCP4", b"PROXYTCP4", b"\r\n\r\n\0\r\nQUIT\r", b"\x16\x03\x01"]
        {
            assert_eq!(read_introduction(alien), Err(BadIntroduction::Alien), "{alien:?}");
        }
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0xDC, 4, 1, 0xBB];

    #[test]
    fn bytes_say_who_is_there() {
        assert_eq!(read(&v2(0x21, 0x11, &V4)).addresses, Some((at("192.0.2.1:56324"), at("198.51.100.7:443"))));
        let source = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets();
        let six = [&source[..], &Ipv6Addr::LOCALHOST.octets(), &[0, 1, 0, 2]].concat();
        assert_eq!(read(&v2(0x21, 0x21, &six)).addresses, Some((at("[2001:db8::1]:1"), at("[::1]:2"))));
        let with_values = [&V4[..], &[4, 0, 2, 0, 0], &[2, 0, 1, b'a'], &[0xEE, 0, 0]].concat();
        assert!(read(&v2(0x21, 0x11, &with_values)).addresses.is_some());
        for (command, family, body) in [
            (0x20, 0x00, &[][..]),
            (0x20, 0x11, &V4[..]),
            // Whatever a LOCAL header carries is skipped.
            (0x20, 0x11, &[1, 2, 3]),
            (0x21, 0x00, &[]),
            (0x21, 0x12, &V4),
            (0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(read(&v2(command, family, body)).addresses, None, "{command:#x} {family:#x}");
        }
    }

    #[test]
    fn bytes_that_contradict_themselves_are_refused() {
        use BadIntroduction::{Kind, Length};
        let value_too_long = [&V4[..], &[2, 0, 5, b'a']].concat();
        let half_a_value = [&V4[..], &[2, 0]].concat();
        for (command, family, body, expected) in [
            (0x11, 0x11, &V4[..], Kind),
            (0x31, 0x11, &V4, Kind),
            (0x22, 0x11, &V4, Kind),
            (0x21, 0x41, &V4, Kind),
            (0x21, 0x13, &V4, Kind),
            (0x21, 0x11, &V4[..11], Length),
            (0x21, 0x11, &[], Length),
            (0x21, 0x21, &V4, Length),
            (0x21, 0x31, &V4, Length),
            (0x21, 0x11, &value_too_long, Length),
            (0x21, 0x11, &half_a_value, Length),
        ] {
            assert_eq!(
                read_introduction(&v2(command, family, body)),
                Err(expected),
                "{command:#x} {family:#x} {body:?}"
            );
        }
        let mut endless = v2(0x21, 0x11, &V4);
        (endless[14], endless[15]) = (0xFF, 0xFF);
        assert_eq!(read_introduction(&endless), Err(Length));
        assert_eq!(read_introduction(&[&SIGNATURE[..], &[0x41]].concat()), Err(Kind), "not waited for");
    }

    #[test]
    fn a_checksum_that_is_there_has_to_be_right() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c([&[0; 32], &[], &[]]), 0x8A91_36AA);
        assert_eq!(crc32c([&[0xFF; 16], &[0xFF; 16], &[]]), 0x62A8_AB43);
        let body = [&V4[..], &[3, 0, 4, 0, 0, 0, 0], &[2, 0, 1, b'a']].concat();
        let mut header = v2(0x21, 0x11, &body);
        let sum = crc32c([&header, &[], &[]]);
        header[31..35].copy_from_slice(&sum.to_be_bytes());
        assert!(read(&header).addresses.is_some());
        // Without the byte that says so there is none.
        for place in (16..header.len()).filter(|place| *place != 28) {
            let mut damaged = header.clone();
            damaged[place] ^= 1;
            assert!(read_introduction(&damaged).is_err(), "byte {place}");
        }
        let short = [&V4[..], &[3, 0, 3, 0, 0, 0]].concat();
        assert_eq!(read_introduction(&v2(0x21, 0x11, &short)), Err(BadIntroduction::Length));
    }
}
