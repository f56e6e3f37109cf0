//! Opens connections to a server within a time limit.
//! Called by `Backend::connect` and by checks. Never retries.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{ConnectError, ServerStream};
use crate::config::{self, Protocol, SendProxy};
use crate::socket::introduce_self;
use crate::tls::{ClientSettings, Refused, ServerTls};

/// Bytes that the TLS library may hold back, one record.
const TLS_BUFFER: usize = 16 * 1024;

/// How a server is reached.
#[derive(Clone)]
pub struct Way {
    /// Its address.
    pub address: SocketAddr,
    /// What is spoken there.
    pub protocol: Protocol,
    /// TLS, where the backend has it.
    pub tls: Option<ServerTls>,
    /// Whether the server wants to be told whom a connection is for.
    pub send_proxy: Option<SendProxy>,
}

impl Way {
    /// The way to a server of a backend; `None` for one whose host no certificate can be for.
    #[must_use]
    pub fn to(backend: &config::Backend, server: usize, secured: Option<&ClientSettings>) -> Option<Self> {
        let config::Server { name, address, host, send_proxy, .. } = backend.servers.get(server)?;
        let tls = match secured {
            Some(settings) => Some(settings.server(name, host).ok()?),
            None => None,
        };
        Some(Self { address: *address, protocol: backend.protocol, tls, send_proxy: *send_proxy })
    }

    /// Opens a connection of our own that is ready for the first request: handshakes count against the limit.
    ///
    /// # Errors
    /// What connect(2) or the handshake said, or that both took too long.
    pub async fn open(&self, limit: Duration) -> Result<ServerStream, ConnectError> {
        let introduction = self.send_proxy.map(introduce_self);
        self.open_with(introduction.as_deref().unwrap_or_default(), limit).await
    }

    /// The same for somebody else, as whom we are introduced.
    ///
    /// # Errors
    /// As [`Way::open`].
    pub async fn open_with(&self, introduction: &[u8], limit: Duration) -> Result<ServerStream, ConnectError> {
        let stream = tokio::time::timeout(limit, self.open_slowly(introduction));
        stream.await.unwrap_or(Err(ConnectError::TimedOut))
    }

    async fn open_slowly(&self, introduction: &[u8]) -> Result<ServerStream, ConnectError> {
        let mut stream = TcpStream::connect(self.address).await.map_err(ConnectError::Failed)?;
        // A head and its body may leave in two writes; Nagle would hold the second back.
        stream.set_nodelay(true).map_err(ConnectError::Failed)?;
        if !introduction.is_empty() {
            stream.write_all(introduction).await.map_err(ConnectError::Failed)?;
        }
        let Some(tls) = &self.tls else { return Ok(stream.into()) };
        let shaken = Box::pin(tls.connect(stream.into())).await;
        let (mut stream, terms) =
            shaken.map_err(|Refused { source, news }| ConnectError::Handshake { source, news })?;
        // What waits in there looks like standstill to the time-out of a slow server.
        stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
        Ok((stream, terms).into())
    }
}
