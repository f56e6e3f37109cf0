//! A transaction under way: from a ready worker to one that serves, and what everybody is told at the end.
//! Driven by `lifecycle`, one at a time. Never waits itself: its stages are futures beside the event loop.

use std::future::Future;
use std::pin::Pin;
use std::time::Instant;

use tokio::sync::oneshot;

use super::admin::{Answer, Outcome};
use super::commit::Elected;
use super::lifecycle::Master;
use super::reload::{Failed, Plan, Prepared, prepare};
use super::retire::Retiring;
use super::status::LastReload;
use super::supervisor;
use crate::config::ReloadMode;
use crate::logging::Severity;
use crate::stats::ReloadPath;

/// The transaction under way.
pub(super) struct Running {
    pub(super) mode: ReloadMode,
    pub(super) respawn: bool,
    pub(super) callers: Vec<oneshot::Sender<Answer>>,
    pub(super) began: Instant,
}

/// How far a transaction has come.
pub(super) enum Stage {
    /// A worker is ready.
    Prepared(Box<Prepared>),
    /// It serves.
    Serving(Box<Elected>),
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

/// The end of a stage; never where there is none.
pub(super) async fn conclusion(transaction: &mut Option<Transaction>) -> Result<Stage, Failed> {
    match transaction {
        Some(transaction) => transaction.await,
        None => std::future::pending().await,
    }
}

impl Master {
    /// Takes a transaction to its next stage, or to its end.
    pub(super) fn advance(&mut self, result: Result<Stage, Failed>) -> Option<Transaction> {
        let failed = |error| (Outcome::RolledBack, error);
        match result {
            Ok(Stage::Prepared(prepared)) => match self.elect(*prepared) {
                Ok(elected) => {
                    self.electing = true;
                    return Some(Box::pin(electing(elected)));
                }
                Err(error) => self.conclude(Err(failed(error))),
            },
            Ok(Stage::Serving(elected)) => {
                let warnings = elected.warnings();
                let committed = self.commit(*elected).map_err(failed);
                self.conclude(committed.map(|retiring| (warnings, retiring)));
            }
            Err(failed) => self.conclude(Err(failed)),
        }
        self.catch_up();
        None
    }

    /// Tells everybody how a transaction ended: its warnings and who retires, or why there is no new generation.
    fn conclude(&mut self, committed: Result<(Vec<String>, Vec<u64>), Failed>) {
        let Some(running) = self.running.take() else { return };
        if committed.is_err() {
            self.take_back();
        }
        let took = running.began.elapsed();
        let mut retiring = Vec::new();
        let (outcome, message, answer) = match committed {
            Ok((warnings, old)) => {
                retiring = old;
                let text = format!("generation {} serves after {} ms", self.generation, took.as_millis());
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
        if running.respawn {
            self.blank.memory.count_reload(ReloadPath::Respawn, outcome.into(), took);
            self.conclude_respawn(outcome, &message);
            return;
        }
        let path = match running.mode {
            ReloadMode::Handover => ReloadPath::Handover,
            ReloadMode::Rebind => ReloadPath::Rebind,
        };
        self.blank.memory.count_reload(path, outcome.into(), took);
        self.last_reload = Some(LastReload::new(outcome, running.mode, &message, took));
        match outcome {
            Outcome::Applied => {
                self.say(Severity::Notice, &format!("reload: {message}"));
                supervisor::ready(&message);
            }
            _ => {
                let message = format!("reload failed, the old configuration goes on: {message}");
                self.say(Severity::Error, &message);
                supervisor::ready(&message);
            }
        }
        let answering = Retiring::new(retiring, running.callers, answer);
        self.retiring = Some(answering);
        self.retired(0);
    }

    fn conclude_respawn(&mut self, outcome: Outcome, message: &str) {
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
