//! `proxy upgrade`: the running daemon becomes the program that lies on disk; returns when it has, or says why not.

use super::answer;
use super::args::Target;
use super::client::{ClientError, ask};

pub(super) fn run(target: &Target) -> u8 {
    match ask(target, "upgrade") {
        Ok(conversation) => answer::tell(&conversation.answer),
        Err(error @ ClientError::Ended) => {
            error.report();
            // It ran when it was asked: "not running" would sound as if nothing had happened.
            super::REFUSED
        }
        Err(error) => error.report(),
    }
}
