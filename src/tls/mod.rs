//! TLS towards clients and servers: certificates by name, ticket keys every generation shares, settings.
//! Called by `worker` while it starts. Never reads a file: the bundle holds everything.

mod client;
mod error;
mod hello;
mod names;
mod resolver;
mod tickets;

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::NoServerSessionStorage;
use rustls::version::{TLS12, TLS13};

use crate::config::TlsServer;

pub use client::ServerTls;
pub use error::TlsError;
pub use hello::{Hello, read_hello};
pub use tickets::{TicketKeys, random_ticket_key};

/// The library's settings for one frontend.
///
/// # Errors
/// A key or a combination of settings that the library refuses.
pub fn server_config(tls: &TlsServer, tickets: &Arc<TicketKeys>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(provider(tls)?);
    let resolver = resolver::Resolver::new(&tls.certificates, &provider)?;
    let versions: &[_] = if tls.tls12 { &[&TLS13, &TLS12] } else { &[&TLS13] };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(TlsError::Settings)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = Arc::clone(tickets) as Arc<dyn rustls::server::ProducesTickets>;
    // Sessions live in tickets alone: a session cache would be lost with the worker.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

fn provider(tls: &TlsServer) -> Result<CryptoProvider, TlsError> {
    let mut provider = default_provider();
    if !tls.ciphers.is_empty() {
        provider.cipher_suites = names::suites(&tls.ciphers, &provider.cipher_suites)?;
    }
    if !tls.groups.is_empty() {
        provider.kx_groups = names::groups(&tls.groups)?;
    }
    Ok(provider)
}
