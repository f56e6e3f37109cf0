//! A TLS client for tests that accepts any certificate and remembers which one it was shown, and certificates to show.

use std::fs;
use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs::default_provider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, SignatureScheme, StreamOwned,
    SupportedProtocolVersion,
};

use super::PATIENCE;
use super::client::{Message, read_message};

/// Certificate and key of a file.
pub struct Pair {
    pub certificate: String,
    pub key: String,
    pub der: Vec<u8>,
}

impl Pair {
    /// Self-signed for these names, the first of which is also the common name; `[]` leaves only that.
    pub fn new(common_name: &str, names: &[&str], key: &KeyPair) -> Self {
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let made = params.self_signed(key).unwrap();
        Self { certificate: made.pem(), key: key.serialize_pem(), der: made.der().to_vec() }
    }

    /// A pair for one name, written into a file.
    pub fn written(folder: &Path, file: &str, name: &str) -> Self {
        let pair = Self::new(name, &[name], &KeyPair::generate().unwrap());
        fs::write(folder.join(file), pair.text()).unwrap();
        pair
    }

    pub fn text(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }
}

/// Certificates of a handshake, leaf first.
type Chain = Arc<Mutex<Vec<Vec<u8>>>>;

/// Accepts every certificate, but not a signature by another key.
#[derive(Debug)]
struct Recorder {
    provider: Arc<CryptoProvider>,
    schemes: Vec<SignatureScheme>,
    chain: Chain,
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(leaf).chain(intermediates).map(|der| der.to_vec()).collect();
        *self.chain.lock().unwrap() = chain;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

/// A client whose connections share settings and session tickets.
pub struct TlsClient {
    pub config: ClientConfig,
    chain: Chain,
}

impl TlsClient {
    pub fn new(versions: &[&'static SupportedProtocolVersion]) -> Self {
        let schemes = default_provider().signature_verification_algorithms.supported_schemes();
        Self::verifying(versions, schemes)
    }

    /// A client that can verify signatures of these kinds only.
    pub fn verifying(versions: &[&'static SupportedProtocolVersion], schemes: Vec<SignatureScheme>) -> Self {
        let (provider, chain) = (Arc::new(default_provider()), Chain::default());
        let recorder = Recorder { provider: Arc::clone(&provider), schemes, chain: Arc::clone(&chain) };
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(recorder))
            .with_no_client_auth();
        Self { config, chain }
    }

    /// Shakes hands and asks for `/`; `Err` is why there was no handshake.
    pub fn try_get(&self, address: SocketAddr, name: &str) -> Result<Answer, rustls::Error> {
        let mut stream = self.shake(address, name)?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let response = read_message(&mut reader, true).unwrap();
        let chain = self.chain.lock().unwrap().clone();
        let kind = reader.get_ref().conn.handshake_kind().unwrap();
        Ok(Answer { response, chain, kind, reader })
    }

    /// Shakes hands.
    pub fn shake(
        &self,
        address: SocketAddr,
        name: &str,
    ) -> Result<StreamOwned<ClientConnection, TcpStream>, rustls::Error> {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        self.shake_over(stream, name)
    }

    /// The same on a connection that is there.
    pub fn shake_over(
        &self,
        stream: TcpStream,
        name: &str,
    ) -> Result<StreamOwned<ClientConnection, TcpStream>, rustls::Error> {
        self.chain.lock().unwrap().clear();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut session = ClientConnection::new(Arc::new(self.config.clone()), name)?;
        let mut stream = stream;
        while session.is_handshaking() {
            if let Err(error) = session.complete_io(&mut stream) {
                return Err(error.downcast::<rustls::Error>().unwrap());
            }
        }
        Ok(StreamOwned::new(session, stream))
    }

    pub fn get(&self, address: SocketAddr, name: &str) -> Answer {
        self.try_get(address, name).unwrap_or_else(|error| panic!("no handshake for {name}: {error}"))
    }
}

/// What came of a connection, which is still open.
pub struct Answer {
    pub response: Message,
    /// Certificates shown, leaf first; none when the session was resumed.
    pub chain: Vec<Vec<u8>>,
    pub kind: HandshakeKind,
    pub reader: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl Answer {
    pub fn session(&self) -> &ClientConnection {
        &self.reader.get_ref().conn
    }

    /// What is answered to another request over the same connection.
    pub fn again(&mut self) -> Message {
        self.reader.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        read_message(&mut self.reader, true).unwrap()
    }

    /// The certificate the server proved to hold.
    pub fn leaf(&self) -> &[u8] {
        &self.chain[0]
    }
}
