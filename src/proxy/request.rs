//! One request through its phases: receive, rules, choose a backend, forward, log.
//! Called by `connection` until the connection ends. The outer functions answer failures and log once; the inner ones
//! return `Result`.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use super::buffers::Buffers;
use super::connection::{Client, Next};
use super::forward::forward;
use super::io::poll_read_head;
use super::reply::persistence;
use super::respond::applies;
use super::tally::Tally;
use super::timer::{Alarm, now};
use super::{Failure, Side};
use crate::config::{Action, ConnectionMode, Destination};
use crate::http::{Body, Method, Refusal, RequestHead, parse_request};

/// How long a worker that has been relieved goes on answering a client that asks without pause.
const MOST_OVERTIME: Duration = Duration::from_secs(1);

/// Serves what was received of a connection's next request.
pub async fn serve(client: &mut Client, received: Result<Received, Failure>) -> Next {
    match received {
        Ok(Received::Head(head)) => answer(client, &head).await,
        Ok(Received::Nothing) => end_without_request(client),
        Ok(Received::Leaving) => Next::Leave,
        Err(failure) => refuse(client, failure).await,
    }
}

/// Answers what never became a request.
pub async fn refuse(client: &mut Client, failure: Failure) -> Next {
    let mut tally = Tally::new(client, None);
    fail(client, &mut tally, None, failure).await
}

/// Takes a request through its phases, whichever protocol it came in.
pub async fn answer(client: &mut Client, head: &RequestHead) -> Next {
    let mut tally = Tally::new(client, Some(head));
    match process(client, head, &mut tally).await {
        // A tunnel has closed its account itself.
        Ok(Next::Gone) => Next::Gone,
        Ok(next) => {
            tally.finish(client, *b"--");
            next
        }
        Err(failure) => fail(client, &mut tally, Some(head), failure).await,
    }
}

/// A connection that ends between requests: logged only where empty connections are wanted.
pub fn end_without_request(client: &Client) -> Next {
    if client.requests == 0 && client.site.config().log_empty {
        Tally::new(client, None).finish(client, *b"CR");
    }
    Next::Close
}

/// A connection of HTTP/2 that was given up because of what came over it: no request has a line for that.
pub fn end_with_hostile(client: &Client) {
    let mut tally = Tally::new(client, None);
    tally.blame(client, Side::Client);
    tally.finish(client, *b"PR");
}

/// Answers a failure if an answer is still possible, logs it, and says how the connection ends.
async fn fail(client: &mut Client, tally: &mut Tally, head: Option<&RequestHead>, failure: Failure) -> Next {
    let (status, termination, side) = failure.verdict();
    let method = head.map_or(Method::Get, |head| head.method);
    tally.blame(client, side);
    let began = tally.status != 0;
    if !began && status != 0 {
        tally.status = status;
        if let Ok(sent) = client.send_error(status, method).await {
            tally.bytes_out += sent;
        }
    }
    tally.finish(client, termination);
    let whole = head.is_some_and(|head| head.body == Body::None);
    match (began, status != 0 && !whole) {
        (true, _) => Next::Abort,
        // A reset for what is left of the request could destroy the answer before it is read.
        (false, true) => Next::Linger,
        (false, false) => Next::Close,
    }
}

/// What came before a request was complete.
pub enum Received {
    /// A head.
    Head(RequestHead),
    /// The client left, or was idle too long, between requests.
    Nothing,
    /// The next worker may have the connection, with what is there of the next head.
    Leaving,
}

/// Reads until a whole head is there.
pub async fn receive(client: &mut Client) -> Result<Received, Failure> {
    let site = Rc::clone(&client.site);
    // What has just come from another worker is answered here first: each answers some of it.
    let overdue = client.requests > 0 && client.left.is_none() && client.has_overstayed();
    if let Some(left) = client.left.take() {
        client.timer.set(left);
    } else if client.requests > 0 {
        let timeout = &site.config().timeout;
        if client.input.is_empty() {
            client.timer.set(timeout.http_keep_alive);
        } else {
            client.timer.set(timeout.http_request);
            client.began = (SystemTime::now(), Instant::now());
        }
    }
    if overdue {
        return Ok(Received::Leaving);
    }
    let mut fresh = !client.input.is_empty();
    let received = poll_fn(|cx| {
        loop {
            if fresh {
                match parse_request(&client.input, &site.limits, &mut client.room.fields) {
                    Ok(Some(head)) => return Poll::Ready(Ok(Received::Head(head))),
                    Ok(None) => {}
                    Err(refusal) => return Poll::Ready(Err(Failure::Refused(refusal))),
                }
            }
            if let Some(alarm) = client.timer.poll(cx) {
                return Poll::Ready(match alarm {
                    Alarm::Stopped => Ok(Received::Nothing),
                    Alarm::Expired if client.input.is_empty() => Ok(Received::Nothing),
                    Alarm::Expired => Err(Failure::RequestTimedOut),
                });
            }
            match client.poll_receive(cx) {
                // Not before: on the way from worker to worker what has come already would wait behind all others again.
                Poll::Pending if client.may_leave() => return Poll::Ready(Ok(Received::Leaving)),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(true)) => fresh = true,
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(Received::Nothing)),
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
            }
        }
    })
    .await?;
    if let Received::Head(head) = &received {
        client.split_head(head.len);
    }
    Ok(received)
}

impl Client {
    /// Whether it has asked without pause since its worker was relieved, and may leave all the same.
    fn has_overstayed(&self) -> bool {
        let since = self.thread.draining.get();
        since.is_some_and(|since| now().saturating_sub(since) > MOST_OVERTIME) && self.may_leave()
    }

    /// Reads some of the next head; false when the client left between requests.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Failure>> {
        let was_idle = self.input.is_empty();
        let Self { stream, thread, input, room, .. } = self;
        let read = poll_read_head(stream, cx, |bytes, _| {
            if input.capacity() == 0 && !bytes.is_empty() {
                Buffers { input: *input, room: *room } = thread.buffers.take();
            }
            input.extend_from_slice(bytes);
            bytes.len()
        });
        match ready!(read) {
            Ok(0) | Err(_) if was_idle => return Poll::Ready(Ok(false)),
            Ok(0) | Err(_) => return Poll::Ready(Err(Failure::RequestTruncated)),
            Ok(_) => {}
        }
        if was_idle && self.requests > 0 {
            self.began = (SystemTime::now(), Instant::now());
            self.timer.set(self.site.config().timeout.http_request);
        }
        Poll::Ready(Ok(true))
    }

    /// Moves the head out of the input, so that what is left there is body or the next request.
    fn split_head(&mut self, length: usize) {
        self.room.head.clear();
        if self.input.len() == length {
            std::mem::swap(&mut self.room.head, &mut self.input);
        } else {
            self.room.head.extend_from_slice(&self.input[..length]);
            self.input.drain(..length);
        }
    }
}

async fn process(client: &mut Client, head: &RequestHead, tally: &mut Tally) -> Result<Next, Failure> {
    let site = Rc::clone(&client.site);
    let name = client.secrecy.as_ref().and_then(|secrecy| secrecy.authority.as_deref());
    if site.directs && site.is_misdirected(name, head.host_name(&client.room.head)) {
        return Err(Failure::Refused(Refusal::Misdirected));
    }
    for rule in &site.config().rules {
        if applies(rule, site.tls.is_some()) {
            let Action::Redirect(redirect) = &rule.action;
            return redirect_client(client, head, redirect, tally).await;
        }
    }
    let to = Destination {
        host: head.host_name(&client.room.head),
        method: head.method_text.of(&client.room.head),
        path: head.path(&client.room.head),
    };
    let backend = site.destination(|route| route.leads_request(to)).ok_or(Failure::NoServer)?;
    tally.enter_backend(&backend);
    forward(client, head, &backend, tally).await
}

async fn redirect_client(
    client: &mut Client,
    head: &RequestHead,
    redirect: &crate::config::Redirect,
    tally: &mut Tally,
) -> Result<Next, Failure> {
    // A body nobody will read ends the connection; skipping it would cost us what the client chooses.
    let keep = head.body == Body::None && client.may_keep_alive(head, ConnectionMode::KeepAlive);
    let persistence = persistence(keep, head.version);
    let sent = client.send_redirect(redirect, head, persistence).await?;
    tally.status = redirect.code;
    tally.bytes_out += sent;
    tally.local = true;
    Ok(match (keep, head.body) {
        (true, _) => Next::KeepAlive,
        (false, Body::None) => Next::Close,
        (false, _) => Next::Linger,
    })
}

impl Client {
    fn may_keep_alive(&self, head: &RequestHead, mode: ConnectionMode) -> bool {
        head.keep_alive && mode.max(self.site.config().connection_mode) != ConnectionMode::Close && !self.must_close()
    }
}
