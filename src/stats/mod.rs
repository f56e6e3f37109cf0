//! Counters every generation of workers shares, and their views: page, CSV, JSON.
//! Bumped by `proxy` and `upstream`, shown by the worker's statistics listener and `proxy status`.
//! Never decides anything.

mod auth;
mod columns;
mod counters;
mod csv;
mod error;
mod histogram;
mod json;
mod ledger;
mod memory;
mod page;
mod prometheus;
mod server;
mod shards;
mod snapshot;
mod standing;

pub use counters::{COUNTERS, Counter, GAUGES, Gauge, Slot};
pub use csv::csv;
pub use error::StatsError;
pub use histogram::{BUCKETS, Histogram};
pub use json::{info, json};
pub use ledger::{Life, ReloadPath, ReloadResult, Reloads};
pub use memory::{LANES, Memory, Owner, SLOTS};
pub use page::{About, html};
pub use prometheus::prometheus;
pub use server::{Door, StatsPage, serve};
pub use snapshot::{Kind, Row, Snapshot};
pub use standing::{Admin, CheckStatus, Health, Orders, Standing};

#[cfg(test)]
mod tests;
