//! The serving threads of a worker: started together, waited for together.
//! Mustered by `control`, which goes on to give them orders. Never serves anybody itself.

use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::WorkerError;
use super::moving::Arrival;
use super::thread::{self, Setup, Shared};
use crate::handoff::fault::{self, Step};
use crate::handoff::messages::ListenerOwner;

/// What a thread reports once.
type Told = oneshot::Receiver<std::io::Result<()>>;

/// The serving threads.
pub(super) struct Crew {
    pub(super) threads: Vec<JoinHandle<()>>,
    ready: Vec<Told>,
    serving: Vec<Told>,
    /// Where connections of an older worker go, per thread.
    pub(super) arrivals: Vec<mpsc::UnboundedSender<Arrival>>,
    /// Closes when the last thread ends.
    pub(super) ended: mpsc::Receiver<()>,
    /// Closes when the last thread accepts no more.
    pub(super) accepting: mpsc::Receiver<()>,
}

impl Crew {
    /// Starts the threads, each with its own descriptors of the listening sockets.
    pub(super) fn muster(shared: &Shared, listeners: &[(ListenerOwner, OwnedFd)]) -> std::io::Result<Self> {
        fault::strike(Step::Threads)?;
        let (ending, ended) = mpsc::channel(1);
        let (acceptor, accepting) = mpsc::channel(1);
        let (mut threads, mut ready, mut serving, mut arrivals) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for number in 0..shared.threads {
            let mut own = Vec::with_capacity(listeners.len());
            for (owner, listener) in listeners {
                own.push((*owner, listener.try_clone()?));
            }
            let (arrival, arriving) = mpsc::unbounded_channel();
            let (tell_ready, told_ready) = oneshot::channel();
            let (tell_serving, told_serving) = oneshot::channel();
            let setup = Setup {
                shared: shared.clone(),
                number,
                listeners: own,
                arrivals: arriving,
                accepting: Some(acceptor.clone()),
                serving: tell_serving,
            };
            let ending = ending.clone();
            let thread = std::thread::Builder::new().name(format!("serve-{number}")).spawn(move || {
                thread::run(setup, tell_ready);
                // Kept until here: the channel closes when the last thread ends.
                drop(ending);
            });
            threads.push(thread?);
            ready.push(told_ready);
            serving.push(told_serving);
            arrivals.push(arrival);
        }
        Ok(Self { threads, ready, serving, arrivals, ended, accepting })
    }

    /// Waits until every thread could serve.
    pub(super) async fn ready(&mut self) -> Result<(), WorkerError> {
        all_well(&mut self.ready).await
    }

    /// Waits until every thread accepts.
    pub(super) async fn serving(&mut self) -> Result<(), WorkerError> {
        all_well(&mut self.serving).await
    }
}

async fn all_well(reports: &mut Vec<Told>) -> Result<(), WorkerError> {
    for told in std::mem::take(reports) {
        let result = told.await.unwrap_or_else(|_gone| Err(std::io::Error::other("a thread ended at once")));
        result.map_err(WorkerError::Thread)?;
    }
    Ok(())
}
