//! A connected TCP or Unix stream, read and written without the C library in between.
//! What connections of `upstream` and `proxy` are made of. Never buffers, never blocks.
//!
//! The C library's recv(3) and send(3) are cancellation points (pthreads(7)): in a program of several threads each call
//! switches cancellation on and off again, which shows where a request is four calls.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// The stream.
#[derive(Debug)]
pub struct Socket(TcpStream);

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self(stream)
    }
}

impl From<Socket> for TcpStream {
    fn from(socket: Socket) -> Self {
        socket.0
    }
}

impl Socket {
    /// The socket, for whatever is neither reading nor writing.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.0
    }

    /// Calls the kernel once; it is told by `count` how much was asked for.
    fn once(
        &self,
        interest: Interest,
        asked: usize,
        call: impl FnOnce() -> Result<usize, Errno>,
    ) -> Option<io::Result<usize>> {
        match self.0.try_io(interest, || Ok(call()?)) {
            Ok(done) => {
                if 0 < done && done < asked {
                    self.exhaust(interest);
                }
                Some(Ok(done))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Less than was asked for means that there is no more: the event loop will say when there is, and the call that
    /// would be refused is spared (epoll(7), "Do I need to continuously read/write a file descriptor until EAGAIN").
    /// Right only where the event loop runs on this very thread, as all of ours do: what it heard between the call and
    /// this would be forgotten.
    fn exhaust(&self, interest: Interest) {
        let _ = self.0.try_io(interest, || Err::<(), _>(ErrorKind::WouldBlock.into()));
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled();
            let (asked, call) = (room.len(), || recv(&self.0, room, RecvFlags::empty()).map(|(count, _)| count));
            if let Some(received) = self.once(Interest::READABLE, asked, call) {
                buf.advance(received?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            let call = || send(&self.0, bytes, SendFlags::NOSIGNAL);
            if let Some(sent) = self.once(Interest::WRITABLE, bytes.len(), call) {
                return Poll::Ready(sent);
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let asked = bufs.iter().map(|buf| buf.len()).sum();
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            let call = || sendmsg(&self.0, bufs, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL);
            if let Some(sent) = self.once(Interest::WRITABLE, asked, call) {
                return Poll::Ready(sent);
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing is held back.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near.into(), listener.accept().await.unwrap().0.into())
    }

    #[tokio::test(flavor = "current_thread")]
    async fn more_than_the_kernel_holds_arrives_whole_and_then_the_end() {
        let (mut near, mut far) = pair().await;
        let sent: Vec<u8> = (0..8_000_000_u32).map(|number| number.to_le_bytes()[number as usize % 3]).collect();
        let mut received = Vec::new();
        let sending = async {
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let (_sent, read) = tokio::join!(sending, far.read_to_end(&mut received));
        assert_eq!((read.unwrap(), received == sent), (sent.len(), true));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn slices_leave_in_order() {
        let (mut near, mut far) = pair().await;
        let slices = [IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"two")];
        assert_eq!(near.write_vectored(&slices).await.unwrap(), 7);
        let mut received = [0; 7];
        far.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"one two");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_has_read_everything_is_woken_by_what_comes_next() {
        let (mut near, mut far) = pair().await;
        for number in 0..100_u8 {
            let (mut byte, sent) = ([0; 16], [number]);
            let (read, _written) = tokio::join!(far.read(&mut byte), near.write_all(&sent));
            assert_eq!((read.unwrap(), byte[0]), (1, number));
        }
    }
}
