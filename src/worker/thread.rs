//! One serving thread: its runtime, listeners, backends, timers, and its end.
//! Started by `control`, one per core. Never shares a connection with another thread.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;

use super::accept::accept_all;
use super::capacity::{Capacity, Permit};
use crate::config::Bundle;
use crate::handoff::messages::{ListenerOwner, Slots};
use crate::logging::{Logger, Severity};
use crate::proxy::{self, Site, TICK, Thread, Timers};
use crate::stats::{self, Memory, StatsPage};
use crate::upstream;

/// Sweeps of the deadlines between two sweeps of the idle server connections.
const POOL_SWEEP_EVERY: u32 = 40;

/// What all threads do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Everything is prepared; touch no client yet.
    Wait,
    /// Accept and serve.
    Serve,
    /// Finish what is open.
    Drain {
        /// Accept what is queued before closing the queues.
        empty_queues: bool,
    },
    /// End everything.
    Stop,
}

/// What a thread is given.
pub struct Setup {
    /// The configuration.
    pub bundle: Arc<Bundle>,
    /// Places in the shared counters.
    pub slots: Slots,
    /// The shared counters.
    pub memory: Memory,
    /// This worker's gauge lane.
    pub lane: u32,
    /// TLS per frontend.
    pub tls: Vec<Option<TlsAcceptor>>,
    /// This thread's own descriptors of the listening sockets.
    pub listeners: Vec<(ListenerOwner, StdListener)>,
    /// Limits per frontend, then the worker's own last.
    pub limits: Vec<Vec<Arc<Capacity>>>,
    /// Access log.
    pub logger: Logger,
    /// Connections of the worker.
    pub active: Arc<AtomicU32>,
    /// The statistics page.
    pub page: Arc<StatsPage>,
    /// Orders for all threads.
    pub orders: watch::Receiver<Order>,
}

/// Runs the thread to its end; `ready` is told as soon as it could serve.
pub fn run(setup: Setup, ready: oneshot::Sender<io::Result<()>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            // The receiver is gone only when the worker is ending anyway.
            let _ = ready.send(Err(error));
            return;
        }
    };
    LocalSet::new().block_on(&runtime, serve(setup, ready));
}

/// Open client connections of a thread.
#[derive(Default)]
struct Open {
    count: Cell<usize>,
    none_left: Notify,
}

struct OpenGuard(Rc<Open>);

impl OpenGuard {
    fn new(open: &Rc<Open>) -> Self {
        open.count.set(open.count.get() + 1);
        Self(Rc::clone(open))
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        if self.0.count.get() == 0 {
            self.0.none_left.notify_one();
        }
    }
}

async fn serve(setup: Setup, ready: oneshot::Sender<io::Result<()>>) {
    let thread = Rc::new(Thread {
        bundle: Arc::clone(&setup.bundle),
        timers: Timers::default(),
        logger: setup.logger.clone(),
        active: Arc::clone(&setup.active),
        draining: Cell::new(false),
    });
    let open = Rc::new(Open::default());
    let mut orders = setup.orders.clone();
    let (backends, sites) = match build(&setup) {
        Ok(built) => built,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    // The receiver is gone only when the worker is ending anyway.
    let _ = ready.send(Ok(()));
    // A control thread that is gone means stop; `wait_for` fails only then.
    let _ = orders.wait_for(|order| *order != Order::Wait).await;
    if let Err(error) = listen(setup, &thread, &sites, &open) {
        thread.logger.event(Severity::Critical, &format!("a thread cannot listen: {error}"));
        return;
    }
    tokio::task::spawn_local(sweep(Rc::clone(&thread), backends));
    let _ = orders.wait_for(|order| *order != Order::Serve).await;
    thread.draining.set(true);
    if open.count.get() > 0 || *orders.borrow() != Order::Stop {
        finish(&thread, &open, orders).await;
    }
}

/// Waits until the last connection is gone or the order to stop has come.
async fn finish(thread: &Thread, open: &Open, mut orders: watch::Receiver<Order>) {
    // The accept loops run once more, so that what they empty from a queue is counted here.
    tokio::task::yield_now().await;
    loop {
        if open.count.get() == 0 {
            return;
        }
        tokio::select! {
            () = open.none_left.notified() => {}
            _stopped = orders.wait_for(|order| *order == Order::Stop) => break,
        }
    }
    thread.timers.stop();
    while open.count.get() > 0 {
        open.none_left.notified().await;
    }
}

type Built = (Vec<Rc<upstream::Backend>>, Vec<Rc<Site>>);

fn build(setup: &Setup) -> io::Result<Built> {
    let outside = || io::Error::other("a slot lies outside the shared counters");
    let backends = upstream::backends(&setup.bundle, &setup.slots, &setup.memory, setup.lane).ok_or_else(outside)?;
    let mut sites = Vec::new();
    for (index, frontend) in setup.bundle.frontends.iter().enumerate() {
        let slot = setup.slots.frontends.get(index).and_then(|slot| setup.memory.slot(setup.lane, *slot));
        let backend = frontend.backend.and_then(|backend| backends.get(backend)).cloned();
        let tls = setup.tls[index].clone();
        sites.push(Rc::new(Site::new(&setup.bundle, index, slot.ok_or_else(outside)?, backend, tls)));
    }
    Ok((backends, sites))
}

/// Starts an accept loop per listener.
fn listen(setup: Setup, thread: &Rc<Thread>, sites: &[Rc<Site>], open: &Rc<Open>) -> io::Result<()> {
    for (owner, listener) in setup.listeners {
        let listener = TcpListener::from_std(listener)?;
        let orders = setup.orders.clone();
        match owner {
            ListenerOwner::Frontend(index) => {
                let (thread, site, open) = (Rc::clone(thread), Rc::clone(&sites[index]), Rc::clone(open));
                let limits = setup.limits[index].clone();
                let serve = move |stream: TcpStream, peer: SocketAddr, permits: Vec<Permit>| {
                    let guard = OpenGuard::new(&open);
                    let connection = proxy::serve(Rc::clone(&thread), Rc::clone(&site), stream, peer);
                    tokio::task::spawn_local(async move {
                        connection.await;
                        drop((guard, permits));
                    });
                };
                tokio::task::spawn_local(async move { accept_all(listener, &limits, orders, serve).await });
            }
            ListenerOwner::Stats => {
                let page = Arc::clone(&setup.page);
                let serve = move |stream: TcpStream, _peer: SocketAddr, _permits: Vec<Permit>| {
                    tokio::task::spawn_local(stats::serve(stream, Arc::clone(&page)));
                };
                tokio::task::spawn_local(async move { accept_all(listener, &[], orders, serve).await });
            }
        }
    }
    Ok(())
}

/// Fires deadlines and closes idle server connections, for as long as the thread lives.
async fn sweep(thread: Rc<Thread>, backends: Vec<Rc<upstream::Backend>>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut count = 0_u32;
    loop {
        ticks.tick().await;
        thread.timers.sweep(Instant::now());
        count = count.wrapping_add(1);
        if count.is_multiple_of(POOL_SWEEP_EVERY) {
            for backend in &backends {
                backend.sweep();
            }
        }
    }
}
