//! The PROXY protocol on both sides: whom a connection is really from, and telling a server so.
//! Called by `connection` before anything else is read, and by `request` for each new connection to a server.
//! Never believes anybody who is not named.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::{Poll, ready};

use rustls::ServerConnection;
use tokio::io::ReadBuf;

use super::address::internet;
use super::connection::Client;
use super::fetch::protocol;
use super::timer::Timer;
use crate::config::{Fetch, SendProxy, Source};
use crate::logging::Endpoint;
use crate::socket::{BadIntroduction, Secrecy, Socket, introduce, introduce_self, read_introduction};
use crate::tls::{certificate_field, cipher_name};

/// Why a connection that has to begin with a header ends without being served.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unintroduced {
    /// What came is none that can be believed.
    #[error(transparent)]
    Bad(#[from] BadIntroduction),
    /// Nothing came in time, or the end.
    #[error("no PROXY header in time")]
    Late,
}

/// Whether a peer's connections have to begin with a header; who is not named is a client like any other.
pub(super) fn is_named(sources: &[Source], peer: Option<SocketAddr>) -> bool {
    sources.iter().any(|source| match (source, peer) {
        (Source::Network(network), Some(peer)) => network.contains(peer.ip()),
        (Source::Unix, None) => true,
        _ => false,
    })
}

/// Reads the header and not a byte more; `None` for a connection of the sender's own.
pub(super) async fn introduced(
    socket: &mut Socket,
    timer: &Timer,
) -> Result<Option<(Endpoint, Endpoint)>, Unintroduced> {
    let mut header = Vec::new();
    let Ok(socket) = socket.known() else { return Err(Unintroduced::Late) };
    poll_fn(|cx| {
        loop {
            if timer.poll(cx).is_some() {
                return Poll::Ready(Err(Unintroduced::Late));
            }
            // What follows belongs to somebody else, the TLS library for example: it stays in the socket.
            let known = header.len();
            let mut room = [0; 1024];
            let mut seen = ReadBuf::new(&mut room);
            match ready!(socket.poll_peek(cx, &mut seen)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(Err(Unintroduced::Late)),
            }
            header.extend_from_slice(seen.filled());
            let read = read_introduction(&header)?;
            let length = read.map_or(header.len(), |read| read.length);
            match socket.try_read(&mut room[..length - known]) {
                Ok(taken) if taken == length - known => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    header.truncate(known);
                    continue;
                }
                Ok(_) | Err(_) => return Poll::Ready(Err(Unintroduced::Late)),
            }
            if let Some(read) = read {
                let ends = read.addresses.map(|(source, destination)| (internet(source), internet(destination)));
                return Poll::Ready(Ok(ends));
            }
        }
    })
    .await
}

/// What a session says of its client.
pub(super) fn secrecy(session: &ServerConnection) -> Secrecy {
    let certificate = session.peer_certificates().and_then(|chain| chain.first()).map(|der| {
        let name = certificate_field(der, &Fetch::SslCSDn(Some(String::from("cn"))));
        (!name.is_empty()).then_some(name)
    });
    Secrecy {
        version: protocol(session),
        cipher: session.negotiated_cipher_suite().map(|suite| cipher_name(&suite)).unwrap_or_default(),
        alpn: session.alpn_protocol().map(<[u8]>::to_vec),
        authority: session.server_name().map(str::to_owned),
        certificate,
    }
}

impl Client {
    /// What a server is told first of a connection that is for this client.
    pub(super) fn introduction(&self, version: SendProxy) -> Vec<u8> {
        match (self.peer, self.local) {
            (Endpoint::Internet(peer), Endpoint::Internet(local)) => {
                introduce(version, (peer, local), self.secrecy.as_deref())
            }
            // A client of a Unix socket has no address to tell.
            _ => introduce_self(version),
        }
    }
}
