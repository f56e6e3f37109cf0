//! The listening sockets of a generation: what is held already, what came from elsewhere, what is new.
//! Called by `reload` and `start`. Never lets a client in before the reload is decided.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use listenfd::ListenFd;

use super::MasterError;
use crate::config::{Bind, Bundle, ReloadMode};
use crate::handoff::getsocks;
use crate::handoff::messages::ListenerOwner;
use crate::socket::{self, Sharing};

/// One listening socket.
#[derive(Clone)]
pub(super) struct Listener {
    pub(super) bind: Bind,
    pub(super) owner: ListenerOwner,
    pub(super) fd: Arc<OwnedFd>,
}

/// Finds or binds a socket for every address of a configuration. Of a group that shares an address
/// every member is kept: a queue without an owner would swallow clients. `unheld` says whether an
/// address of which we hold nothing may be shared.
pub(super) fn settle(
    bundle: &Bundle,
    held: &[Arc<OwnedFd>],
    mode: ReloadMode,
    unheld: Sharing,
) -> Result<Vec<Listener>, MasterError> {
    let (mut settled, mut problems) = (Vec::new(), Vec::new());
    for (owner, bind) in wanted(bundle) {
        let mut found: Vec<_> = held.iter().filter(|fd| socket::matches(fd, bind)).cloned().collect();
        if found.is_empty() || mode == ReloadMode::Rebind {
            let sharing = if found.is_empty() { unheld } else { Sharing::Reuse };
            found = match socket::bind(bind, sharing) {
                Ok(fd) => vec![Arc::new(fd)],
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            };
        }
        settled.extend(found.into_iter().map(|fd| Listener { bind: bind.clone(), owner, fd }));
    }
    if problems.is_empty() { Ok(settled) } else { Err(MasterError::Bind(problems)) }
}

fn wanted(bundle: &Bundle) -> impl Iterator<Item = (ListenerOwner, &Bind)> {
    let frontends = bundle.frontends.iter().enumerate();
    let own =
        frontends.flat_map(|(index, frontend)| frontend.binds.iter().map(move |b| (ListenerOwner::Frontend(index), b)));
    let stats = bundle.stats.iter().flat_map(|stats| stats.binds.iter().map(|bind| (ListenerOwner::Stats, bind)));
    own.chain(stats)
}

/// Places of the old sockets that are not among the new ones: removed, or bound anew.
pub(super) fn abandoned(old: &[Listener], new: &[Listener]) -> Vec<usize> {
    let kept = |one: &Listener| new.iter().any(|other| Arc::ptr_eq(&one.fd, &other.fd));
    (0..old.len()).filter(|place| !kept(&old[*place])).collect()
}

/// Lets clients in. Sockets that listen already get the backlog of the configuration.
pub(super) fn listen(listeners: &[Listener]) -> Result<(), MasterError> {
    for listener in listeners {
        socket::listen(&listener.fd, &listener.bind).map_err(|problem| MasterError::Bind(vec![problem]))?;
    }
    Ok(())
}

/// Sockets passed by systemd or a compatible supervisor (sd_listen_fds(3)); others than TCP are closed.
pub(super) fn from_supervisor() -> Result<Vec<Arc<OwnedFd>>, MasterError> {
    let mut passed = ListenFd::from_env();
    for index in 0..passed.len() {
        // What is neither of these cannot be taken at all; systemd passes nothing else for sockets.
        let _udp = passed.take_udp_socket(index);
        let _unix = passed.take_unix_listener(index);
    }
    let taken = (0..passed.len()).filter_map(|index| passed.take_tcp_listener(index).ok().flatten());
    usable(taken.map(OwnedFd::from).collect())
}

/// Sockets of the daemon behind an admin socket, as `-x` asks for them.
pub(super) fn from_daemon(path: &Path) -> Result<Vec<Arc<OwnedFd>>, MasterError> {
    let taken = getsocks::take(path).map_err(|source| MasterError::TakeOver { path: path.to_owned(), source })?;
    usable(taken)
}

/// What is no TCP listener is closed here.
fn usable(taken: Vec<OwnedFd>) -> Result<Vec<Arc<OwnedFd>>, MasterError> {
    let mut usable = Vec::with_capacity(taken.len());
    for fd in taken {
        if socket::adopt(&fd).map_err(MasterError::Adopt)? {
            usable.push(Arc::new(fd));
        }
    }
    Ok(usable)
}
