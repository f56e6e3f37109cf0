//! PROXY headers: what more bytes cannot change is never said too early, what is said never changes, and whatever is
//! written is read as what it was written of.

use std::net::SocketAddr;

use proxy::config::SendProxy;
use proxy::socket::{Secrecy, introduce, read_introduction};

/// Longest header of either version.
const LONGEST: [usize; 2] = [107, 16 * 1024];

pub fn holds(bytes: &[u8]) {
    let whole = read_introduction(bytes);
    for end in 0..bytes.len() {
        match read_introduction(&bytes[..end]) {
            Ok(None) => {}
            part => assert_eq!(part, whole, "after {end} bytes"),
        }
    }
    if let Ok(Some(header)) = whole {
        let said = &bytes[..header.length];
        let binary = said.starts_with(b"\r\n");
        assert!(said.len() <= LONGEST[usize::from(binary)]);
        assert_eq!(read_introduction(said), whole, "what follows is not looked at");
        if let Some(addresses) = header.addresses {
            is_said_as_we_would(said, addresses);
            is_understood(addresses, None);
        }
    }
    if let Some((addresses, secrecy)) = made_of(bytes) {
        is_understood(addresses, Some(&secrecy));
    }
}

/// There is one way to say the addresses, but for the text of IPv6 and values of version 2.
fn is_said_as_we_would(said: &[u8], addresses: (SocketAddr, SocketAddr)) {
    if said.starts_with(b"\r\n") {
        let ours = introduce(SendProxy::V2, addresses, None);
        assert_eq!(ours[..14], said[..14]);
        assert_eq!(ours[16..], said[16..ours.len()]);
    } else if addresses.0.is_ipv4() {
        assert_eq!(introduce(SendProxy::V1, addresses, None), said);
    }
}

fn is_understood(addresses: (SocketAddr, SocketAddr), secrecy: Option<&Secrecy>) {
    for (version, longest) in [SendProxy::V1, SendProxy::V2].into_iter().zip(LONGEST) {
        let written = introduce(version, addresses, secrecy);
        assert!(written.len() <= longest);
        let read = read_introduction(&written).expect("valid").expect("complete");
        assert_eq!((read.length, read.addresses.map(mapped)), (written.len(), Some(mapped(addresses))));
    }
}

/// Of two kinds the older one is written as the newer one.
fn mapped((one, other): (SocketAddr, SocketAddr)) -> (SocketAddr, SocketAddr) {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    (canonical(one), canonical(other))
}

/// Two ends of a connection and a client's TLS, of whatever bytes.
fn made_of(bytes: &[u8]) -> Option<((SocketAddr, SocketAddr), Secrecy)> {
    let (kinds, bytes) = bytes.split_first()?;
    let (source, bytes) = address(kinds & 1 != 0, bytes)?;
    let (destination, bytes) = address(kinds & 2 != 0, bytes)?;
    let (times, value) = bytes.split_first()?;
    let value = value.repeat(usize::from(*times));
    let text = String::from_utf8_lossy(&value).into_owned();
    let secrecy = Secrecy {
        version: "TLSv1.3",
        cipher: if kinds & 4 != 0 { text.clone() } else { String::new() },
        alpn: (kinds & 8 != 0).then(|| value.clone()),
        authority: (kinds & 16 != 0).then_some(text),
        certificate: (kinds & 32 != 0).then(|| (kinds & 64 != 0).then_some(value)),
    };
    Some(((source, destination), secrecy))
}

fn address(sixth: bool, bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (ip, bytes) = if sixth {
        let (ip, rest) = bytes.split_first_chunk::<16>()?;
        (std::net::IpAddr::from(*ip), rest)
    } else {
        let (ip, rest) = bytes.split_first_chunk::<4>()?;
        (std::net::IpAddr::from(*ip), rest)
    };
    let (port, bytes) = bytes.split_first_chunk::<2>()?;
    Some((SocketAddr::new(ip, u16::from_be_bytes(*port)), bytes))
}
