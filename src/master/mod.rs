//! The master: one pid for ever; owns files, certificates, listening sockets, pid file and admin socket.
//! Called by `proxy run`. Never touches a client's byte.

mod admin;
mod agenda;
mod bundle;
mod certificates;
mod commit;
mod error;
mod events;
mod expiry;
mod legacy;
mod lifecycle;
mod listeners;
mod log_sockets;
mod manifest;
mod orders;
mod passed;
mod pidfile;
mod reload;
mod request;
mod respawn;
mod resume;
mod retire;
mod slots;
mod spawn;
mod start;
mod status;
mod store;
mod supervisor;
mod tickets;
mod transaction;
mod upgrade;
mod watchdog;
mod workers;

pub use bundle::load;
pub use error::MasterError;
pub use lifecycle::{resume, run};
pub use request::{Answer, Outcome};
pub use resume::rehearse;
pub use start::Options;
pub use status::facts_of;
