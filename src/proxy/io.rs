//! The client's side of a connection, plain or TLS, and the thread's read buffer.
//! Used by every phase. Never interprets a byte.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::h2_stream::H2Stream;
use crate::http::h2::Io;
use crate::socket::Socket;

/// Bytes read at once. One buffer per thread serves all connections, so an idle connection owns none.
const READ_SIZE: usize = 64 * 1024;
/// Bytes read at once where a head is expected.
const HEAD_SIZE: usize = 16 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_SIZE]);
}

/// A client's connection, or what stands in its place for one request.
pub enum ClientStream {
    /// TCP as it is.
    Plain(Socket),
    /// TLS after its handshake.
    Tls(Box<TlsStream<Socket>>),
    /// One stream of HTTP/2.
    H2(Box<H2Stream>),
}

impl ClientStream {
    /// The TLS session.
    pub fn session(&self) -> Option<&ServerConnection> {
        match self {
            Self::Tls(stream) => Some(stream.get_ref().1),
            Self::Plain(_) | Self::H2(_) => None,
        }
    }

    /// The socket below, where it is this stream's alone.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Plain(stream) => stream.fd(),
            Self::Tls(stream) => stream.get_ref().0.fd(),
            Self::H2(_) => None,
        }
    }

    /// The plain stream, if the event loop knows it.
    pub fn tcp(&self) -> Option<&TcpStream> {
        if let Self::Plain(stream) = self { stream.tcp() } else { None }
    }

    /// The same, for waiting: the event loop knows it from now on.
    pub fn known(&mut self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => stream.known().ok(),
            Self::Tls(stream) => stream.get_mut().0.known().ok(),
            Self::H2(_) => None,
        }
    }

    /// The application protocol that was agreed on (ALPN); `None` on plain connections and where there was no choice.
    pub fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
            Self::Plain(_) | Self::H2(_) => None,
        }
    }

    /// Whether it is a stream of HTTP/2.
    pub fn is_h2(&self) -> bool {
        matches!(self, Self::H2(_))
    }

    /// Waits until the client is gone: its stream taken back, its connection reset. One that has only said all it has
    /// to say is still there.
    pub async fn gone(&mut self) {
        if let Self::H2(stream) = self {
            return poll_fn(|cx| if stream.poll_gone(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
        }
        if let Some(socket) = self.known() {
            // What is wrong does not matter.
            let _ = socket.ready(Interest::ERROR).await;
        }
    }

    /// Whether the client's connection is broken, as the kernel sees it now. One whose client has only ended its side is not;
    /// a stream of HTTP/2 says so itself.
    pub fn is_broken(&self) -> bool {
        let Some(socket) = self.socket() else { return false };
        let mut asked = [PollFd::new(socket, PollFlags::empty())];
        let broken = PollFlags::POLLERR | PollFlags::POLLHUP;
        let polled = poll(&mut asked, PollTimeout::ZERO);
        polled.is_ok() && asked[0].revents().is_some_and(|seen| seen.intersects(broken))
    }

    /// The stream, if it is one of HTTP/2.
    pub fn as_h2(&mut self) -> Option<&mut H2Stream> {
        if let Self::H2(stream) = self { Some(stream) } else { None }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::H2(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::H2(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::H2(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::H2(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        !matches!(self, Self::H2(_))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::H2(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl Io for ClientStream {
    fn take_trailers(&mut self) -> Vec<u8> {
        self.as_h2().map(Io::take_trailers).unwrap_or_default()
    }
}

/// Reads once into the thread's buffer and hands what came to `take`; an empty slice is the end.
/// `take` must not read again.
pub fn poll_read_with<S, T>(
    stream: &mut S,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8], &mut Context<'_>) -> T,
) -> Poll<io::Result<T>>
where
    S: AsyncRead + Unpin,
{
    poll_read_most(stream, READ_SIZE, cx, take)
}

/// The same, for what begins with a head: no more of a body comes along than is cheap to copy, because the rest may
/// not have to be read at all.
pub fn poll_read_head<S, T>(
    stream: &mut S,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8], &mut Context<'_>) -> T,
) -> Poll<io::Result<T>>
where
    S: AsyncRead + Unpin,
{
    poll_read_most(stream, HEAD_SIZE, cx, take)
}

fn poll_read_most<S, T>(
    stream: &mut S,
    most: usize,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8], &mut Context<'_>) -> T,
) -> Poll<io::Result<T>>
where
    S: AsyncRead + Unpin,
{
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(&mut scratch[..most]);
        match Pin::new(stream).poll_read(cx, &mut buffer) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(take(buffer.filled(), cx))),
        }
    })
}
