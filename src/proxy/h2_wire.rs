//! The connection below HTTP/2, shared between the library and whoever closes it in the end.
//! Made by `h2_connection`. Never looks at a frame beyond what `Watch` counts.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::io::ClientStream;
use crate::http::h2::{Budget, Watch};

/// What the library reads and writes.
#[derive(Clone)]
pub struct Wire(Rc<Shared>);

struct Shared {
    stream: RefCell<ClientStream>,
    /// Read before it was known that this is HTTP/2.
    input: RefCell<Vec<u8>>,
    watch: RefCell<Watch>,
    flood: Cell<Flood>,
}

/// Whether the client sends too much that is nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flood {
    No,
    /// Not told yet.
    Found,
    Told,
}

impl Wire {
    /// A connection from which `input` was read already.
    pub fn new(stream: ClientStream, input: Vec<u8>) -> Self {
        Self(Rc::new(Shared {
            stream: RefCell::new(stream),
            input: RefCell::new(input),
            watch: RefCell::new(Watch::new(Budget::default(), Instant::now())),
            flood: Cell::new(Flood::No),
        }))
    }

    /// The connection back, once the library has let go of it.
    pub fn into_stream(self) -> Option<ClientStream> {
        Rc::into_inner(self.0).map(|shared| shared.stream.into_inner())
    }

    /// Whether the client sends too much that is nothing; told once. Nothing more is read from it.
    pub fn take_flooded(&self) -> bool {
        let found = self.0.flood.get() == Flood::Found;
        if found {
            self.0.flood.set(Flood::Told);
        }
        found
    }

    fn count(&self, bytes: &[u8]) {
        if !self.0.watch.borrow_mut().read(bytes, Instant::now()) {
            self.0.flood.set(Flood::Found);
        }
    }

    fn counted(&self, written: io::Result<usize>) -> Poll<io::Result<usize>> {
        if let Ok(written) = written {
            self.0.watch.borrow_mut().wrote(written);
        }
        Poll::Ready(written)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.0.flood.get() != Flood::No {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let mut input = self.0.input.borrow_mut();
        if input.is_empty() {
            ready!(Pin::new(&mut *self.0.stream.borrow_mut()).poll_read(cx, buf))?;
        } else {
            let count = input.len().min(buf.remaining());
            buf.put_slice(&input[..count]);
            input.drain(..count);
        }
        self.count(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut *self.0.stream.borrow_mut()).poll_write(cx, buf));
        self.counted(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut *self.0.stream.borrow_mut()).poll_write_vectored(cx, bufs));
        self.counted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.stream.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_shutdown(cx)
    }
}
