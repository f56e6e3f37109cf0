//! A certificate authority, and origin servers that speak TLS with what it issues.

use std::io::{BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, mpsc};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use time::OffsetDateTime;

use super::PATIENCE;
use super::client::read_message;
use super::origin::{Origin, ok};

/// Issues certificates.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        Self { issuer: CertifiedIssuer::self_signed(Self::params(name), KeyPair::generate().unwrap()).unwrap() }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    /// An authority that this one vouches for, changed before it is signed.
    pub fn intermediate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = Self::params(name);
        change(&mut params);
        Self { issuer: CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.issuer).unwrap() }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// Certificate and key for these names, as one PEM text.
    pub fn issue(&self, common_name: &str, names: &[&str]) -> String {
        self.issue_as(common_name, names, |_params| {})
    }

    /// The same, changed before it is signed.
    pub fn issue_as(&self, common_name: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &self.issuer).unwrap().pem() + &key.serialize_pem()
    }

    /// A list of what is revoked, good until the end of a year.
    pub fn revoke(&self, serials: &[u8], good_until: i32) -> String {
        self.revoke_until(serials, date_time_ymd(good_until, 12, 31))
    }

    /// A list of what is revoked, good until then.
    pub fn revoke_until(&self, serials: &[u8], next_update: OffsetDateTime) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&[*serial]),
            revocation_time: date_time_ymd(2025, 1, 2),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update,
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// Writes the authority's own certificate into a file.
    pub fn written(folder: &Path, file: &str) -> Self {
        let authority = Self::new("Test CA");
        std::fs::write(folder.join(file), authority.pem()).unwrap();
        authority
    }
}

/// Chain and key of a PEM text.
pub fn parts(pem: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap())
}

/// Server settings with the certificate and key of a PEM text; clients have to prove that `clients` vouches for them.
pub fn settings(pem: &str, clients: Option<&Authority>) -> ServerConfig {
    let provider = Arc::new(default_provider());
    let (chain, key) = parts(pem);
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut settings = builder.with_single_cert(chain, key).unwrap();
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    settings
}

/// A connection after its handshake.
pub type Shaken = StreamOwned<ServerConnection, TcpStream>;

/// Shakes hands on every connection, then gives it to `serve`.
pub fn origin(settings: ServerConfig, serve: impl Fn(Shaken) + Send + Sync + 'static) -> Origin {
    let settings = Arc::new(settings);
    Origin::new(move |mut stream| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut session = ServerConnection::new(Arc::clone(&settings)).unwrap();
        while session.is_handshaking() {
            if session.complete_io(&mut stream).is_err() {
                return;
            }
        }
        serve(StreamOwned::new(session, stream));
    })
}

/// What a server learnt of a connection.
#[derive(Debug)]
pub struct Learnt {
    pub kind: HandshakeKind,
    pub sni: Option<String>,
    pub alpn: Option<Vec<u8>>,
    pub certificate: Option<Vec<u8>>,
}

/// Answers every request with `one` and tells of every connection.
pub fn recording(settings: ServerConfig) -> (Origin, mpsc::Receiver<Learnt>) {
    let (tell, told) = mpsc::channel();
    let origin = origin(settings, move |stream| {
        let session = &stream.conn;
        let certificate = session.peer_certificates().map(|chain| chain[0].to_vec());
        let sni = session.server_name().map(str::to_owned);
        let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
        // The test may be over already.
        let _ = tell.send(Learnt { kind: session.handshake_kind().unwrap(), sni, alpn, certificate });
        let mut reader = BufReader::new(stream);
        while read_message(&mut reader, false).is_some() {
            if reader.get_mut().write_all(&ok("one")).is_err() {
                return;
            }
        }
    });
    (origin, told)
}
