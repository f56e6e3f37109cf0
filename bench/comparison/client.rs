//! One client connection of the load: plain or TLS, one request at a time, every answer read to its end.
//! Used by `load`. Never retries; what is not a whole 200 is an error.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use memchr::memmem;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::origin::content_length;

/// Bytes read at once.
const READ: usize = 256 * 1024;

/// How a connection is secured.
#[derive(Clone)]
pub(crate) struct Security {
    connector: TlsConnector,
    resumed: bool,
}

impl Security {
    /// TLS 1.3 over X25519 with all three. `resumed`: with the tickets of connections before.
    pub(crate) fn new(resumed: bool) -> Result<Self, rustls::Error> {
        let mut provider = default_provider();
        provider.kx_groups = vec![kx_group::X25519];
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer))
            .with_no_client_auth();
        if !resumed {
            config.resumption = Resumption::disabled();
        }
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), resumed })
    }
}

/// Who the server is does not matter here, and to find out costs the load's core.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256]
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection and the buffer it reads into.
pub(crate) struct Connection {
    stream: Stream,
    buffer: Vec<u8>,
}

/// Opens a TCP connection from one of many addresses, so that ports in TIME_WAIT do not run out.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let place = NEXT.fetch_add(1, Ordering::Relaxed) % 200;
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from(([127, 0, 1, u8::try_from(place).unwrap_or(0) + 1], 0)))?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr, security: Option<&Security>) -> io::Result<Self> {
        let stream = connect(address).await?;
        let Some(security) = security else { return Ok(Self::over(Stream::Plain(stream))) };
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        Ok(Self::over(Stream::Tls(Box::new(security.connector.connect(name, stream).await?))))
    }

    /// Whether the handshake was what was asked for; the first one of a user is always a full one.
    pub(crate) fn fits(&self, security: Option<&Security>, first: bool) -> bool {
        let (Some(security), Stream::Tls(stream)) = (security, &self.stream) else { return true };
        let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
        resumed == (security.resumed && !first)
    }

    fn over(stream: Stream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends a request and reads its answer; returns the bytes of the body.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<u64> {
        let buffer = &mut self.buffer;
        match &mut self.stream {
            Stream::Plain(stream) => exchange(stream, request, buffer).await,
            Stream::Tls(stream) => exchange(stream, request, buffer).await,
        }
    }

    /// Gives back what is only needed while something is read.
    pub(crate) fn rest(&mut self) {
        self.buffer = Vec::new();
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: &[u8],
    buffer: &mut Vec<u8>,
) -> io::Result<u64> {
    buffer.resize(READ, 0);
    stream.write_all(request).await?;
    stream.flush().await?;
    let mut filled = 0;
    let head = loop {
        let read = stream.read(&mut buffer[filled..]).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        if let Some(end) = memmem::find(&buffer[..filled], b"\r\n\r\n") {
            break end + 4;
        }
    };
    if !buffer.starts_with(b"HTTP/1.1 200 ") {
        return Err(io::Error::other(String::from_utf8_lossy(&buffer[..head]).into_owned()));
    }
    let length = content_length(&buffer[..head]);
    let mut left = length.saturating_sub(filled - head);
    while left > 0 {
        let read = stream.read(buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(read);
    }
    Ok(length as u64)
}
