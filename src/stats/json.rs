//! The `;json` view, an array with one object per row under the CSV's names, and `;info`, the daemon as a whole.
//! Called by the statistics listener. Never shows fields that are not counted.

use serde_json::{Map, Value, json};

use super::columns::{COLUMNS, Cell, cell};
use super::ledger::{ReloadPath, ReloadResult};
use super::snapshot::Snapshot;

/// Renders a snapshot as JSON.
#[must_use]
pub fn json(snapshot: &Snapshot) -> String {
    let rows = snapshot.rows.iter().map(|row| {
        let fields = COLUMNS.iter().filter_map(|column| match cell(row, column) {
            Cell::Empty => None,
            Cell::Number(number) => Some(((*column).to_owned(), number.into())),
            Cell::Text(text) => Some(((*column).to_owned(), text.into())),
        });
        Value::Object(fields.collect::<Map<_, _>>())
    });
    let mut text = format!("{:#}", Value::Array(rows.collect()));
    text.push('\n');
    text
}

/// Renders what is known of the daemon as a whole: its reloads, its workers and its certificates.
#[must_use]
pub fn info(snapshot: &Snapshot) -> String {
    let reloads = &snapshot.reloads;
    let by_result = |path| {
        let counts = ReloadResult::ALL.map(|result| (result.word().to_owned(), reloads.count(path, result).into()));
        Value::Object(Map::from_iter(counts))
    };
    let paths = ReloadPath::ALL.map(|path| (path.word().to_owned(), by_result(path)));
    let text = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": snapshot.uptime.as_secs(),
        "config_sha256": reloads.config_sha256(),
        "reload_total": Map::from_iter(paths),
        "reload_last_milliseconds": u64::try_from(reloads.last_took.as_millis()).unwrap_or(u64::MAX),
        "reload_last_success": reloads.last_applied,
        "generations": snapshot.lives,
        "log_lines_dropped": snapshot.log_lines_dropped,
        "certificates": snapshot.certificates,
    });
    format!("{text:#}\n")
}
