//! One direction of a tunnel: bytes from one stream into another until the first one ends.
//! Polled by `tunnel`. Never holds more than one read's worth: while the receiver has not taken what
//! was read, the sender is not read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::io::{ClientStream, poll_read_with};
use super::splice::Pipe;
use crate::upstream::ServerStream;

/// A read of this size is the sign of a bulk transfer: the next bytes do not touch this process.
pub(super) const BULK: usize = 16 * 1024;

/// One end of a tunnel, or of a body's way.
pub trait End: AsyncRead + AsyncWrite + Unpin {
    /// The socket itself, where what it carries is what the other side shall get; the event loop knows it.
    fn plain(&mut self) -> Option<&TcpStream>;
}

impl End for ServerStream {
    fn plain(&mut self) -> Option<&TcpStream> {
        ServerStream::plain(self)
    }
}

impl End for ClientStream {
    fn plain(&mut self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => stream.known().ok(),
            Self::Tls(_) | Self::H2(_) => None,
        }
    }
}

/// Which side broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Reading failed: what came may not be all there was.
    Sender,
    /// Writing failed.
    Receiver,
}

/// How far a direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The sender may send.
    Open,
    /// The sender has ended; the receiver does not know yet.
    Ended,
    /// Both know.
    Done,
}

/// Bytes on their way from one side to the other.
pub struct Flow {
    pending: Vec<u8>,
    sent: usize,
    pipe: Option<Pipe>,
    stage: Stage,
    bulk: bool,
    flushed: bool,
    /// Bytes the receiver took.
    pub bytes: u64,
    /// Whether it waits for the receiver rather than for the sender.
    pub blocked: bool,
}

impl Flow {
    /// A direction in which `pending` was read already, and whose sender may have `ended`.
    pub fn new(pending: Vec<u8>, ended: bool) -> Self {
        let stage = if ended { Stage::Ended } else { Stage::Open };
        Self { pending, sent: 0, pipe: None, stage, bulk: false, flushed: true, bytes: 0, blocked: false }
    }

    /// Whether both sides know of the end.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Whether the sender has ended.
    pub fn has_ended(&self) -> bool {
        self.stage != Stage::Open
    }

    /// Nothing is to be moved any more.
    pub fn give_up(&mut self) {
        self.stage = Stage::Done;
        self.pending = Vec::new();
        self.sent = 0;
        self.pipe = None;
    }

    /// Bytes that were read and not written.
    pub fn held(&self) -> usize {
        self.pending.len() - self.sent + self.pipe.as_ref().map_or(0, Pipe::held)
    }

    /// What was read and not written, gathered in one place; it remains what is written next.
    ///
    /// # Errors
    /// A pipe that does not give back what it holds.
    pub fn gather(&mut self) -> io::Result<&[u8]> {
        self.pending.drain(..self.sent);
        self.sent = 0;
        if let Some(pipe) = &mut self.pipe {
            pipe.empty_into(&mut self.pending)?;
        }
        Ok(&self.pending)
    }

    /// Moves what can be moved.
    pub fn poll<R: End, W: End>(&mut self, cx: &mut Context<'_>, from: &mut R, to: &mut W) -> Poll<Result<(), Broken>> {
        loop {
            self.blocked = true;
            ready!(self.poll_send(cx, to))?;
            if !self.flushed {
                ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|_error| Broken::Receiver)?;
                self.flushed = true;
            }
            match self.stage {
                Stage::Done => return Poll::Ready(Ok(())),
                Stage::Ended => {
                    // A receiver that is gone has noticed by itself.
                    let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    self.stage = Stage::Done;
                    return Poll::Ready(Ok(()));
                }
                Stage::Open => {}
            }
            self.blocked = false;
            let moved = match (from.plain(), to.plain()) {
                (Some(plain), Some(_)) if self.bulk && self.has_pipe() => self.poll_fill(cx, plain),
                _ => self.poll_copy(cx, from, to),
            };
            match moved {
                Poll::Ready(moved) => {
                    let moved = moved?;
                    self.bulk = moved >= BULK;
                    if moved == 0 {
                        self.stage = Stage::Ended;
                    }
                }
                Poll::Pending => {
                    // Who waits owns neither pipe nor buffer.
                    (self.pipe, self.pending) = (None, Vec::new());
                    return Poll::Pending;
                }
            }
        }
    }

    fn has_pipe(&mut self) -> bool {
        if self.pipe.is_none() {
            self.pipe = Pipe::take();
        }
        self.pipe.is_some()
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<Result<usize, Broken>> {
        let Some(pipe) = &mut self.pipe else { return Poll::Pending };
        pipe.poll_fill(cx, from, usize::MAX).map_err(|_error| Broken::Sender)
    }

    /// Writes straight from the read buffer; copies only what the receiver did not take.
    fn poll_copy<R: End, W: End>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<Result<usize, Broken>> {
        let (pending, flushed, sent) = (&mut self.pending, &mut self.flushed, &mut self.bytes);
        let read = ready!(poll_read_with(from, cx, |bytes, cx| {
            if bytes.is_empty() {
                return Ok(0);
            }
            *flushed = false;
            let written = match Pin::new(to).poll_write(cx, bytes) {
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(_error)) => return Err(Broken::Receiver),
                Poll::Pending => 0,
            };
            *sent += written as u64;
            pending.extend_from_slice(&bytes[written..]);
            Ok(bytes.len())
        }));
        Poll::Ready(match read {
            Ok(moved) => moved,
            // A TLS peer that ends without saying goodbye has ended all the same; what it tunnels has to
            // know its own end, as it would over TCP.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            Err(_error) => Err(Broken::Sender),
        })
    }

    /// Writes what is held, the buffer before the pipe.
    fn poll_send<W: End>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<Result<(), Broken>> {
        while self.sent < self.pending.len() {
            match ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.sent..])) {
                Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Receiver)),
                Ok(written) => {
                    self.sent += written;
                    self.bytes += written as u64;
                    self.flushed = false;
                }
            }
        }
        self.pending.clear();
        self.sent = 0;
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(())) };
        let Some(to) = to.plain() else { return Poll::Ready(Ok(())) };
        while pipe.held() > 0 {
            self.bytes += ready!(pipe.poll_drain(cx, to)).map_err(|_error| Broken::Receiver)? as u64;
        }
        Poll::Ready(Ok(()))
    }
}
