//! The TLS handshake with a client, and what is said of one that fails.
//! Called by `connection` before anything else but a header of the PROXY protocol. Never reads what comes after it.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::io;
use std::task::Poll;
use std::time::SystemTime;

use super::io::ClientStream;
use super::timer::Timer;
use super::{Site, Thread};
use crate::logging::{Endpoint, Unserved};
use crate::socket::Socket;
use crate::stats::Counter;

/// Bytes that the TLS library may hold back, one record.
const TLS_BUFFER: usize = 16 * 1024;

/// Why there is no session.
pub(super) struct Unshaken {
    reason: String,
    /// Whether the client has said anything at all.
    heard: bool,
}

/// Shakes hands, where configured.
pub(super) async fn establish(site: &Site, socket: Socket, timer: &Timer) -> Result<ClientStream, Unshaken> {
    let Some(acceptor) = &site.tls else { return Ok(ClientStream::Plain(socket)) };
    let heard = Cell::new(false);
    let mut handshake = Box::pin(acceptor.accept(socket, &heard));
    let result = poll_fn(|cx| match timer.poll(cx) {
        Some(_alarm) => Poll::Ready(Err(io::Error::from(io::ErrorKind::TimedOut))),
        None => handshake.as_mut().poll(cx),
    })
    .await;
    drop(handshake);
    match result {
        Ok(mut stream) => {
            // What waits in there looks like standstill to the time-out of a slow client.
            stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
            Ok(ClientStream::Tls(Box::new(stream)))
        }
        Err(error) => {
            site.slot.add(Counter::HandshakeErrors, 1);
            site.slot.add(Counter::RequestErrors, 1);
            Err(Unshaken { reason: reason(&error), heard: heard.get() })
        }
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        // The library has several words for it.
        io::ErrorKind::UnexpectedEof => String::from("the client has ended it"),
        _ => error.to_string(),
    }
}

impl Unshaken {
    /// Tells of it, as HAProxy does; of a client without a word only where empty connections are wanted.
    pub(super) fn tell(
        self,
        (site, thread): (&Site, &Thread),
        (accepted, client): (SystemTime, Option<Endpoint>),
        bind: Option<usize>,
    ) {
        if self.heard || site.config().log_empty {
            let bind = bind.map_or(0, |place| place + 1);
            let client = client.unwrap_or(Endpoint::Unix(u16::try_from(bind).unwrap_or(u16::MAX)));
            let frontend = site.index;
            thread.logger.unserved(Unserved { accepted, client, frontend, bind, reason: self.reason });
        }
    }
}
