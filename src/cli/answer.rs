//! What the daemon answered, told to whoever asked, and the exit code that it means.
//! Used by `reload`, `server`, `status`, `stop` and `upgrade`. Never asks.

use serde_json::Value;

use crate::master::{Answer, Outcome};

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

/// Shows facts, to machines as JSON, to people as `text` has them; returns the exit code.
pub(super) fn show(answer: &Answer, json: bool, text: fn(&Value) -> String) -> u8 {
    if answer.outcome != Outcome::Applied {
        return tell(answer);
    }
    if json {
        println!("{:#}", answer.facts);
    } else {
        print!("{}", text(&answer.facts));
    }
    answer.outcome as u8
}

/// A fact without the quotation marks of JSON.
pub(super) fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
