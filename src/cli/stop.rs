//! `proxy stop`: returns when the daemon is gone.

use super::answer;
use super::args::StopArgs;
use super::client::ask;
use crate::master::Outcome;

pub(super) fn run(args: &StopArgs) -> u8 {
    let command = if args.graceful { "stop graceful" } else { "stop" };
    let conversation = match ask(&args.target, command) {
        Ok(conversation) if conversation.answer.outcome == Outcome::Applied => conversation,
        Ok(conversation) => return answer::tell(&conversation.answer),
        Err(error) => return error.report(),
    };
    // Open connections may take as long as reload.hard-stop-after lets them.
    let patience = if args.graceful { None } else { Some(args.target.timeout) };
    match conversation.until_end(patience) {
        Ok(()) => super::DONE,
        Err(error) => error.report(),
    }
}
