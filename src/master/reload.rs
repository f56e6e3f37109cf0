//! The reload transaction up to its decision: load, bind, spawn. Whatever fails, nothing has changed.
//! Run by `lifecycle` beside its event loop. Never touches the serving worker or a client.

use std::cell::RefCell;
use std::collections::HashSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::events::Event;
use super::listeners::{self, Listener};
use super::request::Outcome;
use super::slots::Directory;
use super::spawn::{Orders, Worker, spawn};
use super::{MasterError, load};
use crate::config::{Bundle, Loaded, ReloadMode};
use crate::handoff::fault::{self, Step};
use crate::socket::{self, Fittings, ListeningSocket, Sharing, Wanted};
use crate::upstream::MAX_IDLE;

/// Where the configuration of a new generation comes from.
pub(super) enum Source {
    /// The file, read anew.
    File(PathBuf),
    /// What serves already: a worker died.
    Same(Arc<Bundle>),
}

/// Everything a transaction needs, so that it borrows nothing of the running master.
pub(super) struct Plan {
    pub(super) source: Source,
    pub(super) mode: ReloadMode,
    pub(super) held: Vec<Arc<ListeningSocket>>,
    /// Whether addresses of which nothing is held may be shared with another daemon of ours.
    pub(super) unheld: Sharing,
    pub(super) generation: u64,
    pub(super) lane: u32,
    pub(super) directory: Rc<RefCell<Directory>>,
    /// Places in the shared counters that living workers have.
    pub(super) in_use: HashSet<u32>,
    pub(super) counters: Arc<OwnedFd>,
    pub(super) ticket_keys: Arc<Vec<Vec<u8>>>,
    pub(super) events: mpsc::UnboundedSender<Event>,
}

/// A generation that could serve.
pub(super) struct Prepared {
    pub(super) bundle: Arc<Bundle>,
    pub(super) warnings: Vec<String>,
    pub(super) listeners: Vec<Listener>,
    pub(super) worker: Worker,
    pub(super) maxconn: u32,
}

/// Why there is no new generation, and how the caller is told.
pub(super) type Failed = (Outcome, MasterError);

/// LOAD, BIND and SPAWN. A failure of the first two is a rejection, of the third a roll-back.
pub(super) async fn prepare(plan: Plan) -> Result<Prepared, Failed> {
    let rejected = |error| (Outcome::Rejected, error);
    let rolled_back = |error| (Outcome::RolledBack, error);
    let system = |what| move |source| MasterError::System { what, source };
    fault::strike(Step::Load).map_err(system("reading the configuration")).map_err(rejected)?;
    let (bundle, warnings) = match plan.source {
        Source::File(path) => {
            // Reading may wait for a disk or a name server; signals and status must not.
            let loading = tokio::task::spawn_blocking(move || load(&path)).await;
            let Loaded { bundle, warnings } =
                loading.map_err(|_panic| MasterError::LoaderDied).and_then(|loaded| loaded).map_err(rejected)?;
            (Arc::new(bundle), warnings)
        }
        Source::Same(bundle) => (bundle, Vec::new()),
    };
    let cost = if plan.mode == ReloadMode::Rebind { socket::cost_of_rebinding() } else { None };
    fault::strike(Step::Bind).map_err(system("binding")).map_err(rejected)?;
    let settled = listeners::settle(&bundle, &plan.held, plan.mode, plan.unheld).map_err(rejected)?;
    let fittings = fittings(&bundle, settled.len());
    let wanted = Wanted { maxconn: bundle.global.maxconn, strict: !bundle.global.lax_limits };
    let (maxconn, shortage) = socket::raise_for(wanted, fittings).map_err(|error| rejected(error.into()))?;
    let shortage = shortage.map(|shortage| shortage.warning());
    let warnings = warnings.into_iter().chain(cost).chain(shortage).collect();
    let slots = plan.directory.borrow_mut().slots(&bundle, &plan.in_use).map_err(rejected)?;
    let orders = Orders {
        bundle: Arc::clone(&bundle),
        generation: plan.generation,
        lane: plan.lane,
        slots,
        counters: plan.counters.as_fd(),
        ticket_keys: &plan.ticket_keys,
        maxconn,
        listeners: settled.iter().map(|listener| (listener.owner, listener.socket.as_fd())).collect(),
    };
    let worker = spawn(orders, &plan.events).await.map_err(rolled_back)?;
    Ok(Prepared { bundle, warnings, listeners: settled, worker, maxconn })
}

/// What a worker of this configuration holds beside its connections.
fn fittings(bundle: &Bundle, listeners: usize) -> Fittings {
    let threads = bundle.global.threads();
    Fittings { listeners, threads, idle: threads * MAX_IDLE }
}
