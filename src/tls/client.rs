//! TLS towards servers: settings of a backend, and what one server is known by.
//! Built by `worker`, used by `upstream`. Never reads a file, never decides whether to go on without TLS.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{TlsError, provider, resolver, verify, versions};
use crate::config::{Authorities, Backend, TlsClient};
use crate::socket::Socket;

/// Tickets kept for the next connection to a server; the library keeps up to 8 of one name.
const TICKETS: usize = 8;

/// TLS with the servers of one backend, common to all threads; what it is made of may be exchanged.
#[derive(Clone)]
pub struct ClientSettings {
    made: Arc<RwLock<Made>>,
    sni: Option<String>,
    troubles: Arc<Troubles>,
}

/// The library's settings, and what becomes of connections that were made with them.
#[derive(Clone)]
struct Made {
    config: Arc<ClientConfig>,
    terms: Terms,
}

/// What a connection was made under: authorities, revocation lists, our own certificate.
#[derive(Clone, Debug, Default)]
pub struct Terms(Arc<AtomicBool>);

impl Terms {
    /// Whether others count by now, so that no further request may use the connection.
    #[must_use]
    pub fn are_over(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn end(&self) {
        self.0.store(true, Ordering::Release);
    }
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
    /// The library's settings for one backend.
    ///
    /// # Errors
    /// A key, a list or a combination of settings that the library refuses.
    pub fn new(backend: &Backend, tls: &TlsClient, authorities: &[Authorities]) -> Result<Self, TlsError> {
        let made = Made { config: Arc::new(config(backend, tls, authorities)?), terms: Terms::default() };
        Ok(Self { made: Arc::new(RwLock::new(made)), sni: tls.sni.clone(), troubles: Arc::default() })
    }

    /// Goes by what the backend's files hold now, on every thread; connections that are open serve no further request.
    ///
    /// # Errors
    /// As [`ClientSettings::new`]; everything stays as it is then.
    pub fn renew(&self, backend: &Backend, authorities: &[Authorities]) -> Result<(), TlsError> {
        let Some(tls) = &backend.tls else { return Ok(()) };
        let fresh = Made { config: Arc::new(config(backend, tls, authorities)?), terms: Terms::default() };
        let old = mem::replace(&mut *self.made.write().unwrap_or_else(PoisonError::into_inner), fresh);
        old.terms.end();
        Ok(())
    }

    fn made(&self) -> Made {
        self.made.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// TLS with `server`, which runs on this host, whose name its certificate has to prove.
    ///
    /// # Errors
    /// A host that no certificate can be for.
    pub fn server(&self, server: &str, host: &str) -> Result<ServerTls, TlsError> {
        let name = self.sni.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name.clone()).map_err(|_invalid| TlsError::Name(name))?;
        let own = Arc::new(Mutex::new(self.made().remembering()));
        Ok(ServerTls { settings: self.clone(), own, name, server: server.to_owned() })
    }
}

impl Made {
    /// The same with sessions of its own.
    fn remembering(mut self) -> Self {
        Arc::make_mut(&mut self.config).resumption = Resumption::in_memory_sessions(TICKETS);
        self
    }
}

fn config(backend: &Backend, tls: &TlsClient, authorities: &[Authorities]) -> Result<ClientConfig, TlsError> {
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
    config.alpn_protocols = backend.alpn().iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(config)
}

/// TLS with one server, on one thread: sessions are resumed without a lock that others wait for.
#[derive(Clone)]
pub struct ServerTls {
    settings: ClientSettings,
    /// As of the last handshake, with this server's sessions.
    own: Arc<Mutex<Made>>,
    name: ServerName<'static>,
    server: String,
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
    pub async fn connect(&self, stream: Socket) -> Result<(TlsStream<Socket>, Terms), Refused> {
        let Made { config, terms } = self.current();
        let troubles = &self.settings.troubles;
        let h2_alone = config.alpn_protocols == [b"h2"];
        let shaken = TlsConnector::from(config).connect(self.name.clone(), stream).await;
        // A server that knows none of the protocols may go on without one (RFC 7301 section 3.2).
        let shaken = shaken.and_then(|stream| match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Ok(stream),
            _ if h2_alone => Err(io::Error::other("the server does not speak HTTP/2")),
            _ => Ok(stream),
        });
        match shaken {
            Ok(stream) => {
                troubles.forget(&self.server);
                Ok((stream, terms))
            }
            Err(source) => Err(Refused { news: troubles.note(&self.server, source.to_string()), source }),
        }
    }

    /// What counts now. A session of the time before would spare a server the proof that it is asked for now.
    fn current(&self) -> Made {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if own.terms.are_over() {
            *own = self.settings.made().remembering();
        }
        own.clone()
    }
}
