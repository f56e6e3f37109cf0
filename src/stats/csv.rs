//! The `;csv` view: HAProxy's columns, so that its exporters and dashboards keep working.
//! Called by the statistics listener. Never shows what JSON does not.

use std::fmt::Write as _;

use super::columns::{COLUMNS, Cell, cell};
use super::snapshot::Snapshot;

/// Renders a snapshot as HAProxy's CSV; a `-` ends the columns, as in HAProxy 2.6.
#[must_use]
pub fn csv(snapshot: &Snapshot) -> String {
    let mut out = format!("# {},-,\n", COLUMNS.join(","));
    for row in &snapshot.rows {
        for column in COLUMNS {
            match cell(row, column) {
                Cell::Empty => {}
                // Writing to a string cannot fail.
                Cell::Number(number) => drop(write!(out, "{number}")),
                Cell::Text(text) => quote(&mut out, &text),
            }
            out.push(',');
        }
        out.push_str("-,\n");
    }
    out
}

/// Quotes only what would be ambiguous, doubling quotes within.
fn quote(out: &mut String, text: &str) {
    if text.contains(['"', ',', '\n', '\r']) {
        out.push('"');
        out.push_str(&text.replace('"', "\"\""));
        out.push('"');
    } else {
        out.push_str(text);
    }
}
