//! The beginning of a client's TLS session.
//! Called by `proxy` for each connection of a frontend that speaks TLS. Never reads what comes after the handshake.

use std::cell::Cell;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::server::Acceptor as HelloReader;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

use super::resolver::Resolver;
use super::{TicketKeys, TlsError, settings};
use crate::config::TlsServer;
use crate::socket::Socket;

/// An alert that ends a handshake before anything is encrypted, RFC 8446 section 5.1 and 6: a record of two bytes.
const fn fatal(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}
/// `protocol_version` (RFC 8446 section 6.2).
const TOO_OLD: [u8; 7] = fatal(70);
/// `missing_extension`, for who has to send a name and sends none (RFC 8446 section 9.2).
const NO_NAME: [u8; 7] = fatal(109);
/// `unrecognized_name` (RFC 6066 section 3).
const UNKNOWN_NAME: [u8; 7] = fatal(112);

/// Shakes hands for one frontend.
#[derive(Clone)]
pub struct Acceptor {
    config: Arc<RwLock<Arc<ServerConfig>>>,
    resolver: Arc<Resolver>,
}

impl Acceptor {
    pub(super) fn new(config: ServerConfig, resolver: Arc<Resolver>) -> Self {
        Self { config: Arc::new(RwLock::new(Arc::new(config))), resolver }
    }

    /// Asks clients for other certificates from now on, on every thread that has this from the same one.
    ///
    /// # Errors
    /// Authorities or lists that the library refuses; the old ones stay.
    pub fn admit(&self, frontend: (&str, &TlsServer), tickets: &Arc<TicketKeys>) -> Result<(), TlsError> {
        let config = Arc::new(settings(frontend, &self.resolver, tickets)?);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What chooses the certificates.
    #[must_use]
    pub fn resolver(&self) -> &Arc<Resolver> {
        &self.resolver
    }

    /// Shakes hands. `heard` is set when the client has said anything.
    ///
    /// # Errors
    /// Why there is no session; the client has been told.
    pub async fn accept(&self, mut io: Socket, heard: &Cell<bool>) -> io::Result<TlsStream<Socket>> {
        if is_too_old(&mut io, heard).await? {
            // The library's own refusal would be `handshake_failure`.
            io.write_all(&TOO_OLD).await?;
            // What stays unread would make a reset of the end, which may overtake the alert.
            let _hello = io.read(&mut vec![0; 1024]).await?;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "nothing newer than TLS 1.1"));
        }
        if !self.resolver.is_strict() {
            return TlsAcceptor::from(self.config()).accept(io).await;
        }
        // The library's own refusal would be `access_denied`.
        let mut start = LazyConfigAcceptor::new(HelloReader::default(), io).await?;
        let name = start.client_hello().server_name().map(str::to_owned);
        if self.resolver.knows(name.as_deref()) {
            return start.into_stream(self.config()).await;
        }
        let alert = if name.is_none() { NO_NAME } else { UNKNOWN_NAME };
        start.io.write_all(&alert).await?;
        start.io.shutdown().await?;
        Err(io::Error::new(io::ErrorKind::InvalidData, "no certificate for the name asked for"))
    }
}

/// Whether a client knows nothing newer than TLS 1.1, as far as its first bytes are there: the head of a record, that of
/// a ClientHello, its version (RFC 8446 section 4.1.2).
async fn is_too_old(io: &mut Socket, heard: &Cell<bool>) -> io::Result<bool> {
    let mut first = [0; 11];
    let known = io.peek(&mut first).await?;
    heard.set(known > 0);
    Ok(known == first.len() && first[0] == 22 && first[5] == 1 && first[9] == 3 && first[10] < 3)
}
