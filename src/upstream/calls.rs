//! HTTP/2 connections to one server, each shared by the requests of a thread.
//! Filled by `Backend::connect`, asked before it. Never opens a connection.

use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::Reason;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::ServerStream;
use super::pool::IDLE_TIMEOUT;
use crate::http::h2::{Io, Stream, read_response};
use crate::http::{Asked, Body, Field, HeadLimits, Refusal, ResponseHead};
use crate::tls::Terms;

/// Bytes of a response that a server may send ahead of the client that takes them.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all responses of a connection together: clients that take nothing, and whose responses wait here, leave
/// room for those of everybody else.
const CONNECTION_WINDOW: u32 = MOST_CALLS as u32 * STREAM_WINDOW;
/// Bytes of a request that wait for the server at most.
const SEND_BUFFER: usize = 64 * 1024;
/// Requests of ours on one connection, whatever the server would take.
const MOST_CALLS: usize = 100;

/// The connections to one server.
#[derive(Default)]
pub struct Calls {
    lines: RefCell<Vec<Arc<Line>>>,
    /// Connections that are being opened.
    opening: Cell<usize>,
    /// Requests that wait for them.
    waiting: Cell<usize>,
    /// How often nothing came of one.
    failures: Cell<u64>,
    opened: Notify,
    /// The server has chosen HTTP/1, the last time it was asked.
    refused: Cell<bool>,
}

/// What somebody gets who waits for a place on a connection.
pub enum Place<'a> {
    /// One that somebody else has opened.
    Found(Call),
    /// The right to open one.
    Turn(Turn<'a>),
}

/// The right to open a connection; its end is told to those who wait.
pub struct Turn<'a>(&'a Calls);

impl Turn<'_> {
    /// Nothing came of it.
    pub fn fail(self) {
        self.0.failures.set(self.0.failures.get() + 1);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get() - 1);
        self.0.opened.notify_waiters();
    }
}

/// One that waits, for as long as it does.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// One connection. One thread uses it; it is `Send` because checks hold streams of servers, too.
struct Line {
    send: SendRequest<Bytes>,
    /// Requests under way.
    open: AtomicUsize,
    /// Whether new requests may use it, as far as anybody has found out.
    open_to_more: Arc<AtomicBool>,
    /// What its TLS was made under.
    terms: Option<Terms>,
    opened: Instant,
    /// Milliseconds from `opened` to the end of the last request.
    idle_since: AtomicU64,
    /// Whether it has served a request before.
    proven: AtomicBool,
}

impl Line {
    /// Whether new requests may use it.
    fn takes_more(&self) -> bool {
        self.open_to_more.load(Relaxed) && !self.terms.as_ref().is_some_and(Terms::are_over)
    }

    /// Requests that it takes at a time.
    fn capacity(&self) -> usize {
        self.send.current_max_send_streams().min(MOST_CALLS)
    }

    fn age(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Calls {
    /// A place on a connection. Many that want one at once open no more than all of them need, as far as that is known;
    /// where one fails, or the server shares none, everybody tries for himself.
    pub(super) async fn place(&self) -> Place<'_> {
        let failures = self.failures.get();
        let _waiting = Waiting::new(&self.waiting);
        loop {
            if let Some(call) = self.take() {
                return Place::Found(call);
            }
            let alone = self.refused.get() || self.failures.get() != failures;
            if alone || self.waiting.get() > self.promised() {
                self.opening.set(self.opening.get() + 1);
                return Place::Turn(Turn(self));
            }
            self.opened.notified().await;
        }
    }

    /// Places that there will be on connections which others open, beside their own.
    fn promised(&self) -> usize {
        let each = self.lines.borrow().last().map_or(MOST_CALLS, |line| line.capacity());
        self.opening.get() * each.saturating_sub(1)
    }

    /// The server has chosen HTTP/1.
    pub(super) fn refuse(&self) {
        self.refused.set(true);
    }

    /// A call on a connection that has room for it.
    #[must_use]
    pub fn take(&self) -> Option<Call> {
        let mut lines = self.lines.borrow_mut();
        lines.retain(|line| line.takes_more());
        let room = |line: &&Arc<Line>| line.open.load(Relaxed) < line.capacity();
        lines.iter().find(room).map(Call::new)
    }

    /// Begins HTTP/2 on a connection and makes the first call on it.
    ///
    /// # Errors
    /// A connection that broke at once.
    pub async fn open(&self, stream: ServerStream) -> Result<Call, h2::Error> {
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(64 * 1024)
            .max_send_buffer_size(SEND_BUFFER)
            .initial_max_send_streams(0);
        self.refused.set(false);
        let terms = stream.terms();
        let (send, mut connection) = builder.handshake(stream).await?;
        settle(&send, &mut connection).await?;
        let open_to_more = Arc::new(AtomicBool::new(true));
        tokio::task::spawn_local(drive(connection, Arc::clone(&open_to_more)));
        let line = Arc::new(Line {
            send,
            open: AtomicUsize::new(0),
            open_to_more,
            terms,
            opened: Instant::now(),
            idle_since: AtomicU64::new(0),
            proven: AtomicBool::new(false),
        });
        let call = Call::new(&line);
        self.lines.borrow_mut().push(line);
        Ok(call)
    }

    /// Lets go of connections that were not used for a while, or of all of them; what is under way goes on.
    pub(super) fn sweep(&self, all: bool) {
        let patience = u64::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
        self.lines.borrow_mut().retain(|line| {
            let idle = line.age().saturating_sub(line.idle_since.load(Relaxed));
            line.takes_more() && (line.open.load(Relaxed) > 0 || idle < patience) && !all
        });
    }
}

/// Waits until the server has said how many requests it takes at a time: what is sent before waits behind others on a
/// connection that is full, for ever if those are streams that never end.
async fn settle(send: &SendRequest<Bytes>, connection: &mut Connection<ServerStream, Bytes>) -> Result<(), h2::Error> {
    poll_fn(|cx| {
        let turned = Pin::new(&mut *connection).poll(cx);
        if send.current_max_send_streams() > 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(turned)?;
        Poll::Ready(Err(Reason::NO_ERROR.into()))
    })
    .await
}

/// Turns a connection's frames until it ends: when the server says so, or nobody needs it any more.
async fn drive(connection: Connection<ServerStream, Bytes>, open_to_more: Arc<AtomicBool>) {
    // Whom it concerns has learnt of an error by his own request.
    let _ = connection.await;
    open_to_more.store(false, Relaxed);
}

/// One request of ours to a server, in the place of a connection.
pub struct Call {
    line: Arc<Line>,
    body: Stream,
    response: Option<ResponseFuture>,
}

/// Why there is no response head.
#[derive(Debug)]
pub enum CallError {
    /// The server says that it has not touched the request (RFC 9113 section 8.7).
    NotProcessed {
        /// Because it takes no more on this connection; another one may do.
        leaving: bool,
    },
    /// It has ended this one request, whatever it has done of it; or what it says is none of HTTP/2.
    Reset,
    /// The connection broke.
    Broken,
    /// It says what we would not pass on.
    Refused(Refusal),
}

impl CallError {
    fn of(error: &h2::Error) -> Self {
        let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        let left = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
        match error.is_remote() && (refused || left) {
            true => Self::NotProcessed { leaving: left },
            false if error.is_reset() => Self::Reset,
            false => Self::Broken,
        }
    }
}

impl Call {
    fn new(line: &Arc<Line>) -> Self {
        line.open.fetch_add(1, Relaxed);
        Self { line: Arc::clone(line), body: Stream::default(), response: None }
    }

    /// Whether the connection has served a request before.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.line.proven.load(Relaxed)
    }

    /// Sends the head of a request; what follows is written.
    ///
    /// # Errors
    /// A connection that takes no more requests: this one has not been sent.
    pub fn begin(&mut self, request: Request<()>, body: Body) -> Result<(), CallError> {
        let (length, ended) = match body {
            Body::None | Body::Length(0) => (Some(0), true),
            Body::Length(length) => (Some(length), false),
            Body::Chunked | Body::UntilClose => (None, false),
        };
        let sent = self.line.send.clone().send_request(request, ended);
        let (response, send) = sent.map_err(|_closed| {
            self.retire();
            CallError::NotProcessed { leaving: true }
        })?;
        self.body.send(send, length);
        self.response = Some(response);
        Ok(())
    }

    /// Ends the request.
    pub fn finish(&mut self, trailers: &[u8]) {
        self.body.finish(trailers);
    }

    /// Keeps new requests off the connection: its server may be gone without a word.
    pub fn retire(&self) {
        self.line.open_to_more.store(false, Relaxed);
    }

    /// Waits for the next response head, an interim one included, whose text is put into `buf`.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        asked: Asked,
        limits: &HeadLimits,
        (buf, fields): (&mut Vec<u8>, &mut Vec<Field>),
    ) -> Poll<Result<ResponseHead, CallError>> {
        let Some(response) = &mut self.response else { return Poll::Ready(Err(CallError::Broken)) };
        if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
            let head = (interim.status().as_u16(), interim.headers(), false);
            return Poll::Ready(read_response(head, asked, limits, (buf, fields)).map_err(CallError::Refused));
        }
        let answered = ready!(Pin::new(response).poll(cx));
        let (parts, recv) = match answered.map(Response::into_parts) {
            Ok(parts) => parts,
            Err(error) => {
                let error = CallError::of(&error);
                if !matches!(error, CallError::Reset) {
                    self.retire();
                }
                return Poll::Ready(Err(error));
            }
        };
        self.line.proven.store(true, Relaxed);
        let head = (parts.status.as_u16(), &parts.headers, recv.is_end_stream());
        let read = read_response(head, asked, limits, (buf, fields));
        self.body.receive(recv, true);
        self.response = None;
        Poll::Ready(read.map_err(CallError::Refused))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.line.open.fetch_sub(1, Relaxed);
        self.line.idle_since.store(self.line.age(), Relaxed);
    }
}

impl AsyncRead for Call {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.body).poll_read(cx, buf)
    }
}

impl AsyncWrite for Call {
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

impl Io for Call {
    fn take_trailers(&mut self) -> Vec<u8> {
        self.body.take_trailers()
    }
}
