//! The worker's main thread: starts the serving threads and follows the master's orders.
//! Called by the hidden `worker` subcommand. Never touches a client's byte.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use nix::unistd::{Pid, getppid};
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::WorkerError;
use super::capacity::{Capacity, Limits};
use super::crew::Crew;
use super::moving::{self, Reception};
use super::start::{Inheritance, drop_privileges, inherit};
use super::thread::{Order, Shared};
use crate::config::Bundle;
use crate::handoff::fault::{self, Step};
use crate::handoff::messages::{FromWorker, ToWorker};
use crate::handoff::{Channel, HandoffError};
use crate::logging::{LogThread, Logger, Severity};
use crate::proxy::{Departure, Leaving};
use crate::stats::StatsPage;
use crate::tls::{self, Acceptor, TicketKeys};
use crate::upstream::{Checks, most_idle};

/// How long connections get to notice that the worker stops.
const STOP_GRACE: Duration = Duration::from_millis(500);
/// How long a master that has closed its end may still be seen to live. One that does is about to kill us.
const LAST_SIGHT: Duration = Duration::from_secs(1);
/// Pause between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
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
    let served = fault::strike(Step::Start)
        .map_err(|source| WorkerError::Step { step: "beginning", source })
        .and_then(|()| inherit(&channel))
        .and_then(|inheritance| start(&channel, inheritance));
    match served {
        Ok((worker, leaving)) => runtime.block_on(async {
            let asking = Arc::clone(&channel);
            // Without a master nobody can make another way.
            let stranded = move || drop(asking.send(&FromWorker::Stranded, &[]));
            tokio::spawn(moving::send_all(leaving, worker.successor.subscribe(), stranded));
            worker.follow(&channel).await
        }),
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
    crew: Crew,
    /// Listening sockets.
    queues: usize,
    departure: Departure,
    successor: watch::Sender<Option<Arc<Channel>>>,
    tickets: Arc<TicketKeys>,
    /// TLS with clients, per frontend.
    acceptors: Vec<Option<Acceptor>>,
    page: Arc<StatsPage>,
    logger: Logger,
    log_thread: LogThread,
    checks: Checks,
    bundle: Arc<Bundle>,
}

/// What the threads give up comes out of here.
type Way = mpsc::UnboundedReceiver<Leaving>;

fn start(channel: &Arc<Channel>, inheritance: Inheritance) -> Result<(Worker, Way), WorkerError> {
    let Inheritance { start, bundle, memory, log_sockets, listeners } = inheritance;
    drop_privileges(&start)?;
    let reporter = Arc::clone(channel);
    let (logger, log_thread) = Logger::start(
        &bundle,
        log_sockets,
        move |target| {
            // Without a master nobody can reconnect; lines are counted as dropped then.
            let _ = reporter.send(&FromWorker::LogLost(target), &[]);
        },
        move |lines| memory.drop_log_lines(lines),
    );
    let page = Arc::new(StatsPage::new(Arc::clone(&bundle), start.slots.clone(), memory, start.generation));
    let tickets = TicketKeys::from_raw(&start.ticket_keys, bundle.global.tickets.lifetime())?;
    let (orders, watching) = watch::channel(Order::Wait);
    let (departure, leaving) = Departure::new();
    let secured: Arc<[_]> = tls::client_settings(&bundle)?.into();
    let acceptors = tls::acceptors(&bundle, &tickets)?;
    let shared = Shared {
        bundle: Arc::clone(&bundle),
        slots: start.slots.clone(),
        memory,
        lane: start.lane,
        threads: start.threads,
        idle: most_idle(start.maxconn, start.threads),
        tls: acceptors.clone(),
        secured: Arc::clone(&secured),
        limits: limits(&bundle, start.maxconn),
        logger: logger.clone(),
        active: Arc::new(AtomicU32::new(0)),
        page: Arc::clone(&page),
        orders: watching,
        departure: departure.clone(),
    };
    let crew = Crew::muster(&shared, &listeners).map_err(WorkerError::Thread)?;
    let (queues, successor) = (listeners.len(), watch::channel(None).0);
    let checks =
        Checks { bundle: Arc::clone(&bundle), slots: start.slots, memory, secured, generation: start.generation };
    let worker = Worker {
        orders,
        crew,
        queues,
        departure,
        successor,
        tickets,
        acceptors,
        page,
        logger,
        log_thread,
        checks,
        bundle,
    };
    Ok((worker, leaving))
}

/// What is in a file that other workers may be reading, too: its position is theirs as well.
fn read<T: DeserializeOwned>(fd: OwnedFd) -> std::io::Result<T> {
    let file = File::from(fd);
    let length = usize::try_from(file.metadata()?.len()).map_err(std::io::Error::other)?;
    let mut text = vec![0; length];
    file.read_exact_at(&mut text, 0)?;
    Ok(serde_json::from_slice(&text)?)
}

/// The limits each frontend's connections count against.
fn limits(bundle: &Bundle, maxconn: u32) -> Vec<Limits> {
    let worker = Capacity::new(maxconn);
    bundle.frontends.iter().map(|frontend| Limits::new(frontend.maxconn, &worker)).collect()
}

impl Worker {
    async fn follow(mut self, channel: &Arc<Channel>) -> Result<(), WorkerError> {
        if let Err(error) = self.ready().await {
            // The master may be gone, which is then the reason already.
            let _ = channel.send(&FromWorker::Failed(error.chain()), &[]);
            return Err(error);
        }
        channel.send(&FromWorker::Ready, &[])?;
        let (mut hard_stop, mut accepting, master) = (None, true, getppid());
        loop {
            tokio::select! {
                message = channel.recv::<ToWorker>() => match message {
                    Ok(Some((ToWorker::Serve, _))) => if let Err(error) = self.begin(channel).await {
                        // A master that is gone is noticed by nobody then.
                        let _ = channel.send(&FromWorker::Failed(error.chain()), &[]);
                        self.end().await;
                        return Err(error);
                    },
                    Ok(Some((message, fds))) => match self.obey(channel, message, fds.into_iter().next()) {
                        Followed::On => {}
                        Followed::Drain(limit) => hard_stop = Some(limit),
                        Followed::Stop => break,
                    },
                    // One order is lost, the master is not: it must not look as if it were.
                    Err(error @ (HandoffError::Truncated | HandoffError::Message(_))) => {
                        self.logger.event(Severity::Error, &format!("an order of the master is lost: {error}"));
                    }
                    // The master is gone: nobody will ever ask again, so finish in good order.
                    Ok(None) | Err(_) => {
                        orphaned(master).await;
                        self.orders.send_replace(Order::Drain { abandoned: (0..self.queues).collect(), moving: false });
                        let limit = hard_stop.unwrap_or(tokio::time::Instant::now() + self.bundle.reload.hard_stop_after);
                        let _ = tokio::time::timeout_at(limit, self.crew.ended.recv()).await;
                        break;
                    }
                },
                _ = self.crew.accepting.recv(), if accepting => {
                    accepting = false;
                    // Only crashing and hanging are meant for this step.
                    let _ = fault::strike(Step::Drained);
                    // A master that is gone is noticed by the next receive.
                    let _ = channel.send(&FromWorker::Draining, &[]);
                }
                _ = self.crew.ended.recv() => break,
                () = until(hard_stop) => break,
            }
        }
        self.end().await;
        Ok(())
    }

    /// Waits until every thread could serve.
    async fn ready(&mut self) -> Result<(), WorkerError> {
        self.crew.ready().await?;
        fault::strike(Step::Ready).map_err(|source| WorkerError::Step { step: "reporting it", source })
    }

    /// Has every thread accept, and says so once they do: from then on an older worker can be spared.
    async fn begin(&mut self, channel: &Channel) -> Result<(), WorkerError> {
        fault::strike(Step::Serve).map_err(|source| WorkerError::Step { step: "serving", source })?;
        self.orders.send_replace(Order::Serve);
        self.crew.serving().await?;
        // A master that is gone is noticed by the next receive.
        let _ = channel.send(&FromWorker::Serving, &[]);
        Ok(())
    }

    /// The checks are this worker's; what they find is for the master to say.
    fn check_servers(&self, channel: &Arc<Channel>) {
        let (channel, logger) = (Arc::clone(channel), self.logger.clone());
        self.checks.start(move |lines| {
            for (severity, line) in lines {
                if channel.send(&FromWorker::Event(severity as u8, line.clone()), &[]).is_err() {
                    // Without a master, on our own way.
                    logger.event(severity, &line);
                }
            }
        });
    }

    /// Serves other certificates; a frontend that is not here any more needs none.
    fn exchange(&mut self, frontend: &str, fd: OwnedFd) -> Result<(), WorkerError> {
        let mut bundle = Bundle::clone(&self.bundle);
        let Some((place, acceptor)) = self.acceptor(frontend) else { return Ok(()) };
        let Some(tls) = &mut bundle.frontends[place].tls else { return Ok(()) };
        tls.certificates = read(fd).map_err(WorkerError::Bundle)?;
        acceptor.resolver().replace(&tls.certificates)?;
        self.go_by(bundle);
        Ok(())
    }

    /// Lets in those for whom others vouch.
    fn admit(&mut self, frontend: &str, fd: OwnedFd) -> Result<(), WorkerError> {
        let mut bundle = Bundle::clone(&self.bundle);
        let Some((place, acceptor)) = self.acceptor(frontend) else { return Ok(()) };
        let Some(tls) = &mut bundle.frontends[place].tls else { return Ok(()) };
        tls.client_auth = Some(read(fd).map_err(WorkerError::Bundle)?);
        acceptor.admit((frontend, tls), &self.tickets)?;
        self.go_by(bundle);
        Ok(())
    }

    /// Goes to the servers of a backend by what another file holds.
    fn renew(&mut self, backend: &str, fd: OwnedFd) -> Result<(), WorkerError> {
        let mut bundle = Bundle::clone(&self.bundle);
        let files = read(fd).map_err(WorkerError::Bundle)?;
        let Some(place) = bundle.exchange(backend, files) else { return Ok(()) };
        if let Some(settings) = &self.checks.secured[place] {
            settings.renew(&bundle.backends[place], &bundle.authorities)?;
        }
        self.go_by(bundle);
        Ok(())
    }

    /// Remembers what has been exchanged, and tells when it ends.
    fn go_by(&mut self, bundle: Bundle) {
        self.bundle = Arc::new(bundle);
        self.page.exchange(Arc::clone(&self.bundle));
    }

    fn acceptor(&self, frontend: &str) -> Option<(usize, &Acceptor)> {
        let place = self.bundle.frontends.iter().position(|known| known.name == frontend)?;
        Some((place, self.acceptors[place].as_ref()?))
    }

    fn obey(&mut self, channel: &Arc<Channel>, message: ToWorker, fd: Option<OwnedFd>) -> Followed {
        match (message, fd) {
            (ToWorker::Check, _) => self.check_servers(channel),
            (ToWorker::Drain { abandoned, hard_stop_after }, _) => {
                // Only crashing and hanging are meant for this step.
                let _ = fault::strike(Step::Drain);
                let moving = self.successor.borrow().is_some();
                self.orders.send_replace(Order::Drain { abandoned: abandoned.into(), moving });
                return Followed::Drain(tokio::time::Instant::now() + hard_stop_after);
            }
            (ToWorker::Successor, Some(fd)) => {
                let channel = Channel::from_fd(fd);
                // Later, when all connections want to leave at once, there may be no descriptor left for it.
                if fault::strike(Step::Successor).is_ok() && channel.register().is_ok() {
                    self.successor.send_replace(Some(Arc::new(channel)));
                    self.departure.renew();
                    // A worker that drains already is told once more, and with it whoever still has to leave.
                    self.orders.send_modify(|_same| {});
                }
            }
            (ToWorker::Predecessor, Some(fd)) => {
                let reception = Reception::new(Arc::clone(&self.bundle), self.crew.arrivals.clone());
                tokio::spawn(reception.receive_all(Channel::from_fd(fd)));
            }
            (ToWorker::Certificates(frontend), Some(fd)) => {
                if let Err(error) = self.exchange(&frontend, fd) {
                    let error = error.chain();
                    self.logger.event(Severity::Error, &format!("the old certificates stay: {error}"));
                }
            }
            (ToWorker::Clients(frontend), Some(fd)) => {
                if let Err(error) = self.admit(&frontend, fd) {
                    let error = error.chain();
                    self.logger.event(Severity::Error, &format!("clients are let in as before: {error}"));
                }
            }
            (ToWorker::Servers(backend), Some(fd)) => {
                if let Err(error) = self.renew(&backend, fd) {
                    let error = error.chain();
                    self.logger.event(Severity::Error, &format!("servers are believed as before: {error}"));
                }
            }
            (ToWorker::TicketKeys(keys), _) => {
                if let Err(error) = self.tickets.replace(&keys) {
                    self.logger.event(Severity::Error, &format!("the old ticket keys stay: {error}"));
                }
            }
            (ToWorker::LogSocket(target), Some(socket)) => self.logger.replace_socket(target, socket),
            (ToWorker::Stop, _) => return Followed::Stop,
            // The first messages come once; without its descriptor an order cannot be followed.
            (ToWorker::Start(_) | ToWorker::Listeners(_) | ToWorker::Serve, _) | (_, None) => {}
        }
        Followed::On
    }

    /// Ends connections, threads and log, in this order.
    async fn end(mut self) {
        self.orders.send_replace(Order::Stop);
        let ended = tokio::time::timeout(STOP_GRACE, self.crew.ended.recv()).await.is_ok();
        if ended {
            for thread in self.crew.threads {
                // A thread that panicked has said so on stderr.
                let _ = thread.join();
            }
        }
        self.log_thread.finish(LOG_GRACE);
    }
}

/// Waits until the master is seen to be dead. One that lives and has closed its end does not want this worker: the
/// queues are others' then.
async fn orphaned(master: Pid) {
    let deadline = tokio::time::Instant::now() + LAST_SIGHT;
    while getppid() == master && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// What an order means for the control loop.
enum Followed {
    On,
    Drain(tokio::time::Instant),
    Stop,
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
