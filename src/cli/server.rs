//! `proxy server list` and `proxy server set`: see servers, take them out of service, give them another share.

use std::fmt::Write as _;

use serde_json::Value;

use super::answer::{self, word};
use super::args::{ServerCommand, ServerSetArgs, ServerState, ShowArgs};
use super::client::ask;

pub(super) fn run(command: &ServerCommand) -> u8 {
    match command {
        ServerCommand::List(args) => list(args),
        ServerCommand::Set(args) => set(args),
    }
}

fn list(args: &ShowArgs) -> u8 {
    match ask(&args.target, "server list") {
        Ok(conversation) => answer::show(&conversation.answer, args.json, table),
        Err(error) => error.report(),
    }
}

fn set(args: &ServerSetArgs) -> u8 {
    let mut command = format!("server set {}", args.server);
    // Writing to a String cannot fail.
    if let Some(state) = args.state {
        let word = match state {
            ServerState::Ready => "ready",
            ServerState::Drain => "drain",
            ServerState::Maint => "maint",
        };
        let _ = write!(command, " state {word}");
    }
    if let Some(weight) = &args.weight {
        let _ = write!(command, " weight {weight}");
    }
    match ask(&args.target, &command) {
        Ok(conversation) => answer::tell(&conversation.answer),
        Err(error) => error.report(),
    }
}

fn table(facts: &Value) -> String {
    let head = ["SERVER", "STATUS", "STATE", "WEIGHT", "SESSIONS", "ADDRESS"].map(str::to_owned);
    let rows = facts.as_array().into_iter().flatten().map(|server| {
        [
            format!("{}/{}", word(&server["backend"]), word(&server["server"])),
            word(&server["status"]),
            word(&server["state"]),
            word(&server["user_weight"]),
            word(&server["sessions"]),
            word(&server["address"]),
        ]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_see_a_table() {
        let shown = table(&json!([{
            "backend": "pool", "server": "s1", "address": "127.0.0.1:9000", "status": "UP 1/3", "state": "ready",
            "weight": 1, "user_weight": 1, "sessions": 12, "seconds_since_change": 3
        }]));
        assert_eq!(
            shown,
            "SERVER   STATUS  STATE  WEIGHT  SESSIONS  ADDRESS\n\
             pool/s1  UP 1/3  ready  1       12        127.0.0.1:9000\n"
        );
    }
}
