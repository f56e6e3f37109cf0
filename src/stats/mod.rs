//! Counters every generation of workers shares, and their views: page, CSV, JSON.
//! Bumped by `proxy` and `upstream`, shown by the worker's statistics listener and `proxy status`.
//! Never decides anything.

mod counters;

pub use counters::{COUNTERS, Counter, GAUGES, Gauge, Slot};
