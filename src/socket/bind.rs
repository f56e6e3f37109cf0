//! Binding one address, recognising a socket that already is bound to it, and listening.
//! Called by `master` while it loads. Never closes somebody else's socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::owner;
use crate::config::Bind;

/// Whether the address may be shared with a socket of an older generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody else may have it; a foreign holder is an error.
    Exclusive,
    /// Another of our sockets has it (`SO_REUSEPORT` on both).
    Reuse,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: cannot listen on {address}: {source}{holder}")]
pub struct BindError {
    origin: String,
    address: SocketAddr,
    holder: String,
    source: io::Error,
}

/// A bound, non-blocking socket. Nobody can connect to it before [`listen`].
///
/// # Errors
/// Names the place in the configuration, the address and, where readable, the process that holds it.
pub fn bind(wanted: &Bind, sharing: Sharing) -> Result<OwnedFd, BindError> {
    open(wanted, sharing).map_err(|source| {
        let taken = source.kind() == io::ErrorKind::AddrInUse;
        let holder = if taken { owner::of(wanted.address) } else { None };
        BindError {
            origin: wanted.origin.clone(),
            address: wanted.address,
            holder: holder.map(|holder| format!(", held by {holder}")).unwrap_or_default(),
            source,
        }
    })
}

fn open(wanted: &Bind, sharing: Sharing) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(wanted.address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if wanted.address.is_ipv6() {
        socket.set_only_v6(wanted.v6only)?;
    }
    if sharing == Sharing::Reuse {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&wanted.address.into())?;
    Ok(socket.into())
}

/// Lets clients connect, or changes the backlog of a socket that they connect to already (listen(2)).
///
/// # Errors
/// Names the address; another daemon may have begun to listen on it since it was bound.
pub fn listen(fd: &OwnedFd, wanted: &Bind) -> Result<(), BindError> {
    let socket = SockRef::from(fd);
    let backlog = i32::try_from(wanted.backlog).unwrap_or(i32::MAX);
    // Shared only once it listens: before, another daemon of the same user could come in unnoticed.
    socket.listen(backlog).and_then(|()| socket.set_reuse_port(true)).map_err(|source| BindError {
        origin: wanted.origin.clone(),
        address: wanted.address,
        holder: String::new(),
        source,
    })
}

/// Whether a socket listens on an address, by what the kernel says of it.
#[must_use]
pub fn matches(fd: &OwnedFd, wanted: &Bind) -> bool {
    let socket = SockRef::from(fd);
    let address = socket.local_addr().ok().and_then(|address| address.as_socket());
    let v6only = wanted.address.is_ipv4() || socket.only_v6().is_ok_and(|only| only == wanted.v6only);
    address == Some(wanted.address)
        && v6only
        && socket.r#type().is_ok_and(|kind| kind == Type::STREAM)
        && socket.is_listener().unwrap_or(false)
}

/// Prepares a socket that another process made: its flags are whatever that process wanted. False for
/// what is no TCP listener, such as HAProxy's own statistics socket.
///
/// # Errors
/// What fcntl(2) or setsockopt(2) say.
pub fn adopt(fd: &OwnedFd) -> io::Result<bool> {
    let socket = SockRef::from(fd);
    let internet = socket.local_addr()?.as_socket().is_some();
    if !internet || socket.r#type()? != Type::STREAM || !socket.is_listener()? {
        return Ok(false);
    }
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(true)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(port: u16) -> Bind {
        Bind {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            v6only: false,
            backlog: 16,
            origin: "f.toml:1:1".into(),
        }
    }

    fn port(fd: &OwnedFd) -> u16 {
        SockRef::from(fd).local_addr().unwrap().as_socket().unwrap().port()
    }

    #[test]
    fn a_held_address_names_its_holder_even_of_the_same_user() {
        let held = bind(&on(0), Sharing::Exclusive).unwrap();
        listen(&held, &on(0)).unwrap();
        let error = bind(&on(port(&held)), Sharing::Exclusive).unwrap_err().to_string();
        assert!(error.contains("f.toml:1:1") && error.contains("127.0.0.1"), "{error}");
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    }

    #[test]
    fn of_two_daemons_that_start_together_only_one_listens() {
        let first = bind(&on(0), Sharing::Exclusive).unwrap();
        let second = bind(&on(port(&first)), Sharing::Exclusive);
        listen(&first, &on(port(&first))).unwrap();
        assert!(second.is_err() || listen(&second.unwrap(), &on(port(&first))).is_err());
    }

    #[test]
    fn a_second_generation_may_bind_beside_the_first() {
        let first = bind(&on(0), Sharing::Exclusive).unwrap();
        listen(&first, &on(0)).unwrap();
        let second = bind(&on(port(&first)), Sharing::Reuse).unwrap();
        listen(&second, &on(0)).unwrap();
        assert_eq!(port(&first), port(&second));
    }

    #[test]
    fn sockets_are_known_by_their_address() {
        let fd = bind(&on(0), Sharing::Exclusive).unwrap();
        assert!(!matches(&fd, &on(port(&fd))), "it does not listen yet");
        listen(&fd, &on(0)).unwrap();
        assert!(matches(&fd, &on(port(&fd))));
        assert!(!matches(&fd, &on(port(&fd).wrapping_add(1))));
        assert!(adopt(&fd).unwrap());
    }

    #[test]
    fn what_is_no_tcp_listener_is_not_adopted() {
        let folder = tempfile::tempdir().unwrap();
        let unix = std::os::unix::net::UnixListener::bind(folder.path().join("s")).unwrap();
        assert!(!adopt(&OwnedFd::from(unix)).unwrap());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(!adopt(&OwnedFd::from(udp)).unwrap());
    }
}
