//! `proxy reload` and `proxy reload-socket`: ask, wait, say how it ended.

use super::answer;
use super::args::Target;
use super::client::ask;
use crate::config::ReloadMode;

pub(super) fn run(target: &Target, mode: Option<ReloadMode>) -> u8 {
    let command = match mode {
        None => "reload",
        Some(ReloadMode::Handover) => "reload handover",
        Some(ReloadMode::Rebind) => "reload rebind",
    };
    match ask(target, command) {
        Ok(conversation) => answer::tell(&conversation.answer),
        Err(error) => error.report(),
    }
}
