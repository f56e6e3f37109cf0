//! Bytes both ways between a client and a server until both have ended: TCP mode, and HTTP after an upgrade.
//! Run by `session`. Never looks at a byte.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::Reason;
use tokio::sync::OwnedSemaphorePermit;

use super::connection::Client;
use super::departure::Turn;
use super::flow::{Broken, Flow};
use super::timer::Alarm;
use crate::socket::reset_on_close;
use crate::upstream::ServerStream;

/// Bytes that may travel to another worker: what two reads can leave behind, and what fits into a message.
pub const MOST_HELD: usize = 128 * 1024;

/// Time-outs of a tunnel.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Inactivity of the client, until data has flown both ways.
    pub client: Duration,
    /// Inactivity of the server, until data has flown both ways.
    pub server: Duration,
    /// Inactivity from then on.
    pub tunnel: Duration,
}

/// Both directions.
pub struct Tunnel {
    /// Client to server.
    pub up: Flow,
    /// Server to client.
    pub down: Flow,
    /// Whether data has flown both ways.
    pub settled: bool,
    /// What a direction that was given up says of the end.
    broken: Option<[u8; 2]>,
    patience: Patience,
}

/// How a tunnel ended, as HAProxy's termination state (configuration manual 8.5).
#[derive(Debug)]
pub enum Ended {
    /// Both sides said so.
    Well,
    /// Not at all: another worker may have it, and it is its turn.
    Leaving(OwnedSemaphorePermit),
    /// Nothing moved for too long, or the worker ends.
    Idle([u8; 2]),
    /// A side broke off: neither may take what it has for the whole.
    Broken([u8; 2]),
}

impl Tunnel {
    /// A tunnel whose directions may hold bytes that were read before it began.
    pub fn new(up: Flow, down: Flow, settled: bool, patience: Patience) -> Self {
        Self { up, down, settled, broken: None, patience }
    }

    /// Moves bytes until both sides have ended.
    pub async fn run(&mut self, client: &mut Client, server: &mut ServerStream) -> Ended {
        client.timer.set(client.left.take().unwrap_or_else(|| self.limit()));
        let mut turn = None;
        let ended = poll_fn(|cx| match self.poll(cx, client, server) {
            Poll::Pending => self.poll_turn(cx, client, server, &mut turn).map(Ended::Leaving),
            ended => ended,
        })
        .await;
        if matches!(ended, Ended::Broken(_)) {
            [client.stream.socket(), server.socket()].into_iter().flatten().for_each(reset_on_close);
            if let Some(stream) = client.stream.as_h2() {
                stream.reset(Reason::CONNECT_ERROR);
            }
        }
        ended
    }

    fn poll(&mut self, cx: &mut Context<'_>, client: &mut Client, server: &mut ServerStream) -> Poll<Ended> {
        if let Some(alarm) = client.timer.poll(cx) {
            return Poll::Ready(Ended::Idle(self.overdue(alarm)));
        }
        let before = self.moved();
        if let Poll::Ready(Err(broken)) = self.up.poll(cx, &mut client.stream, server) {
            match broken {
                Broken::Sender => return Poll::Ready(Ended::Broken(*b"CD")),
                // What the server said before it stopped listening still counts.
                Broken::Receiver => self.give_up(*b"SD", |tunnel| &mut tunnel.up),
            }
        }
        if let Poll::Ready(Err(broken)) = self.down.poll(cx, server, &mut client.stream) {
            match broken {
                Broken::Sender => return Poll::Ready(Ended::Broken(self.broken.unwrap_or(*b"SD"))),
                Broken::Receiver => self.give_up(*b"CD", |tunnel| &mut tunnel.down),
            }
        }
        if self.up.is_done() && self.down.is_done() {
            return Poll::Ready(self.broken.map_or(Ended::Well, Ended::Broken));
        }
        if self.moved() != before {
            self.settled |= self.up.bytes > 0 && self.down.bytes > 0;
            client.timer.set(self.limit());
        }
        Poll::Pending
    }

    /// Waits for its turn to leave, beside the traffic and never before it: a tunnel that goes from worker to worker moves
    /// something in each. What was read before it began may be more than fits into a message, and is written first.
    fn poll_turn(
        &self,
        cx: &mut Context<'_>,
        client: &Client,
        server: &mut ServerStream,
        turn: &mut Option<Turn>,
    ) -> Poll<OwnedSemaphorePermit> {
        let light = self.up.held() + self.down.held() <= MOST_HELD;
        let free = light && self.broken.is_none() && server.plain().is_some() && client.may_leave();
        let Some(departure) = client.thread.departure.get().filter(|_| free) else {
            // Nor does it keep others waiting.
            *turn = None;
            return Poll::Pending;
        };
        match ready!(turn.get_or_insert_with(|| departure.turn()).as_mut().poll(cx)) {
            Some(room) => Poll::Ready(room),
            None => Poll::Pending,
        }
    }

    fn give_up(&mut self, state: [u8; 2], direction: impl FnOnce(&mut Self) -> &mut Flow) {
        self.broken.get_or_insert(state);
        direction(self).give_up();
    }

    fn moved(&self) -> u64 {
        self.up.bytes + self.down.bytes
    }

    fn limit(&self) -> Duration {
        let Patience { client, server, tunnel } = self.patience;
        if self.settled { tunnel } else { client.min(server) }
    }

    fn overdue(&self, alarm: Alarm) -> [u8; 2] {
        let server_first = !self.settled && self.patience.server < self.patience.client;
        match alarm {
            Alarm::Stopped => *b"KD",
            Alarm::Expired if self.down.blocked => *b"cD",
            Alarm::Expired if self.up.blocked || server_first => *b"sD",
            Alarm::Expired => *b"cD",
        }
    }
}
