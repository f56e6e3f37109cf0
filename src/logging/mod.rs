//! Syslog lines: access-log formats, event lines, targets, and the queue between.
//! Called by master and worker. Never blocks a caller, never lets a client forge a line.

mod clock;
mod error;
mod escape;
mod events;
mod format;
mod line;
mod names;
mod queue;
mod record;
mod target;
mod thread;
mod unserved;

pub use clock::Zone;
pub use error::FormatError;
pub use events::EventLog;
pub use format::{Context, Format};
pub use line::Severity;
pub use names::Names;
pub use queue::Logger;
pub use record::{Endpoint, Record};
pub use target::connect;
pub use thread::LogThread;
pub use unserved::Unserved;

#[cfg(test)]
mod tests;
