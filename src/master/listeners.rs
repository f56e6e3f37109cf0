//! The listening sockets of a generation: what is held already, what came from elsewhere, what is new.
//! Called by `reload` and `start`. Never lets a client in before the reload is decided.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use super::MasterError;
use crate::config::{Bind, Bundle, ReloadMode};
use crate::handoff::getsocks;
use crate::handoff::messages::ListenerOwner;
use crate::socket::{self, Former, ListeningSocket, Publication, Sharing};

/// One listening socket.
#[derive(Clone)]
pub(super) struct Listener {
    pub(super) bind: Bind,
    pub(super) owner: ListenerOwner,
    pub(super) socket: Arc<ListeningSocket>,
}

/// Finds or binds a socket for every address of a configuration. Of a group that shares an address
/// every member is kept: a queue without an owner would swallow clients. `unheld` says whether an
/// address of which we hold nothing may be shared.
pub(super) fn settle(
    bundle: &Bundle,
    held: &[Arc<ListeningSocket>],
    mode: ReloadMode,
    unheld: Sharing,
) -> Result<Vec<Listener>, MasterError> {
    let (mut settled, mut problems) = (Vec::new(), Vec::new());
    for (owner, bind) in wanted(bundle) {
        let mut found: Vec<_> = held.iter().filter(|socket| socket.matches(bind)).cloned().collect();
        if found.is_empty() || mode == ReloadMode::Rebind {
            // Another socket of ours may be in the way: for every address where one is wanted now, say.
            let ours = held.iter().any(|socket| socket.overlaps(bind));
            let sharing = if ours { Sharing::Reuse } else { unheld };
            found = match socket::bind(bind, sharing) {
                Ok(socket) => vec![Arc::new(socket)],
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            };
        }
        settled.extend(found.into_iter().map(|socket| Listener { bind: bind.clone(), owner, socket }));
    }
    if problems.is_empty() { Ok(settled) } else { Err(MasterError::Bind(problems)) }
}

fn wanted(bundle: &Bundle) -> impl Iterator<Item = (ListenerOwner, &Bind)> {
    let frontends = bundle.frontends.iter().enumerate();
    let own =
        frontends.flat_map(|(index, frontend)| frontend.binds.iter().map(move |b| (ListenerOwner::Frontend(index), b)));
    let stats = bundle.stats.iter().flat_map(|stats| stats.binds.iter().map(|bind| (ListenerOwner::Stats, bind)));
    let metrics = bundle.metrics.iter().flat_map(|metrics| &metrics.binds);
    own.chain(stats).chain(metrics.map(|bind| (ListenerOwner::Metrics, bind)))
}

/// Places of the old sockets that are not among the new ones: removed, or bound anew.
pub(super) fn abandoned(old: &[Listener], new: &[Listener]) -> Vec<usize> {
    let kept = |one: &Listener| new.iter().any(|other| Arc::ptr_eq(&one.socket, &other.socket));
    (0..old.len()).filter(|place| !kept(&old[*place])).collect()
}

/// Lets clients in. Sockets that listen already get the backlog of the configuration.
pub(super) fn listen(listeners: &[Listener]) -> Result<(), MasterError> {
    for listener in listeners {
        listener.socket.listen(&listener.bind).map_err(|problem| MasterError::Bind(vec![problem]))?;
    }
    Ok(())
}

/// Lets clients of Unix sockets find them; undone unless it is confirmed.
pub(super) fn publish(listeners: &[Listener]) -> Result<Publication, MasterError> {
    let sockets = listeners.iter().map(|listener| (&listener.socket, &listener.bind));
    socket::publish(sockets).map_err(|problem| MasterError::Bind(vec![problem]))
}

/// Sockets of the daemon behind an admin socket, as `-x` asks for them.
pub(super) fn from_daemon(path: &Path) -> Result<Vec<Arc<ListeningSocket>>, MasterError> {
    let taken = getsocks::take(path).map_err(|source| MasterError::TakeOver { path: path.to_owned(), source })?;
    usable(taken, Former::Daemon)
}

/// What is no listener is closed here.
fn usable(taken: Vec<OwnedFd>, former: Former) -> Result<Vec<Arc<ListeningSocket>>, MasterError> {
    let mut usable = Vec::with_capacity(taken.len());
    for fd in taken {
        usable.extend(socket::adopt(fd, former).map_err(MasterError::Adopt)?.map(Arc::new));
    }
    Ok(usable)
}
