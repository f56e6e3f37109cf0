//! The last step of a reload: whoever asked is answered once the old workers accept no more.
//! Owned by `lifecycle`. A worker that does not say so in time holds nobody up.

use std::time::{Duration, Instant};

use super::admin::Caller;
use super::request::Answer;

/// How long old workers get to close their listening sockets before the caller is answered anyway.
const PATIENCE: Duration = Duration::from_secs(1);

/// A reload that is decided, and whose callers wait for the old workers.
pub(super) struct Retiring {
    generations: Vec<u64>,
    callers: Vec<Caller>,
    answer: Answer,
    deadline: Instant,
}

impl Retiring {
    pub(super) fn new(generations: Vec<u64>, callers: Vec<Caller>, answer: Answer) -> Self {
        Self { generations, callers, answer, deadline: Instant::now() + PATIENCE }
    }

    /// A worker accepts no more, or is gone. True when it was the last one.
    pub(super) fn retired(&mut self, generation: u64) -> bool {
        self.generations.retain(|waiting| *waiting != generation);
        self.generations.is_empty()
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Answers everybody.
    pub(super) fn finish(self) {
        answer_all(self.callers, &self.answer);
    }
}

/// Gives every caller the same answer.
pub(super) fn answer_all(callers: impl IntoIterator<Item = Caller>, answer: &Answer) {
    for caller in callers {
        caller.answer(answer);
    }
}
