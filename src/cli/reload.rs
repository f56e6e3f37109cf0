//! `proxy reload` and `proxy reload-socket`: ask, wait, say how it ended.

use super::args::Target;
use super::client::ask;
use crate::config::ReloadMode;
use crate::master::Outcome;

pub(super) fn run(target: &Target, mode: Option<ReloadMode>) -> u8 {
    let command = match mode {
        None => "reload",
        Some(ReloadMode::Handover) => "reload handover",
        Some(ReloadMode::Rebind) => "reload rebind",
    };
    match ask(target, command) {
        Ok(conversation) => {
            let answer = conversation.answer;
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
        Err(error) => error.report(),
    }
}
