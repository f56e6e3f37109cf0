//! TLS towards servers: settings of a backend, and what one server is known by.
//! Built by `worker`, used by `upstream`. Never reads a file, never decides whether to go on without TLS.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Tickets kept for the next connection to a server; the library keeps up to 8 of one name.
const TICKETS: usize = 8;

/// TLS with one server, on one thread: sessions are resumed without a lock that others wait for.
#[derive(Clone)]
pub struct ServerTls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl ServerTls {
    /// The settings of a backend for the server of this name, which its certificate has to prove.
    #[must_use]
    pub fn new(settings: &ClientConfig, name: ServerName<'static>) -> Self {
        let mut settings = settings.clone();
        settings.resumption = Resumption::in_memory_sessions(TICKETS);
        Self { connector: TlsConnector::from(Arc::new(settings)), name }
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// Why there is no session; the source is the library's own error where it was not the network.
    pub async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), stream).await
    }
}
