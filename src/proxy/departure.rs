//! How an idle connection, or a tunnel, leaves a draining worker for its successor.
//! Made by `worker` for its threads, used by `connection`, `session`, `tunnel` and `obtain`. Never gives up a connection
//! that the other side has not taken.

use std::num::NonZeroU64;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, oneshot};

use crate::handoff::MAX_DESCRIPTORS;
use crate::handoff::messages::{MovingClient, MovingServer, MovingTunnel};

/// A connection that is ready to go, with a descriptor of its own.
pub enum Leaving {
    /// A client's; told whether it was taken.
    Client(MovingClient, OwnedFd, oneshot::Sender<bool>),
    /// A tunnel, the client's descriptor first; told whether it was taken.
    Tunnel(Box<MovingTunnel>, [OwnedFd; 2], oneshot::Sender<bool>),
    /// A server's; nobody misses it when it is not taken.
    Server(MovingServer, OwnedFd),
}

/// The way out of a draining worker.
#[derive(Debug, Clone)]
pub struct Departure {
    way: mpsc::UnboundedSender<Leaving>,
    /// Copies of descriptors that may be on their way at a time: all connections want to leave at once.
    room: Arc<Semaphore>,
    /// How many successors there have been.
    successors: Arc<AtomicU64>,
}

/// Room for both ends of a tunnel, once there is some.
pub(super) type Turn = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>>>>;

/// Two batches: one on its way, one being filled.
const ROOM: usize = 2 * MAX_DESCRIPTORS;

impl Departure {
    /// The way, and where the connections come out.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Leaving>) {
        let (way, receiver) = mpsc::unbounded_channel();
        (Self { way, room: Arc::new(Semaphore::new(ROOM)), successors: Arc::default() }, receiver)
    }

    /// Another worker is there: whom the last one did not take may try again.
    pub fn renew(&self) {
        self.successors.fetch_add(1, Ordering::AcqRel);
    }

    /// Who is asked now.
    pub(super) fn successor(&self) -> NonZeroU64 {
        NonZeroU64::MIN.saturating_add(self.successors.load(Ordering::Acquire))
    }

    /// Waits for a connection's turn.
    pub(super) async fn room(&self) -> Option<SemaphorePermit<'_>> {
        self.room.acquire().await.ok()
    }

    /// The turn of a tunnel, to be waited for beside its traffic.
    pub(super) fn turn(&self) -> Turn {
        let room = Arc::clone(&self.room);
        Box::pin(async move { room.acquire_many_owned(2).await.ok() })
    }

    /// Offers a client's connection, whose turn it is; true when somebody else owns it from now on.
    pub(super) async fn offer(&self, client: MovingClient, socket: BorrowedFd<'_>, _room: SemaphorePermit<'_>) -> bool {
        let Ok(copy) = socket.try_clone_to_owned() else { return false };
        let (tell, told) = oneshot::channel();
        self.way.send(Leaving::Client(client, copy, tell)).is_ok() && told.await.unwrap_or(false)
    }

    /// Offers a tunnel, whose turn it is; true when somebody else owns it from now on.
    pub(super) async fn offer_tunnel(&self, tunnel: MovingTunnel, [client, server]: [BorrowedFd<'_>; 2]) -> bool {
        let (Ok(client), Ok(server)) = (client.try_clone_to_owned(), server.try_clone_to_owned()) else {
            return false;
        };
        let (tell, told) = oneshot::channel();
        self.way.send(Leaving::Tunnel(Box::new(tunnel), [client, server], tell)).is_ok() && told.await.unwrap_or(false)
    }

    /// Sends a server's idle connection away.
    pub(super) fn send(&self, server: MovingServer, socket: TcpStream) {
        if let Ok(socket) = socket.into_std() {
            // A worker that is ending closes it, as it would have anyway.
            let _ = self.way.send(Leaving::Server(server, socket.into()));
        }
    }
}
