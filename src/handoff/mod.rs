//! Descriptors and messages between processes: master and worker, daemon and daemon (`-x`).
//! Called by `master` and `worker`. Never decides what is handed over.

pub mod messages;
