//! A client's HTTP/2 connection: its requests side by side, and an end that loses none of them.
//! Called by `connection` where a client speaks HTTP/2. Never looks into a request: each is answered as one of HTTP/1 is.

use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream, ext::Protocol};
use http::Request;

use super::buffers::Buffers;
use super::connection::{Client, Next};
use super::h2_stream::H2Stream;
use super::h2_wire::Wire;
use super::io::ClientStream;
use super::request;
use super::timer::{Alarm, Timer};
use super::{Edits, Failure, Site, Thread};
use crate::config::ClientTimeouts;
use crate::http::h2::{H2Request, read_request};
use crate::logging::Endpoint;
use crate::socket::Secrecy;

/// Bytes of a request's body that a client may send ahead of the server that takes them.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same for all requests of a connection together.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of a response that wait for the client at most.
const SEND_BUFFER: usize = 32 * 1024;
/// While requests are under way, each has a deadline of its own.
const BUSY: Duration = Duration::from_secs(24 * 3600);
/// How long a client that was told to leave may take.
const GOODBYE: Duration = Duration::from_secs(5);

/// The requests under way.
#[derive(Default)]
struct Streams {
    open: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

/// Counts a request while it is under way.
struct Guard(Rc<Streams>);

impl Guard {
    fn new(streams: &Rc<Streams>) -> Self {
        streams.open.set(streams.open.get() + 1);
        Self(Rc::clone(streams))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        if self.0.open.get() == 0
            && let Some(waker) = self.0.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No requests, for as long as `timeout.http-keep-alive`.
    Idle,
    /// Requests are under way.
    Busy,
    /// The client has been told to leave (GOAWAY); what it has asked before it knew is answered.
    Leaving,
    /// The client knows, or should, what is answered and that nothing more will be.
    Left,
}

/// What kind of client it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conduct {
    /// It is listened to until it ends.
    Good,
    /// Its connection broke.
    Lost,
    /// It has broken the rules of the protocol, or sent a flood, and is not listened to any longer.
    Hostile,
}

impl Conduct {
    fn of(error: &h2::Error) -> Self {
        match (error.is_remote(), error.is_io()) {
            (true, _) => Self::Good,
            (false, true) => Self::Lost,
            (false, false) => Self::Hostile,
        }
    }
}

/// The client without its stream.
struct Host {
    timer: Timer,
    /// The client's and ours.
    addresses: (Endpoint, Endpoint),
    edits: Rc<Edits>,
    secrecy: Option<Rc<Secrecy>>,
    here: (Rc<Thread>, Rc<Site>),
    began: (SystemTime, Instant),
    requests: u64,
}

impl Host {
    fn new(client: Client) -> (Self, Wire) {
        let Client { stream, input, timer, peer, local, edits, secrecy, thread, site, began, .. } = client;
        let host = Self { timer, addresses: (peer, local), edits, secrecy, here: (thread, site), began, requests: 0 };
        (host, Wire::new(stream, input))
    }

    fn into_client(self, stream: ClientStream) -> Client {
        let client = Client::assemble(stream, self.timer, self.addresses, self.here);
        Client { began: self.began, requests: self.requests, ..client }
    }

    fn timeout(&self) -> &ClientTimeouts {
        &self.here.1.config().timeout
    }
}

/// Serves the connection to its end.
pub async fn serve(client: Client) {
    let (mut host, wire) = Host::new(client);
    let mut handshake = Box::pin(settings(&host.here.1).handshake(wire.clone()));
    let timer = &host.timer;
    let shaken = poll_fn(|cx| match timer.poll(cx) {
        Some(_alarm) => Poll::Ready(None),
        None => handshake.as_mut().poll(cx).map(Some),
    })
    .await;
    drop(handshake);
    let conduct = Rc::new(Cell::new(Conduct::Good));
    if let Some(Err(error)) = &shaken {
        conduct.set(Conduct::of(error));
    }
    if let Some(Ok(library)) = shaken {
        let (wire, conduct) = (wire.clone(), Rc::clone(&conduct));
        let (stage, streams, told) = (Stage::Idle, Rc::default(), None);
        let connection = ClientConnection { library, stage, streams, wire, told, conduct };
        converse(&mut host, connection).await;
    }
    let Some(stream) = wire.into_stream() else { return };
    let mut client = host.into_client(stream);
    match conduct.get() {
        Conduct::Hostile => request::end_with_hostile(&client),
        _ if client.requests == 0 => drop(request::end_without_request(&client)),
        _ => {}
    }
    // What it has been told is on its way; whoever goes on sending may lose it.
    if conduct.get() == Conduct::Good {
        client.close(true).await;
    }
}

/// Takes requests until there will be no more, and waits for the last of them.
async fn converse(host: &mut Host, mut connection: ClientConnection) {
    host.timer.set(host.timeout().http_keep_alive);
    while let Some((request, respond)) = poll_fn(|cx| connection.poll(cx, host)).await {
        host.requests += 1;
        let stream = host.admit(request, respond);
        let guard = Guard::new(&connection.streams);
        tokio::task::spawn_local(async move {
            answer(stream).await;
            drop(guard);
        });
    }
    let streams = Rc::clone(&connection.streams);
    // Requests that are still under way learn by this that nobody waits for them.
    drop(connection);
    poll_fn(|cx| streams.poll_none(cx)).await;
}

fn settings(site: &Site) -> Builder {
    let limit = &site.config().limit;
    // The limits themselves are checked again, in the same way for all protocols; this one is for what is far beyond.
    let list = limit.header_size.saturating_add(32 * limit.headers);
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limit.streams)
        .max_header_list_size(u32::try_from(list).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .enable_connect_protocol();
    builder
}

/// The library's connection and what we know of it.
struct ClientConnection {
    library: Connection<Wire, Bytes>,
    stage: Stage,
    streams: Rc<Streams>,
    wire: Wire,
    /// When the client was told to leave.
    told: Option<Instant>,
    conduct: Rc<Cell<Conduct>>,
}

type Arrived = (Request<RecvStream>, SendResponse<Bytes>);

impl ClientConnection {
    /// The next request; `None` when there will be no more and the connection has nothing left to do.
    fn poll(&mut self, cx: &mut Context<'_>, host: &Host) -> Poll<Option<Arrived>> {
        self.streams.watch(cx);
        loop {
            self.settle(host);
            match host.timer.poll(cx) {
                // Requests under way have heard it themselves and end first.
                Some(Alarm::Stopped) if self.streams.open.get() > 0 => {}
                Some(Alarm::Stopped) => return Poll::Ready(None),
                Some(Alarm::Expired) if self.stage == Stage::Left => return Poll::Ready(None),
                Some(Alarm::Expired) if self.stage == Stage::Leaving => {
                    self.end(host, Reason::NO_ERROR);
                    continue;
                }
                Some(Alarm::Expired) => {
                    self.leave(host);
                    continue;
                }
                None => {}
            }
            if host.here.0.draining.get().is_some() && matches!(self.stage, Stage::Idle | Stage::Busy) {
                self.leave(host);
            }
            let arrived = self.library.poll_accept(cx);
            if self.wire.take_flooded() {
                self.conduct.set(Conduct::Hostile);
                self.end(host, Reason::ENHANCE_YOUR_CALM);
                continue;
            }
            return match ready!(arrived) {
                Some(Ok((_request, mut respond))) if self.has_heard() => {
                    // It has not been touched, and may be asked again elsewhere (RFC 9113 section 8.7).
                    respond.send_reset(Reason::REFUSED_STREAM);
                    continue;
                }
                Some(Ok(arrived)) => Poll::Ready(Some(arrived)),
                Some(Err(error)) => {
                    self.conduct.set(Conduct::of(&error));
                    Poll::Ready(None)
                }
                None => Poll::Ready(None),
            };
        }
    }

    /// Follows the requests under way with the deadline.
    fn settle(&mut self, host: &Host) {
        match (self.stage, self.streams.open.get()) {
            (Stage::Idle, 1..) => {
                self.stage = Stage::Busy;
                host.timer.set(BUSY);
            }
            (Stage::Busy, 0) => {
                self.stage = Stage::Idle;
                host.timer.set(host.timeout().http_keep_alive);
            }
            // Its own time begins when the last request has ended.
            (Stage::Leaving, 1..) => host.timer.set(GOODBYE),
            _ => {}
        }
    }

    /// The first of two GOAWAYs: what the client sends before it has heard of it is still answered
    /// (RFC 9113 section 6.8); the library sends the second one a round trip later.
    fn leave(&mut self, host: &Host) {
        self.library.graceful_shutdown();
        self.stage = Stage::Leaving;
        self.told = Some(Instant::now());
        host.timer.set(GOODBYE);
    }

    /// Whether the client has had more than the time for it: the library goes on taking requests from one that does not
    /// acknowledge the PING between the two, and would never be done.
    fn has_heard(&self) -> bool {
        self.told.is_some_and(|told| told.elapsed() > GOODBYE)
    }

    /// The last GOAWAY, whether or not the client has heard of the first.
    fn end(&mut self, host: &Host, reason: Reason) {
        self.library.abrupt_shutdown(reason);
        self.stage = Stage::Left;
        host.timer.set(GOODBYE);
    }
}

impl Streams {
    fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    fn poll_none(&self, cx: &Context<'_>) -> Poll<()> {
        self.watch(cx);
        if self.open.get() == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// A request and the client that stands for it.
struct Stream {
    client: Client,
    request: Request<()>,
    ended: bool,
}

impl Host {
    fn admit(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) -> Stream {
        let (parts, recv) = request.into_parts();
        let ended = recv.is_end_stream();
        let stream = ClientStream::H2(Box::new(H2Stream::new(recv, respond)));
        let here = (Rc::clone(&self.here.0), Rc::clone(&self.here.1));
        let timer = here.0.timers.register(self.timeout().client);
        let Buffers { input, room } = here.0.buffers.take();
        let client = Client::assemble(stream, timer, self.addresses, here);
        let (edits, secrecy) = (Rc::clone(&self.edits), self.secrecy.clone());
        let client = Client { edits, secrecy, input, room, ..client };
        Stream { client, request: Request::from_parts(parts, ()), ended }
    }
}

async fn answer(stream: Stream) {
    let Stream { mut client, request, ended } = stream;
    let protocol = request.extensions().get::<Protocol>().map(Protocol::as_str);
    let key = if protocol.is_some() { websocket_key() } else { String::new() };
    let asked = H2Request {
        method: request.method(),
        uri: request.uri(),
        fields: request.headers(),
        protocol,
        ended,
        key: &key,
    };
    let site = Rc::clone(&client.site);
    let desk = &mut *client.room;
    let head = read_request(&asked, &site.limits, &mut desk.head, &mut desk.fields);
    drop(request);
    let next = match head {
        Ok(head) => request::answer(&mut client, &head).await,
        Err(refusal) => {
            // As much of it as was understood counts as what was received.
            client.input = std::mem::take(&mut client.room.head);
            request::refuse(&mut client, Failure::Refused(refusal)).await
        }
    };
    // What is left of a request whose answer is complete is taken back without an error (RFC 9113 section 8.1):
    // the library does so when it sees that nobody reads.
    if next == Next::Abort
        && let Some(stream) = client.stream.as_h2()
    {
        stream.reset(Reason::INTERNAL_ERROR);
    }
    client.give_buffers();
}

/// A nonce of 16 bytes (RFC 6455 section 4.1).
fn websocket_key() -> String {
    let mut nonce = [0; 16];
    // Without randomness the key is a constant, which a server takes as well.
    let _ = aws_lc_rs::rand::fill(&mut nonce);
    base64::engine::general_purpose::STANDARD.encode(nonce)
}
