//! The life of one client connection: handshake, requests one after the other, an orderly close.
//! Spawned by `worker` for each accepted socket. Never looks into a request.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::io::{ClientStream, poll_read_with};
use super::request;
use super::timer::Timer;
use super::{Site, Thread};
use crate::http::Field;
use crate::stats::{Counter, Gauge};

/// How long an orderly close waits for the client's own end, so that a reset cannot overtake our
/// last answer (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(1);
/// Buffers above this size are given back between requests.
const KEEP_BUFFER: usize = 4096;

/// A client and everything its requests reuse.
pub struct Client {
    /// The stream.
    pub stream: ClientStream,
    /// Bytes read and not consumed.
    pub input: Vec<u8>,
    /// Bytes of the current request's head.
    pub head: Vec<u8>,
    /// Fields of the current request.
    pub fields: Vec<Field>,
    /// Fields of the current response.
    pub response_fields: Vec<Field>,
    /// Buffer of what is sent next.
    pub out: Vec<u8>,
    /// The connection's deadline.
    pub timer: Timer,
    /// Client address, IPv4-mapped ones as IPv4.
    pub peer: SocketAddr,
    /// Our address.
    pub local: SocketAddr,
    /// When the current request began: accept for the first one, its first byte later.
    pub began: (SystemTime, Instant),
    /// Requests served.
    pub requests: u64,
    /// The thread.
    pub thread: Rc<Thread>,
    /// The frontend.
    pub site: Rc<Site>,
}

/// What follows a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next request.
    KeepAlive,
    /// An orderly close.
    Close,
    /// An orderly close although the client may still be sending: what it sends is taken in for a while.
    Linger,
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
        let now = site.slot.enter(Gauge::Sessions);
        site.slot.raise(Counter::SessionsMax, now);
        site.slot.add(Counter::Sessions, 1);
        let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        site.slot.set(Counter::LastSession, second);
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

/// Serves an accepted connection to its end.
pub async fn serve(thread: Rc<Thread>, site: Rc<Site>, socket: TcpStream, peer: SocketAddr) {
    let _presence = Presence::new(&thread, &site);
    let began = (SystemTime::now(), Instant::now());
    let timer = thread.timers.register(site.config().timeout.http_request);
    let Ok(local) = socket.local_addr() else { return };
    let Some(stream) = establish(&site, socket, &timer).await else { return };
    let mut client = Client {
        stream,
        input: Vec::new(),
        head: Vec::new(),
        fields: Vec::new(),
        response_fields: Vec::new(),
        out: Vec::new(),
        timer,
        peer: unmapped(peer),
        local: unmapped(local),
        began,
        requests: 0,
        thread,
        site,
    };
    loop {
        match request::serve_one(&mut client).await {
            Next::KeepAlive => client.rest(),
            Next::Close => return client.close(false).await,
            Next::Linger => return client.close(true).await,
            Next::Abort => {
                // Best effort: without it the client sees an end where there was a break.
                let _ = client.stream.socket().set_zero_linger();
                return;
            }
        }
    }
}

/// The TLS handshake, where configured.
async fn establish(site: &Site, socket: TcpStream, timer: &Timer) -> Option<ClientStream> {
    let Some(acceptor) = &site.tls else { return Some(ClientStream::Plain(socket)) };
    let mut handshake = pin!(acceptor.accept(socket));
    let result = poll_fn(|cx| {
        if timer.poll(cx).is_some() {
            return Poll::Ready(None);
        }
        handshake.as_mut().poll(cx).map(Result::ok)
    })
    .await;
    if result.is_none() {
        site.slot.add(Counter::HandshakeErrors, 1);
        site.slot.add(Counter::RequestErrors, 1);
    }
    result.map(|stream| ClientStream::Tls(Box::new(stream)))
}

impl Client {
    /// Between requests a connection owns as little memory as it can.
    fn rest(&mut self) {
        self.requests += 1;
        for buffer in [&mut self.head, &mut self.out, &mut self.input] {
            if buffer.is_empty() && buffer.capacity() > KEEP_BUFFER {
                *buffer = Vec::new();
            }
        }
    }

    /// Says goodbye, then waits briefly for the client's end if it had, or may have, more to say.
    async fn close(mut self, sending: bool) {
        self.timer.set(LINGER);
        let unread = sending || !self.input.is_empty();
        poll_fn(|cx| {
            if self.timer.poll(cx).is_some() {
                return Poll::Ready(());
            }
            Pin::new(&mut self.stream).poll_shutdown(cx).map(drop)
        })
        .await;
        if unread || has_unread(self.stream.socket()) {
            self.discard().await;
        }
    }

    async fn discard(&mut self) {
        poll_fn(|cx| {
            loop {
                if self.timer.poll(cx).is_some() {
                    return Poll::Ready(());
                }
                match poll_read_with(&mut self.stream, cx, |bytes, _| bytes.len()) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(_)) => {}
                }
            }
        })
        .await;
    }
}

fn has_unread(socket: &TcpStream) -> bool {
    matches!(socket.try_read(&mut [0; 1]), Ok(count) if count > 0)
}

/// An IPv4 client of a dual-stack listener is an IPv4 client.
fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => SocketAddr::new(IpAddr::V4(ip), address.port()),
            None => address,
        },
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_client_of_a_dual_stack_listener_keeps_its_name() {
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:80".parse().unwrap();
        assert_eq!(unmapped(mapped).to_string(), "192.0.2.7:80");
        let six: SocketAddr = "[2001:db8::1]:80".parse().unwrap();
        assert_eq!(unmapped(six), six);
    }
}
