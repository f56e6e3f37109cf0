//! One HTTP/2 stream as bytes in and bytes out, whichever side of it we are.
//! Held by `proxy` for a client's stream and by `upstream` for a server's. Never takes more from the peer than was
//! consumed: the flow-control window opens with the next read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::HeadLimits;
use super::trailers::{read_trailers, write_trailers};

/// Limits on a trailer section, as for chunked bodies.
const TRAILERS: HeadLimits = HeadLimits { size: 8192, fields: 128, target: 0 };

/// What bytes are read from and written to; shared by connections and streams.
pub trait Io: AsyncRead + AsyncWrite + Unpin {
    /// Lines that came behind the body, once it has ended.
    fn take_trailers(&mut self) -> Vec<u8> {
        Vec::new()
    }
}

/// Body bytes of one stream.
#[derive(Default)]
pub struct Stream {
    recv: Option<RecvStream>,
    send: Option<SendStream<Bytes>>,
    /// Read and not consumed.
    held: Bytes,
    /// Consumed, and not given back to the peer's window.
    unreleased: usize,
    /// Bytes announced and not sent; the last one ends the stream.
    left: Option<u64>,
    trailers: Vec<u8>,
    /// A server's: one that needs no more of the request says so by a reset behind its whole answer
    /// (RFC 9113 section 8.1). A client's is never whole before its end.
    answer: bool,
}

impl Stream {
    /// What can be read: an `answer`, or a request.
    pub fn receive(&mut self, recv: RecvStream, answer: bool) {
        (self.recv, self.answer) = (Some(recv), answer);
    }

    /// What can be written; the stream ends with its last byte where the `length` is known, and has ended where it is 0.
    pub fn send(&mut self, send: SendStream<Bytes>, length: Option<u64>) {
        (self.send, self.left) = (Some(send), length);
    }

    /// Ends our side, with trailers where there are any.
    pub fn finish(&mut self, trailers: &[u8]) {
        let Some(mut send) = self.send.take() else { return };
        if self.left == Some(0) {
            return;
        }
        // A peer that is gone needs no end.
        let _ = match write_trailers(trailers) {
            Some(map) => send.send_trailers(map),
            None => send.send_data(Bytes::new(), true),
        };
    }

    /// Breaks off both sides.
    pub fn reset(&mut self, reason: Reason) {
        if let Some(mut send) = self.send.take() {
            send.send_reset(reason);
        }
    }

    /// Whether the peer has taken the stream back; wakes when it does.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> bool {
        self.send.as_mut().is_some_and(|send| send.poll_reset(cx).is_ready())
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(recv) = &mut self.recv else { return Poll::Ready(Ok(())) };
        if self.unreleased > 0 {
            let released = std::mem::take(&mut self.unreleased);
            // Fails only for more than was received.
            let _ = recv.flow_control().release_capacity(released);
        }
        while self.held.is_empty() {
            match ready!(recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.held = data;
                    self.unreleased = self.held.len();
                }
                Some(Err(error)) if self.answer && error.is_reset() && error.reason() == Some(Reason::NO_ERROR) => {
                    break;
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => {
                    if let Some(map) = ready!(recv.poll_trailers(cx)).map_err(io::Error::other)? {
                        self.trailers = read_trailers(&map, &TRAILERS);
                    }
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Io for Stream {
    fn take_trailers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.trailers)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            ready!(self.poll_fill(cx))?;
        }
        let count = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held[..count]);
        self.held.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    /// Takes as much as the peer's window and the library's buffer have room for.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let Some(send) = &mut this.send else { return Poll::Ready(Err(gone())) };
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        send.reserve_capacity(buf.len());
        let mut room = send.capacity();
        while room == 0 {
            room = match ready!(send.poll_capacity(cx)) {
                Some(capacity) => capacity.map_err(io::Error::other)?,
                None => return Poll::Ready(Err(gone())),
            };
        }
        let count = room.min(buf.len());
        this.left = this.left.map(|left| left.saturating_sub(count as u64));
        let data = Bytes::copy_from_slice(&buf[..count]);
        send.send_data(data, this.left == Some(0)).map_err(io::Error::other)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish(b"");
        Poll::Ready(Ok(()))
    }
}
