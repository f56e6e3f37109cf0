//! A client's connection in TCP mode: a server is chosen, connected to, and bytes flow until both end.
//! Called by `connection` once a connection is established. Never looks at a byte.

use std::rc::Rc;

use super::Failure;
use super::connection::Client;
use super::flow::Flow;
use super::request::obtain;
use super::tally::Tally;
use super::tunnel::{Ended, Patience, Tunnel};
use crate::stats::Counter;
use crate::upstream::{Backend, Connection};

/// Serves a connection to its end.
pub async fn serve(client: &mut Client) {
    let mut tally = Tally::session(client);
    let Some(backend) = client.site.backend.clone() else {
        return refuse(client, &mut tally, &Failure::NoServer);
    };
    tally.enter_backend(&backend);
    let Some(mut server) = backend.select(client.peer.ip()) else {
        return refuse(client, &mut tally, &Failure::NoServer);
    };
    match obtain(&backend, &mut server, true, false, &mut tally).await {
        Ok(connection) => through(client, &backend, connection, &mut tally).await,
        Err(failure) => refuse(client, &mut tally, &failure),
    }
}

/// Moves bytes both ways until the end, which is accounted for.
pub async fn through(client: &mut Client, backend: &Rc<Backend>, connection: Connection, tally: &mut Tally) {
    // A tunnel may last: it keeps nothing of the request it began with.
    (client.head, client.out) = (Vec::new(), Vec::new());
    (client.fields, client.response_fields) = (Vec::new(), Vec::new());
    let up = Flow::new(std::mem::take(&mut client.input), false);
    let down = Flow::new(connection.input, false);
    let mut tunnel = Tunnel::new(up, down, tally.is_upgraded(), patience(client, backend));
    let mut server = connection.stream;
    let ended = tunnel.run(client, &mut server).await;
    tally.bytes_in += tunnel.up.bytes;
    tally.bytes_out += tunnel.down.bytes;
    account(client, tally, ended);
}

fn patience(client: &Client, backend: &Backend) -> Patience {
    let config = backend.config();
    Patience {
        client: client.site.config().timeout.client,
        server: config.server_timeout,
        tunnel: config.tunnel_timeout,
    }
}

fn account(client: &Client, tally: &mut Tally, ended: Ended) {
    let state = match ended {
        Ended::Well => *b"--",
        Ended::Idle(state) | Ended::Broken(state) => state,
    };
    match state[0] {
        b'C' | b'c' => tally.count(client, Counter::ClientAborts),
        b'S' | b's' => tally.count(client, Counter::ServerAborts),
        _ => {}
    }
    tally.finish(client, state);
}

fn refuse(client: &Client, tally: &mut Tally, failure: &Failure) {
    let (_status, state, _side) = failure.verdict();
    tally.finish(client, state);
}
