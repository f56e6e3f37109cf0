//! How a request can fail: one table of status, blame and termination state.
//! Made by the phases in `proxy`, answered and logged once in `request`. Never retried here.

use crate::http::Refusal;

/// A request that did not end as it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The client sent something that is not allowed.
    #[error("request refused")]
    Refused(#[source] Refusal),
    /// No whole request head within `timeout.http-request`.
    #[error("request head timed out")]
    RequestTimedOut,
    /// The client went away inside a request head.
    #[error("client closed inside the request head")]
    RequestTruncated,
    /// The client went away while a connection to a server was waited for.
    #[error("client left before there was a connection to the server")]
    ClientLeft,
    /// The client went away or failed while a body was transferred.
    #[error("client aborted")]
    ClientAborted,
    /// The client stopped sending its body for `timeout.client`, before there was a response.
    #[error("request body timed out")]
    BodyTimedOut,
    /// The client stopped moving data for `timeout.client`.
    #[error("client timed out")]
    ClientTimedOut,
    /// No backend or no server.
    #[error("no server available")]
    NoServer,
    /// No connection to a server after all retries.
    #[error("no connection to the server")]
    ConnectFailed,
    /// `timeout.connect` passed at the last retry.
    #[error("connection to the server timed out")]
    ConnectTimedOut,
    /// The server closed or broke before a whole response head.
    #[error("server closed before its response")]
    ServerClosed,
    /// The server ended the request's stream before a whole response head; its connection goes on.
    #[error("server reset the request's stream")]
    ServerReset,
    /// The server says that it has not touched the request, again and again.
    #[error("server refused the request's stream")]
    NotProcessed {
        /// Because it takes no more on that connection.
        leaving: bool,
    },
    /// The server's response is one after which it is asked again.
    #[error("response with a status to retry on")]
    AskedAgain,
    /// The server's response is not HTTP we would pass on.
    #[error("response refused")]
    BadResponse(#[source] Refusal),
    /// No response head within `timeout.server`.
    #[error("server timed out")]
    ServerTimedOut,
    /// The server broke off inside a body.
    #[error("response truncated")]
    ResponseTruncated,
    /// The body's framing broke after a part of it had been passed on.
    #[error("response body refused")]
    BrokenResponse(#[source] Refusal),
    /// The server stopped moving data for `timeout.server`.
    #[error("server stalled")]
    ServerStalled,
    /// The worker is ending.
    #[error("worker stopping")]
    Stopping,
    /// The worker is ending while a connection to a server is waited for.
    #[error("worker stopping before there was a connection to the server")]
    StoppedConnecting,
}

/// Whom to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Client,
    /// The client, which is gone.
    Leaver,
    /// The server.
    Server,
    /// Us.
    Proxy,
}

impl Failure {
    /// Status to answer with (0: none can be sent any more), HAProxy's termination state
    /// (configuration manual 8.5) and the side to blame.
    #[must_use]
    pub fn verdict(&self) -> (u16, [u8; 2], Side) {
        match self {
            Self::Refused(refusal) => (refusal.status(), *b"PR", Side::Client),
            Self::RequestTimedOut => (408, *b"cR", Side::Client),
            Self::RequestTruncated => (400, *b"CR", Side::Client),
            Self::BodyTimedOut => (408, *b"cH", Side::Client),
            Self::ClientLeft => (0, *b"CC", Side::Leaver),
            Self::ClientAborted => (0, *b"CD", Side::Leaver),
            Self::ClientTimedOut => (0, *b"cD", Side::Client),
            Self::NoServer => (503, *b"SC", Side::Proxy),
            Self::ConnectFailed => (503, *b"SC", Side::Server),
            Self::ConnectTimedOut => (503, *b"sC", Side::Server),
            Self::ServerClosed | Self::ServerReset | Self::NotProcessed { .. } | Self::AskedAgain => {
                (502, *b"SH", Side::Server)
            }
            Self::BadResponse(_) => (502, *b"PH", Side::Server),
            Self::ServerTimedOut => (504, *b"sH", Side::Server),
            Self::ResponseTruncated | Self::BrokenResponse(_) => (0, *b"SD", Side::Server),
            Self::ServerStalled => (0, *b"sD", Side::Server),
            Self::Stopping => (0, *b"KD", Side::Proxy),
            Self::StoppedConnecting => (0, *b"KC", Side::Proxy),
        }
    }
}
