//! Why TLS cannot be set up.
//! Made by `tls`, reported by the worker to its master. Never used for one client's handshake.

/// TLS settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The library refuses a private key.
    #[error("private key of {path} is unusable")]
    Key {
        /// Where it came from.
        path: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The library refuses the combination of settings.
    #[error("TLS settings are unusable")]
    Settings(#[source] rustls::Error),
    /// Authorities, or what they revoked, cannot be used.
    #[error("certificates cannot be checked")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// A name no certificate can be for.
    #[error("`{0}` is no name of a server")]
    Name(String),
    /// A cipher suite this build does not have.
    #[error("unknown cipher suite {0}")]
    Cipher(String),
    /// A key-exchange group this build does not have.
    #[error("unknown group {0}")]
    Group(String),
    /// A ticket key has the wrong size.
    #[error("a ticket key has {0} bytes instead of 80")]
    TicketKey(usize),
    /// No ticket key at all.
    #[error("no ticket key")]
    NoTicketKey,
    /// The system has no randomness.
    #[error("no randomness")]
    Random,
}
