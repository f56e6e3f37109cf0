//! Who is at either end of a client's socket, which may be a TCP or a Unix one.
//! Asked by `connection`. Never reads from a socket.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::config::{Address, Bind};
use crate::logging::Endpoint;
use crate::socket::settled;

/// Our end of whatever comes by this bind, where it says so itself and the kernel need not be asked.
pub(super) fn certain(bind: &Bind) -> Option<Endpoint> {
    match bind.address {
        Address::Internet(address) if !address.ip().is_unspecified() && address.port() != 0 => Some(internet(address)),
        Address::Internet(_) | Address::Unix(_) | Address::Passed(_) => None,
    }
}

/// Our end. `binds` are the frontend's: a Unix socket is known by its number among them.
pub(super) fn local(socket: impl AsFd, binds: &[Bind]) -> Option<Endpoint> {
    let name = SockRef::from(&socket).local_addr().ok()?;
    if let Some(address) = name.as_socket() {
        return Some(internet(address));
    }
    let place = settled(name.as_pathname()?);
    let number = number(&place, binds).map_or(0, |place| place + 1);
    Some(Endpoint::Unix(u16::try_from(number).unwrap_or(u16::MAX)))
}

/// The bind of a Unix socket. One that none names by its path was passed under a name.
fn number(place: &Path, binds: &[Bind]) -> Option<usize> {
    let here = |bind: &Bind| matches!(&bind.address, Address::Unix(path) if path == place);
    let passed = |bind: &Bind| matches!(&bind.address, Address::Passed(_));
    binds.iter().position(here).or_else(|| binds.iter().position(passed))
}

/// Which of a frontend's binds a listening socket belongs to.
#[must_use]
pub fn bind_of(listener: &impl AsFd, binds: &[Bind]) -> Option<usize> {
    let socket = SockRef::from(listener);
    let name = socket.local_addr().ok()?;
    if let Some(address) = name.as_socket() {
        let device = socket.device().ok().flatten();
        let here = |bind: &Bind| {
            bind.address == Address::Internet(address)
                && bind.interface.as_deref().map(str::as_bytes) == device.as_deref()
        };
        return binds.iter().position(here);
    }
    let place = settled(name.as_pathname()?);
    binds.iter().position(|bind| matches!(&bind.address, Address::Unix(path) if *path == place))
}

/// The client's end; clients of Unix sockets have no address but that of the socket.
pub(super) fn peer(socket: &TcpStream, binds: &[Bind]) -> Option<Endpoint> {
    let name = SockRef::from(socket).peer_addr().ok()?;
    name.as_socket().map_or_else(|| local(socket, binds), |address| Some(internet(address)))
}

/// An IPv4 client of a dual-stack listener is an IPv4 client.
pub(super) fn internet(address: SocketAddr) -> Endpoint {
    Endpoint::Internet(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_client_of_a_dual_stack_listener_keeps_its_name() {
        let end = |text: &str| internet(text.parse().unwrap());
        assert_eq!(end("[::ffff:192.0.2.7]:80"), Endpoint::Internet("192.0.2.7:80".parse().unwrap()));
        assert_eq!(end("[2001:db8::1]:80"), Endpoint::Internet("[2001:db8::1]:80".parse().unwrap()));
    }
}
