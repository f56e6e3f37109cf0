//! Whether a server, or a client, is who it should be.
//! Called by the TLS library in each full handshake. Never believes a signature it has not checked.

use std::collections::HashSet;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::TlsError;
use crate::config::{Authorities, ClientAuth, Facts, facts};

/// Believes the authorities, and a certificate that is named among them for itself: one that its own
/// server made is named nowhere else.
pub(super) fn server_verifier(
    authorities: &Authorities,
    crls: &[Vec<u8>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let roots = Arc::new(roots(authorities));
    let mut builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider));
    // Nobody knows whether what stands for itself was revoked.
    let mut named = HashSet::new();
    if crls.is_empty() {
        named = authorities.certificates.iter().cloned().collect();
    } else {
        builder = builder.with_crls(crls.iter().map(|der| der.clone().into())).enforce_revocation_expiration();
    }
    let authorities = builder.build().map_err(TlsError::Verifier)?;
    Ok(Arc::new(Believing { authorities, named }))
}

/// The authorities as the library wants them; what it cannot read it could not believe either.
pub(super) fn roots(authorities: &Authorities) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.certificates.iter().map(|der| CertificateDer::from(der.as_slice())));
    roots
}

/// Lets in those for whom the authorities vouch, and certificates that are named among them themselves.
pub(super) fn client_verifier(
    auth: &ClientAuth,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Arc::new(roots(&auth.authorities));
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    let mut named = HashSet::new();
    if auth.crls.is_empty() {
        named = auth.authorities.certificates.iter().cloned().collect();
    } else {
        builder = builder.with_crls(auth.crls.iter().map(|der| der.clone().into())).enforce_revocation_expiration();
    }
    if !auth.required {
        builder = builder.allow_unauthenticated();
    }
    let authorities = builder.build().map_err(TlsError::Verifier)?;
    Ok(Arc::new(Admitting { authorities, named }))
}

/// A digest of everything by which a client is let in.
pub(super) fn rules(frontend: &str, auth: &ClientAuth) -> Vec<u8> {
    let mut digest = digest::Context::new(&digest::SHA256);
    let mut part = |bytes: &[u8]| {
        digest.update(&bytes.len().to_be_bytes());
        digest.update(bytes);
    };
    part(frontend.as_bytes());
    part(&[u8::from(auth.required)]);
    auth.authorities.certificates.iter().for_each(|der| part(der));
    part(b"revoked");
    auth.crls.iter().for_each(|der| part(der));
    digest.finish().as_ref().to_vec()
}

/// Takes whoever answers, as long as it holds the key of what it shows.
#[must_use]
pub fn whoever(provider: &CryptoProvider) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Whoever(provider.signature_verification_algorithms))
}

#[derive(Debug)]
struct Believing {
    authorities: Arc<WebPkiServerVerifier>,
    named: HashSet<Vec<u8>>,
}

#[derive(Debug)]
struct Admitting {
    authorities: Arc<dyn ClientCertVerifier>,
    named: HashSet<Vec<u8>>,
}

#[derive(Debug)]
struct Whoever(WebPkiSupportedAlgorithms);

/// Whether a certificate that is believed for itself is for this name, now.
fn check_named(der: &[u8], name: &ServerName<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let facts = check_time(der, now)?;
    let wanted = name.to_str().to_ascii_lowercase();
    let covered = facts.names.iter().any(|name| covers(name, &wanted));
    if covered { Ok(()) } else { Err(CertificateError::NotValidForName) }
}

fn check_time(der: &[u8], now: UnixTime) -> Result<Facts, CertificateError> {
    let facts = facts(der).ok_or(CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    match facts.validity {
        (from, _) if now < from => Err(CertificateError::NotValidYet),
        (_, until) if until < now => Err(CertificateError::Expired),
        _ => Ok(facts),
    }
}

/// Whether a certificate's name is for this host; a wildcard stands for one label (RFC 6125 section 6.4.3).
pub(super) fn covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
        None => name == host,
    }
}

impl ServerCertVerifier for Believing {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.named.contains(leaf.as_ref()) {
            return check_named(leaf, name, now).map(|()| ServerCertVerified::assertion()).map_err(Error::from);
        }
        self.authorities.verify_server_cert(leaf, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Admitting {
    fn offer_client_auth(&self) -> bool {
        self.authorities.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.authorities.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.authorities.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.named.contains(leaf.as_ref()) {
            return check_time(leaf, now).map(|_facts| ClientCertVerified::assertion()).map_err(Error::from);
        }
        self.authorities.verify_client_cert(leaf, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Whoever {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wildcard_stands_for_exactly_one_label() {
        for (name, host, covered) in [
            ("a.example", "a.example", true),
            ("*.example", "a.example", true),
            ("*.example", "a.b.example", false),
            ("*.example", ".example", false),
            ("*.example", "example", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("b.example", "a.example", false),
        ] {
            assert_eq!(covers(name, host), covered, "{name} for {host}");
        }
    }

    #[test]
    fn a_certificate_that_is_named_itself_counts_for_its_name_and_its_time() {
        let made = rcgen::generate_simple_self_signed(vec![String::from("a.example")]).unwrap();
        let check = |name: &'static str, seconds| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            check_named(made.cert.der(), &ServerName::try_from(name).unwrap(), now)
        };
        assert_eq!(check("a.example", 1_800_000_000), Ok(()));
        assert_eq!(check("A.example", 1_800_000_000), Ok(()));
        assert_eq!(check("b.example", 1_800_000_000), Err(CertificateError::NotValidForName));
        // What the tool that made it takes for the beginning and the end of time.
        assert_eq!(check("a.example", 0), Err(CertificateError::NotValidYet));
        assert_eq!(check("a.example", 100_000_000_000), Err(CertificateError::Expired));
    }
}
