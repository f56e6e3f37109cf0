//! One direction of an exchange: a head already built, then the body as it comes.
//! Polled by `exchange`, both directions in one task. Between plain sockets the kernel moves what of a body is long and
//! leaves as it came. Never holds more than one read's worth of a body:
//! while the receiver has not taken what was read, the sender is not read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::flow::{BULK, End};
use super::io::poll_read_with;
use super::splice::Pipe;
use super::transcode::Transcoder;
use crate::http::Refusal;
use crate::http::h2::Io;

/// Head and body on their way from one side to the other.
pub struct Pump {
    transcoder: Transcoder,
    pending: Vec<u8>,
    sent: usize,
    flushed: bool,
    pipe: Option<Pipe>,
    /// Bytes read from the sender.
    pub bytes_in: u64,
    /// Bytes written to the receiver.
    pub bytes_out: u64,
    /// Whether the pump waits for the receiver rather than for the sender.
    pub blocked_on_receiver: bool,
}

/// Which side ended a pump early.
pub enum Broken {
    /// Reading failed or ended inside the body.
    Sender,
    /// Writing failed.
    Receiver,
    /// The body's framing is wrong.
    Framing(Refusal),
}

impl Pump {
    /// A pump that sends `head` first. What `input` already holds of the body is taken along, so that
    /// a small message leaves in one write.
    pub fn new(head: Vec<u8>, transcoder: Transcoder, input: &mut Vec<u8>) -> Result<Self, Broken> {
        let mut pump = Self {
            transcoder,
            pending: head,
            sent: 0,
            flushed: false,
            pipe: None,
            bytes_in: 0,
            bytes_out: 0,
            blocked_on_receiver: false,
        };
        if !input.is_empty() {
            let taken = pump.accept(input)?;
            input.drain(..taken);
        }
        Ok(pump)
    }

    /// Whether everything has been read from the sender.
    pub fn is_read(&self) -> bool {
        self.transcoder.is_finished()
    }

    /// What came behind the body, for a receiver whose framing has another place for it.
    pub fn trailers(&self) -> &[u8] {
        self.transcoder.trailers()
    }

    /// Gives back the buffer for the next head.
    pub fn into_buffer(self) -> Vec<u8> {
        let mut buffer = self.pending;
        buffer.clear();
        buffer
    }

    fn accept(&mut self, input: &[u8]) -> Result<usize, Broken> {
        let step = self.transcoder.push(input, &mut self.pending).map_err(Broken::Framing)?;
        if step.as_is {
            self.pending.extend_from_slice(&input[..step.consumed]);
        }
        self.bytes_in += step.consumed as u64;
        Ok(step.consumed)
    }

    /// Moves what can be moved. `rest` receives bytes that belong to the sender's next message.
    /// Every progress calls `touch`.
    pub fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        (from, rest): (&mut R, &mut Vec<u8>),
        to: &mut W,
        touch: &mut dyn FnMut(),
    ) -> Poll<Result<(), Broken>>
    where
        R: Io + End,
        W: End,
    {
        loop {
            self.blocked_on_receiver = true;
            ready!(self.poll_send(cx, to, touch))?;
            if self.transcoder.is_finished() {
                return self.poll_flush(cx, to);
            }
            if !self.flushed {
                ready!(self.poll_flush(cx, to))?;
            }
            self.blocked_on_receiver = false;
            // The length first: asking for the sockets acquaints the event loop with them.
            if self.transcoder.unchanged() >= BULK as u64
                && let (Some(plain), Some(_)) = (from.plain(), to.plain())
                && self.has_pipe()
            {
                ready!(self.poll_fill(cx, plain))?;
                touch();
                continue;
            }
            let read = ready!(poll_read_with(from, cx, |bytes, cx| {
                if !bytes.is_empty() {
                    let taken = self.accept_and_send(cx, bytes, to)?;
                    rest.extend_from_slice(&bytes[taken..]);
                }
                Ok(bytes.is_empty())
            }));
            let ended = read.map_err(|_error| Broken::Sender)??;
            if ended && !self.transcoder.end_of_input(&mut self.pending, &from.take_trailers()) {
                return Poll::Ready(Err(Broken::Sender));
            }
            touch();
        }
    }

    fn has_pipe(&mut self) -> bool {
        if self.pipe.is_none() {
            self.pipe = Pipe::take();
        }
        self.pipe.is_some()
    }

    /// Has the kernel take what the sender has of a body that nobody here looks at.
    fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<Result<(), Broken>> {
        let most = usize::try_from(self.transcoder.unchanged()).unwrap_or(usize::MAX);
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(())) };
        let Poll::Ready(filled) = pipe.poll_fill(cx, from, most) else {
            // Who waits owns no pipe.
            self.pipe = None;
            return Poll::Pending;
        };
        let count = filled.map_err(|_error| Broken::Sender)? as u64;
        if count == 0 && !self.transcoder.end_of_input(&mut self.pending, b"") {
            return Poll::Ready(Err(Broken::Sender));
        }
        self.transcoder.pass(count);
        self.bytes_in += count;
        Poll::Ready(Ok(()))
    }

    /// Writes body bytes straight from the read buffer where the framing allows; copies only what the
    /// receiver did not take.
    fn accept_and_send<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
        to: &mut W,
    ) -> Result<usize, Broken> {
        self.flushed = false;
        let step = self.transcoder.push(bytes, &mut self.pending).map_err(Broken::Framing)?;
        self.bytes_in += step.consumed as u64;
        if step.as_is {
            let body = &bytes[..step.consumed];
            let written = match Pin::new(to).poll_write(cx, body) {
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(_error)) => return Err(Broken::Receiver),
                Poll::Pending => 0,
            };
            self.bytes_out += written as u64;
            self.pending.extend_from_slice(&body[written..]);
        }
        Ok(step.consumed)
    }

    fn poll_send<W: End>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
        touch: &mut dyn FnMut(),
    ) -> Poll<Result<(), Broken>> {
        while self.sent < self.pending.len() {
            match ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.sent..])) {
                Ok(0) | Err(_) => return Poll::Ready(Err(Broken::Receiver)),
                Ok(written) => {
                    self.sent += written;
                    self.bytes_out += written as u64;
                    self.flushed = false;
                    touch();
                }
            }
        }
        self.pending.clear();
        self.sent = 0;
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(())) };
        let Some(to) = to.plain() else { return Poll::Ready(Ok(())) };
        while pipe.held() > 0 {
            self.bytes_out += ready!(pipe.poll_drain(cx, to)).map_err(|_error| Broken::Receiver)? as u64;
            touch();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<Result<(), Broken>> {
        ready!(Pin::new(to).poll_flush(cx)).map_err(|_error| Broken::Receiver)?;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }
}
