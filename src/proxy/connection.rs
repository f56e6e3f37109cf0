//! The life of one client connection: handshake, requests one after the other, an orderly close.
//! Spawned by `worker` for each accepted socket. Never looks into a request.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::net::{RecvFlags, recv};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::buffers::{Buffers, Room};
use super::fetch::{Edits, Facts};
use super::io::{ClientStream, poll_read_with};
use super::timer::Timer;
use super::{Site, Thread};
use super::{address, greeting, h2_connection, handshake, request, session};
use crate::config::{Mode, Proto};
use crate::handoff::messages::{MovingClient, MovingTunnel};
use crate::http::h2::PREFACE;
use crate::logging::Endpoint;
use crate::socket::{Secrecy, Socket, reset_on_close};
use crate::stats::{Counter, Gauge};
use crate::upstream::{Backend, Connection};

/// How long an orderly close waits for a client that is silent to end, so that a reset cannot overtake our
/// last answer (RFC 9112 section 9.6).
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// How long for one that goes on sending: it may look for the answer only when it has sent everything.
const LONGEST_LINGER: Duration = Duration::from_secs(30);
/// More time than any offer takes.
const OFFER: Duration = Duration::from_secs(60);
/// Bytes of a request head that may travel to another worker.
const MOST_UNREAD: usize = 64 * 1024;

/// A client and everything its requests reuse.
pub struct Client {
    /// The stream.
    pub stream: ClientStream,
    /// Bytes read and not consumed.
    pub input: Vec<u8>,
    /// What the current request and its answer are taken apart and put together in.
    pub room: Room,
    /// The connection's deadline.
    pub timer: Timer,
    /// The client's end, IPv4-mapped addresses as IPv4.
    pub peer: Endpoint,
    /// Our end.
    pub local: Endpoint,
    /// Its header edits.
    pub edits: Rc<Edits>,
    /// What its TLS says of it, where servers are told or requests have to fit.
    pub secrecy: Option<Rc<Secrecy>>,
    /// Whether somebody else has said who it is.
    pub introduced: bool,
    /// A connection to a server that was told whose it is: backend, server.
    pub own: Cell<Option<Box<(usize, usize, Connection)>>>,
    /// When the current request began: accept for the first one, its first byte later.
    pub began: (SystemTime, Instant),
    /// Requests served.
    pub requests: u64,
    /// What was left of the current time-out when the connection came from another worker.
    pub left: Option<Duration>,
    /// It was offered to this successor in vain, and ends here unless there is another one.
    pub stays: Option<NonZeroU64>,
    /// The thread.
    pub thread: Rc<Thread>,
    /// The frontend.
    pub site: Rc<Site>,
}

/// What is known of a connection's ends before the kernel is asked.
#[derive(Default)]
struct Ends {
    peer: Option<Endpoint>,
    local: Option<Endpoint>,
    /// What somebody in between says of both.
    told: Option<(Endpoint, Endpoint)>,
}

/// What follows a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next request.
    KeepAlive,
    /// Another worker, if it takes the connection.
    Leave,
    /// An orderly close.
    Close,
    /// An orderly close although the client may still be sending: what it sends is taken in for a while.
    Linger,
    /// Nothing: a tunnel has ended, and both sides with it.
    Gone,
    /// A reset, so that the client cannot take what it has for the whole.
    Abort,
}

/// Counts a connection in while it lives.
struct Presence {
    thread: Rc<Thread>,
    site: Rc<Site>,
}

impl Presence {
    fn new(thread: &Rc<Thread>, site: &Rc<Site>) -> Self {
        site.slot.add(Counter::Sessions, 1);
        let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        site.slot.set(Counter::LastSession, second);
        Self::resumed(thread, site)
    }

    /// A session that was counted where it was accepted.
    fn resumed(thread: &Rc<Thread>, site: &Rc<Site>) -> Self {
        let now = site.slot.enter(Gauge::Sessions);
        site.slot.raise(Counter::SessionsMax, now);
        thread.active.fetch_add(1, Ordering::Relaxed);
        Self { thread: Rc::clone(thread), site: Rc::clone(site) }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.site.slot.leave(Gauge::Sessions);
        self.thread.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection that a bind of its frontend accepted to its end, and holds `permits` until then. Not an `async fn`, which would keep room
/// for each argument, and once more for each place it moves on to.
pub fn serve(
    (thread, site): (Rc<Thread>, Rc<Site>),
    bind: Option<usize>,
    accepted: (Socket, Option<SocketAddr>),
    permits: impl Sized,
) -> impl Future<Output = ()> {
    let presence = Presence::new(&thread, &site);
    let beginning = Box::pin(begin(thread, site, bind, accepted));
    async move {
        match beginning.await {
            Some((client, Talk::Http1)) => run(client).await,
            Some((client, talk)) => Box::pin(converse(client, talk)).await,
            None => {}
        }
        drop((presence, permits));
    }
}

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Talk {
    Http1,
    Http2,
    /// Nothing that anybody here understands.
    Tcp,
}

/// The client of an accepted connection, once there is one, and what it speaks.
async fn begin(
    thread: Rc<Thread>,
    site: Rc<Site>,
    bind: Option<usize>,
    (mut socket, peer): (Socket, Option<SocketAddr>),
) -> Option<(Box<Client>, Talk)> {
    let began = (SystemTime::now(), Instant::now());
    let config = site.config();
    let timer = thread.timers.register(match config.mode {
        Mode::Http => config.timeout.http_request,
        Mode::Tcp => config.timeout.client,
    });
    let (place, bind) = (bind, bind.and_then(|bind| config.binds.get(bind)));
    let local = bind.and_then(address::certain);
    let mut ends = Ends { peer: peer.map(address::internet), local, told: None };
    if bind.is_some_and(|bind| greeting::is_named(&bind.accept_proxy, peer)) {
        let introduced = greeting::introduced(&mut socket, &timer).await;
        ends.told = site.heard(&thread, introduced)?;
    }
    let stream = match handshake::establish(&site, socket, &timer).await {
        Ok(stream) => stream,
        Err(unshaken) => {
            let client = ends.told.map(|(client, _)| client).or(ends.peer);
            unshaken.tell((&site, &thread), (began.0, client), place);
            return None;
        }
    };
    let mut client = Client::new(stream, timer, ends, (thread, Rc::clone(&site)))?;
    client.began = began;
    let talk = client.talk().await;
    Some((client, talk))
}

/// Goes on with a plain connection that an older worker has begun.
pub async fn resume(thread: Rc<Thread>, site: Rc<Site>, socket: TcpStream, past: MovingClient) {
    let _presence = Presence::resumed(&thread, &site);
    let timer = thread.timers.register(past.left);
    let Some(peer) = address::peer(&socket, &site.config().binds) else { return };
    let ends = Ends { peer: Some(peer), local: None, told: past.ends };
    if let Some(mut client) = Client::new(ClientStream::Plain(socket.into()), timer, ends, (thread, site)) {
        let (now, instant) = client.began;
        client.began = (now - past.waited, instant.checked_sub(past.waited).unwrap_or(instant));
        client.input = past.unread;
        client.requests = past.requests;
        client.left = Some(past.left);
        look_around().await;
        match client.talk().await {
            Talk::Http1 => run(client).await,
            talk => converse(client, talk).await,
        }
    }
}

/// Lets the event loop say what has come on sockets that it has just met: a worker that is to give them up at once,
/// because of one reload after the other, serves that first.
async fn look_around() {
    tokio::task::yield_now().await;
}

/// Goes on with a plain tunnel that an older worker has begun.
pub async fn resume_tunnel(
    (thread, site): (Rc<Thread>, Rc<Site>),
    (backend, place): (Rc<Backend>, usize),
    [socket, server]: [TcpStream; 2],
    past: MovingTunnel,
) {
    let _presence = Presence::resumed(&thread, &site);
    let timer = thread.timers.register(past.left);
    let stream = ClientStream::Plain(socket.into());
    let ends = Ends { peer: Some(past.peer), local: Some(past.local), told: None };
    let Some(mut client) = Client::new(stream, timer, ends, (thread, site)) else { return };
    let begun = Instant::now().checked_sub(past.account.lasted);
    client.began = (past.account.accepted, begun.unwrap_or(client.began.1));
    client.left = Some(past.left);
    look_around().await;
    session::resume(&mut client, (&backend, place), server, past).await;
}

impl Client {
    /// The protocol that the client has chosen: by ALPN over TLS, by its first bytes where that is allowed.
    async fn talk(&mut self) -> Talk {
        if self.site.config().mode == Mode::Tcp {
            return Talk::Tcp;
        }
        let proto = self.site.config().proto;
        let h2 = match self.stream.protocol() {
            Some(protocol) => protocol == b"h2",
            None if proto == Proto::Auto && self.requests == 0 => begins_with_preface(self).await,
            // HTTP/2 never moves: what comes from another worker is HTTP/1, whatever is configured by now.
            None => proto == Proto::H2 && self.left.is_none(),
        };
        if h2 { Talk::Http2 } else { Talk::Http1 }
    }
}

/// Goes on in any protocol; who can choose calls [`run`] for HTTP/1, which owns less.
async fn converse(mut client: Box<Client>, talk: Talk) {
    match talk {
        Talk::Tcp => Box::pin(session::serve(&mut client)).await,
        Talk::Http2 => Box::pin(h2_connection::serve(*client)).await,
        Talk::Http1 => run(client).await,
    }
}

/// Reads until it is certain whether the client begins with the preface of HTTP/2; whatever else happens is HTTP/1's.
async fn begins_with_preface(client: &mut Client) -> bool {
    poll_fn(|cx| {
        loop {
            let known = client.input.len().min(PREFACE.len());
            if client.input[..known] != PREFACE[..known] || known == PREFACE.len() {
                return Poll::Ready(known == PREFACE.len() && client.input.starts_with(PREFACE));
            }
            if client.timer.poll(cx).is_some() || client.may_leave() {
                return Poll::Ready(false);
            }
            let input = &mut client.input;
            let read = poll_read_with(&mut client.stream, cx, |bytes, _| {
                input.extend_from_slice(bytes);
                bytes.len()
            });
            match ready!(read) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(false),
            }
        }
    })
    .await
}

/// While it waits for a request, a connection owns no room for what comes next: all other phases have boxes of their
/// own.
#[expect(clippy::manual_async_fn, reason = "an `async fn` keeps room for its argument twice, as `serve` says")]
fn run(mut client: Box<Client>) -> impl Future<Output = ()> {
    async move {
        loop {
            let received = request::receive(&mut client).await;
            match Box::pin(request::serve(&mut client, received)).await {
                Next::KeepAlive => client.rest(),
                Next::Leave if Box::pin(client.leave()).await => return,
                Next::Leave => {}
                Next::Close if client.may_just_close() => return client.give_buffers(),
                next @ (Next::Close | Next::Linger) => return Box::pin(client.close(next == Next::Linger)).await,
                Next::Gone => return,
                Next::Abort => {
                    return client.stream.socket().into_iter().for_each(reset_on_close);
                }
            }
        }
    }
}

impl Client {
    /// A client at this end, or at the other end of the Unix socket that it came by, or at the ends that are named.
    fn new(
        stream: ClientStream,
        timer: Timer,
        ends: Ends,
        (thread, site): (Rc<Thread>, Rc<Site>),
    ) -> Option<Box<Self>> {
        let local = match ends.local {
            Some(local) => local,
            None => address::local(stream.socket()?, &site.config().binds)?,
        };
        let (peer, local) = ends.told.unwrap_or((ends.peer.unwrap_or(local), local));
        let wanted = site.introduces || site.directs;
        let secrecy = stream.session().filter(|_| wanted).map(|session| Rc::new(greeting::secrecy(session)));
        let edits = site.edits.made(&Facts { frontend: site.config(), peer, local, session: stream.session() });
        let client = Self::assemble(stream, timer, (peer, local), (thread, site));
        Some(Box::new(Self { edits, secrecy, introduced: ends.told.is_some(), ..client }))
    }

    /// A client of which nothing has been read.
    pub(super) fn assemble(
        stream: ClientStream,
        timer: Timer,
        (peer, local): (Endpoint, Endpoint),
        (thread, site): (Rc<Thread>, Rc<Site>),
    ) -> Self {
        let edits = Rc::clone(&site.edits);
        Self {
            stream,
            input: Vec::new(),
            room: Room::default(),
            timer,
            peer,
            local,
            edits,
            secrecy: None,
            introduced: false,
            own: Cell::new(None),
            began: (SystemTime::now(), Instant::now()),
            requests: 0,
            left: None,
            stays: None,
            thread,
            site,
        }
    }

    /// Whether the connection may go on in the next worker. TLS may not: its keys cannot be handed over.
    pub fn may_leave(&self) -> bool {
        matches!(self.stream, ClientStream::Plain(_))
            && self.input.len() <= MOST_UNREAD
            && self.thread.departure.get().is_some_and(|departure| self.stays != Some(departure.successor()))
    }

    /// Whether the connection has to end with the next answer.
    pub fn must_close(&self) -> bool {
        self.thread.draining.get().is_some() && !self.may_leave()
    }

    /// Offers the connection to the next worker; false when nobody took it, or when this worker has to end
    /// before it knows: then the client is told by an end of its own, whoever else holds the descriptor.
    async fn leave(&mut self) -> bool {
        let thread = Rc::clone(&self.thread);
        // Whoever was answered at once need not be known yet.
        self.stream.known();
        let (Some(departure), Some(socket)) = (thread.departure.get(), self.stream.tcp()) else { return false };
        let left = self.timer.left();
        self.left = Some(left);
        let turn = async {
            tokio::select! {
                biased;
                room = departure.room() => room,
                // Whoever asks while others leave before him is answered here.
                _asks = socket.readable() => None,
            }
        };
        let Some(room) = self.outcome(turn).await else { return false };
        let moving = MovingClient {
            frontend: self.site.config().name.clone(),
            unread: self.input.clone(),
            requests: self.requests,
            waited: self.began.1.elapsed(),
            left,
            ends: self.introduced.then_some((self.peer, self.local)),
        };
        self.stays = Some(departure.successor());
        self.outcome(departure.offer(moving, socket.as_fd(), room)).await
    }

    /// Waits for what becomes of an offer; nothing when this worker has to end before.
    pub async fn outcome<T: Default>(&self, offer: impl Future<Output = T>) -> T {
        let mut offer = pin!(offer);
        let timer = &self.timer;
        poll_fn(|cx| {
            // Its own time-out stands still meanwhile.
            timer.set(OFFER);
            match timer.poll(cx) {
                Some(_stopped) => Poll::Ready(T::default()),
                None => offer.as_mut().poll(cx),
            }
        })
        .await
    }

    /// Between requests a connection owns no buffer: the thread keeps them for whoever asks next.
    fn rest(&mut self) {
        self.requests += 1;
        if self.input.is_empty() {
            self.give_buffers();
        }
    }

    /// Leaves them to whoever asks next.
    pub(super) fn give_buffers(&mut self) {
        let (input, room) = (std::mem::take(&mut self.input), std::mem::take(&mut self.room));
        self.thread.buffers.give(Buffers { input, room });
    }

    /// Whether closing says all there is to say, without a goodbye before it: nothing is unread, and no other worker may
    /// hold the descriptor too.
    fn may_just_close(&self) -> bool {
        let silent = |socket| self.input.is_empty() && !has_unread(socket);
        matches!(&self.stream, ClientStream::Plain(socket) if self.stays.is_none() && socket.fd().is_some_and(silent))
    }

    /// Says goodbye, then waits briefly for the client's end if it had, or may have, more to say.
    pub(super) async fn close(&mut self, sending: bool) {
        self.timer.set(LINGER);
        let unread = sending || !self.input.is_empty();
        self.give_buffers();
        poll_fn(|cx| {
            // First, so that it is tried even where no time is left.
            let said = Pin::new(&mut self.stream).poll_shutdown(cx).map(drop);
            if said.is_pending() && self.timer.poll(cx).is_some() { Poll::Ready(()) } else { said }
        })
        .await;
        if unread || self.stream.socket().is_some_and(has_unread) {
            self.discard().await;
        }
    }

    /// Takes in what the client still sends, until its end, its silence or the deadline.
    pub(super) async fn discard(&mut self) {
        let until = Instant::now() + LONGEST_LINGER;
        poll_fn(|cx| {
            loop {
                if self.timer.poll(cx).is_some() {
                    return Poll::Ready(());
                }
                match poll_read_with(&mut self.stream, cx, |bytes, _| bytes.len()) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(_)) => self.timer.set(LINGER.min(until.saturating_duration_since(Instant::now()))),
                }
            }
        })
        .await;
    }
}

/// Asks the kernel itself: the event loop may not have heard yet.
fn has_unread(socket: BorrowedFd<'_>) -> bool {
    matches!(recv(socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT), Ok((1.., _)))
}
