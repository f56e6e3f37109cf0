//! Which transaction comes next: an upgrade, a respawn that is due, the reloads that wait for the same thing.
//! Asked by `lifecycle` whenever none is under way. Never carries one out.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::admin::Caller;
use super::lifecycle::Master;
use super::reload::{Plan, Source};
use super::request::{Answer, Outcome};
use super::retire::answer_all;
use super::transaction::{Running, Task, Transaction, examining, preparing};
use super::{MasterError, supervisor};
use crate::config::ReloadMode;
use crate::socket::Sharing;

/// A reload that somebody asked for.
pub(super) struct Wish {
    pub(super) mode: Option<ReloadMode>,
    pub(super) caller: Option<Caller>,
}

impl Master {
    /// An upgrade that somebody asked for, else a generation.
    pub(super) fn next_transaction(&mut self) -> Option<Transaction> {
        let wanted = !self.upgrades.is_empty() && self.previous.is_none() && self.retiring.is_none();
        if !self.is_ending() && wanted && !self.respawn.is_due(Instant::now()) {
            if self.workers.free_lane().is_some() {
                self.begin(Task::Examine, ReloadMode::Handover, Vec::new());
                let options = self.options.clone();
                return Some(Box::pin(examining(options)));
            }
            self.upgrade_failed(Outcome::Busy, &MasterError::NoLane);
        }
        let plan = self.next_plan()?;
        Some(Box::pin(preparing(plan)))
    }

    fn begin(&mut self, task: Task, mode: ReloadMode, callers: Vec<Caller>) {
        self.running = Some(Running { task, mode, callers, began: Instant::now() });
    }

    /// A worker that died is more urgent than another program, which is looked at again later.
    pub(super) fn examination_can_wait(&mut self) -> bool {
        let due = self.respawn.is_due(Instant::now());
        self.running.take_if(|running| due && running.task == Task::Examine).is_some()
    }

    /// The next generation: a respawn that is due, else the reloads that wait for the same thing.
    fn next_plan(&mut self) -> Option<Plan> {
        if self.is_ending() {
            return None;
        }
        // A reload whose worker dies before it serves is not over, but needs another one.
        let task = if self.previous.is_some() {
            Task::Upgrade
        } else if self.wishes.is_empty() || self.retiring.is_some() {
            Task::Respawn
        } else {
            Task::Reload
        };
        let respawn = task == Task::Respawn;
        if respawn && !self.respawn.is_due(Instant::now()) {
            return None;
        }
        let Some(lane) = self.workers.free_lane() else {
            self.refuse_all(&MasterError::NoLane);
            if respawn {
                self.respawn.failed(Instant::now());
            }
            return None;
        };
        let (mode, callers) =
            if task == Task::Reload { self.take_wishes() } else { (ReloadMode::Handover, Vec::new()) };
        self.begin(task, mode, callers);
        self.respawn.began();
        self.generation += 1;
        self.blank.memory.clear_beats(lane);
        if !respawn {
            supervisor::reloading();
        }
        Some(Plan {
            source: if respawn {
                Source::Same(Arc::clone(&self.bundle))
            } else {
                Source::File(self.options.config.clone())
            },
            mode,
            held: self.listeners.iter().map(|listener| Arc::clone(&listener.socket)).collect(),
            unheld: Sharing::Exclusive,
            generation: self.generation,
            lane,
            directory: Rc::clone(&self.blank.directory),
            in_use: self.workers.slots(),
            counters: Arc::clone(&self.blank.counters),
            ticket_keys: self.blank.tickets.keys(),
            events: self.blank.events.clone(),
        })
    }

    /// The mode of the oldest wish, and everybody who wants the same.
    fn take_wishes(&mut self) -> (ReloadMode, Vec<Caller>) {
        let strategy = self.bundle.reload.strategy;
        let mode = self.wishes.first().map_or(ReloadMode::Handover, |wish| wish.mode.unwrap_or(strategy));
        let (now, later): (Vec<_>, Vec<_>) =
            self.wishes.drain(..).partition(|wish| wish.mode.unwrap_or(strategy) == mode);
        self.wishes = later;
        (mode, now.into_iter().filter_map(|wish| wish.caller).collect())
    }

    fn refuse_all(&mut self, error: &MasterError) {
        self.previous = None;
        let callers = self.wishes.drain(..).filter_map(|wish| wish.caller);
        answer_all(callers.chain(self.upgrades.drain(..)), &Answer::new(Outcome::Busy, error.chain()));
    }
}
