//! `proxy reload` and `proxy reload-socket`: ask, wait, say how it ended. `upgrade` and `server set` say it the same way.

use super::args::Target;
use super::client::ask;
use crate::config::ReloadMode;
use crate::master::{Answer, Outcome};

pub(super) fn run(target: &Target, mode: Option<ReloadMode>) -> u8 {
    let command = match mode {
        None => "reload",
        Some(ReloadMode::Handover) => "reload handover",
        Some(ReloadMode::Rebind) => "reload rebind",
    };
    match ask(target, command) {
        Ok(conversation) => tell(&conversation.answer),
        Err(error) => error.report(),
    }
}

/// Says how it ended; returns the exit code.
pub(super) fn tell(answer: &Answer) -> u8 {
    for warning in &answer.warnings {
        eprintln!("{warning}");
    }
    if answer.outcome == Outcome::Applied {
        println!("{}", answer.message);
    } else {
        eprintln!("{}", answer.message);
    }
    answer.outcome as u8
}
