//! Addresses with a prefix length: who is meant by `10.0.0.0/8`.
//! Read by `listen`, asked by `proxy`. Never resolves a name.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A network, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Reads `10.0.0.0/8`, `2001:db8::/32` or an address.
    ///
    /// # Errors
    /// What would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr =
            address.parse().map_err(|_invalid| String::from("write \"10.0.0.0/8\" or \"2001:db8::/32\""))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(prefix) => {
                let prefix = prefix.parse().ok().filter(|prefix| *prefix <= bits);
                prefix.ok_or_else(|| format!("a prefix length is 0 to {bits}"))?
            }
        };
        let network = Self { address, prefix }.masked();
        if network.address == address { Ok(network) } else { Err(format!("did you mean \"{network}\"?")) }
    }

    fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => IpAddr::V4((u32::from(address) & mask32(self.prefix)).into()),
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) & mask128(self.prefix)).into()),
        };
        Self { address, ..self }
    }

    /// Whether an address lies in it; an IPv4 client of a dual-stack listener is an IPv4 client.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => u32::from(own) == u32::from(other) & mask32(self.prefix),
            (IpAddr::V6(own), IpAddr::V6(other)) => u128::from(own) == u128::from(other) & mask128(self.prefix),
            _ => false,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn mask32(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask128(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_their_networks_alone() {
        for (network, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "2001:db8::1", true),
            ("::1", "::1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
        ] {
            assert_eq!(
                Network::parse(network).unwrap().contains(address.parse().unwrap()),
                inside,
                "{address} in {network}"
            );
        }
    }

    #[test]
    fn what_is_no_network_is_said_with_what_is() {
        for (text, fix) in [
            ("10.0.0.1/8", "did you mean \"10.0.0.0/8\"?"),
            ("10.0.0.0/33", "0 to 32"),
            ("::/129", "0 to 128"),
            ("10.0.0.0/", "0 to 32"),
            ("10.0.0.0/-1", "0 to 32"),
            ("localhost", "write"),
            ("", "write"),
        ] {
            assert!(Network::parse(text).unwrap_err().contains(fix), "{text}");
        }
    }
}
