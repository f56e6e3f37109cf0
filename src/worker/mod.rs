//! A worker process: takes over sockets and configuration from the master, serves, drains, exits.
//! Called by the hidden `worker` subcommand. Never opens a file and never binds once it serves.

mod accept;
mod capacity;
mod control;
mod crew;
mod error;
mod moving;
mod start;
mod thread;

pub use control::run;
pub use error::WorkerError;
