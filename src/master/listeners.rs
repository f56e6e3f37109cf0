//! The listening sockets of a generation: what is held already, what came from elsewhere, what is new.
//! Called by `reload` and `start`. Never lets a client in before the reload is decided.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use super::MasterError;
use crate::config::{Address, Bind, Bundle, ReloadMode};
use crate::handoff::getsocks;
use crate::handoff::messages::ListenerOwner;
use crate::socket::{self, BindError, Former, ListeningSocket, Publication, Sharing};

/// One listening socket.
#[derive(Clone)]
pub(super) struct Listener {
    pub(super) bind: Bind,
    pub(super) owner: ListenerOwner,
    pub(super) socket: Arc<ListeningSocket>,
}

impl Listener {
    /// A socket that is known by a name is listed where it is.
    fn new(wanted: &Bind, owner: ListenerOwner, socket: Arc<ListeningSocket>) -> Self {
        let mut bind = wanted.clone();
        if let (Address::Passed(_), Some(address)) = (&wanted.address, socket.address()) {
            bind.address = address;
        }
        Self { bind, owner, socket }
    }
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
    let (mut settled, mut problems) = (Vec::<Listener>::new(), Vec::new());
    for (owner, bind) in wanted(bundle) {
        match find(bind, held, mode, unheld).and_then(|found| unclaimed(bind, found, &settled)) {
            Ok(found) => settled.extend(found.into_iter().map(|socket| Listener::new(bind, owner, socket))),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(settled) } else { Err(MasterError::Bind(problems)) }
}

/// The sockets of one address.
fn find(
    bind: &Bind,
    held: &[Arc<ListeningSocket>],
    mode: ReloadMode,
    unheld: Sharing,
) -> Result<Vec<Arc<ListeningSocket>>, BindError> {
    let found: Vec<_> = held.iter().filter(|socket| socket.matches(bind)).cloned().collect();
    // What a socket unit gave is not bound anew: the supervisor's copy would listen on, and swallow clients.
    let stays = mode != ReloadMode::Rebind || found.iter().any(|socket| socket.name().is_some());
    if !found.is_empty() && stays {
        return Ok(found);
    }
    if let Address::Passed(name) = &bind.address {
        let others = held.iter().filter_map(|socket| socket.name()).filter(|name| !name.is_empty());
        return Err(BindError::NotPassed {
            origin: bind.origin.clone(),
            name: name.clone(),
            others: others.map(str::to_owned).collect(),
        });
    }
    // Another socket of ours may be in the way: for every address where one is wanted now, say.
    let ours = held.iter().any(|socket| socket.overlaps(bind));
    let sharing = if ours { Sharing::Reuse } else { unheld };
    socket::bind(bind, sharing).map(|socket| vec![Arc::new(socket)])
}

/// The same, unless another bind has one of them: it is wanted by its name and by its address.
fn unclaimed(
    bind: &Bind,
    found: Vec<Arc<ListeningSocket>>,
    settled: &[Listener],
) -> Result<Vec<Arc<ListeningSocket>>, BindError> {
    let first = settled.iter().find(|one| found.iter().any(|socket| Arc::ptr_eq(socket, &one.socket)));
    let Some(first) = first else { return Ok(found) };
    Err(BindError::Claimed {
        origin: bind.origin.clone(),
        address: bind.address.clone(),
        first: first.bind.origin.clone(),
    })
}

/// Sockets of the supervisor's units, as they are shown to people.
pub(super) fn of_units<'a>(sockets: impl Iterator<Item = &'a Arc<ListeningSocket>>) -> BTreeSet<String> {
    let shown = |socket: &Arc<ListeningSocket>| Some(format!("`{}` ({})", socket.name()?, socket.address()?));
    sockets.filter_map(shown).collect()
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
