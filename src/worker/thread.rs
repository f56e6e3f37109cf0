//! One serving thread: its runtime, listeners, backends, timers, and its end.
//! Started by `control`, one per core. Never shares a connection with another thread.

use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::accept::{Accepted, Listener, accept_all};
use super::capacity::{Capacity, Limits, Permits};
use super::moving::Arrival;
use crate::config::Bundle;
use crate::handoff::fault::{self, Step};
use crate::handoff::messages::{ListenerOwner, Slots};
use crate::logging::Logger;
use crate::proxy::{self, Departure, Site, Spare, TICK, Thread, Timers};
use crate::stats::{self, Door, Memory, StatsPage};
use crate::tls::{Acceptor, ClientSettings};
use crate::upstream;

/// Connections to the statistics page a thread holds at most.
const STATS_MAXCONN: u32 = 32;
/// How long one of them may last.
const STATS_LIFE: Duration = Duration::from_secs(30);
/// Sweeps of the deadlines between two sweeps of the idle server connections.
const POOL_SWEEP_EVERY: u32 = 40;

/// What all threads do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Everything is prepared; touch no client yet.
    Wait,
    /// Accept and serve.
    Serve,
    /// Finish what is open.
    Drain {
        /// Places of the listening sockets whose queues nobody else has: what waits there is accepted.
        abandoned: Arc<[usize]>,
        /// Idle connections may go to a successor.
        moving: bool,
    },
    /// End everything.
    Stop,
}

/// What all threads are given.
#[derive(Clone)]
pub struct Shared {
    /// The configuration.
    pub bundle: Arc<Bundle>,
    /// Places in the shared counters.
    pub slots: Slots,
    /// The shared counters.
    pub memory: Memory,
    /// This worker's gauge lane.
    pub lane: u32,
    /// How many threads serve.
    pub threads: usize,
    /// Idle connections to servers that each of them keeps.
    pub idle: usize,
    /// TLS per frontend.
    pub tls: Vec<Option<Acceptor>>,
    /// TLS towards servers, per backend.
    pub secured: Arc<[Option<ClientSettings>]>,
    /// Limits per frontend.
    pub limits: Vec<Limits>,
    /// Access log.
    pub logger: Logger,
    /// Connections of the worker.
    pub active: Arc<AtomicU32>,
    /// The statistics page.
    pub page: Arc<StatsPage>,
    /// Orders.
    pub orders: watch::Receiver<Order>,
    /// The way to a successor.
    pub departure: Departure,
}

/// What one thread is given.
pub struct Setup {
    /// What it shares with the others.
    pub shared: Shared,
    /// Which one it is, from 0.
    pub number: usize,
    /// Its own descriptors of the listening sockets.
    pub listeners: Vec<(ListenerOwner, OwnedFd)>,
    /// Connections from older workers.
    pub arrivals: mpsc::UnboundedReceiver<Arrival>,
    /// Held for as long as it may still accept.
    pub accepting: Option<mpsc::Sender<()>>,
    /// Told when it accepts.
    pub serving: oneshot::Sender<io::Result<()>>,
}

/// Runs the thread to its end; `ready` is told as soon as it could serve.
pub fn run(setup: Setup, ready: oneshot::Sender<io::Result<()>>) {
    // Not a `LocalSet`: whose wakers write to an eventfd for every batch of events, and read it again.
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            // The receiver is gone only when the worker is ending anyway.
            let _ = ready.send(Err(error));
            return;
        }
    };
    runtime.block_on(serve(setup, ready));
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
    let Setup { mut shared, number, listeners, arrivals, accepting, serving: accepts } = setup;
    shared.memory = shared.memory.of_thread(number);
    let thread = Rc::new(Thread {
        bundle: Arc::clone(&shared.bundle),
        timers: Timers::default(),
        buffers: Spare::default(),
        logger: shared.logger.clone(),
        active: Arc::clone(&shared.active),
        draining: Cell::new(None),
        departure: OnceCell::new(),
    });
    let (backends, sites) = match build(&shared) {
        Ok(built) => built,
        Err(error) => {
            // The receiver is gone only when the worker is ending anyway.
            let _ = ready.send(Err(error));
            return;
        }
    };
    // The receiver is gone only when the worker is ending anyway.
    let _ = ready.send(Ok(()));
    // A control thread that is gone means stop; `wait_for` fails only then.
    let begun = shared.orders.wait_for(|order| *order != Order::Wait).await.is_ok_and(|order| *order == Order::Serve);
    if !begun {
        // Whoever never served has no queue to empty: all of it is others'.
        return;
    }
    let mut serving = Serving { thread, backends, sites, open: Rc::default(), shared, arrivals, accepting };
    if let Err(error) = serving.listen(listeners) {
        // The receiver is gone only when the worker is ending anyway.
        let _ = accepts.send(Err(error));
        return;
    }
    // The receiver is gone only when the worker is ending anyway.
    let _ = accepts.send(Ok(()));
    let beat = u32::try_from(number).ok().and_then(|number| serving.shared.memory.beat(serving.shared.lane, number));
    tokio::task::spawn_local(sweep(Rc::clone(&serving.thread), serving.backends.clone(), beat));
    serving.follow().await;
}

/// A thread that serves.
struct Serving {
    thread: Rc<Thread>,
    backends: Vec<Rc<upstream::Backend>>,
    sites: Vec<Rc<Site>>,
    open: Rc<Open>,
    shared: Shared,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    accepting: Option<mpsc::Sender<()>>,
}

impl Serving {
    /// Follows orders until the last connection is gone.
    async fn follow(&mut self) {
        let mut orders = self.shared.orders.clone();
        let first = orders.borrow_and_update().clone();
        self.obey(&first);
        let mut ending = first != Order::Serve;
        loop {
            tokio::select! {
                order = next_order(&mut orders), if !self.thread.timers.is_stopping() => {
                    self.obey(&order);
                    ending |= order != Order::Serve;
                }
                Some(arrival) = self.arrivals.recv() => self.admit(arrival),
                () = self.open.none_left.notified() => {}
            }
            if ending && self.open.count.get() == 0 && !self.last_arrivals() {
                return;
            }
        }
    }

    fn obey(&mut self, order: &Order) {
        match order {
            Order::Wait | Order::Serve => return,
            Order::Drain { moving, .. } => {
                let departure = moving.then(|| self.shared.departure.clone());
                self.thread.drain(departure, &self.backends);
            }
            Order::Stop => {
                self.thread.draining.set(Some(proxy::now()));
                self.thread.timers.stop();
            }
        }
        // The accept loops have their own, which they drop when they are done.
        self.accepting = None;
    }

    /// Closes the way in; true when something had come through before.
    fn last_arrivals(&mut self) -> bool {
        self.arrivals.close();
        match self.arrivals.try_recv() {
            Ok(arrival) => {
                self.admit(arrival);
                true
            }
            Err(_empty) => false,
        }
    }

    /// Takes over a connection that an older worker gave up.
    fn admit(&self, arrival: Arrival) {
        match arrival {
            Arrival::Server(backend, server, socket) => {
                if let Some(backend) = self.backends.get(backend)
                    && let Ok(stream) = TcpStream::from_std(socket.into())
                {
                    backend.adopt(server, stream, proxy::now());
                }
            }
            Arrival::Tunnel { frontend, to, tunnel, sockets, go } => {
                let here = (Rc::clone(&self.thread), Rc::clone(&self.sites[frontend]));
                let permits = self.shared.limits[frontend].enter();
                let (guard, backend) = (OpenGuard::new(&self.open), Rc::clone(&self.backends[to.0]));
                tokio::task::spawn_local(async move {
                    let [client, server] = sockets;
                    if go.await.is_ok()
                        && let (Ok(client), Ok(server)) =
                            (TcpStream::from_std(client.into()), TcpStream::from_std(server.into()))
                    {
                        proxy::resume_tunnel(here, (backend, to.1), [client, server], *tunnel).await;
                    }
                    drop((guard, permits));
                });
            }
            Arrival::Client { frontend, client, socket, go } => {
                let (thread, site) = (Rc::clone(&self.thread), Rc::clone(&self.sites[frontend]));
                let permits = self.shared.limits[frontend].enter();
                let guard = OpenGuard::new(&self.open);
                tokio::task::spawn_local(async move {
                    if go.await.is_ok()
                        && let Ok(stream) = TcpStream::from_std(socket.into())
                    {
                        proxy::resume(thread, site, stream, client).await;
                    }
                    drop((guard, permits));
                });
            }
        }
    }

    /// Starts an accept loop per listener.
    fn listen(&self, listeners: Vec<(ListenerOwner, OwnedFd)>) -> io::Result<()> {
        for (place, (owner, listener)) in listeners.into_iter().enumerate() {
            let listener = (place, Listener::new(listener)?);
            let orders = self.shared.orders.clone();
            // Whatever a loop still takes out of its queue belongs to this thread's life.
            let busy = (OpenGuard::new(&self.open), self.accepting.clone());
            match owner {
                ListenerOwner::Frontend(index) => {
                    let (thread, site) = (Rc::clone(&self.thread), Rc::clone(&self.sites[index]));
                    let (open, limits) = (Rc::clone(&self.open), self.shared.limits[index].clone());
                    let bind = listener.1.bind_of(&site.config().binds);
                    let serve = move |accepted: Accepted, permits: Option<Permits>| {
                        let guard = OpenGuard::new(&open);
                        let here = (Rc::clone(&thread), Rc::clone(&site));
                        tokio::task::spawn_local(proxy::serve(here, bind, accepted, (guard, permits)));
                    };
                    tokio::task::spawn_local(async move {
                        accept_all(listener, &limits, orders, serve).await;
                        drop(busy);
                    });
                }
                ListenerOwner::Stats | ListenerOwner::Metrics => {
                    let door = if owner == ListenerOwner::Stats { Door::Page } else { Door::Metrics };
                    let page = Arc::clone(&self.shared.page);
                    let open = Rc::clone(&self.open);
                    let serve = move |(stream, _peer): Accepted, permits: Option<Permits>| {
                        let guard = OpenGuard::new(&open);
                        let connection = stats::serve(stream, Arc::clone(&page), door);
                        tokio::task::spawn_local(async move {
                            // Who does not read in this time holds a descriptor for nothing.
                            let _ended = tokio::time::timeout(STATS_LIFE, connection).await;
                            drop((guard, permits));
                        });
                    };
                    let limits = Limits::new(None, &Capacity::new(STATS_MAXCONN));
                    tokio::task::spawn_local(async move {
                        accept_all(listener, &limits, orders, serve).await;
                        drop(busy);
                    });
                }
            }
        }
        Ok(())
    }
}

/// The next order that is not the one before; a control thread that is gone means stop.
async fn next_order(orders: &mut watch::Receiver<Order>) -> Order {
    match orders.changed().await {
        Ok(()) => orders.borrow_and_update().clone(),
        Err(_gone) => Order::Stop,
    }
}

type Built = (Vec<Rc<upstream::Backend>>, Vec<Rc<Site>>);

fn build(shared: &Shared) -> io::Result<Built> {
    let outside = || io::Error::other("a slot lies outside the shared counters");
    let (memory, secured) = ((&shared.memory, shared.lane), &shared.secured);
    let backends =
        upstream::backends(&shared.bundle, &shared.slots, memory, secured, shared.idle).ok_or_else(outside)?;
    let mut sites = Vec::new();
    for index in 0..shared.bundle.frontends.len() {
        let slot = shared.slots.frontends.get(index).and_then(|slot| shared.memory.slot(shared.lane, *slot));
        let tls = shared.tls[index].clone();
        sites.push(Rc::new(Site::new(&shared.bundle, index, slot.ok_or_else(outside)?, &backends, tls)));
    }
    Ok((backends, sites))
}

/// Fires deadlines and closes idle server connections, for as long as the thread lives. Each sweep is a heartbeat: the
/// master sees by it that the thread still comes round.
async fn sweep(thread: Rc<Thread>, backends: Vec<Rc<upstream::Backend>>, beat: Option<&'static AtomicU64>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut count = 0_u32;
    loop {
        ticks.tick().await;
        // Only a fault that hangs is meant for this step.
        let _ = fault::strike(Step::Beat);
        if let Some(beat) = beat {
            beat.fetch_add(1, Ordering::Relaxed);
        }
        let now = proxy::now();
        thread.timers.sweep(now);
        count = count.wrapping_add(1);
        if count.is_multiple_of(POOL_SWEEP_EVERY) {
            for backend in &backends {
                backend.sweep(now);
            }
        }
    }
}
