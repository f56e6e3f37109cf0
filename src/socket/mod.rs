//! Listening sockets and descriptor limits: bind, match by what the kernel says, name who is in the way.
//! Called by `master`. Never accepts.

mod bind;
mod limits;
mod owner;

pub use bind::{BindError, Sharing, adopt, bind, listen, matches};
pub use limits::{Fittings, LimitError, raise_for};
