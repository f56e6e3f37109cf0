//! `proxy status`: what the daemon says of itself, for people or machines.

use std::fmt::Write as _;

use serde_json::Value;

use super::answer::{self, word};
use super::args::ShowArgs;
use super::client::ask;

pub(super) fn run(args: &ShowArgs) -> u8 {
    match ask(&args.target, "status") {
        Ok(conversation) => answer::show(&conversation.answer, args.json, text),
        Err(error) => error.report(),
    }
}

fn text(facts: &Value) -> String {
    let mut out = format!(
        "proxy {} · pid {} · up {} s · maxconn {}\nconfiguration  {} (sha256 {:.12})\n",
        word(&facts["version"]),
        facts["pid"],
        facts["uptime_seconds"],
        facts["maxconn"],
        word(&facts["config"]),
        word(&facts["config_sha256"]),
    );
    let listeners: Vec<_> = facts["listeners"].as_array().into_iter().flatten().map(word).collect();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "listeners      {}\n", listeners.join(" "));
    let _ = writeln!(out, "{:>10} {:>8} {:<9} {:>11} {:>7}", "generation", "pid", "state", "connections", "age");
    for worker in facts["generations"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "{:>10} {:>8} {:<9} {:>11} {:>5} s",
            word(&worker["generation"]),
            word(&worker["pid"]),
            word(&worker["state"]),
            word(&worker["connections"]),
            word(&worker["age_seconds"]),
        );
    }
    let reloads = &facts["reloads"];
    let _ = writeln!(
        out,
        "\nreloads        {} applied, {} rejected, {} rolled back · workers replaced after a crash: {} · log lines dropped: {}",
        reloads["applied"],
        reloads["rejected"],
        reloads["rolled_back"],
        reloads["respawns"],
        facts["log_lines_dropped"],
    );
    if let Some(last) = reloads["last"].as_object() {
        let _ = writeln!(
            out,
            "last reload    {} ({}, {} ms): {}",
            word(&last["outcome"]),
            word(&last["mode"]),
            last["milliseconds"],
            word(&last["message"]),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_see_generations_and_the_last_reload() {
        let shown = text(&json!({
            "version": "1.2", "pid": 7, "uptime_seconds": 3, "maxconn": 100, "config": "/etc/p.toml",
            "config_sha256": "0123456789abcdef", "listeners": ["0.0.0.0:80"], "log_lines_dropped": 0,
            "generations": [{"generation": 2, "pid": 9, "state": "serving", "connections": 4, "age_seconds": 1}],
            "reloads": {"applied": 1, "rejected": 0, "rolled_back": 0, "respawns": 0,
                "last": {"outcome": "applied", "mode": "handover", "milliseconds": 12, "message": "fine"}}
        }));
        assert!(shown.contains("sha256 0123456789ab)"), "{shown}");
        assert!(shown.contains("         2        9 serving             4     1 s"), "{shown}");
        assert!(shown.contains("last reload    applied (handover, 12 ms): fine"), "{shown}");
    }
}
