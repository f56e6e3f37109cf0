//! What a worker thread knows while it serves: itself, and each frontend.
//! Built by `worker`, shared by the thread's connections. Never changes after that but for `draining`.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use super::buffers::Spare;
use super::greeting::Unintroduced;
use super::timer::now;
use super::{Departure, Edits, Timers};
use crate::config::{self, Bundle};
use crate::http::HeadLimits;
use crate::logging::{Logger, Severity};
use crate::stats::{Counter, Slot};
use crate::tls::Acceptor;
use crate::upstream::Backend;

/// One worker thread.
pub struct Thread {
    /// The configuration.
    pub bundle: Arc<Bundle>,
    /// Deadlines of this thread's connections.
    pub timers: Timers,
    /// Buffers of requests to come.
    pub buffers: Spare,
    /// Where access lines go.
    pub logger: Logger,
    /// Connections of the whole worker (`%ac`).
    pub active: Arc<AtomicU32>,
    /// Since when another worker accepts: what cannot move there is told to close with its next answer.
    pub draining: Cell<Option<Duration>>,
    /// The way to that worker, where there is one.
    pub departure: OnceCell<Departure>,
}

impl Thread {
    /// Another worker accepts from now on; idle connections take the way there.
    pub fn drain(&self, departure: Option<Departure>, backends: &[Rc<Backend>]) {
        self.draining.set(Some(now()));
        // What cannot move has to say goodbye.
        self.timers.wake_all();
        let Some(departure) = departure else { return };
        for backend in backends {
            for (server, stream) in backend.take_idle() {
                departure.send(backend.moving(server), stream);
            }
        }
        // Set once only: a worker drains once.
        let _ = self.departure.set(departure);
        self.timers.wake_all();
    }
}

/// One frontend on one thread.
pub struct Site {
    /// Place in the bundle.
    pub index: usize,
    /// Shared counters.
    pub slot: Slot,
    /// Where the frontend's routes lead, in their order.
    pub routes: Vec<Rc<Backend>>,
    /// Where requests go; none when every request is answered by a rule.
    pub backend: Option<Rc<Backend>>,
    /// Whether a server behind it is told who its clients are.
    pub introduces: bool,
    /// Whether requests have to be for a host that the connection's certificate is for.
    pub directs: bool,
    /// Whether the last one that had to introduce its client has not: it is told once.
    strange: Cell<bool>,
    /// Header edits as they are written.
    pub edits: Rc<Edits>,
    /// TLS, when configured.
    pub tls: Option<Acceptor>,
    /// Limits on request heads.
    pub limits: HeadLimits,
    bundle: Arc<Bundle>,
}

impl Site {
    /// The frontend with this index.
    #[must_use]
    pub fn new(
        bundle: &Arc<Bundle>,
        index: usize,
        slot: Slot,
        backends: &[Rc<Backend>],
        tls: Option<Acceptor>,
    ) -> Self {
        let config = &bundle.frontends[index];
        let backend = config.backend.and_then(|backend| backends.get(backend)).cloned();
        let routes = config.routes.iter().filter_map(|route| backends.get(route.backend)).cloned().collect();
        let mut servers = bundle.backends.iter().flat_map(|backend| &backend.servers);
        let introduces = servers.any(|server| server.send_proxy.is_some());
        let limit = &config.limit;
        let limits = HeadLimits { size: limit.header_size, fields: limit.headers, target: limit.uri_length };
        Self {
            index,
            slot,
            routes,
            backend,
            introduces,
            directs: config.tls.as_ref().is_some_and(|tls| tls.host_must_match_sni),
            strange: Cell::new(false),
            edits: Edits::of(config),
            tls,
            limits,
            bundle: Arc::clone(bundle),
        }
    }

    /// Where the first route leads that fits, else where everything goes.
    #[must_use]
    pub fn destination(&self, fits: impl Fn(&config::Route) -> bool) -> Option<Rc<Backend>> {
        let mut ways = self.config().routes.iter().zip(&self.routes);
        ways.find(|(route, _)| fits(route)).map(|(_, backend)| backend).or(self.backend.as_ref()).cloned()
    }

    /// Whether a request for this host came by a connection that is for another one; one that names none has no other
    /// to be for.
    pub(super) fn is_misdirected(&self, name: Option<&str>, host: &[u8]) -> bool {
        let strict = self.tls.as_ref().filter(|_| self.directs && !host.is_empty());
        strict.is_some_and(|tls| !std::str::from_utf8(host).is_ok_and(|host| tls.resolver().shares(name, host)))
    }

    /// What came of waiting for a header of the PROXY protocol. A source that does not send one is told of once,
    /// until one does.
    pub(super) fn heard<T>(&self, thread: &Thread, introduced: Result<T, Unintroduced>) -> Option<T> {
        match introduced {
            Ok(introduced) => {
                self.strange.set(false);
                Some(introduced)
            }
            Err(problem) => {
                self.slot.add(Counter::RequestErrors, 1);
                if !self.strange.replace(true) {
                    let line =
                        format!("Frontend {}: a source of accept-proxy is refused: {problem}", self.config().name);
                    thread.logger.event(Severity::Warning, &line);
                }
                None
            }
        }
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &config::Frontend {
        &self.bundle.frontends[self.index]
    }
}
