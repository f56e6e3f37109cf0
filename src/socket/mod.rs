//! Listening sockets and descriptor limits: bind, match by what the kernel says, name who is in the way.
//! Called by `master`; the PROXY protocol by `proxy` and `upstream`. Never accepts.

mod bind;
mod introduce;
mod introduction;
mod limits;
mod migration;
mod owner;
mod path;
mod stream;

pub use bind::{BindError, ListeningSocket, Publication, Sharing, adopt, bind, publish, resume};
pub use introduce::{Secrecy, introduce, introduce_self};
pub use introduction::{BadIntroduction, Introduction, read_introduction};
pub use limits::{Fittings, LimitError, Shortage, Wanted, raise_for};
pub use migration::cost_of_rebinding;
pub use path::{Former, beside, settled};
pub use stream::{Socket, reset_on_close};
