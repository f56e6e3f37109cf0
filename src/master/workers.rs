//! The worker processes that are alive: who serves, who drains, who has to go.
//! Owned by `lifecycle`. Never starts one.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::sync::mpsc;

use super::MasterError;
use super::events::Event;
use super::spawn::{State, Worker};
use super::status::Generation;
use super::watchdog::STALL_PATIENCE;
use crate::config::Reload;
use crate::handoff::Channel;
use crate::handoff::messages::ToWorker;
use crate::stats::{LANES, Memory};

/// How long a worker that was told to end may take before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// How long a worker that was told to drain may take to say that it accepts no more. One that does not follow orders
/// would give clients the old configuration until `hard-stop-after`.
const RETREAT_PATIENCE: Duration = Duration::from_secs(10);

/// All living workers, oldest first.
#[derive(Default)]
pub(super) struct Workers {
    alive: Vec<Worker>,
    /// Processes of a master that was killed, which finish what they have, and their gauge lanes.
    orphans: Vec<(u32, u32)>,
}

impl Workers {
    /// Workers that the program before started.
    pub(super) fn of(alive: Vec<Worker>) -> Self {
        Self { alive, orphans: Vec::new() }
    }

    /// Begins to hear what they say.
    pub(super) fn follow(&mut self, events: &mpsc::UnboundedSender<Event>) {
        self.alive.iter_mut().for_each(|worker| worker.follow(events));
    }

    /// Leaves lanes to workers that a killed master has left.
    pub(super) fn reserve(&mut self, orphans: Vec<(u32, u32)>) {
        self.orphans = orphans;
    }

    pub(super) fn orphans(&self) -> &[(u32, u32)] {
        &self.orphans
    }

    /// Lanes of those that have ended.
    pub(super) fn bury_orphans(&mut self) -> Vec<u32> {
        let ended = self.orphans.extract_if(.., |(pid, _)| !is_alive(*pid));
        ended.map(|(_, lane)| lane).collect()
    }

    pub(super) fn all(&self) -> &[Worker] {
        &self.alive
    }

    pub(super) fn is_empty(&self) -> bool {
        self.alive.is_empty()
    }

    pub(super) fn any_serving(&self) -> bool {
        self.alive.iter().any(|worker| worker.state == State::Serving)
    }

    pub(super) fn find(&self, generation: u64) -> Option<&Worker> {
        self.alive.iter().find(|worker| worker.generation == generation)
    }

    /// A gauge lane nobody uses.
    pub(super) fn free_lane(&self) -> Option<u32> {
        let used = self.alive.iter().map(|worker| worker.lane).chain(self.orphans.iter().map(|(_, lane)| *lane));
        let used: HashSet<u32> = used.collect();
        (0..LANES).find(|lane| !used.contains(lane))
    }

    /// A new worker serves: older ones send it what is idle and drain, more than `max-old` of them end the oldest.
    /// Nobody was told before: one that had died or hung instead would have left somebody who accepts.
    /// Nobody else has the listening sockets at the places `abandoned`.
    /// Returns the generations that have to stop accepting.
    pub(super) fn promote(&mut self, mut worker: Worker, abandoned: &[usize], settings: &Reload) -> Vec<u64> {
        worker.state = State::Serving;
        for old in self.alive.iter_mut().filter(|old| old.state == State::Serving) {
            old.state = State::Draining;
            let hard_stop_after = settings.hard_stop_after;
            old.relief = Some(ToWorker::Drain { abandoned: abandoned.to_vec(), hard_stop_after });
        }
        let waiting = self.alive.iter().filter(|old| old.relief.is_some()).map(|old| old.generation).collect();
        for old in self.alive.iter_mut().filter(|old| old.state != State::Stopping) {
            connect(old, &worker);
            start_draining(old);
        }
        let draining: Vec<_> = self.alive.iter_mut().filter(|old| old.state == State::Draining).collect();
        let surplus = draining.len().saturating_sub(settings.max_old);
        draining.into_iter().take(surplus).for_each(stop);
        self.alive.push(worker);
        waiting
    }

    /// Makes an older worker another way to the one that serves.
    pub(super) fn reconnect(&mut self, generation: u64) {
        let serving = self.alive.iter().rfind(|worker| worker.state == State::Serving);
        if let (Some(old), Some(serving)) = (self.find(generation), serving)
            && old.state == State::Draining
        {
            connect(old, serving);
        }
    }

    /// Everybody who accepts drains, and empties the queues that are abandoned.
    pub(super) fn drain(&mut self, abandoned: &[usize], hard_stop_after: Duration) {
        for worker in &mut self.alive {
            if worker.state == State::Serving {
                worker.state = State::Draining;
                worker.relief = Some(ToWorker::Drain { abandoned: abandoned.to_vec(), hard_stop_after });
            }
            start_draining(worker);
        }
    }

    /// Everybody finishes what he can in this time, and accepts no more: the queues are left to others.
    pub(super) fn wind_up(&mut self, limit: Duration) {
        for worker in self.alive.iter_mut().filter(|worker| worker.state != State::Stopping) {
            worker.state = State::Draining;
            worker.relief = Some(ToWorker::Drain { abandoned: Vec::new(), hard_stop_after: limit });
            start_draining(worker);
        }
    }

    /// A worker has closed its listening sockets.
    pub(super) fn retreated(&mut self, generation: u64) {
        let found = self.alive.iter_mut().find(|worker| worker.generation == generation);
        found.into_iter().for_each(|worker| worker.retreat = None);
    }

    /// A worker that was told to serve does so no more, for how long it did; it still finishes what it has.
    pub(super) fn resign(&mut self, generation: u64, hard_stop_after: Duration) -> Option<Duration> {
        let found = self.alive.iter_mut().find(|worker| worker.generation == generation);
        let worker = found.filter(|worker| worker.state == State::Serving)?;
        worker.state = State::Draining;
        worker.deadline = Instant::now().checked_add(hard_stop_after + END_PATIENCE);
        Some(worker.since.elapsed())
    }

    /// Whose heartbeats count: who serves, and who was found stalled.
    pub(super) fn watched(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.alive.iter_mut().filter(|worker| worker.state == State::Serving || worker.stalled)
    }

    /// Gives everybody an order.
    pub(super) fn tell_all(&self, order: &ToWorker) {
        for worker in &self.alive {
            worker.tell(order);
        }
    }

    /// What files hold now, to everybody whom it concerns: certificates of frontends to those that get new connections, files
    /// for servers to whoever may yet open connections to them. Says whom it could not be told.
    pub(super) fn tell_change(&self, order: &ToWorker, fd: BorrowedFd<'_>) -> Vec<String> {
        let concerned = |worker: &&Worker| match order {
            ToWorker::Servers(_) => worker.state != State::Stopping,
            _ => worker.state == State::Serving,
        };
        let tell = |worker: &Worker| {
            let error = worker.channel.send(order, &[fd]).err()?;
            // A worker that is gone is noticed by its end, not here.
            (!worker.is_gone()).then(|| {
                let Worker { pid, generation, .. } = worker;
                format!(
                    "worker {pid} of generation {generation} goes by the files of before: {}",
                    MasterError::from(error).chain()
                )
            })
        };
        self.alive.iter().filter(concerned).filter_map(tell).collect()
    }

    /// Everybody ends now.
    pub(super) fn stop_all(&mut self) {
        self.alive.iter_mut().filter(|worker| worker.state != State::Stopping).for_each(stop);
    }

    /// Lane and generation of everybody, and whether he drains.
    pub(super) fn lives(&self) -> impl Iterator<Item = (u32, u64, bool)> {
        self.alive.iter().map(|worker| (worker.lane, worker.generation, worker.state != State::Serving))
    }

    /// Places in the shared counters that somebody has.
    pub(super) fn slots(&self) -> HashSet<u32> {
        self.alive.iter().flat_map(|worker| worker.slots.all()).collect()
    }

    /// Takes a worker off the list; its process is gone.
    pub(super) fn remove(&mut self, generation: u64) -> Option<Worker> {
        let place = self.alive.iter().position(|worker| worker.generation == generation)?;
        Some(self.alive.remove(place))
    }

    /// When somebody has to be killed next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.alive.iter().flat_map(|worker| [worker.deadline, worker.retreat]).flatten().min()
    }

    /// Kills who was told to end, or to accept no more, and has not; says so.
    pub(super) fn kill_overdue(&mut self, now: Instant) -> Vec<String> {
        let over = |time: Option<Instant>| time.is_some_and(|time| time <= now);
        let mut said = Vec::new();
        for worker in &mut self.alive {
            let Worker { pid, generation, .. } = *worker;
            if over(worker.deadline) {
                said.push(format!("worker {pid} did not end in time and is killed"));
            } else if over(worker.retreat) {
                let seconds = RETREAT_PATIENCE.as_secs();
                said.push(format!(
                    "worker {pid} of generation {generation} still accepts {seconds} s after it was told not to, and is \
                     killed with what it was answering"
                ));
            } else {
                continue;
            }
            worker.kill();
        }
        said
    }

    pub(super) fn status(&self, memory: &Memory) -> Vec<Generation> {
        self.alive
            .iter()
            .map(|worker| Generation {
                generation: worker.generation,
                pid: worker.pid,
                state: match worker.state {
                    State::Ready => "ready",
                    State::Serving => "serving",
                    State::Draining => "draining",
                    State::Stopping => "stopping",
                },
                connections: memory.connections(worker.lane),
                age_seconds: worker.since.elapsed().as_secs(),
            })
            .collect()
    }
}

/// Whether there is a process of this number.
pub(super) fn is_alive(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}

/// Lets an older worker send its idle connections to the new one. Where that fails they end where they are.
fn connect(old: &Worker, new: &Worker) {
    let Ok((ours, theirs)) = Channel::pair() else { return };
    // Workers that are gone are noticed by their end, not here.
    let _ = new.channel.send(&ToWorker::Predecessor, &[theirs.as_fd()]);
    let _ = old.channel.send(&ToWorker::Successor, &[ours.as_fd()]);
}

/// Gives the order that waited for a successor.
fn start_draining(worker: &mut Worker) {
    let Some(order) = worker.relief.take() else { return };
    worker.tell(&order);
    if let ToWorker::Drain { hard_stop_after, .. } = order {
        let (now, patience) = (Instant::now(), if worker.stalled { STALL_PATIENCE } else { hard_stop_after });
        worker.deadline = now.checked_add(patience + END_PATIENCE);
        worker.retreat = Some(now + RETREAT_PATIENCE);
    }
}

impl Worker {
    /// One of its threads turns no more: its successor is waited for, and then it has little time left.
    pub(super) fn suspect(&mut self) {
        self.stalled = true;
        self.state = State::Draining;
        let hard_stop_after = self.bundle.reload.hard_stop_after;
        self.relief = Some(ToWorker::Drain { abandoned: Vec::new(), hard_stop_after });
    }

    /// It turns again: it ends as any other that is relieved.
    pub(super) fn acquit(&mut self) {
        self.stalled = false;
        if self.state == State::Draining && self.relief.is_none() {
            self.deadline = Instant::now().checked_add(self.bundle.reload.hard_stop_after + END_PATIENCE);
        }
    }
}

fn stop(worker: &mut Worker) {
    worker.tell(&ToWorker::Stop);
    (worker.relief, worker.retreat) = (None, None);
    worker.stalled = false;
    worker.state = State::Stopping;
    worker.deadline = Instant::now().checked_add(END_PATIENCE);
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;
    use crate::handoff::memory_file;
    use crate::handoff::messages::Slots;

    const TEXT: &str = "config-version = 1\n[frontend.web]\nbind = \"127.0.0.1:1\"\nbackend = \"pool\"\n[backend.pool]\n\
        server = [{ name = \"one\", address = \"127.0.0.1:2\" }]\n";

    /// A worker, its end of the channel, and what is dropped when its process is gone.
    fn worker(generation: u64, state: State) -> (Worker, OwnedFd, oneshot::Receiver<()>) {
        let loaded = crate::config::load_text("proxy.toml".as_ref(), TEXT, &|_| Ok(())).unwrap();
        let ((channel, theirs), (kill, killed)) = (Channel::pair().unwrap(), oneshot::channel());
        let worker = Worker {
            generation,
            pid: 7,
            lane: 0,
            state,
            slots: Slots::default(),
            bundle: Arc::new(loaded.bundle),
            channel: Arc::new(channel),
            stderr: None,
            since: Instant::now(),
            deadline: None,
            retreat: None,
            relief: None,
            pulse: None,
            stalled: false,
            kill: Some(kill),
        };
        (worker, theirs, killed)
    }

    fn heard(theirs: OwnedFd) -> bool {
        Channel::from_fd(theirs).recv_blocking::<ToWorker>(Duration::ZERO).is_ok_and(|message| message.is_some())
    }

    #[test]
    fn of_servers_everybody_is_told_who_may_still_go_to_them_and_of_clients_who_gets_new_ones() {
        let file = memory_file("test").unwrap();
        for (order, expected) in [
            (ToWorker::Servers(String::new()), [true, true, false]),
            (ToWorker::Clients(String::new()), [true, false, false]),
        ] {
            let made = [State::Serving, State::Draining, State::Stopping].map(|state| worker(1, state));
            let (mut alive, mut ends) = (Vec::new(), Vec::new());
            for (worker, theirs, killed) in made {
                alive.push(worker);
                ends.push((theirs, killed));
            }
            assert!(Workers::of(alive).tell_change(&order, file.as_fd()).is_empty());
            let told: Vec<_> = ends.into_iter().map(|(theirs, _alive)| heard(theirs)).collect();
            assert_eq!(told, expected, "{order:?}");
        }
    }

    #[test]
    fn a_worker_that_lives_and_cannot_be_told_is_named() {
        let file = memory_file("test").unwrap();
        let ((one, theirs, killed), (gone, its, _)) = (worker(3, State::Draining), worker(4, State::Serving));
        drop((theirs, its));
        let said = Workers::of(vec![one, gone]).tell_change(&ToWorker::Servers(String::new()), file.as_fd());
        assert!(
            said.len() == 1 && said[0].starts_with("worker 7 of generation 3 goes by the files of before: "),
            "{said:?}"
        );
        drop(killed);
    }
}
