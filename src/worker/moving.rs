//! Connections that change hands between a draining worker and its successor.
//! Run by `control` on both sides. The sender owns a connection until the receiver has taken it.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{Bundle, Frontend, Mode};
use crate::handoff::fault::{self, Step};
use crate::handoff::messages::{Moved, Moving, MovingClient, MovingServer, MovingTunnel};
use crate::handoff::{Channel, HandoffError, MAX_DESCRIPTORS};
use crate::proxy::Leaving;

/// How long the successor may take for one batch. Whoever is in it waits, and may have a request to make.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause before another way to the successor is asked for; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Bytes of connections that travel along in one batch; base64 and the rest of a message come on top.
const MOST_UNREAD: usize = 64 * 1024;

/// A connection that came from an older worker.
pub enum Arrival {
    /// A client's, for the frontend with this index; it goes on once `go` says so.
    Client {
        /// Frontend.
        frontend: usize,
        /// What is known of it.
        client: MovingClient,
        /// Its socket.
        socket: OwnedFd,
        /// Fails when the older worker keeps it after all.
        go: oneshot::Receiver<()>,
    },
    /// A tunnel, the client's socket first; it goes on once `go` says so.
    Tunnel {
        /// Frontend.
        frontend: usize,
        /// Backend and server.
        to: (usize, usize),
        /// What is known of it.
        tunnel: Box<MovingTunnel>,
        /// Its sockets.
        sockets: [OwnedFd; 2],
        /// Fails when the older worker keeps it after all.
        go: oneshot::Receiver<()>,
    },
    /// An idle one to a server, for the backend and server with these indices.
    Server(usize, usize, OwnedFd),
}

impl Arrival {
    /// Backend and server of an idle connection.
    fn server(&self) -> Option<(usize, usize)> {
        match self {
            Self::Server(backend, server, _) => Some((*backend, *server)),
            Self::Client { .. } | Self::Tunnel { .. } => None,
        }
    }
}

/// The newest worker behind a channel, once there is one.
pub type Successor = watch::Receiver<Option<Arc<Channel>>>;

/// What is offered, its descriptors, and whom to tell whether it was taken.
type Offer<T, const EACH: usize> = (T, [OwnedFd; EACH], oneshot::Sender<bool>);

/// Sends away what the threads give up, batch by batch, until they are gone. `stranded` is called some time after a
/// way to the successor broke: a slow machine is no reason to keep connections for good.
pub async fn send_all(
    mut leaving: mpsc::UnboundedReceiver<Leaving>,
    successor: Successor,
    stranded: impl Fn() + Clone + Send + 'static,
) {
    let mut waiting = Vec::new();
    let mut broken: Option<Arc<Channel>> = None;
    let mut pause = FIRST_PAUSE;
    while leaving.recv_many(&mut waiting, MAX_DESCRIPTORS).await > 0 {
        let (mut clients, mut servers, mut tunnels) = (Vec::new(), Vec::new(), Vec::new());
        for one in waiting.drain(..) {
            match one {
                Leaving::Client(client, socket, tell) => clients.push((client, [socket], tell)),
                Leaving::Tunnel(tunnel, sockets, tell) => tunnels.push((*tunnel, sockets, tell)),
                Leaving::Server(server, socket) => servers.push((server, socket)),
            }
        }
        let Some(channel) = successor.borrow().clone() else { continue };
        // A channel that failed once stays unused, until another one comes.
        if broken.as_ref().is_some_and(|broken| Arc::ptr_eq(broken, &channel)) {
            continue;
        }
        let sent = async {
            // Before the clients, who would have others opened instead.
            send_servers(&channel, servers).await?;
            send_offers(&channel, clients, |client| client.unread.len(), Moving::Clients).await?;
            send_offers(&channel, tunnels, MovingTunnel::weight, Moving::Tunnels).await
        };
        if sent.await.is_err() {
            broken = Some(channel);
            let (stranded, after) = (stranded.clone(), pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                stranded();
            });
        }
    }
}

/// Offers all of these in as many messages as they need.
async fn send_offers<T: Clone, const EACH: usize>(
    channel: &Channel,
    mut offers: Vec<Offer<T, EACH>>,
    weight: impl Fn(&T) -> usize,
    message: fn(Vec<T>) -> Moving,
) -> Result<(), HandoffError> {
    while !offers.is_empty() {
        let count = batch(offers.iter().map(|(one, ..)| weight(one)), MAX_DESCRIPTORS / EACH);
        let rest = offers.split_off(count);
        send_batch(channel, std::mem::replace(&mut offers, rest), message).await?;
    }
    Ok(())
}

/// How many of these fit into one message; at least one.
fn batch(weights: impl Iterator<Item = usize>, most: usize) -> usize {
    let mut sum = 0;
    let fitting = weights.take_while(|weight| {
        sum += weight;
        sum <= MOST_UNREAD
    });
    fitting.take(most).count().max(1)
}

/// An error drops the batch, which tells every connection in it that it stays.
async fn send_batch<T: Clone, const EACH: usize>(
    channel: &Channel,
    batch: Vec<Offer<T, EACH>>,
    message: fn(Vec<T>) -> Moving,
) -> Result<(), HandoffError> {
    let fds: Vec<_> = batch.iter().flat_map(|(_, sockets, _)| sockets.iter().map(|socket| socket.as_fd())).collect();
    fault::strike(Step::Sending).map_err(HandoffError::Channel)?;
    channel.send(&message(batch.iter().map(|(one, ..)| one.clone()).collect()), &fds)?;
    if fault::strike(Step::Sent).is_err() {
        // As whenever the answer cannot be waited for.
        channel.shut();
    }
    let moved = answer(channel).await?;
    for (place, (_, _, tell)) in batch.into_iter().enumerate() {
        // A connection that was ended meanwhile needs no answer.
        let _ = tell.send(!moved.refused.contains(&place));
    }
    Ok(())
}

async fn send_servers(channel: &Channel, servers: Vec<(MovingServer, OwnedFd)>) -> Result<(), HandoffError> {
    if servers.is_empty() {
        return Ok(());
    }
    let fds: Vec<_> = servers.iter().map(|(_, socket)| socket.as_fd()).collect();
    let names = servers.iter().map(|(server, _)| server.clone()).collect();
    channel.send(&Moving::Servers(names), &fds)?;
    answer(channel).await.map(drop)
}

/// Waits for the answer to a batch. When it does not come, for whatever reason, the channel is closed first
/// and looked at once more: an answer that is not there by then can never be given, so nobody owns a
/// connection twice.
async fn answer(channel: &Channel) -> Result<Moved, HandoffError> {
    let silent = || HandoffError::Silent { waited: PATIENCE };
    let received = match tokio::time::timeout(PATIENCE, channel.recv::<Moved>()).await {
        Ok(Ok(received)) => received,
        Ok(Err(_)) | Err(_) => {
            channel.shut();
            channel.recv_blocking(Duration::ZERO)?
        }
    };
    received.map(|(moved, _fds)| moved).ok_or_else(silent)
}

/// Where arrivals go: the serving threads in turn. Clients have one turn and the connections to each server another: a
/// thread with many of the ones and few of the others would open new ones at once.
pub struct Reception {
    bundle: Arc<Bundle>,
    threads: Vec<mpsc::UnboundedSender<Arrival>>,
    turns: HashMap<Option<(usize, usize)>, usize>,
}

impl Reception {
    /// Distributes over these threads.
    #[must_use]
    pub fn new(bundle: Arc<Bundle>, threads: Vec<mpsc::UnboundedSender<Arrival>>) -> Self {
        Self { bundle, threads, turns: HashMap::new() }
    }

    /// Takes what an older worker sends, until it is gone.
    pub async fn receive_all(mut self, channel: Channel) {
        while let Ok(Some((moving, sockets))) = channel.recv::<Moving>().await {
            let taken = match moving {
                Moving::Clients(clients) => self.take(&channel, clients, sockets, client),
                Moving::Tunnels(tunnels) => self.take(&channel, tunnels, sockets, tunnel),
                Moving::Servers(servers) => self.take_servers(&channel, servers, sockets),
            };
            if taken.is_err() {
                return;
            }
        }
    }

    /// Every connection waits on its thread until the older worker has been told that it is ours.
    fn take<T, const EACH: usize>(
        &mut self,
        channel: &Channel,
        offered: Vec<T>,
        sockets: Vec<OwnedFd>,
        arrival: impl Fn(&Bundle, T, [OwnedFd; EACH], oneshot::Receiver<()>) -> Option<Arrival>,
    ) -> Result<(), HandoffError> {
        let (mut refused, mut going) = (Vec::new(), Vec::with_capacity(offered.len()));
        if offered.len() * EACH != sockets.len() {
            return channel.send(&Moved { refused: (0..offered.len()).collect() }, &[]);
        }
        let mut sockets = sockets.into_iter();
        for (place, one) in offered.into_iter().enumerate() {
            let (start, go) = oneshot::channel();
            let own: Vec<_> = sockets.by_ref().take(EACH).collect();
            let arrival = own.try_into().ok().and_then(|own| arrival(&self.bundle, one, own, go));
            if arrival.is_some_and(|arrival| self.deal(arrival)) { going.push(start) } else { refused.push(place) }
        }
        fault::strike(Step::Receiving).map_err(HandoffError::Channel)?;
        channel.send(&Moved { refused }, &[])?;
        for start in going {
            // A thread that is ending anyway has closed it.
            let _ = start.send(());
        }
        Ok(())
    }

    fn take_servers(
        &mut self,
        channel: &Channel,
        servers: Vec<MovingServer>,
        sockets: Vec<OwnedFd>,
    ) -> Result<(), HandoffError> {
        for (server, socket) in servers.into_iter().zip(sockets) {
            if let Some((backend, server)) = place_of(&self.bundle, &server) {
                self.deal(Arrival::Server(backend, server, socket));
            }
        }
        channel.send(&Moved { refused: Vec::new() }, &[])
    }

    /// Gives an arrival to the next thread that still serves.
    fn deal(&mut self, mut arrival: Arrival) -> bool {
        let server = arrival.server();
        let turn = self.turns.entry(server).or_insert_with(|| server.map_or(0, |(backend, server)| backend + server));
        for _ in 0..self.threads.len() {
            *turn = (*turn + 1) % self.threads.len();
            match self.threads[*turn].send(arrival) {
                Ok(()) => return true,
                Err(mpsc::error::SendError(back)) => arrival = back,
            }
        }
        false
    }
}

/// A client, if its frontend is here.
fn client(bundle: &Bundle, client: MovingClient, [socket]: [OwnedFd; 1], go: oneshot::Receiver<()>) -> Option<Arrival> {
    let frontend = plain_frontend(bundle, &client.frontend, Mode::Http)?;
    Some(Arrival::Client { frontend, client, socket, go })
}

/// A tunnel, if its frontend and its server are here.
fn tunnel(bundle: &Bundle, tunnel: MovingTunnel, sockets: [OwnedFd; 2], go: oneshot::Receiver<()>) -> Option<Arrival> {
    let mode = if tunnel.account.http { Mode::Http } else { Mode::Tcp };
    let frontend = plain_frontend(bundle, &tunnel.frontend, mode)?;
    let to = place_of(bundle, &tunnel.server)?;
    Some(Arrival::Tunnel { frontend, to, tunnel: Box::new(tunnel), sockets, go })
}

/// The frontend of this name, if plain connections may still go on there.
fn plain_frontend(bundle: &Bundle, name: &str, mode: Mode) -> Option<usize> {
    let fits = |frontend: &Frontend| frontend.name == name && frontend.mode == mode && frontend.tls.is_none();
    bundle.frontends.iter().position(fits)
}

fn place_of(bundle: &Bundle, moving: &MovingServer) -> Option<(usize, usize)> {
    let backend = bundle.backends.iter().position(|backend| backend.name == moving.backend)?;
    let server = bundle.backends[backend].servers.iter().position(|server| server.name == moving.server)?;
    Some((backend, server))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::messages::{MovingAccount, MovingFlow};
    use crate::logging::Endpoint;
    use crate::proxy::MOST_HELD;

    #[test]
    fn a_batch_fits_into_one_message() {
        assert_eq!(batch([0; 300].into_iter(), MAX_DESCRIPTORS), MAX_DESCRIPTORS);
        assert_eq!(batch([MOST_UNREAD / 2 + 1; 5].into_iter(), MAX_DESCRIPTORS), 1);
        assert_eq!(batch([MOST_UNREAD / 4; 5].into_iter(), MAX_DESCRIPTORS), 4);
        assert_eq!(batch([MOST_UNREAD * 2].into_iter(), MAX_DESCRIPTORS), 1, "what travels alone travels all the same");
    }

    #[test]
    fn a_tunnel_that_holds_as_much_as_it_may_fits_into_one_message() {
        let flow = |byte| MovingFlow { held: vec![byte; MOST_HELD / 2], ended: false };
        let account = MovingAccount {
            accepted: std::time::SystemTime::now(),
            lasted: Duration::MAX,
            http: true,
            request_line: vec![b'x'; 8 * 1024],
            request_ms: i64::MIN,
            connect_ms: i64::MIN,
            response_ms: i64::MIN,
            status: u16::MAX,
            bytes_in: u64::MAX,
            bytes_out: u64::MAX,
            retries: u32::MAX,
            redispatched: true,
        };
        let name = "n".repeat(64);
        let tunnel = MovingTunnel {
            frontend: name.clone(),
            server: MovingServer { backend: name.clone(), server: name },
            peer: Endpoint::Internet("[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap()),
            local: Endpoint::Internet("[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap()),
            up: flow(0),
            down: flow(255),
            settled: true,
            left: Duration::MAX,
            account,
        };
        let (ours, theirs) = Channel::pair().unwrap();
        let fds = [ours.as_fd(), ours.as_fd()];
        ours.send(&Moving::Tunnels(vec![tunnel.clone()]), &fds).unwrap();
        let received = Channel::from_fd(theirs).recv_blocking::<Moving>(PATIENCE).unwrap();
        let (moved, sockets) = received.unwrap();
        assert_eq!((moved, sockets.len()), (Moving::Tunnels(vec![tunnel]), 2));
    }
}
