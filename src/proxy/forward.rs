//! One request to a server and its response back, asked again where that is safe and wanted.
//! Called by `request` once a backend is chosen. Never answers by itself: a failure is the caller's to tell.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Failure;
use super::buffers::Desk;
use super::connection::{Client, Next};
use super::exchange::Exchange;
use super::obtain::{keep, obtain};
use super::pump::{Broken, Pump};
use super::reply::{Opening, broken_response, check_no_switch, check_switch, pass_interim, plan_response};
use super::session;
use super::tally::Tally;
use super::transcode::Transcoder;
use crate::config::ConnectionMode;
use crate::http::h2::write_request;
use crate::http::{Body, Persistence, RequestHead, RequestRewrite, ResponseHead, Version, rebuild_request};
use crate::upstream::{Attempt, Backend, Connection};

/// What a request may spend on being sent again to servers that say they have not touched it.
const UNTOUCHED: u32 = 15;

/// A server that is leaving has served others meanwhile, as one does that takes so many requests a connection; one that
/// refuses may have too much to do.
fn cost(leaving: bool) -> u32 {
    if leaving { 1 } else { UNTOUCHED / 3 }
}

/// Sends the request to a server and its response back.
pub(super) async fn forward(
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
            Err(Failure::NotProcessed { leaving }) if untouched < UNTOUCHED => {
                untouched += cost(leaving);
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
            Err(Failure::NotProcessed { leaving }) if request.bytes_in == 0 && untouched < UNTOUCHED => {
                untouched += cost(leaving);
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
        call.begin(request, body).map_err(|_closed| Failure::NotProcessed { leaving: true })?;
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
        deadline: Duration::ZERO,
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
