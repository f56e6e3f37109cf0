//! One client connection and its requests: receive, rules, pick a server, forward, respond, log.
//! Called by `worker` with an accepted socket. Never binds, never reads a file, never takes a lock.

mod address;
mod buffers;
mod connection;
mod departure;
mod error;
mod exchange;
mod fetch;
mod flow;
mod forward;
mod greeting;
mod h2_connection;
mod h2_stream;
mod h2_wire;
mod handshake;
mod io;
mod obtain;
mod pump;
mod reply;
mod request;
mod respond;
mod session;
mod site;
mod splice;
mod tally;
mod timer;
mod transcode;
mod tunnel;

pub use address::bind_of;
pub use buffers::Spare;
pub use connection::{resume, resume_tunnel, serve};
pub use departure::{Departure, Leaving};
pub use error::{Failure, Side};
pub use fetch::Edits;
pub use site::{Site, Thread};
pub use timer::{TICK, Timers, now};
pub use tunnel::MOST_HELD;
