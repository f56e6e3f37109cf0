//! A transaction under way: from a ready worker to one that serves, and what everybody is told at the end.
//! Driven by `lifecycle`, one at a time. Never waits itself: its stages are futures beside the event loop.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Instant;

use tokio::sync::mpsc;

use super::admin::Caller;
use super::commit::Elected;
use super::events::Event;
use super::lifecycle::Master;
use super::reload::{Failed, Plan, Prepared, prepare};
use super::request::{Answer, Outcome};
use super::retire::Retiring;
use super::status::LastReload;
use super::upgrade::{Program, examine, rehearse};
use super::{MasterError, Options, supervisor};
use crate::config::ReloadMode;
use crate::logging::Severity;
use crate::stats::ReloadPath;

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    Reload,
    /// A worker died.
    Respawn,
    /// The program on disk is looked at.
    Examine,
    /// The first generation of a program that has taken over.
    Upgrade,
}

/// The transaction under way.
pub(super) struct Running {
    pub(super) task: Task,
    pub(super) mode: ReloadMode,
    pub(super) callers: Vec<Caller>,
    pub(super) began: Instant,
}

impl Running {
    fn path(&self) -> ReloadPath {
        match (self.task, self.mode) {
            (Task::Respawn, _) => ReloadPath::Respawn,
            (Task::Upgrade | Task::Examine, _) => ReloadPath::Upgrade,
            (Task::Reload, ReloadMode::Handover) => ReloadPath::Handover,
            (Task::Reload, ReloadMode::Rebind) => ReloadPath::Rebind,
        }
    }
}

impl Outcome {
    fn of<T>(result: &Result<T, Failed>) -> Self {
        result.as_ref().map_or_else(|(outcome, _)| *outcome, |_done| Self::Applied)
    }
}

/// How an answer begins that tells of another program.
const PROGRAM: &str = concat!("proxy ", env!("CARGO_PKG_VERSION"), " has taken over: ");

/// How far a transaction has come.
pub(super) enum Stage {
    /// A worker is ready.
    Prepared(Box<Prepared>),
    /// It serves.
    Serving(Box<Elected>),
    /// The program on disk accepts the configuration.
    Examined(Program),
    /// It could go on with what it would find.
    Rehearsed(Program),
}

pub(super) type Transaction = Pin<Box<dyn Future<Output = Result<Stage, Failed>>>>;

/// LOAD, BIND and SPAWN.
pub(super) async fn preparing(plan: Plan) -> Result<Stage, Failed> {
    prepare(plan).await.map(|prepared| Stage::Prepared(Box::new(prepared)))
}

/// The middle of COMMIT.
async fn electing(elected: Elected) -> Result<Stage, Failed> {
    elected.serving().await.map(|elected| Stage::Serving(Box::new(elected)))
}

/// EXAMINE.
pub(super) async fn examining(options: Options) -> Result<Stage, Failed> {
    examine(options).await.map(Stage::Examined)
}

/// REHEARSE.
async fn rehearsing(program: Program, options: Options, estate: Result<OwnedFd, MasterError>) -> Result<Stage, Failed> {
    rehearse(program, options, estate).await.map(Stage::Rehearsed)
}

/// The end of a stage; never where there is none.
pub(super) async fn conclusion(transaction: &mut Option<Transaction>) -> Result<Stage, Failed> {
    match transaction {
        Some(transaction) => transaction.await,
        None => std::future::pending().await,
    }
}

impl Master {
    /// Takes a transaction to its next stage, or to its end.
    pub(super) async fn advance(
        &mut self,
        result: Result<Stage, Failed>,
        receiver: &mut mpsc::UnboundedReceiver<Event>,
    ) -> Option<Transaction> {
        let failed = |error| (Outcome::RolledBack, error);
        let mut unfit = None;
        match result {
            Ok(Stage::Prepared(prepared)) => match self.elect(*prepared) {
                Ok(elected) => {
                    self.electing = true;
                    return Some(Box::pin(electing(elected)));
                }
                Err(error) => unfit = self.conclude(Err(failed(error))),
            },
            Ok(Stage::Serving(elected)) => {
                let warnings = elected.warnings();
                let committed = self.commit(*elected).map_err(failed);
                unfit = self.conclude(committed.map(|retiring| (warnings, retiring)));
            }
            Ok(Stage::Examined(program)) => {
                let (estate, options) = (self.rehearsal(&program), self.options.clone());
                return Some(Box::pin(rehearsing(program, options, estate)));
            }
            Ok(Stage::Rehearsed(program)) => {
                self.running = None;
                self.become_program(program, receiver).await;
            }
            Err(failed) => unfit = self.conclude(Err(failed)),
        }
        self.catch_up();
        if let (Some(reason), Some(previous)) = (unfit, self.previous.take()) {
            self.go_back(previous, &reason, receiver).await;
        }
        None
    }

    /// Tells everybody how a transaction ended: its warnings and who retires, or why there is no new generation.
    /// Returns why the first generation of this program does not serve, where that was the task.
    fn conclude(&mut self, committed: Result<(Vec<String>, Vec<u64>), Failed>) -> Option<String> {
        let mut running = self.running.take()?;
        let took = running.began.elapsed();
        self.blank.memory.count_reload(running.path(), Outcome::of(&committed).into(), took);
        let committed = match (committed, running.task) {
            (Err((outcome, error)), Task::Examine) => {
                self.upgrade_failed(outcome, &error);
                return None;
            }
            (committed, _) => committed,
        };
        if committed.is_err() {
            self.take_back();
        }
        let mut retiring = Vec::new();
        let (outcome, message, answer) = match committed {
            Ok((warnings, old)) => {
                retiring = old;
                let upgraded = if running.task == Task::Upgrade { PROGRAM } else { "" };
                let text = format!("{upgraded}generation {} serves after {} ms", self.generation, took.as_millis());
                let mut answer = Answer::new(Outcome::Applied, text.clone());
                answer.warnings = warnings;
                (Outcome::Applied, text, answer)
            }
            Err((outcome, error)) => {
                let mut answer = Answer::new(outcome, error.chain());
                answer.brief = Some(error.brief());
                (outcome, error.brief(), answer)
            }
        };
        if outcome != Outcome::Applied && !self.workers.any_serving() {
            self.respawn.failed(Instant::now());
        }
        if running.task == Task::Respawn {
            self.conclude_respawn(outcome, &message);
            return None;
        }
        self.last_reload = Some(LastReload::new(outcome, running.mode, &message, took));
        if running.task == Task::Upgrade {
            if outcome != Outcome::Applied {
                return Some(answer.message);
            }
            self.previous = None;
            running.callers.append(&mut self.upgrades);
        }
        self.announce(outcome, &message);
        let answering = Retiring::new(retiring, running.callers, answer);
        self.retiring = Some(answering);
        self.retired(0);
        None
    }

    fn announce(&mut self, outcome: Outcome, message: &str) {
        self.keep();
        if outcome == Outcome::Applied {
            self.say(Severity::Notice, &format!("reload: {message}"));
            supervisor::ready(message);
        } else {
            let message = format!("reload failed, the old configuration goes on: {message}");
            self.say(Severity::Error, &message);
            supervisor::ready(&message);
        }
    }

    fn conclude_respawn(&mut self, outcome: Outcome, message: &str) {
        self.keep();
        if outcome == Outcome::Applied {
            self.say(Severity::Notice, &format!("respawn: {message}"));
            supervisor::status(&format!("{message}; a worker had to be replaced"));
        } else {
            let message = format!("respawn failed, trying again: {message}");
            self.say(Severity::Alert, &message);
            supervisor::status(&message);
        }
    }
}
