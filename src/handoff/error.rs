//! What can go wrong between two processes.
//! Made by `handoff`, handled by master and worker. Never logged here.

use std::io;
use std::time::Duration;

use nix::errno::Errno;

/// A broken exchange with another process.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// A system call on the socket failed.
    #[error("socket failed")]
    Channel(#[source] Errno),
    /// Input or output failed.
    #[error("input or output failed")]
    Io(#[source] io::Error),
    /// The peer said nothing for too long.
    #[error("no answer within {waited:?}")]
    Silent {
        /// How long was waited.
        waited: Duration,
    },
    /// More descriptors than one message can carry.
    #[error("{count} descriptors in one message, the kernel passes 253")]
    TooManyDescriptors {
        /// How many.
        count: usize,
    },
    /// There was no room for all of a message, descriptors included; what came of it is closed.
    #[error("a message was truncated, most likely for want of descriptors")]
    Truncated,
    /// The peer's message is not what this version understands.
    #[error("message is malformed")]
    Message(#[from] serde_json::Error),
    /// The peer breaks HAProxy's `_getsocks` protocol.
    #[error("the other process does not follow the _getsocks protocol: {0}")]
    GetSocks(&'static str),
}
