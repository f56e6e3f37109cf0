//! A connection to a server for one request or one tunnel: kept, shared or new, tried again where that may help.
//! Called by `forward` and `session`. Never sends a byte of the client's, never goes on for a client that is gone.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::Failure;
use super::connection::Client;
use super::tally::Tally;
use super::timer::{Alarm, now};
use crate::logging::Severity;
use crate::stats::Counter;
use crate::upstream::{Attempt, Backend, ConnectError, Connection};

/// Longest wait before the same server is tried again (HAProxy: min of `timeout connect` and 1 s).
const TURN_AROUND: Duration = Duration::from_secs(1);
/// More time than any connection takes to be opened: that has limits of its own.
const CONNECTING: Duration = Duration::from_secs(24 * 3600);

/// Keeps a server's connection for the next request, here or in the next worker: of this client alone where the server
/// was told whose it is. One that is shared is kept by those who share it.
pub(super) fn keep(client: &Client, (backend, server): (&Backend, usize), mut connection: Connection) {
    if connection.stream.as_call().is_some() {
        return;
    }
    if backend.servers[server].way.send_proxy.is_some() {
        client.own.set(Some(Box::new((backend.index, server, connection))));
        return;
    }
    match client.thread.departure.get() {
        Some(departure) => {
            if let Some(stream) = connection.stream.into_plain() {
                departure.send(backend.moving(server), stream);
            }
        }
        None => backend.servers[server].pool.put(connection, now()),
    }
}

/// A connection that was kept and is still open.
fn kept(client: &Client, (backend, server): (&Backend, usize), certain: bool) -> Option<Connection> {
    if backend.servers[server].way.send_proxy.is_none() {
        return backend.servers[server].take(certain);
    }
    let (place, its, connection) = *client.own.take()?;
    if (place, its) == (backend.index, server) { connection.if_idle(certain) } else { None }
}

/// A connection to the chosen server, or to the one that redispatching chooses; `fresh_only` and as
/// `certain` as [`crate::upstream::Pool::take`] can be.
pub(super) async fn obtain(
    client: &mut Client,
    backend: &Rc<Backend>,
    server: &mut usize,
    (fresh_only, certain): (bool, bool),
    tally: &mut Tally,
) -> Result<Connection, Failure> {
    let mut began = None;
    loop {
        tally.choose_server(backend, *server);
        if !fresh_only && let Some(connection) = kept(client, (backend, *server), certain) {
            backend.servers[*server].slot.add(Counter::Reuses, 1);
            tally.connect_ms = 0;
            return Ok(connection);
        }
        let began = *began.get_or_insert_with(Instant::now);
        let introduction = backend.servers[*server].way.send_proxy.map(|version| client.introduction(version));
        let connecting = backend.connect(*server, introduction.as_deref().unwrap_or_default());
        let error = match Box::pin(while_wanted(client, connecting)).await? {
            Ok(connection) => {
                tally.connect_ms = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
                return Ok(connection);
            }
            Err(error) => error,
        };
        note(client, (backend, *server), &error);
        let attempt = match backend.config().retry_on.connection {
            true => backend.after_failure(*server, tally.retried() + 1),
            false => Attempt::GiveUp,
        };
        match attempt {
            Attempt::GiveUp => {
                return Err(match error {
                    ConnectError::TimedOut => Failure::ConnectTimedOut,
                    ConnectError::Failed(_) | ConnectError::Handshake { .. } => Failure::ConnectFailed,
                });
            }
            Attempt::Redispatch(other) => {
                tally.retry(backend, *server, true);
                *server = other;
            }
            Attempt::Again => {
                tally.retry(backend, *server, false);
                // A wait on purpose: the server may be restarting.
                let wait = tokio::time::sleep(TURN_AROUND.min(backend.config().connect_timeout));
                Box::pin(while_wanted(client, wait)).await?;
                // Meanwhile it may have been found down, or taken out of service.
                if let Some(other) = backend.instead_of(*server) {
                    tally.redispatch(backend, *server);
                    *server = other;
                }
            }
        }
    }
}

/// Waits on behalf of a client for as long as it is there, and the worker too.
async fn while_wanted<T>(client: &mut Client, waited: impl Future<Output = T>) -> Result<T, Failure> {
    let Client { stream, timer, .. } = client;
    timer.set(CONNECTING);
    let stopped = poll_fn(|cx| match timer.poll(cx) {
        Some(Alarm::Stopped) => Poll::Ready(()),
        Some(Alarm::Expired) | None => Poll::Pending,
    });
    tokio::select! {
        biased;
        () = stopped => Err(Failure::StoppedConnecting),
        () = stream.gone() => Err(Failure::ClientLeft),
        done = waited => Ok(done),
    }
}

/// An attempt has failed.
fn note(client: &Client, (backend, server): (&Backend, usize), error: &ConnectError) {
    backend.servers[server].slot.add(Counter::ConnectErrors, 1);
    backend.slot.add(Counter::ConnectErrors, 1);
    if let ConnectError::Handshake { source, news: true } = error {
        let (config, name) = (backend.config(), &backend.config().servers[server].name);
        let line = format!("Server {}/{name}: TLS handshake failed: {source}", config.name);
        client.thread.logger.event(Severity::Error, &line);
    }
}
