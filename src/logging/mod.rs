//! Syslog lines: access-log formats, event lines, targets, and the queue between.
//! Called by master and worker. Never blocks a caller, never lets a client forge a line.

mod record;

pub use record::Record;
