//! Binding one address, recognising a socket that already is bound to it, and listening.
//! Called by `master` while it loads. Never closes somebody else's socket.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::owner;
use super::path::{Displaced, Former, SocketPath};
use crate::config::{Address, Bind};

/// Whether the address may be shared with a socket of an older generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody else may have it; a foreign holder is an error.
    Exclusive,
    /// Another of our sockets has it (`SO_REUSEPORT` on both; the path of a Unix socket is replaced).
    Reuse,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The kernel says no.
    #[error("{origin}: cannot listen on {address}: {source}{holder}")]
    Refused {
        /// Place in the configuration.
        origin: String,
        /// What was wanted.
        address: Address,
        /// Who has it, if that can be found out.
        holder: String,
        /// Why.
        source: io::Error,
    },
    /// The supervisor passed no socket of that name.
    #[error(
        "{origin}: no listening socket is called `{name}`: of those that came from the supervisor when it started the \
         daemon (LISTEN_FDNAMES) there {}; FileDescriptorName= in a socket unit gives that name, from the next start on",
        names(.others)
    )]
    NotPassed {
        /// Place in the configuration.
        origin: String,
        /// What was wanted.
        name: String,
        /// What the sockets are called that are there.
        others: BTreeSet<String>,
    },
    /// A socket that another bind has, by its name or by its address.
    #[error("{origin}: {address} is the socket that {first} has already")]
    Claimed {
        /// Place in the configuration.
        origin: String,
        /// What was wanted.
        address: Address,
        /// Place of the other bind.
        first: String,
    },
}

fn names(others: &BTreeSet<String>) -> String {
    let quoted: Vec<_> = others.iter().map(|name| format!("`{name}`")).collect();
    match quoted.len() {
        0 => "is none".into(),
        1 => format!("is {}", quoted[0]),
        _ => format!("are {}", quoted.join(", ")),
    }
}

impl BindError {
    fn new(wanted: &Bind, source: io::Error) -> Self {
        let taken = source.kind() == io::ErrorKind::AddrInUse;
        let holder = if taken { owner::of(&wanted.address) } else { None };
        Self::Refused {
            origin: wanted.origin.clone(),
            address: wanted.address.clone(),
            holder: holder.map(|holder| format!(", held by {holder}")).unwrap_or_default(),
            source,
        }
    }
}

/// A socket that listens or is going to, with the path that leads to it.
#[derive(Debug)]
pub struct ListeningSocket {
    fd: OwnedFd,
    path: Option<SocketPath>,
    /// What a socket unit of the supervisor calls it.
    name: Option<String>,
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A bound, non-blocking socket. Nobody can connect to it before [`ListeningSocket::listen`].
///
/// # Errors
/// Names the place in the configuration, the address and, where readable, the process that holds it.
pub fn bind(wanted: &Bind, sharing: Sharing) -> Result<ListeningSocket, BindError> {
    let bound = match &wanted.address {
        Address::Internet(address) => open(*address, wanted, sharing).map(|fd| (fd, None)),
        Address::Unix(path) => SocketPath::bind(path, sharing).map(|(fd, path)| (fd, Some(path))),
        // Whoever has it passes it; there is nothing to make it from.
        Address::Passed(_) => Err(io::ErrorKind::Unsupported.into()),
    };
    let (fd, path) = bound.map_err(|source| BindError::new(wanted, source))?;
    Ok(ListeningSocket { fd, path, name: None })
}

fn open(address: SocketAddr, wanted: &Bind, sharing: Sharing) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(wanted.v6only)?;
    }
    if let Some(interface) = &wanted.interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    if sharing == Sharing::Reuse {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

impl ListeningSocket {
    /// Lets clients connect, or changes the backlog of a socket that they connect to already (listen(2)), and
    /// gives the path of a Unix socket its rights. Who wants a path has to [`publish`] it too.
    ///
    /// # Errors
    /// Names the address; another daemon may have begun to listen on it since it was bound.
    pub fn listen(&self, wanted: &Bind) -> Result<(), BindError> {
        let socket = SockRef::from(&self.fd);
        let backlog = i32::try_from(wanted.backlog).unwrap_or(i32::MAX);
        socket
            .listen(backlog)
            .and_then(|()| match &self.path {
                Some(path) => path.grant(wanted.access),
                // Shared only once it listens: before, another daemon of the same user could come in unnoticed.
                None => socket.set_reuse_port(true),
            })
            .map_err(|source| BindError::new(wanted, source))
    }

    /// Whether it listens on an address, by what the kernel says of it, or is what the supervisor calls so.
    #[must_use]
    pub fn matches(&self, wanted: &Bind) -> bool {
        let socket = SockRef::from(&self.fd);
        let here = match &wanted.address {
            Address::Passed(name) => self.name() == Some(name),
            Address::Unix(place) => self.path.as_ref().is_some_and(|path| path.leads_from(place)),
            Address::Internet(address) => {
                let v6only = address.is_ipv4() || socket.only_v6().is_ok_and(|only| only == wanted.v6only);
                let interface = socket.device().ok().flatten();
                socket.local_addr().is_ok_and(|local| local.as_socket() == Some(*address))
                    && v6only
                    && interface.as_deref() == wanted.interface.as_ref().map(String::as_bytes)
            }
        };
        here && socket.r#type().is_ok_and(|kind| kind == Type::STREAM) && socket.is_listener().unwrap_or(false)
    }

    /// Whether it keeps others from binding an address, unless both sides share it.
    #[must_use]
    pub fn overlaps(&self, wanted: &Bind) -> bool {
        let local = SockRef::from(&self.fd).local_addr().ok().and_then(|local| local.as_socket());
        match (&wanted.address, local) {
            (Address::Internet(address), Some(local)) => {
                let (one, other) = (local.ip(), address.ip());
                local.port() == address.port() && (one == other || one.is_unspecified() || other.is_unspecified())
            }
            (Address::Unix(place), None) => self.path.as_ref().is_some_and(|path| path.leads_from(place)),
            _ => false,
        }
    }

    /// Where it is, by what the kernel says of it.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        match &self.path {
            Some(path) => Some(Address::Unix(path.place().to_owned())),
            None => SockRef::from(&self.fd).local_addr().ok()?.as_socket().map(Address::Internet),
        }
    }

    /// Whether a path goes away with it.
    #[must_use]
    pub fn removes_path(&self) -> bool {
        self.path.as_ref().is_some_and(SocketPath::is_ours)
    }

    /// The same, with the name that the supervisor has for it.
    #[must_use]
    pub fn named(self, name: impl Into<Option<String>>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// The name that the supervisor has for it, if it is one of its socket units.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whoever put its path there is replaced: from now on the path goes away with the socket.
    pub fn inherit(&self) {
        self.path.iter().for_each(SocketPath::inherit);
    }

    /// Another process has a copy from now on: it may still listen when we do not, and keeps the path.
    pub fn share(&self) {
        self.path.iter().for_each(SocketPath::share);
    }
}

/// Paths that lead to new sockets, and can still be taken back: what was there before is there again when this is
/// dropped without [`Publication::confirm`].
#[must_use]
pub struct Publication {
    displaced: Vec<Displaced>,
    sockets: Vec<Arc<ListeningSocket>>,
}

impl Publication {
    /// There is no way back any more. Paths of sockets that came from another daemon are ours from now on.
    pub fn confirm(self) {
        self.displaced.into_iter().for_each(Displaced::forget);
        self.sockets.iter().for_each(|socket| socket.inherit());
    }
}

/// Puts the paths of Unix sockets in their places, atomically each.
///
/// # Errors
/// Names the address; nothing has changed then.
pub fn publish<'a>(
    sockets: impl Iterator<Item = (&'a Arc<ListeningSocket>, &'a Bind)>,
) -> Result<Publication, BindError> {
    let mut publication = Publication { displaced: Vec::new(), sockets: Vec::new() };
    for (socket, wanted) in sockets {
        let Some(path) = &socket.path else { continue };
        let displaced = path.publish().map_err(|source| BindError::new(wanted, source))?;
        publication.displaced.extend(displaced);
        publication.sockets.push(Arc::clone(socket));
    }
    Ok(publication)
}

/// Prepares a socket that another process made: its flags are whatever that process wanted. None for
/// what is no listener, or one that no path leads to.
///
/// # Errors
/// What fcntl(2) or setsockopt(2) say.
pub fn adopt(fd: OwnedFd, former: Former) -> io::Result<Option<ListeningSocket>> {
    let socket = SockRef::from(&fd);
    let local = socket.local_addr()?;
    if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
        return Ok(None);
    }
    let path = local.as_pathname().and_then(|name| SocketPath::of(name, former));
    if path.is_none() && local.as_socket().is_none() {
        return Ok(None);
    }
    socket.set_nonblocking(true)?;
    if path.is_none() {
        socket.set_reuse_port(true)?;
    }
    Ok(Some(ListeningSocket { fd, path, name: None }))
}

/// A socket of ours that was [`adopt`]ed or bound before this process became another program. Its flags are what they
/// were, and it is one of ours even if nobody can connect to it any more.
///
/// # Errors
/// What getsockname(2) says.
pub fn resume(fd: OwnedFd, former: Former) -> io::Result<ListeningSocket> {
    let local = SockRef::from(&fd).local_addr()?;
    let path = local.as_pathname().map(|name| SocketPath::named(name, former));
    Ok(ListeningSocket { fd, path, name: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(port: u16) -> Bind {
        Bind {
            accept_proxy: Vec::new(),
            address: Address::Internet(SocketAddr::from(([127, 0, 0, 1], port))),
            v6only: false,
            interface: None,
            access: crate::config::Access::default(),
            backlog: 16,
            origin: "f.toml:1:1".into(),
        }
    }

    fn port(fd: &ListeningSocket) -> u16 {
        SockRef::from(fd).local_addr().unwrap().as_socket().unwrap().port()
    }

    #[test]
    fn a_held_address_names_its_holder_even_of_the_same_user() {
        let held = bind(&on(0), Sharing::Exclusive).unwrap();
        held.listen(&on(0)).unwrap();
        let error = bind(&on(port(&held)), Sharing::Exclusive).unwrap_err().to_string();
        assert!(error.contains("f.toml:1:1") && error.contains("127.0.0.1"), "{error}");
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    }

    #[test]
    fn of_two_daemons_that_start_together_only_one_listens() {
        let first = bind(&on(0), Sharing::Exclusive).unwrap();
        let second = bind(&on(port(&first)), Sharing::Exclusive);
        first.listen(&on(port(&first))).unwrap();
        assert!(second.is_err() || second.unwrap().listen(&on(port(&first))).is_err());
    }

    #[test]
    fn a_second_generation_may_bind_beside_the_first() {
        let first = bind(&on(0), Sharing::Exclusive).unwrap();
        first.listen(&on(0)).unwrap();
        let second = bind(&on(port(&first)), Sharing::Reuse).unwrap();
        second.listen(&on(0)).unwrap();
        assert_eq!(port(&first), port(&second));
    }

    #[test]
    fn sockets_are_known_by_their_address() {
        let fd = bind(&on(0), Sharing::Exclusive).unwrap();
        assert!(!fd.matches(&on(port(&fd))), "it does not listen yet");
        fd.listen(&on(0)).unwrap();
        assert!(fd.matches(&on(port(&fd))));
        assert!(!fd.matches(&on(port(&fd).wrapping_add(1))));
        let adopted = adopt(fd.as_fd().try_clone_to_owned().unwrap(), Former::Daemon).unwrap().unwrap();
        assert!(adopted.matches(&on(port(&fd))));
    }

    #[test]
    fn dual_stack_sockets_and_device_bound_ones_are_others() {
        let six =
            |port, v6only| Bind { address: Address::Internet(SocketAddr::from(([0_u16; 8], port))), v6only, ..on(0) };
        let both = bind(&six(0, false), Sharing::Exclusive).unwrap();
        both.listen(&six(0, false)).unwrap();
        let here = port(&both);
        assert!(both.matches(&six(here, false)));
        assert!(!both.matches(&six(here, true)) && !both.matches(&on(here)));
        let device = |port, name: &str| Bind { interface: Some(name.into()), ..on(port) };
        let bound = bind(&device(0, "lo"), Sharing::Exclusive).unwrap();
        bound.listen(&device(0, "lo")).unwrap();
        let here = port(&bound);
        assert!(bound.matches(&device(here, "lo")));
        assert!(!bound.matches(&on(here)) && !bound.matches(&device(here, "eth0")));
    }

    #[test]
    fn what_nobody_could_connect_to_is_not_adopted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let wanted = Bind { address: Address::Unix(path.clone()), ..on(0) };
        let copy = OwnedFd::from(unix.try_clone().unwrap());
        assert!(adopt(copy, Former::Daemon).unwrap().unwrap().matches(&wanted));
        std::fs::remove_file(&path).unwrap();
        assert!(adopt(OwnedFd::from(unix), Former::Daemon).unwrap().is_none());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(adopt(OwnedFd::from(udp), Former::Daemon).unwrap().is_none());
    }
}
