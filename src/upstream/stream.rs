//! The server's side of a connection, plain or TLS.
//! Made by `connect`, used by `proxy` and the checks. Never interprets a byte.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::Call;
use crate::http::h2::Io;
use crate::socket::Socket;
use crate::tls::Terms;

/// A connection to a server.
pub enum ServerStream {
    /// TCP as it is.
    Plain(Socket),
    /// TLS after its handshake.
    Tls(Secured),
    /// One request on a connection of HTTP/2.
    Call(Box<Call>),
}

/// A TLS connection, which says goodbye when it is dropped (RFC 8446 section 6.1).
pub struct Secured(Box<TlsStream<Socket>>, Terms);

impl From<TcpStream> for ServerStream {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(stream.into())
    }
}

impl From<(TlsStream<Socket>, Terms)> for ServerStream {
    fn from((stream, terms): (TlsStream<Socket>, Terms)) -> Self {
        Self::Tls(Secured(Box::new(stream), terms))
    }
}

impl ServerStream {
    /// The socket below, where it is this stream's alone.
    #[must_use]
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Plain(stream) => stream.fd(),
            Self::Tls(stream) => stream.0.get_ref().0.fd(),
            Self::Call(_) => None,
        }
    }

    /// The request on a connection of HTTP/2, if it is one.
    #[must_use]
    pub fn as_call(&mut self) -> Option<&mut Call> {
        if let Self::Call(call) = self { Some(call) } else { None }
    }

    /// The TCP socket, where what it carries is what the server says.
    #[must_use]
    pub fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => stream.tcp(),
            Self::Tls(_) | Self::Call(_) => None,
        }
    }

    /// The same, for good; TLS ends here.
    #[must_use]
    pub fn into_plain(self) -> Option<TcpStream> {
        match self {
            Self::Plain(stream) => stream.into_tcp(),
            Self::Tls(_) | Self::Call(_) => None,
        }
    }

    /// What it was made under, where that may end.
    pub(super) fn terms(&self) -> Option<Terms> {
        if let Self::Tls(stream) = self { Some(stream.1.clone()) } else { None }
    }

    /// The application protocol that was agreed on (ALPN).
    #[must_use]
    pub fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) | Self::Call(_) => None,
            Self::Tls(stream) => stream.0.get_ref().1.alpn_protocol(),
        }
    }

    /// An idle server must be silent: an end, an error or unasked bytes all make it unusable, and so does TLS whose terms
    /// are over. `certain`
    /// asks the kernel itself rather than the event loop's memory.
    pub(super) fn is_idle(&mut self, certain: bool) -> bool {
        let silent = match self {
            Self::Plain(stream) => {
                let read = stream.tcp().map(|stream| stream.try_read(&mut [0; 1]));
                matches!(read, Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock)
            }
            // What belongs to TLS alone, such as a ticket, is taken in on the way.
            Self::Tls(stream) if stream.1.are_over() => false,
            Self::Tls(stream) => {
                let mut context = Context::from_waker(Waker::noop());
                Pin::new(&mut stream.0).poll_read(&mut context, &mut ReadBuf::new(&mut [0; 1])).is_pending()
            }
            // Its connection is shared, and nobody keeps a request.
            Self::Call(_) => false,
        };
        silent
            && (!certain
                || self.socket().is_some_and(|socket| {
                    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
                    recv(socket.as_raw_fd(), &mut [0; 1], flags) == Err(Errno::EAGAIN)
                }))
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        // Best effort: a server that does not take it in now is not waited for.
        let _ = Pin::new(&mut self.0).poll_shutdown(&mut Context::from_waker(Waker::noop()));
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(&mut stream.0).poll_read(cx, buf),
            Self::Call(call) => Pin::new(call).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(&mut stream.0).poll_write(cx, buf),
            Self::Call(call) => Pin::new(call).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(&mut stream.0).poll_flush(cx),
            Self::Call(call) => Pin::new(call).poll_flush(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(&mut stream.0).poll_write_vectored(cx, bufs),
            Self::Call(call) => Pin::new(call).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        !matches!(self, Self::Call(_))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(&mut stream.0).poll_shutdown(cx),
            Self::Call(call) => Pin::new(call).poll_shutdown(cx),
        }
    }
}

impl Io for ServerStream {
    fn take_trailers(&mut self) -> Vec<u8> {
        self.as_call().map(Io::take_trailers).unwrap_or_default()
    }
}
