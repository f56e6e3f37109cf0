//! The result as the article's table, or as JSON.
//! Called by `measure`. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::disturb::Disturbances;
use super::load::{Outcome, mean};
use super::subject::Action;

/// One run.
pub(super) struct Row {
    pub(super) action: Action,
    pub(super) users: usize,
    pub(super) result: Outcome,
    pub(super) disturbances: Disturbances,
}

impl Row {
    fn requests(&self) -> u64 {
        self.result.answered.len() as u64 + self.result.failed()
    }
}

/// Milliseconds with one decimal.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

/// For people.
pub(super) fn text(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<14} {:>5} {:>8} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>15}\n",
        "", "users", "requests", "failed", "req/s", "mean ms", "p50 ms", "p95 ms", "p99 ms", "times", "each ms (max)"
    );
    for row in rows {
        let (result, done) = (&row.result, &row.disturbances);
        let longest = done.took.iter().max().copied().unwrap_or_default();
        let each = if done.took.is_empty() {
            String::from("-")
        } else {
            format!("{:.1} ({:.1})", ms(mean(&done.took)), ms(longest))
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:<14} {:>5} {:>8} {:>7} {:>8.0} {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>8} {:>15}",
            row.action,
            row.users,
            row.requests(),
            result.failed(),
            result.rate(),
            ms(result.mean()),
            ms(result.percentile(50)),
            ms(result.percentile(95)),
            ms(result.percentile(99)),
            done.took.len(),
            each,
        );
    }
    for row in rows.iter().filter(|row| row.result.resumed > 0) {
        let (full, resumed) = (row.result.full, row.result.resumed);
        let _ =
            writeln!(out, "{}, {} users: {resumed} sessions resumed, {full} full handshakes", row.action, row.users);
    }
    for row in rows.iter().filter(|row| row.result.failed() > 0 || row.disturbances.failed > 0) {
        let kinds: Vec<_> = row.result.lost.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let _ = write!(
            out,
            "\n{}, {} users: lost {}",
            row.action,
            row.users,
            if kinds.is_empty() { "nothing".into() } else { kinds.join(", ") }
        );
        if row.disturbances.failed > 0 {
            let complaint = row.disturbances.complaint.as_deref().unwrap_or_default();
            let _ = write!(out, "; {} commands failed, the last one: {complaint}", row.disturbances.failed);
        }
        out.push('\n');
    }
    out
}

/// For machines; times in milliseconds.
pub(super) fn json(rows: &[Row]) -> Value {
    let one = |row: &Row| {
        let lost: serde_json::Map<_, _> =
            row.result.lost.iter().map(|(kind, count)| (kind.to_string(), Value::from(*count))).collect();
        let seconds = row.result.took.as_secs_f64().max(f64::MIN_POSITIVE);
        json!({
            "seconds": (seconds * 1000.0).round() / 1000.0,
            "full_handshakes": row.result.full,
            "resumed_handshakes": row.result.resumed,
            "action": row.action.to_string(),
            "users": row.users,
            "requests": row.requests(),
            "failed": row.result.failed(),
            "failed_by_kind": lost,
            "requests_per_second": row.result.rate().round(),
            "mean_ms": ms(row.result.mean()),
            "p50_ms": ms(row.result.percentile(50)),
            "p95_ms": ms(row.result.percentile(95)),
            "p99_ms": ms(row.result.percentile(99)),
            "actions_done": row.disturbances.took.len(),
            "actions_failed": row.disturbances.failed,
            "action_ms": row.disturbances.took.iter().map(|took| ms(*took)).collect::<Vec<_>>(),
            "complaint": row.disturbances.complaint,
        })
    };
    rows.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::user::Loss;
    use super::*;

    fn row() -> Row {
        let answered = vec![Duration::from_millis(2); 9];
        let lost = [(Loss::NoAnswer, 1)].into();
        let result = Outcome { answered, lost, took: Duration::from_secs(1), full: 2, resumed: 7 };
        let disturbances = Disturbances { took: vec![Duration::from_millis(20)], failed: 0, complaint: None };
        Row { action: Action::Restart, users: 3, result, disturbances }
    }

    #[test]
    fn a_lost_request_shows_with_its_kind() {
        let text = text(&[row()]);
        let columns: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(columns, ["restart", "3", "10", "1", "9", "2.0", "2.0", "2.0", "2.0", "1", "20.0", "(20.0)"]);
        assert!(text.contains("restart, 3 users: lost 1 no answer"), "{text}");
        assert!(text.contains("restart, 3 users: 7 sessions resumed, 2 full handshakes"), "{text}");
    }

    #[test]
    fn machines_read_the_same() {
        let json = json(&[row()]);
        assert_eq!(json[0]["failed_by_kind"]["no answer"], 1);
        assert_eq!(json[0]["p99_ms"], 2.0);
        assert_eq!((&json[0]["full_handshakes"], &json[0]["resumed_handshakes"]), (&2.into(), &7.into()));
    }
}
