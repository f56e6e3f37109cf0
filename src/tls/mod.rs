//! TLS towards clients and servers: certificates by name, ticket keys every generation shares, settings.
//! Called by `worker` while it starts. Never reads a file: the bundle holds everything.

mod acceptor;
mod bytes;
mod client;
mod error;
mod hello;
mod names;
mod resolver;
mod session;
mod shown;
mod tickets;
mod verify;

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::{NoClientAuth, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::version::{TLS12, TLS13};

use crate::config::{Bundle, Frontend, TlsServer, lists_end};

pub use acceptor::Acceptor;
pub use client::{ClientSettings, Refused, ServerTls, Terms};
pub use error::TlsError;
pub use hello::{Hello, read_hello};
pub use names::cipher_name;
pub use resolver::Resolver;
pub use shown::certificate_field;
use tickets::BoundTickets;
pub use tickets::{TicketKeys, random_ticket_key};
pub use verify::whoever;

/// The library's settings for one frontend.
fn settings(
    (frontend, tls): (&str, &TlsServer),
    resolver: &Arc<Resolver>,
    tickets: &Arc<TicketKeys>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(provider(&tls.ciphers, &tls.groups)?);
    let clients = match &tls.client_auth {
        Some(auth) => verify::client_verifier(auth, &provider)?,
        None => Arc::new(NoClientAuth),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions(tls.tls12))
        .map_err(TlsError::Settings)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::clone(resolver) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = tls.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
    // Who was let in by other rules, or elsewhere, has to prove itself again.
    config.ticketer = match &tls.client_auth {
        Some(auth) => Arc::new(BoundTickets::new(tickets, verify::rules(frontend, auth), lists_end(&auth.crls))),
        None => Arc::clone(tickets) as Arc<dyn ProducesTickets>,
    };
    // Sessions live in tickets alone: a session cache would be lost with the worker.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// Shakes hands for one frontend.
fn acceptor(frontend: &str, tls: &TlsServer, tickets: &Arc<TicketKeys>) -> Result<Acceptor, TlsError> {
    let resolver = Arc::new(Resolver::new(tls, &Arc::new(provider(&tls.ciphers, &tls.groups)?))?);
    let config = settings((frontend, tls), &resolver, tickets)?;
    Ok(Acceptor::new(config, resolver))
}

/// TLS towards the clients of each frontend, where it is configured.
///
/// # Errors
/// A key, a list or a combination of settings that the library refuses.
pub fn acceptors(bundle: &Bundle, tickets: &Arc<TicketKeys>) -> Result<Vec<Option<Acceptor>>, TlsError> {
    let of = |frontend: &Frontend| match &frontend.tls {
        Some(tls) => acceptor(&frontend.name, tls, tickets).map(Some),
        None => Ok(None),
    };
    bundle.frontends.iter().map(of).collect()
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
        let settings = ClientSettings::new(backend, tls, &bundle.authorities)?;
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
