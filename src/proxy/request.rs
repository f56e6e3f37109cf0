//! One request through its phases: receive, rules, pick a server, forward, respond, log.
//! Called by `connection` until the connection ends. The outer functions answer failures and logs
//! once; the inner ones return `Result`.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use super::Failure;
use super::buffers::{Buffers, Desk};
use super::connection::{Client, Next};
use super::exchange::Exchange;
use super::io::poll_read_head;
use super::obtain::{keep, obtain};
use super::pump::{Broken, Pump};
use super::reply::{Opening, broken_response, check_no_switch, check_switch, pass_interim, persistence, plan_response};
use super::respond::applies;
use super::session;
use super::tally::Tally;
use super::timer::{Alarm, now};
use super::transcode::Transcoder;
use crate::config::{Action, ConnectionMode, Destination};
use crate::http::h2::write_request;
use crate::http::{
    Body, Method, Persistence, Refusal, RequestHead, RequestRewrite, ResponseHead, Version, parse_request,
    rebuild_request,
};
use crate::upstream::{Attempt, Backend, Connection};

/// How often a request is sent again that servers say they have not touched.
const MOST_UNTOUCHED: u32 = 3;

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

/// Sends the request to a server and its response back.
async fn forward(
    client: &mut Client,
    head: &RequestHead,
    backend: &Rc<Backend>,
    tally: &mut Tally,
) -> Result<Next, Failure> {
    let mode = backend.config().connection_mode.max(client.site.config().connection_mode);
    let repeatable = head.method.is_idempotent() && head.body == Body::None;
    let mut server = backend.select(client.peer.ip()).ok_or(Failure::NoServer)?;
    // A connection that many requests share ends with none of them.
    let mut fresh_only = mode != ConnectionMode::KeepAlive && !backend.config().protocol.is_shared();
    let mut untouched = 0;
    loop {
        let mut connection = obtain(client, backend, &mut server, (fresh_only, !repeatable), tally).await?;
        // One that is shared may have been used even where a new one was wanted.
        let reused = connection.reused && !(fresh_only && connection.stream.as_call().is_some());
        let tls = backend.servers[server].way.tls.is_some();
        let mut request = match build_request(client, head, (mode, tls), &mut connection) {
            Err(Failure::NotProcessed) if untouched < MOST_UNTOUCHED => {
                untouched += 1;
                continue;
            }
            request => request?,
        };
        let again = another_attempt(backend, server, (repeatable, tally)).is_some();
        let result = exchange(client, head, backend, &mut connection, (&mut request, tally, again)).await;
        match result {
            // The server closed an idle connection at the moment of its reuse; it has done nothing.
            Err(Failure::ServerClosed)
                if reused && repeatable && connection.input.is_empty() && tally.bytes_out == 0 =>
            {
                fresh_only = true;
                client.room.out = request.into_buffer();
            }
            // It says itself that it has done nothing.
            Err(Failure::NotProcessed) if request.bytes_in == 0 && untouched < MOST_UNTOUCHED => {
                untouched += 1;
                tally.retry(backend, server, false);
                client.room.out = request.into_buffer();
            }
            Err(failure) => {
                if let (Failure::ServerTimedOut, Some(call)) = (&failure, connection.stream.as_call()) {
                    call.retire();
                }
                let asked = asks_again(backend, &failure, &connection) && tally.bytes_out == 0;
                // Not before: meanwhile the server may have been found down, or taken out of service.
                let other = another_attempt(backend, server, (repeatable, tally)).filter(|_| asked);
                let Some(other) = other else { return Err(failure) };
                tally.retry(backend, server, other != server);
                server = other;
                client.room.out = request.into_buffer();
            }
            Ok(Done { next: Next::Gone, .. }) => {
                drop(request);
                Box::pin(session::through(client, backend, connection, tally)).await;
                return Ok(Next::Gone);
            }
            Ok(Done { next, reusable }) => {
                if reusable && mode == ConnectionMode::KeepAlive && connection.input.is_empty() {
                    keep(client, (backend, server), connection);
                }
                client.room.out = request.into_buffer();
                return Ok(next);
            }
        }
    }
}

/// The server to ask next where an answer is not content with, if there may be a next time.
fn another_attempt(backend: &Backend, server: usize, (repeatable, tally): (bool, &Tally)) -> Option<usize> {
    if !repeatable || !backend.config().retry_on.looks_at_answers() {
        return None;
    }
    match backend.after_failure(server, tally.retried() + 1) {
        Attempt::GiveUp => None,
        Attempt::Again => Some(server),
        Attempt::Redispatch(other) => Some(other),
    }
}

/// Whether another attempt is made after this end of one.
fn asks_again(backend: &Backend, failure: &Failure, connection: &Connection) -> bool {
    let on = &backend.config().retry_on;
    match failure {
        Failure::AskedAgain => true,
        Failure::ServerReset => on.empty,
        Failure::ServerClosed if connection.input.is_empty() => on.empty,
        Failure::ServerClosed | Failure::BadResponse(_) => on.junk,
        Failure::ServerTimedOut => on.timeout,
        _ => false,
    }
}

/// The request as the server gets it, with what is already there of the body.
fn build_request(
    client: &mut Client,
    head: &RequestHead,
    (mode, tls): (ConnectionMode, bool),
    connection: &mut Connection,
) -> Result<Pump, Failure> {
    let (site, edits) = (Rc::clone(&client.site), Rc::clone(&client.edits));
    let config = site.config();
    let mut out = std::mem::take(&mut client.room.out);
    out.clear();
    let rewrite = RequestRewrite {
        edits: &edits.request,
        forwarded_for: client.peer.ip().filter(|_| config.forwarded_for),
        close: mode != ConnectionMode::KeepAlive,
    };
    let (from, to) = if let Some(call) = connection.stream.as_call() {
        // From one stream into another: what ends it ends the body, and trailers stand before that.
        let body = if head.version == Version::Http2 { head.body.streamed() } else { head.body };
        let request =
            write_request(&client.room.head, head, &client.room.fields, &rewrite, tls).map_err(Failure::Refused)?;
        call.begin(request, body).map_err(|_closed| Failure::NotProcessed)?;
        (body, Body::UntilClose)
    } else {
        rebuild_request(&mut out, &client.room.head, head, &client.room.fields, &rewrite);
        (head.body, head.framing())
    };
    let transcoder = Transcoder::new(from, to).edited(&edits.request);
    Pump::new(out, transcoder, &mut client.input).map_err(|broken| match broken {
        Broken::Framing(refusal) => Failure::Refused(refusal),
        Broken::Sender | Broken::Receiver => Failure::ClientAborted,
    })
}

/// How an exchange ended well.
struct Done {
    next: Next,
    reusable: bool,
}

impl Done {
    fn new(request_done: bool, persistence: Persistence, response: &ResponseHead) -> Self {
        let next = match (request_done, persistence) {
            (false, _) => Next::Linger,
            (true, Persistence::Close) => Next::Close,
            (true, _) => Next::KeepAlive,
        };
        Self { next, reusable: response.keep_alive && response.body != Body::UntilClose && request_done }
    }
}

async fn exchange(
    client: &mut Client,
    head: &RequestHead,
    backend: &Rc<Backend>,
    connection: &mut Connection,
    (request, tally, again): (&mut Pump, &mut Tally, bool),
) -> Result<Done, Failure> {
    let (site, edits) = (Rc::clone(&client.site), Rc::clone(&client.edits));
    let config = site.config();
    let sent_at = Instant::now();
    let must_close = client.must_close();
    let mut exchange = Exchange {
        client: &mut client.stream,
        client_rest: &mut client.input,
        server: connection,
        timer: &client.timer,
        client_timeout: config.timeout.client,
        server_timeout: backend.config().server_timeout,
        request_open: true,
    };
    let Desk { head: text, response_fields: fields, .. } = &mut *client.room;
    let response = loop {
        let response = exchange.response(request, head.into(), fields).await;
        tally.bytes_in = tally.head_in + request.bytes_in;
        let response = response?;
        if response.status >= 200 {
            break response;
        }
        if let Some(protocol) = response.upgrade {
            check_switch(&exchange, (head, text), protocol)?;
            tally.status = response.status;
            tally.answered(sent_at);
        }
        tally.bytes_out += pass_interim(&mut exchange, (head, &response), fields, &edits).await?;
        if response.upgrade.is_some() {
            return Ok(Done { next: Next::Gone, reusable: false });
        }
    };
    check_no_switch(head, &response)?;
    if again && tally.bytes_out == 0 && backend.config().retry_on.statuses.contains(&response.status) {
        return Err(Failure::AskedAgain);
    }
    let mode = backend.config().connection_mode.max(config.connection_mode);
    let may_keep = request.is_read() && mode != ConnectionMode::Close && !must_close;
    let plan = plan_response(head, &response, may_keep);
    let opening = Opening::new(&exchange, (&response, fields), &plan, &edits.response)?;
    exchange.server.input.drain(..response.len);
    let transcoder = Transcoder::new(response.body, plan.body).edited(&edits.response);
    let mut pump = Pump::new(opening.text, transcoder, &mut exchange.server.input).map_err(broken_response)?;
    // Only now: a body that is broken from its first byte can still be answered otherwise.
    tally.status = response.status;
    tally.answered(sent_at);
    if let (Some((head, size)), Some(stream)) = (opening.head, exchange.client.as_h2()) {
        stream.respond(head, plan.body)?;
        tally.bytes_out += size;
    }
    let result = exchange.relay(request, &mut pump).await;
    let request_done = !exchange.request_open && request.is_read();
    tally.bytes_out += pump.bytes_out;
    tally.bytes_in = tally.head_in + request.bytes_in;
    result?;
    if let Some(stream) = client.stream.as_h2() {
        stream.finish(pump.trailers());
    }
    Ok(Done::new(request_done, plan.persistence, &response))
}
