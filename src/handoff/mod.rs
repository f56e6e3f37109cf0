//! Descriptors and messages between processes: master and worker, daemon and daemon (`-x`).
//! Called by `master` and `worker`. Never decides what is handed over.

mod channel;
mod error;
pub mod fault;
pub mod getsocks;
mod memory_file;
pub mod messages;
mod version;

pub use channel::{Channel, MAX_DESCRIPTORS};
pub use error::HandoffError;
pub use memory_file::{memfd_is_missing, memory_file, seal_length};
pub use version::{Incompatible, Span, Versions};
