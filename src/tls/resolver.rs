//! Which certificate a client gets: by its name (SNI), else the first one.
//! Called by the TLS library in each handshake. Never refuses a client for its name unless told to.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::TlsError;
use crate::config::{Certificate, KeyFormat, TlsServer};

/// The certificates of one frontend, which may be exchanged while handshakes go on.
pub struct Resolver {
    table: RwLock<Arc<Table>>,
    provider: Arc<CryptoProvider>,
    /// Whether a name nobody has a certificate for is refused.
    strict: bool,
}

/// Certificates by name.
struct Table {
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
    default: Vec<Arc<CertifiedKey>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("strict", &self.strict).finish_non_exhaustive()
    }
}

impl Resolver {
    pub(super) fn new(tls: &TlsServer, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let table = RwLock::new(Arc::new(Table::new(&tls.certificates, provider)?));
        Ok(Self { table, provider: Arc::clone(provider), strict: tls.strict_sni })
    }

    pub(super) fn is_strict(&self) -> bool {
        self.strict
    }

    /// Whether there is a certificate for who asks for this name, or for none.
    pub(super) fn knows(&self, name: Option<&str>) -> bool {
        !self.table().candidates(name, self.strict).is_empty()
    }

    /// Whether a client that asked for this name, or for none, was shown a certificate that is for this host, too.
    #[must_use]
    pub fn shares(&self, name: Option<&str>, host: &str) -> bool {
        let table = self.table();
        let (shown, right) = (table.candidates(name, self.strict), table.named(host));
        right.is_some_and(|right| right.iter().any(|one| shown.iter().any(|other| Arc::ptr_eq(one, other))))
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves these certificates from now on.
    ///
    /// # Errors
    /// A key that the library refuses; the old certificates stay.
    pub fn replace(&self, certificates: &[Certificate]) -> Result<(), TlsError> {
        let table = Arc::new(Table::new(certificates, &self.provider)?);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
        Ok(())
    }
}

impl Table {
    fn new(certificates: &[Certificate], provider: &CryptoProvider) -> Result<Self, TlsError> {
        let mut by_name: HashMap<String, Vec<Arc<CertifiedKey>>> = HashMap::new();
        let mut all = Vec::new();
        for certificate in certificates {
            let key = Arc::new(certified(certificate, provider)?);
            for name in &certificate.names {
                by_name.entry(name.to_ascii_lowercase()).or_default().push(Arc::clone(&key));
            }
            all.push((certificate, key));
        }
        // The default is the first certificate, with those of other key types for the same names.
        let default = match all.first() {
            Some((first, _)) => {
                all.iter().filter(|(other, _)| other.names == first.names).map(|(_, key)| Arc::clone(key)).collect()
            }
            None => Vec::new(),
        };
        Ok(Self { by_name, default })
    }

    fn candidates(&self, name: Option<&str>, strict: bool) -> &[Arc<CertifiedKey>] {
        let otherwise = if strict { &[][..] } else { &self.default };
        name.and_then(|name| self.named(name)).unwrap_or(otherwise)
    }

    /// The certificates that are for a name, or an address.
    fn named(&self, name: &str) -> Option<&[Arc<CertifiedKey>]> {
        let name = name.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        if let Some(found) = self.by_name.get(&name) {
            return Some(found);
        }
        let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        wildcard.and_then(|wildcard| self.by_name.get(&wildcard)).map(Vec::as_slice)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.table();
        let candidates = table.candidates(hello.server_name(), self.strict);
        let usable = candidates.iter().find(|key| key.key.choose_scheme(hello.signature_schemes()).is_some());
        usable.or(candidates.first()).cloned()
    }
}

pub(super) fn certified(certificate: &Certificate, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let bytes = certificate.key.clone();
    let der = match certificate.key_format {
        KeyFormat::Pkcs8 => PrivateKeyDer::Pkcs8(bytes.into()),
        KeyFormat::Pkcs1 => PrivateKeyDer::Pkcs1(bytes.into()),
        KeyFormat::Sec1 => PrivateKeyDer::Sec1(bytes.into()),
    };
    let key = provider
        .key_provider
        .load_private_key(der)
        .map_err(|source| TlsError::Key { path: certificate.path.display().to_string(), source })?;
    let chain = certificate.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    Ok(CertifiedKey::new(chain, key))
}
