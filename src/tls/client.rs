//! TLS towards servers: settings of a backend, and what one server is known by.
//! Built by `worker`, used by `upstream`. Never reads a file, never decides whether to go on without TLS.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{TlsError, provider, resolver, verify, versions};
use crate::config::{Authorities, TlsClient};
use crate::socket::Socket;

/// Tickets kept for the next connection to a server; the library keeps up to 8 of one name.
const TICKETS: usize = 8;

/// TLS with the servers of one backend.
#[derive(Clone)]
pub struct ClientSettings {
    config: ClientConfig,
    sni: Option<String>,
    troubles: Arc<Troubles>,
}

/// Why there was no session with each server, the last time; common to all threads, so that a reason is
/// told once.
#[derive(Default)]
struct Troubles {
    any: AtomicBool,
    reasons: Mutex<HashMap<String, String>>,
}

impl Troubles {
    /// Whether this is news.
    fn note(&self, server: &str, reason: String) -> bool {
        self.any.store(true, Ordering::Relaxed);
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let news = reasons.get(server) != Some(&reason);
        reasons.insert(server.to_owned(), reason);
        news
    }

    /// There is a session.
    fn forget(&self, server: &str) {
        if self.any.load(Ordering::Relaxed) {
            let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
            reasons.remove(server);
            self.any.store(!reasons.is_empty(), Ordering::Relaxed);
        }
    }
}

impl ClientSettings {
    /// The library's settings for one backend, whose servers are offered these protocols (ALPN).
    ///
    /// # Errors
    /// A key, a list or a combination of settings that the library refuses.
    pub fn new(tls: &TlsClient, alpn: &[&str], authorities: &[Authorities]) -> Result<Self, TlsError> {
        let provider = Arc::new(provider(&tls.ciphers, &tls.groups)?);
        let believed = tls.authorities.and_then(|place| authorities.get(place));
        let verifier = match believed {
            Some(believed) => verify::server_verifier(believed, &tls.crls, &provider)?,
            None => verify::whoever(&provider),
        };
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions(tls.tls12))
            .map_err(TlsError::Settings)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &tls.identity {
            Some(identity) => {
                let identity = resolver::certified(identity, &provider)?;
                config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
            }
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(Self { config, sni: tls.sni.clone(), troubles: Arc::default() })
    }

    /// TLS with `server`, which runs on this host, whose name its certificate has to prove.
    ///
    /// # Errors
    /// A host that no certificate can be for.
    pub fn server(&self, server: &str, host: &str) -> Result<ServerTls, TlsError> {
        let name = self.sni.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name.clone()).map_err(|_invalid| TlsError::Name(name))?;
        let mut config = self.config.clone();
        config.resumption = Resumption::in_memory_sessions(TICKETS);
        let (connector, troubles) = (TlsConnector::from(Arc::new(config)), Arc::clone(&self.troubles));
        Ok(ServerTls { connector, name, server: server.to_owned(), troubles })
    }
}

/// TLS with one server, on one thread: sessions are resumed without a lock that others wait for.
#[derive(Clone)]
pub struct ServerTls {
    connector: TlsConnector,
    name: ServerName<'static>,
    server: String,
    troubles: Arc<Troubles>,
}

/// There is no session.
pub struct Refused {
    /// Why; the library's own error where it was not the network.
    pub source: io::Error,
    /// Whether it is another reason than the last time.
    pub news: bool,
}

impl ServerTls {
    /// Shakes hands.
    ///
    /// # Errors
    /// Why there is no session.
    pub async fn connect(&self, stream: Socket) -> Result<TlsStream<Socket>, Refused> {
        match self.connector.connect(self.name.clone(), stream).await {
            Ok(stream) => {
                self.troubles.forget(&self.server);
                Ok(stream)
            }
            Err(source) => Err(Refused { news: self.troubles.note(&self.server, source.to_string()), source }),
        }
    }
}
