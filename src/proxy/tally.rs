//! What one request was: times, bytes, counts; becomes counters and one access-log record at its end.
//! Filled by the phases in `request`. Never decides anything.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::Side;
use super::connection::Client;
use super::tunnel::Tunnel;
use crate::handoff::messages::MovingAccount;
use crate::http::RequestHead;
use crate::logging::Record;
use crate::stats::{Counter, Gauge, Slot};
use crate::upstream::Backend;

/// The account of one request.
pub struct Tally {
    began: (SystemTime, Instant),
    /// Whether requests are what is counted.
    http: bool,
    request_line: Vec<u8>,
    request_ms: i64,
    /// Bytes of the request head.
    pub head_in: u64,
    /// Milliseconds until a server's connection was there, -1 before.
    pub connect_ms: i64,
    response_ms: i64,
    response: Option<Duration>,
    /// Status sent, 0 before.
    pub status: u16,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// Answered by a rule.
    pub local: bool,
    retries: u32,
    redispatched: bool,
    backend: Option<Rc<Backend>>,
    server: Option<usize>,
    /// The backend's, then the server's.
    entered: [Option<Slot>; 2],
}

impl Tally {
    /// The account of a request whose head is `head`, or of a connection that never sent one.
    pub fn new(client: &Client, head: Option<&RequestHead>) -> Self {
        let request_line = head.map(|head| head.line.of(&client.room.head).to_vec()).unwrap_or_default();
        let head_in = if head.is_some() { client.room.head.len() as u64 } else { client.input.len() as u64 };
        if head.is_some() || !client.input.is_empty() {
            client.site.slot.add(Counter::Requests, 1);
        }
        let mut tally = Self::open(client, head.map_or(-1, |_| millis(client.began.1)));
        tally.http = true;
        tally.request_line = request_line;
        (tally.head_in, tally.bytes_in) = (head_in, head_in);
        tally
    }

    /// Counts a failure against the side to blame.
    pub fn blame(&self, client: &Client, side: Side) {
        match side {
            Side::Client if self.status == 0 => client.site.slot.add(Counter::RequestErrors, 1),
            Side::Client => self.count(client, Counter::ClientAborts),
            // As in HAProxy's columns: the request was none the worse for it, and before a server had it nothing was broken off.
            Side::Leaver if self.connected() => self.count(client, Counter::ClientAborts),
            Side::Server if self.connected() => {
                self.count(client, Counter::ResponseErrors);
                if self.status != 0 {
                    self.count(client, Counter::ServerAborts);
                }
            }
            Side::Leaver | Side::Server | Side::Proxy => {}
        }
    }

    /// The account of a connection in TCP mode.
    pub fn session(client: &Client) -> Self {
        Self::open(client, millis(client.began.1))
    }

    fn open(client: &Client, request_ms: i64) -> Self {
        Self {
            began: client.began,
            http: false,
            request_line: Vec::new(),
            request_ms,
            head_in: 0,
            connect_ms: -1,
            response_ms: -1,
            response: None,
            status: 0,
            bytes_in: 0,
            bytes_out: 0,
            local: false,
            retries: 0,
            redispatched: false,
            backend: None,
            server: None,
            entered: [None; 2],
        }
    }

    /// What another worker has to know of a tunnel through which so much has passed since.
    pub fn pack(&self, tunnel: &Tunnel) -> MovingAccount {
        MovingAccount {
            accepted: self.began.0,
            lasted: self.began.1.elapsed(),
            http: self.http,
            request_line: self.request_line.clone(),
            request_ms: self.request_ms,
            connect_ms: self.connect_ms,
            response_ms: self.response_ms,
            status: self.status,
            bytes_in: self.bytes_in + tunnel.up.bytes,
            bytes_out: self.bytes_out + tunnel.down.bytes,
            retries: self.retries,
            redispatched: self.redispatched,
        }
    }

    /// The account of a tunnel that another worker began: present here from now on, counted there.
    pub fn unpack(client: &Client, (backend, server): (&Rc<Backend>, usize), past: MovingAccount) -> Self {
        let mut tally = Self::open(client, past.request_ms);
        (tally.http, tally.request_line, tally.status) = (past.http, past.request_line, past.status);
        (tally.connect_ms, tally.response_ms) = (past.connect_ms, past.response_ms);
        (tally.bytes_in, tally.bytes_out) = (past.bytes_in, past.bytes_out);
        (tally.retries, tally.redispatched) = (past.retries, past.redispatched);
        tally.entered = [backend.slot, backend.servers[server].slot].map(|slot| {
            slot.raise(Counter::SessionsMax, slot.enter(Gauge::Sessions));
            Some(slot)
        });
        (tally.backend, tally.server) = (Some(Rc::clone(backend)), Some(server));
        tally
    }

    /// Where it leads.
    pub fn server(&self) -> Option<(&Rc<Backend>, usize)> {
        self.backend.as_ref().zip(self.server)
    }

    /// Whether requests came before what is now a tunnel.
    pub fn is_upgraded(&self) -> bool {
        self.http
    }

    /// The request goes to a backend.
    pub fn enter_backend(&mut self, backend: &Rc<Backend>) {
        self.entered[0] = Some(enter(backend.slot));
        if self.http {
            backend.slot.add(Counter::Requests, 1);
        }
        self.backend = Some(Rc::clone(backend));
    }

    /// A server was chosen; an earlier choice is given up.
    pub fn choose_server(&mut self, backend: &Rc<Backend>, server: usize) {
        if self.server == Some(server) {
            return;
        }
        if let Some(slot) = self.entered[1].take() {
            slot.leave(Gauge::Sessions);
        }
        let slot = backend.servers[server].slot;
        self.entered[1] = Some(enter(slot));
        slot.add(Counter::Selected, 1);
        if self.http {
            slot.add(Counter::Requests, 1);
        }
        backend.slot.add(Counter::Selected, 1);
        self.server = Some(server);
    }

    /// How often it was tried again so far.
    pub fn retried(&self) -> u32 {
        self.retries
    }

    /// What did not come about with `server` is tried again.
    pub fn retry(&mut self, backend: &Backend, server: usize, redispatched: bool) {
        let counter = if redispatched { Counter::Redispatches } else { Counter::Retries };
        backend.slot.add(counter, 1);
        backend.servers[server].slot.add(counter, 1);
        self.retries += 1;
        self.redispatched |= redispatched;
    }

    /// Another server is tried than the one that was waited for.
    pub fn redispatch(&mut self, backend: &Backend, server: usize) {
        backend.slot.add(Counter::Redispatches, 1);
        backend.servers[server].slot.add(Counter::Redispatches, 1);
        self.redispatched = true;
    }

    /// Whether a server had the request.
    pub fn connected(&self) -> bool {
        self.connect_ms >= 0
    }

    /// Counts something on the frontend, backend and server of the request.
    pub fn count(&self, client: &Client, counter: Counter) {
        client.site.slot.add(counter, 1);
        for slot in self.entered.iter().flatten() {
            slot.add(counter, 1);
        }
    }

    /// Closes the account: counters, then the access line.
    pub fn finish(&mut self, client: &Client, termination: [u8; 2]) {
        let second = self.began.0.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let took = self.began.1.elapsed();
        self.observe(client, took);
        for slot in std::iter::once(&client.site.slot).chain(self.entered.iter().flatten()) {
            if self.http {
                slot.status(self.status);
            }
            slot.add(Counter::BytesIn, self.bytes_in);
            slot.add(Counter::BytesOut, self.bytes_out);
            slot.set(Counter::LastSession, second);
        }
        let termination = if self.local && termination == *b"--" { *b"LR" } else { termination };
        // As in HAProxy's lines the others are counted, not this one.
        let others = std::mem::take(&mut self.entered).map(|slot| slot.map_or(0, |slot| slot.leave(Gauge::Sessions)));
        let record = self.record(client, termination, (took, others));
        let empty = !self.http && self.bytes_in == 0 && self.bytes_out == 0 && matches!(&termination, b"--" | b"CR");
        if !empty || client.site.config().log_empty {
            client.thread.logger.access(record);
        }
    }

    /// How long it took, into the histograms: the frontend's is of whole requests, the others' of answers.
    fn observe(&self, client: &Client, took: Duration) {
        // A tunnel's life says nothing about anybody's speed.
        if self.http && self.head_in > 0 && self.status != 101 {
            client.site.slot.observe(took);
        }
        if let Some(time) = self.response {
            self.entered.iter().flatten().for_each(|slot| slot.observe(time));
        }
    }

    /// The head of the response is there, so long after the request was begun to be sent.
    pub fn answered(&mut self, sent_at: Instant) {
        let time = sent_at.elapsed();
        self.response_ms = whole_millis(time);
        self.response = Some(time);
    }

    fn record(&mut self, client: &Client, termination: [u8; 2], (took, others): (Duration, [u64; 2])) -> Record {
        Record {
            accepted: self.began.0,
            client: client.peer,
            local: client.local,
            frontend: client.site.index,
            tls: client.site.tls.is_some(),
            backend: self.backend.as_ref().map(|backend| backend.index),
            server: self.server,
            request_ms: self.request_ms,
            queue_ms: if self.server.is_some() { 0 } else { -1 },
            connect_ms: self.connect_ms,
            response_ms: self.response_ms,
            total_ms: whole_millis(took),
            status: self.status,
            bytes_out: self.bytes_out,
            bytes_in: self.bytes_in,
            termination,
            active: client.thread.active.load(Ordering::Relaxed),
            frontend_conns: narrow(client.site.slot.current(Gauge::Sessions)),
            backend_conns: narrow(others[0]),
            server_conns: narrow(others[1]),
            retries: self.retries,
            redispatched: self.redispatched,
            request_line: std::mem::take(&mut self.request_line),
        }
    }
}

impl Drop for Tally {
    /// A request whose task was dropped must not stay in the gauges.
    fn drop(&mut self) {
        for slot in self.entered.iter().flatten() {
            slot.leave(Gauge::Sessions);
        }
    }
}

/// One more session there.
fn enter(slot: Slot) -> Slot {
    slot.add(Counter::Sessions, 1);
    slot.raise(Counter::SessionsMax, slot.enter(Gauge::Sessions));
    slot
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn millis(since: Instant) -> i64 {
    whole_millis(since.elapsed())
}

fn whole_millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
