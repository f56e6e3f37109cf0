//! A client's connection in TCP mode: a server is chosen, connected to, and bytes flow until both end.
//! Called by `connection` once a connection is established. Never looks at a byte.

use std::future::poll_fn;
use std::os::fd::AsFd as _;
use std::rc::Rc;
use std::task::{Poll, ready};

use tokio::net::TcpStream;

use super::Failure;
use super::buffers::Room;
use super::connection::Client;
use super::flow::Flow;
use super::io::poll_read_with;
use super::obtain::obtain;
use super::tally::Tally;
use super::timer::Alarm;
use super::tunnel::{Ended, Patience, Tunnel};
use crate::handoff::messages::{MovingFlow, MovingTunnel};
use crate::stats::Counter;
use crate::tls::{Hello, read_hello};
use crate::upstream::{Backend, Connection, ServerStream};

/// Serves a connection to its end.
pub async fn serve(client: &mut Client) {
    let destination = destination(client).await;
    let mut tally = Tally::session(client);
    tally.bytes_in = client.input.len() as u64;
    let backend = match destination {
        Ok(Some(backend)) => backend,
        Ok(None) => return refuse(client, &mut tally, &Failure::NoServer),
        Err(state) => return tally.finish(client, state),
    };
    tally.bytes_in = 0;
    tally.enter_backend(&backend);
    let Some(mut server) = backend.select(client.peer.ip()) else {
        return refuse(client, &mut tally, &Failure::NoServer);
    };
    match obtain(client, &backend, &mut server, (true, false), &mut tally).await {
        Ok(connection) => through(client, &backend, connection, &mut tally).await,
        Err(failure) => refuse(client, &mut tally, &failure),
    }
}

/// The backend for this connection: where its first bytes decide, they are waited for, but never consumed.
async fn destination(client: &mut Client) -> Result<Option<Rc<Backend>>, [u8; 2]> {
    let site = Rc::clone(&client.site);
    let Some(within) = site.config().inspect else { return Ok(site.backend.clone()) };
    client.timer.set(within);
    let hello = poll_fn(|cx| {
        loop {
            let hello = read_hello(&client.input);
            if hello != Hello::Incomplete {
                return Poll::Ready(Ok(hello));
            }
            match client.timer.poll(cx) {
                Some(Alarm::Stopped) => return Poll::Ready(Err(*b"KR")),
                // As HAProxy decides when its inspect-delay is over: by what is there.
                Some(Alarm::Expired) => return Poll::Ready(Ok(hello)),
                None => {}
            }
            let input = &mut client.input;
            let read = poll_read_with(&mut client.stream, cx, |bytes, _| {
                input.extend_from_slice(bytes);
                bytes.len()
            });
            match ready!(read) {
                // The end comes again when the tunnel reads; the server may answer to what came before.
                Ok(0) if !client.input.is_empty() => return Poll::Ready(Ok(Hello::Incomplete)),
                Ok(0) | Err(_) => return Poll::Ready(Err(*b"CR")),
                Ok(_) => {}
            }
        }
    })
    .await?;
    Ok(match hello {
        Hello::Name(name) => site.destination(|route| route.leads_client(&name)),
        _ => site.backend.clone(),
    })
}

/// Moves bytes both ways until the end, which is accounted for.
pub async fn through(client: &mut Client, backend: &Rc<Backend>, connection: Connection, tally: &mut Tally) {
    // A tunnel may last: it keeps nothing of the request it began with.
    client.room = Room::default();
    let up = Flow::new(std::mem::take(&mut client.input), false);
    let down = Flow::new(connection.input, false);
    let tunnel = Tunnel::new(up, down, tally.is_upgraded(), patience(client, backend));
    run(client, tunnel, connection.stream, tally).await;
}

/// Goes on with a tunnel that an older worker has begun.
pub async fn resume(client: &mut Client, to: (&Rc<Backend>, usize), server: TcpStream, past: MovingTunnel) {
    let mut tally = Tally::unpack(client, to, past.account);
    let flow = |past: MovingFlow| Flow::new(past.held, past.ended);
    let tunnel = Tunnel::new(flow(past.up), flow(past.down), past.settled, patience(client, to.0));
    run(client, tunnel, server.into(), &mut tally).await;
}

async fn run(client: &mut Client, mut tunnel: Tunnel, mut server: ServerStream, tally: &mut Tally) {
    loop {
        match tunnel.run(client, &mut server).await {
            Ended::Leaving(room) => {
                if let Some(server) = server.plain()
                    && leave(client, &mut tunnel, server, tally).await
                {
                    return;
                }
                drop(room);
            }
            Ended::Well => return account(client, tally, &tunnel, *b"--"),
            Ended::Idle(state) | Ended::Broken(state) => return account(client, tally, &tunnel, state),
        }
    }
}

/// Offers the tunnel to the next worker, with what is held of it; true when it is that one's.
async fn leave(client: &mut Client, tunnel: &mut Tunnel, server: &TcpStream, tally: &Tally) -> bool {
    let thread = Rc::clone(&client.thread);
    let (Some(departure), Some((backend, place))) = (thread.departure.get(), tally.server()) else { return false };
    // Whatever keeps it from leaving now, it is not tried again before there is somebody else to ask.
    client.stays = Some(departure.successor());
    let (Some(up), Some(down)) = (pack(&mut tunnel.up), pack(&mut tunnel.down)) else { return false };
    let moving = MovingTunnel {
        frontend: client.site.config().name.clone(),
        server: backend.moving(place),
        peer: client.peer,
        local: client.local,
        up,
        down,
        settled: tunnel.settled,
        left: client.timer.left(),
        account: tally.pack(tunnel),
    };
    client.left = Some(moving.left);
    let Some(socket) = client.stream.socket() else { return false };
    client.outcome(departure.offer_tunnel(moving, [socket, server.as_fd()])).await
}

fn pack(flow: &mut Flow) -> Option<MovingFlow> {
    let held = flow.gather().ok()?.to_vec();
    Some(MovingFlow { held, ended: flow.has_ended() })
}

fn patience(client: &Client, backend: &Backend) -> Patience {
    let config = backend.config();
    Patience {
        client: client.site.config().timeout.client,
        server: config.server_timeout,
        tunnel: config.tunnel_timeout,
    }
}

fn account(client: &Client, tally: &mut Tally, tunnel: &Tunnel, state: [u8; 2]) {
    tally.bytes_in += tunnel.up.bytes;
    tally.bytes_out += tunnel.down.bytes;
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
