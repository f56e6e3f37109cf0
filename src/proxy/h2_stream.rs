//! One request of a client's HTTP/2 connection, in the place of a connection of its own.
//! Made by `h2_connection`, answered by the phases. Never outlives its connection unnoticed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::Response;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Failure;
use crate::http::Body;
use crate::http::h2::{Io, Stream};

/// A client's stream: its request's body is read, its response's body is written.
pub struct H2Stream {
    respond: SendResponse<Bytes>,
    body: Stream,
    answered: bool,
}

impl H2Stream {
    /// The stream of a request whose head has been taken off.
    pub fn new(recv: RecvStream, respond: SendResponse<Bytes>) -> Self {
        let mut body = Stream::default();
        body.receive(recv, false);
        Self { respond, body, answered: false }
    }

    /// Sends an interim response.
    pub fn inform(&mut self, response: Response<()>) -> Result<(), Failure> {
        self.respond.send_informational(response).map_err(|_gone| Failure::ClientAborted)
    }

    /// Sends the response's head; the stream ends with it, with the last byte of a known length, or by `finish`.
    pub fn respond(&mut self, response: Response<()>, body: Body) -> Result<(), Failure> {
        let (length, ended) = match body {
            Body::None | Body::Length(0) => (Some(0), true),
            Body::Length(length) => (Some(length), false),
            Body::Chunked | Body::UntilClose => (None, false),
        };
        self.answered = true;
        let send = self.respond.send_response(response, ended).map_err(|_gone| Failure::ClientAborted)?;
        self.body.send(send, length);
        Ok(())
    }

    /// Ends the response.
    pub fn finish(&mut self, trailers: &[u8]) {
        self.body.finish(trailers);
    }

    /// Breaks off: what the client has is not the whole.
    pub fn reset(&mut self, reason: Reason) {
        self.body.reset(reason);
        self.respond.send_reset(reason);
    }

    /// Whether the client has taken its request back, or is gone; wakes when it is.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> bool {
        if self.answered { self.body.poll_reset(cx) } else { self.respond.poll_reset(cx).is_ready() }
    }
}

impl AsyncRead for H2Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.body).poll_read(cx, buf)
    }
}

impl AsyncWrite for H2Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.body).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.body).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.body).poll_shutdown(cx)
    }
}

impl Io for H2Stream {
    fn take_trailers(&mut self) -> Vec<u8> {
        self.body.take_trailers()
    }
}
