//! Why a worker cannot serve.
//! Made while starting; sent to the master as the reason. Never used once requests are served.

use std::io;

use crate::handoff::HandoffError;
use crate::stats::StatsError;
use crate::tls::TlsError;

/// A worker that cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The channel to the master broke.
    #[error("channel to the master failed")]
    Channel(#[from] HandoffError),
    /// The master sent something else than expected.
    #[error("the master did not send {0}")]
    Protocol(&'static str),
    /// The master speaks another version.
    #[error("the master speaks protocol {theirs}, this worker {ours}")]
    Version {
        /// Version the master sent.
        theirs: u32,
        /// Version of this worker.
        ours: u32,
    },
    /// The bundle cannot be read.
    #[error("configuration bundle is unreadable")]
    Bundle(#[source] io::Error),
    /// The bundle is not what this version writes.
    #[error("configuration bundle is malformed")]
    BundleFormat(#[from] serde_json::Error),
    /// The shared counters cannot be mapped.
    #[error("shared counters are unusable")]
    Stats(#[from] StatsError),
    /// TLS settings that the library refuses.
    #[error("TLS cannot be set up")]
    Tls(#[from] TlsError),
    /// chroot, setgid or setuid failed.
    #[error("cannot give up privileges: {step}")]
    Privileges {
        /// The step that failed.
        step: &'static str,
        /// Why.
        #[source]
        source: nix::errno::Errno,
    },
    /// A step on the way to serving failed.
    #[error("cannot get ready: {step}")]
    Step {
        /// The step that failed.
        step: &'static str,
        /// Why.
        #[source]
        source: nix::errno::Errno,
    },
    /// A thread or its runtime could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

impl WorkerError {
    /// The whole chain of causes on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}
