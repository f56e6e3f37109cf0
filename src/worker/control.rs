//! The worker's main thread: starts the serving threads and follows the master's orders.
//! Called by the hidden `worker` subcommand. Never touches a client's byte.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;

use super::WorkerError;
use super::capacity::Capacity;
use super::start::{Inheritance, drop_privileges, inherit};
use super::thread::{self, Order, Setup};
use crate::config::Bundle;
use crate::handoff::Channel;
use crate::handoff::messages::{FromWorker, ToWorker};
use crate::logging::{LogThread, Logger};
use crate::stats::{Counter, StatsPage};
use crate::tls::{self, TicketKeys};

/// How long connections get to notice that the worker stops.
const STOP_GRACE: Duration = Duration::from_millis(500);
/// How long the log thread gets to write what is queued.
const LOG_GRACE: Duration = Duration::from_secs(1);

/// Runs a worker to its end.
///
/// # Errors
/// Why it cannot serve; the master has been told.
pub fn run(channel: Channel) -> Result<(), WorkerError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(WorkerError::Thread)?;
    let channel = Arc::new(channel);
    leave_signals_to_the_master(&runtime);
    let served = inherit(&channel).and_then(|inheritance| start(&channel, inheritance));
    match served {
        Ok(worker) => runtime.block_on(worker.follow(&channel)),
        Err(error) => {
            // The master may be gone, which is then the reason already.
            let _ = channel.send(&FromWorker::Failed(error.chain()), &[]);
            Err(error)
        }
    }
}

/// What is sent to every process of our name is meant for the master, which tells us. SIGTERM ends a
/// worker still: without a master nothing else would.
fn leave_signals_to_the_master(runtime: &tokio::runtime::Runtime) {
    let _entered = runtime.enter();
    let kinds = [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit()];
    for kind in kinds.into_iter().chain([SignalKind::user_defined1(), SignalKind::user_defined2()]) {
        // Once asked for, a signal never has its default effect again; a failure leaves it that.
        let _ = signal(kind);
    }
}

/// A started worker.
struct Worker {
    orders: watch::Sender<Order>,
    threads: Vec<JoinHandle<()>>,
    ready: Vec<oneshot::Receiver<std::io::Result<()>>>,
    ended: mpsc::Receiver<()>,
    logger: Logger,
    log_thread: LogThread,
    bundle: Arc<Bundle>,
}

fn start(channel: &Arc<Channel>, inheritance: Inheritance) -> Result<Worker, WorkerError> {
    let Inheritance { start, bundle, memory, log_sockets, listeners } = inheritance;
    // Before chroot: the local time zone is a file.
    let losses = start.slots.frontends.first().and_then(|slot| memory.slot(start.lane, *slot));
    let reporter = Arc::clone(channel);
    let (logger, log_thread) = Logger::start(
        &bundle,
        log_sockets,
        move |target| {
            // Without a master nobody can reconnect; lines are counted as dropped then.
            let _ = reporter.send(&FromWorker::LogLost(target), &[]);
        },
        move |lines| {
            if let Some(slot) = &losses {
                slot.add(Counter::LogDrops, lines);
            }
        },
    );
    drop_privileges(&start)?;
    let acceptors = acceptors(&bundle, &start.ticket_keys)?;
    let limits = limits(&bundle, start.maxconn);
    let page = Arc::new(StatsPage::new(Arc::clone(&bundle), start.slots.clone(), memory, start.generation));
    let (orders, watching) = watch::channel(Order::Wait);
    let (ending, ended) = mpsc::channel(1);
    let active = Arc::new(AtomicU32::new(0));
    let (mut threads, mut ready) = (Vec::new(), Vec::new());
    for number in 0..thread_count(&bundle) {
        let mut own = Vec::with_capacity(listeners.len());
        for (owner, listener) in &listeners {
            own.push((*owner, listener.try_clone().map_err(WorkerError::Thread)?));
        }
        let setup = Setup {
            bundle: Arc::clone(&bundle),
            slots: start.slots.clone(),
            memory,
            lane: start.lane,
            tls: acceptors.clone(),
            listeners: own,
            limits: limits.clone(),
            logger: logger.clone(),
            active: Arc::clone(&active),
            page: Arc::clone(&page),
            orders: watching.clone(),
        };
        let (tell, told) = oneshot::channel();
        ready.push(told);
        let ending = ending.clone();
        let spawned = std::thread::Builder::new().name(format!("serve-{number}")).spawn(move || {
            thread::run(setup, tell);
            // Kept until here: the channel closes when the last thread ends.
            drop(ending);
        });
        threads.push(spawned.map_err(WorkerError::Thread)?);
    }
    Ok(Worker { orders, threads, ready, ended, logger, log_thread, bundle })
}

fn thread_count(bundle: &Bundle) -> usize {
    bundle.global.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn acceptors(bundle: &Bundle, keys: &[Vec<u8>]) -> Result<Vec<Option<TlsAcceptor>>, WorkerError> {
    let keys = TicketKeys::from_raw(keys)?;
    let mut all = Vec::with_capacity(bundle.frontends.len());
    for frontend in &bundle.frontends {
        all.push(match &frontend.tls {
            Some(settings) => Some(TlsAcceptor::from(tls::server_config(settings, &keys)?)),
            None => None,
        });
    }
    Ok(all)
}

/// The limits each frontend's connections count against.
fn limits(bundle: &Bundle, maxconn: u32) -> Vec<Vec<Arc<Capacity>>> {
    let worker = Capacity::new(maxconn);
    let of = |frontend: &crate::config::Frontend| {
        frontend.maxconn.map(Capacity::new).into_iter().chain([Arc::clone(&worker)]).collect()
    };
    bundle.frontends.iter().map(of).collect()
}

impl Worker {
    async fn follow(mut self, channel: &Channel) -> Result<(), WorkerError> {
        for told in std::mem::take(&mut self.ready) {
            let result = told.await.unwrap_or_else(|_gone| Err(std::io::Error::other("a thread ended at once")));
            if let Err(source) = result {
                let error = WorkerError::Thread(source);
                let _ = channel.send(&FromWorker::Failed(error.chain()), &[]);
                return Err(error);
            }
        }
        channel.send(&FromWorker::Ready, &[])?;
        let mut hard_stop = None;
        loop {
            tokio::select! {
                message = channel.recv::<ToWorker>() => match message {
                    Ok(Some((message, fds))) => match self.obey(channel, message, fds) {
                        Followed::Serve => {}
                        Followed::Drain(limit) => hard_stop = Some(limit),
                        Followed::Stop => break,
                    },
                    // The master is gone: nobody will ever ask again, so finish in good order.
                    Ok(None) | Err(_) => {
                        self.orders.send_replace(Order::Drain { empty_queues: true });
                        let limit = hard_stop.unwrap_or(tokio::time::Instant::now() + self.bundle.reload.hard_stop_after);
                        let _ = tokio::time::timeout_at(limit, self.ended.recv()).await;
                        break;
                    }
                },
                _ = self.ended.recv() => break,
                () = until(hard_stop) => break,
            }
        }
        self.end().await;
        Ok(())
    }

    fn obey(&self, channel: &Channel, message: ToWorker, fds: Vec<std::os::fd::OwnedFd>) -> Followed {
        match message {
            ToWorker::Serve => {
                self.orders.send_replace(Order::Serve);
                Followed::Serve
            }
            ToWorker::Drain { empty_queues, hard_stop_after } => {
                self.orders.send_replace(Order::Drain { empty_queues });
                // A master that is gone is noticed by the next receive.
                let _ = channel.send(&FromWorker::Draining, &[]);
                Followed::Drain(tokio::time::Instant::now() + hard_stop_after)
            }
            ToWorker::Stop => Followed::Stop,
            ToWorker::LogSocket(target) => {
                if let Some(socket) = fds.into_iter().next() {
                    self.logger.replace_socket(target, socket);
                }
                Followed::Serve
            }
            ToWorker::Start(_) | ToWorker::Listeners(_) => Followed::Serve,
        }
    }

    /// Ends connections, threads and log, in this order.
    async fn end(mut self) {
        self.orders.send_replace(Order::Stop);
        let ended = tokio::time::timeout(STOP_GRACE, self.ended.recv()).await.is_ok();
        if ended {
            for thread in self.threads {
                // A thread that panicked has said so on stderr.
                let _ = thread.join();
            }
        }
        self.log_thread.finish(LOG_GRACE);
    }
}

/// What an order means for the control loop.
enum Followed {
    Serve,
    Drain(tokio::time::Instant),
    Stop,
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
