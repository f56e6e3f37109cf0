//! Request and response of one exchange under way at the same time, in one task, without locks.
//! Called by `forward` once a server's connection is there. Never chooses a server, never retries.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;

use super::Failure;
use super::io::{ClientStream, poll_read_head};
use super::pump::{Broken, Pump};
use super::timer::{Alarm, Timer, now};
use crate::http::{Asked, Field, HeadLimits, ResponseHead, parse_response};
use crate::upstream::{CallError, Connection};

/// Limits on a server's response head: ours, whatever a frontend allows its clients.
const RESPONSE_LIMITS: HeadLimits = HeadLimits { size: 64 * 1024, fields: 256, target: 0 };

/// How often a client for whom nothing moves is looked after: one of HTTP/1 that is gone says so to nobody who neither
/// reads nor writes.
const LOOK: Duration = Duration::from_secs(1);

/// Both ends of an exchange.
pub struct Exchange<'a> {
    /// Client's stream.
    pub client: &'a mut ClientStream,
    /// What the client sent beyond this request.
    pub client_rest: &'a mut Vec<u8>,
    /// Server's connection.
    pub server: &'a mut Connection,
    /// Deadline of the connection, or the next look before it.
    pub timer: &'a Timer,
    /// The deadline itself, on the clock of [`now`].
    pub deadline: Duration,
    /// Inactivity of the client.
    pub client_timeout: Duration,
    /// Inactivity of the server.
    pub server_timeout: Duration,
    /// Whether the request is still being sent.
    pub request_open: bool,
}

impl Exchange<'_> {
    /// Moves the deadline.
    fn wait(&mut self, within: Duration) {
        self.deadline = now().saturating_add(within);
        self.timer.set(within.min(LOOK));
    }

    /// Whether time is up. A client that has only ended its side waits for its answer; one whose connection is broken gets
    /// none, and its server is spared the work.
    fn poll_alarm(&mut self, cx: &Context<'_>) -> Result<Option<Alarm>, Failure> {
        let alarm = self.timer.poll(cx);
        if alarm != Some(Alarm::Expired) {
            return Ok(alarm);
        }
        if self.client.is_broken() {
            return Err(Failure::ClientAborted);
        }
        let left = self.deadline.saturating_sub(now());
        if left.is_zero() {
            return Ok(alarm);
        }
        self.timer.set(left.min(LOOK));
        Ok(self.timer.poll(cx))
    }

    /// Sends the request and waits for a response head, interim ones included. The head's bytes stay
    /// at the front of `server.input`.
    pub async fn response(
        &mut self,
        request: &mut Pump,
        asked: Asked,
        fields: &mut Vec<Field>,
    ) -> Result<ResponseHead, Failure> {
        self.wait(self.server_timeout);
        poll_fn(|cx| {
            if let Some(alarm) = self.poll_alarm(cx)? {
                let client_waits = self.request_open && !request.blocked_on_receiver;
                return Poll::Ready(Err(alarm_before_response(alarm, client_waits)));
            }
            if self.client.as_h2().is_some_and(|stream| stream.poll_gone(cx)) {
                return Poll::Ready(Err(Failure::ClientAborted));
            }
            if self.request_open
                && let Err(failure) = self.poll_request(cx, request)
            {
                return Poll::Ready(Err(failure));
            }
            self.poll_response_head(cx, asked, fields)
        })
        .await
    }

    fn poll_request(&mut self, cx: &mut Context<'_>, request: &mut Pump) -> Result<(), Failure> {
        let mut moved = false;
        let from = (&mut *self.client, &mut *self.client_rest);
        match request.poll(cx, from, &mut self.server.stream, &mut || moved = true) {
            Poll::Ready(Ok(())) => {
                self.request_open = false;
                if let Some(call) = self.server.stream.as_call() {
                    call.finish(request.trailers());
                }
                self.wait(self.server_timeout);
            }
            Poll::Ready(Err(Broken::Sender)) => return Err(Failure::ClientAborted),
            Poll::Ready(Err(Broken::Framing(refusal))) => return Err(Failure::Refused(refusal)),
            // The server stopped listening; what it said before that still counts.
            Poll::Ready(Err(Broken::Receiver)) => self.request_open = false,
            Poll::Pending if moved => {
                self.wait(if request.blocked_on_receiver { self.server_timeout } else { self.client_timeout });
            }
            Poll::Pending => {}
        }
        Ok(())
    }

    fn poll_response_head(
        &mut self,
        cx: &mut Context<'_>,
        asked: Asked,
        fields: &mut Vec<Field>,
    ) -> Poll<Result<ResponseHead, Failure>> {
        let Connection { stream, input, .. } = &mut *self.server;
        if let Some(call) = stream.as_call() {
            return call.poll_head(cx, asked, &RESPONSE_LIMITS, (input, fields)).map_err(|error| match error {
                CallError::NotProcessed { leaving } => Failure::NotProcessed { leaving },
                CallError::Reset => Failure::ServerReset,
                CallError::Broken => Failure::ServerClosed,
                CallError::Refused(refusal) => Failure::BadResponse(refusal),
            });
        }
        loop {
            if !self.server.input.is_empty() {
                match parse_response(&self.server.input, asked, &RESPONSE_LIMITS, fields) {
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) => {}
                    Err(refusal) => return Poll::Ready(Err(Failure::BadResponse(refusal))),
                }
            }
            let input = &mut self.server.input;
            let read = poll_read_head(&mut self.server.stream, cx, |bytes, _| {
                input.extend_from_slice(bytes);
                bytes.len()
            });
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Failure::ServerClosed)),
                Poll::Ready(Ok(_)) => self.wait(self.server_timeout),
            }
        }
    }

    /// Passes an interim response (1xx) on at once. Returns its bytes.
    pub async fn interim(&mut self, bytes: &[u8]) -> Result<u64, Failure> {
        let mut sent = 0;
        poll_fn(|cx| {
            if let Some(alarm) = self.poll_alarm(cx)? {
                return Poll::Ready(Err(alarm_in_response(alarm, true)));
            }
            while sent < bytes.len() {
                match ready!(Pin::new(&mut *self.client).poll_write(cx, &bytes[sent..])) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(Failure::ClientAborted)),
                    Ok(written) => sent += written,
                }
            }
            Pin::new(&mut *self.client).poll_flush(cx).map_err(|_error| Failure::ClientAborted)
        })
        .await?;
        Ok(sent as u64)
    }

    /// Sends the response, and whatever of the request is still to be sent, until the response is done.
    pub async fn relay(&mut self, request: &mut Pump, response: &mut Pump) -> Result<(), Failure> {
        // The first thing to do is to write the head.
        self.wait(self.client_timeout);
        poll_fn(|cx| {
            if let Some(alarm) = self.poll_alarm(cx)? {
                return Poll::Ready(Err(alarm_in_response(alarm, response.blocked_on_receiver)));
            }
            if self.client.as_h2().is_some_and(|stream| stream.poll_gone(cx)) {
                return Poll::Ready(Err(Failure::ClientAborted));
            }
            if self.request_open && self.poll_request(cx, request).is_err() {
                // The response is under way and decides; the connection closes after it.
                self.request_open = false;
            }
            let mut moved = false;
            let Connection { stream, input, .. } = &mut *self.server;
            match response.poll(cx, (stream, input), self.client, &mut || moved = true) {
                Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
                Poll::Ready(Err(Broken::Sender)) => Poll::Ready(Err(Failure::ResponseTruncated)),
                Poll::Ready(Err(Broken::Receiver)) => Poll::Ready(Err(Failure::ClientAborted)),
                Poll::Ready(Err(Broken::Framing(refusal))) => Poll::Ready(Err(Failure::BrokenResponse(refusal))),
                Poll::Pending => {
                    if moved {
                        self.wait(if response.blocked_on_receiver { self.client_timeout } else { self.server_timeout });
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }
}

fn alarm_before_response(alarm: Alarm, client_waits: bool) -> Failure {
    match alarm {
        Alarm::Stopped => Failure::Stopping,
        Alarm::Expired if client_waits => Failure::BodyTimedOut,
        Alarm::Expired => Failure::ServerTimedOut,
    }
}

fn alarm_in_response(alarm: Alarm, client_blocks: bool) -> Failure {
    match alarm {
        Alarm::Stopped => Failure::Stopping,
        Alarm::Expired if client_blocks => Failure::ClientTimedOut,
        Alarm::Expired => Failure::ServerStalled,
    }
}
