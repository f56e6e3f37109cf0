//! TLS towards clients and servers: certificates by name, ticket keys every generation shares, settings.
//! Called by `worker` while it starts. Never reads a file: the bundle holds everything.

mod client;
mod error;
mod hello;
mod names;
mod resolver;
mod tickets;
mod verify;

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::NoServerSessionStorage;
use rustls::version::{TLS12, TLS13};

use crate::config::{Bundle, TlsServer};

pub use client::{ClientSettings, Refused, ServerTls};
pub use error::TlsError;
pub use hello::{Hello, read_hello};
pub use tickets::{TicketKeys, random_ticket_key};

/// The library's settings for one frontend.
///
/// # Errors
/// A key or a combination of settings that the library refuses.
pub fn server_config(tls: &TlsServer, tickets: &Arc<TicketKeys>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(provider(&tls.ciphers, &tls.groups)?);
    let resolver = resolver::Resolver::new(&tls.certificates, &provider)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions(tls.tls12))
        .map_err(TlsError::Settings)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = tls.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
    config.ticketer = Arc::clone(tickets) as Arc<dyn rustls::server::ProducesTickets>;
    // Sessions live in tickets alone: a session cache would be lost with the worker.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// TLS towards the servers of each backend, where it is configured.
///
/// # Errors
/// As [`ClientSettings::new`]; also a server whose certificate could not be for it.
pub fn client_settings(bundle: &Bundle) -> Result<Vec<Option<ClientSettings>>, TlsError> {
    let mut all = Vec::with_capacity(bundle.backends.len());
    for backend in &bundle.backends {
        let Some(tls) = &backend.tls else {
            all.push(None);
            continue;
        };
        let settings = ClientSettings::new(tls, backend.mode, &bundle.authorities)?;
        for server in &backend.servers {
            settings.server(&server.name, &server.host)?;
        }
        all.push(Some(settings));
    }
    Ok(all)
}

fn versions(tls12: bool) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    if tls12 { &BOTH } else { &BOTH[..1] }
}

fn provider(ciphers: &[String], groups: &[String]) -> Result<CryptoProvider, TlsError> {
    let mut provider = default_provider();
    if !ciphers.is_empty() {
        provider.cipher_suites = names::suites(ciphers, &provider.cipher_suites)?;
    }
    if !groups.is_empty() {
        provider.kx_groups = names::groups(groups)?;
    }
    Ok(provider)
}
