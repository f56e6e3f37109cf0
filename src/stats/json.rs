//! The `;json` view: an array with one object per row, under the CSV's names.
//! Called by the statistics listener. Never shows fields that are not counted.

use serde_json::{Map, Value};

use super::columns::{COLUMNS, Cell, cell};
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
