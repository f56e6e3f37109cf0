//! Descriptors and messages between processes: master and worker, daemon and daemon (`-x`).
//! Called by `master` and `worker`. Never decides what is handed over.

mod channel;
mod descriptors;
mod error;
pub mod fault;
pub mod getsocks;
pub mod messages;

pub use channel::{Channel, MAX_DESCRIPTORS};
pub use descriptors::memfd;
pub use error::HandoffError;
