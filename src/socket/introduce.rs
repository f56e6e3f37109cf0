//! The PROXY protocol as we write it, versions 1 and 2, with what is known of a client's TLS.
//! Written by `upstream` and `proxy` to servers that are to know whom a connection is for. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::introduction::{LONGEST, SIGNATURE};
use crate::config::SendProxy;

const ALPN: u8 = 0x01;
const AUTHORITY: u8 = 0x02;
const SSL: u8 = 0x20;
const SSL_VERSION: u8 = 0x21;
const SSL_CN: u8 = 0x22;
const SSL_CIPHER: u8 = 0x23;

/// What is known of a client's TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Secrecy {
    /// `TLSv1.3`.
    pub version: &'static str,
    /// As OpenSSL calls it.
    pub cipher: String,
    /// The application protocol that was agreed on.
    pub alpn: Option<Vec<u8>>,
    /// The name that was asked for.
    pub authority: Option<String>,
    /// Whether a certificate was shown, and its common name if it has one.
    pub certificate: Option<Option<Vec<u8>>>,
}

/// A header for a connection from `source` to `destination`.
#[must_use]
pub fn introduce(
    version: SendProxy,
    (source, destination): (SocketAddr, SocketAddr),
    secrecy: Option<&Secrecy>,
) -> Vec<u8> {
    let both = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Both::V4(source, destination),
        // Of two kinds the older one is written as the newer one.
        (source, destination) => Both::V6(sixth(source), sixth(destination)),
    };
    let ports = (source.port(), destination.port());
    match version {
        SendProxy::V1 => both.line(ports),
        SendProxy::V2 => {
            let mut body = both.bytes(ports);
            if let Some(secrecy) = secrecy {
                secrecy.write(&mut body);
            }
            binary_header(0x21, both.family(), &body)
        }
    }
}

/// A header for a connection of our own, such as a health check.
#[must_use]
pub fn introduce_self(version: SendProxy) -> Vec<u8> {
    match version {
        SendProxy::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
        SendProxy::V2 => binary_header(0x20, 0, &[]),
    }
}

enum Both {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl Both {
    fn family(&self) -> u8 {
        match self {
            Self::V4(..) => 0x11,
            Self::V6(..) => 0x21,
        }
    }

    fn line(&self, (from, to): (u16, u16)) -> Vec<u8> {
        match self {
            Self::V4(source, destination) => format!("PROXY TCP4 {source} {destination} {from} {to}\r\n"),
            Self::V6(source, destination) => format!("PROXY TCP6 {source} {destination} {from} {to}\r\n"),
        }
        .into_bytes()
    }

    fn bytes(&self, (from, to): (u16, u16)) -> Vec<u8> {
        let mut bytes = match self {
            Self::V4(source, destination) => [source.octets(), destination.octets()].concat(),
            Self::V6(source, destination) => [source.octets(), destination.octets()].concat(),
        };
        bytes.extend(from.to_be_bytes());
        bytes.extend(to.to_be_bytes());
        bytes
    }
}

fn sixth(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

impl Secrecy {
    fn write(&self, body: &mut Vec<u8>) {
        if let Some(alpn) = &self.alpn {
            value(body, ALPN, alpn);
        }
        if let Some(authority) = &self.authority {
            value(body, AUTHORITY, authority.as_bytes());
        }
        // Over TLS; with a certificate, shown on this connection and in this session.
        let client = if self.certificate.is_some() { 0x07 } else { 0x01 };
        // 0: what was shown was believed, and where nothing was shown nothing was missing.
        let mut inside = vec![client, 0, 0, 0, 0];
        value(&mut inside, SSL_VERSION, self.version.as_bytes());
        value(&mut inside, SSL_CIPHER, self.cipher.as_bytes());
        if let Some(Some(name)) = &self.certificate {
            value(&mut inside, SSL_CN, name);
        }
        value(body, SSL, &inside);
    }
}

/// A value with its kind and length; one that does not fit is left out.
fn value(to: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    let Ok(length) = u16::try_from(bytes.len()) else { return };
    if to.len() + bytes.len() > LONGEST / 2 {
        return;
    }
    to.push(kind);
    to.extend(length.to_be_bytes());
    to.extend(bytes);
}

pub(super) fn binary_header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend([command, family]);
    // Addresses and values are bounded far below.
    header.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    header.extend(body);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::introduction::tests::{at, read};

    #[test]
    fn what_is_written_is_read() {
        let secrecy = Secrecy {
            version: "TLSv1.3",
            cipher: String::from("TLS_AES_256_GCM_SHA384"),
            alpn: Some(b"http/1.1".to_vec()),
            authority: Some(String::from("a.example")),
            certificate: Some(Some(b"client".to_vec())),
        };
        for version in [SendProxy::V1, SendProxy::V2] {
            for (source, destination) in
                [("192.0.2.1:1", "198.51.100.7:2"), ("[2001:db8::1]:1", "[::1]:2"), ("[::ffff:192.0.2.1]:1", "[::1]:2")]
            {
                let both = (at(source), at(destination));
                for secrecy in [None, Some(&secrecy)] {
                    assert_eq!(read(&introduce(version, both, secrecy)).addresses, Some(both));
                }
            }
            let mixed = introduce(version, (at("192.0.2.1:1"), at("[::1]:2")), None);
            assert_eq!(read(&mixed).addresses, Some((at("[::ffff:192.0.2.1]:1"), at("[::1]:2"))));
            assert_eq!(read(&introduce_self(version)).addresses, None);
        }
    }
}
