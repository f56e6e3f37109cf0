//! What can go wrong before a server has a request.
//! Made by `upstream`, turned into a status by `proxy`. Never logged here.

use std::io;

/// A connection that could not be made; always safe to retry, the server has seen no request.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// connect(2) failed.
    #[error("connection failed")]
    Failed(#[source] io::Error),
    /// There was no TLS session with this server.
    #[error("TLS handshake failed")]
    Handshake {
        /// Why.
        #[source]
        source: io::Error,
        /// Whether it is another reason than the last time.
        news: bool,
    },
    /// `timeout.connect` passed.
    #[error("connection timed out")]
    TimedOut,
}
