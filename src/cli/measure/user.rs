//! One user: a request on a connection of its own, or on one that is kept. Never a second try.
//! Used by `load`. Says of a lost request at which step it was lost.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::subject::SubjectError;
use crate::http::{Body, Chunked, HeadLimits, Method, parse_response};
use crate::tls::whoever;

/// A request that is not answered after this long is lost.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a POST carries.
const POSTED: &str = "The quick brown fox jumps over the lazy dog.";
const LIMITS: HeadLimits = HeadLimits { size: 64 * 1024, fields: 256, target: 0 };

/// At which step a request was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Loss {
    /// No connection: refused, reset, unreachable.
    Connect,
    /// Broken off in the TLS handshake.
    Handshake,
    /// The request could not be sent.
    Send,
    /// Reset or closed before an answer began.
    NoAnswer,
    /// The answer broke off.
    Truncated,
    /// Not HTTP.
    Malformed,
    /// An answer other than 2xx or 3xx.
    Status,
    /// Nothing for 30 s.
    Timeout,
    /// On a connection that had been idle all the time.
    Idle,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Handshake => "handshake",
            Self::Send => "send",
            Self::NoAnswer => "no answer",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::Status => "status",
            Self::Timeout => "timeout",
            Self::Idle => "idle",
        })
    }
}

/// Where requests go.
#[derive(Clone)]
pub(super) struct Target {
    address: SocketAddr,
    host: String,
    path: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Target {
    pub(super) fn new(address: SocketAddr, host: &str, path: &str, secure: bool) -> Result<Self, SubjectError> {
        let bare = host.trim_matches(['[', ']']).to_owned();
        let tls = if secure {
            let name = ServerName::try_from(bare).map_err(|_invalid| SubjectError::Url(host.to_owned()))?;
            Some((TlsConnector::from(Arc::new(client_config(Resumption::disabled())?)), name))
        } else {
            None
        };
        Ok(Self { address, host: format!("{host}:{}", address.port()), path: path.to_owned(), tls })
    }

    /// The same for a user of its own, who resumes its TLS sessions.
    pub(super) fn resuming(&self) -> Result<Self, SubjectError> {
        let mut target = self.clone();
        if let Some((connector, _)) = &mut target.tls {
            *connector = TlsConnector::from(Arc::new(client_config(Resumption::default())?));
        }
        Ok(target)
    }
}

/// TLS 1.2, whoever the server is, because a test installation signs for itself; without resumption a full handshake for every connection, which is the article's
/// `ab -f TLS1.2`.
fn client_config(resumption: Resumption) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(whoever(&provider))
        .with_no_client_auth();
    config.resumption = resumption;
    Ok(config)
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// A user and its connection.
pub(super) struct User {
    target: Target,
    keep_alive: bool,
    request: Vec<u8>,
    connection: Option<Box<dyn Stream>>,
    handshakes: Cell<Handshakes>,
}

/// TLS handshakes of a user after its first one, which cannot but be full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Handshakes {
    began: bool,
    pub(super) full: u64,
    pub(super) resumed: u64,
}

impl Handshakes {
    fn count(&mut self, kind: Option<HandshakeKind>) {
        if std::mem::replace(&mut self.began, true) {
            *(if kind == Some(HandshakeKind::Resumed) { &mut self.resumed } else { &mut self.full }) += 1;
        }
    }
}

impl User {
    pub(super) fn new(target: Target, keep_alive: bool, post: bool) -> Self {
        let close = if keep_alive { "" } else { "Connection: close\r\n" };
        let (host, path) = (&target.host, &target.path);
        let request = if post {
            let length = POSTED.len();
            format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{close}Content-Length: {length}\r\n\r\n{POSTED}")
        } else {
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{close}\r\n")
        };
        let request = request.into_bytes();
        Self { target, keep_alive, request, connection: None, handshakes: Cell::default() }
    }

    /// What became of its TLS handshakes.
    pub(super) fn handshakes(&self) -> Handshakes {
        self.handshakes.get()
    }

    /// Makes one request and reads its whole answer.
    pub(super) async fn request(&mut self) -> Result<(), Loss> {
        let kept = self.connection.take();
        match tokio::time::timeout(PATIENCE, self.exchange(kept)).await {
            Ok(Ok(kept)) => {
                self.connection = kept;
                Ok(())
            }
            Ok(Err(loss)) => Err(loss),
            Err(_elapsed) => Err(Loss::Timeout),
        }
    }

    async fn exchange(&self, kept: Option<Box<dyn Stream>>) -> Result<Option<Box<dyn Stream>>, Loss> {
        let mut stream = match kept {
            Some(stream) => stream,
            None => self.connect().await?,
        };
        stream.write_all(&self.request).await.map_err(|_broken| Loss::Send)?;
        stream.flush().await.map_err(|_broken| Loss::Send)?;
        let open = read_answer(&mut stream).await?;
        Ok((self.keep_alive && open).then_some(stream))
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, Loss> {
        let stream = TcpStream::connect(self.target.address).await.map_err(|_refused| Loss::Connect)?;
        stream.set_nodelay(true).map_err(|_gone| Loss::Connect)?;
        let Some((connector, name)) = &self.target.tls else { return Ok(Box::new(stream)) };
        let secured = connector.connect(name.clone(), stream).await.map_err(|_broken| Loss::Handshake)?;
        let mut handshakes = self.handshakes.get();
        handshakes.count(secured.get_ref().1.handshake_kind());
        self.handshakes.set(handshakes);
        Ok(Box::new(secured))
    }
}

/// Reads an answer to its end. Whether the connection may be used again.
async fn read_answer(stream: &mut Box<dyn Stream>) -> Result<bool, Loss> {
    let (mut input, mut fields) = (Vec::with_capacity(4096), Vec::new());
    let head = loop {
        if let Some(head) =
            parse_response(&input, Method::Get, &LIMITS, &mut fields).map_err(|_not_http| Loss::Malformed)?
        {
            input.drain(..head.len);
            if head.status >= 200 {
                break head;
            }
            continue;
        }
        if read(stream, &mut input).await.unwrap_or(0) == 0 {
            return Err(if input.is_empty() { Loss::NoAnswer } else { Loss::Truncated });
        }
    };
    let complete = match head.body {
        Body::None => true,
        Body::Length(length) => read_length(stream, input.len() as u64, length).await,
        Body::Chunked => read_chunks(stream, input).await?,
        Body::UntilClose => read_to_end(stream).await,
    };
    match (complete, head.status) {
        (false, _) => Err(Loss::Truncated),
        (true, 200..400) => Ok(head.keep_alive),
        (true, _) => Err(Loss::Status),
    }
}

async fn read(stream: &mut Box<dyn Stream>, input: &mut Vec<u8>) -> io::Result<usize> {
    stream.read_buf(input).await
}

async fn read_length(stream: &mut Box<dyn Stream>, mut got: u64, length: u64) -> bool {
    let mut buffer = vec![0; 16 * 1024];
    while got < length {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return false,
            Ok(count) => got += count as u64,
        }
    }
    got == length
}

async fn read_chunks(stream: &mut Box<dyn Stream>, mut input: Vec<u8>) -> Result<bool, Loss> {
    let mut decoder = Chunked::new();
    loop {
        let step = decoder.decode(&input).map_err(|_broken| Loss::Malformed)?;
        input.drain(..step.consumed);
        if step.done {
            return Ok(true);
        }
        if step.consumed == 0 && read(stream, &mut input).await.unwrap_or(0) == 0 {
            return Ok(false);
        }
    }
}

async fn read_to_end(stream: &mut Box<dyn Stream>) -> bool {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}
