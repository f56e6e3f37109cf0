//! Pipes through which the kernel moves bytes from socket to socket (splice(2)), pooled per thread.
//! Used by `flow` and `pump`. Never copies a byte into this process but on its way to another one.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Empty pipes a thread keeps.
const SPARE: usize = 32;
/// Pipes of a thread: beyond this, bytes are copied.
const MOST: usize = 512;
/// Bytes asked for at once: what a pipe holds has to fit into a message to another worker.
const AT_ONCE: usize = 64 * 1024;

thread_local! {
    static POOL: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static ALIVE: Cell<usize> = const { Cell::new(0) };
}

/// Both ends of a pipe; counted while they are open.
struct Ends {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Drop for Ends {
    fn drop(&mut self) {
        // A thread that is ending has no count any more.
        let _ = ALIVE.try_with(|alive| alive.set(alive.get() - 1));
    }
}

/// A pipe and how many bytes are in it. Goes back to the pool when it is dropped empty.
pub(super) struct Pipe {
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// An empty pipe; `None` when there are too many, or no descriptors: then bytes are copied.
    pub(super) fn take() -> Option<Self> {
        let spare = POOL.with_borrow_mut(Vec::pop);
        let ends = match spare {
            Some(ends) => ends,
            None if ALIVE.get() >= MOST => return None,
            None => {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
                ALIVE.set(ALIVE.get() + 1);
                Ends { reader, writer }
            }
        };
        Some(Self { ends: Some(ends), held: 0 })
    }

    /// Bytes in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Takes in what a socket has, `most` bytes at most; 0 is its end. To be called on an empty pipe only: a full
    /// one would look like a socket that has nothing.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream, most: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || self.fill(from, most)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                filled => return Poll::Ready(filled),
            }
        }
    }

    /// Gives what it holds, or a part, to a socket.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || self.drain(to)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                drained => return Poll::Ready(drained),
            }
        }
    }

    fn fill(&mut self, from: impl AsFd, most: usize) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = splice(from, None, &ends.writer, None, most.min(AT_ONCE), flags)?;
        self.held += moved;
        Ok(moved)
    }

    fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let moved = splice(&ends.reader, None, to, None, self.held, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)?;
        self.held -= moved.min(self.held);
        Ok(moved)
    }

    /// Takes everything out, for a journey to another worker.
    pub(super) fn empty_into(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let Some(ends) = &self.ends else { return Ok(()) };
        let mut buffer = [0; 4096];
        while self.held > 0 {
            let read = nix::unistd::read(&ends.reader, &mut buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes.extend_from_slice(&buffer[..read]);
            self.held -= read.min(self.held);
        }
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        if self.held == 0 {
            // A thread that is ending has no pool any more, and closes them.
            let _ = POOL.try_with(|pool| {
                let mut pool = pool.borrow_mut();
                if pool.len() < SPARE {
                    pool.push(ends);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_an_empty_pipe_is_used_again() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let (out, mut end) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let mut pipe = Pipe::take().unwrap();
        assert_eq!(pipe.fill(&far, AT_ONCE).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        near.write_all(b"hello").unwrap();
        assert_eq!((pipe.fill(&far, AT_ONCE).unwrap(), pipe.held()), (5, 5));
        assert_eq!((pipe.drain(&out).unwrap(), pipe.held()), (5, 0));
        let mut read = [0; 5];
        end.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
        drop(near);
        assert_eq!(pipe.fill(&far, AT_ONCE).unwrap(), 0);
        drop(pipe);
        assert_eq!((ALIVE.get(), POOL.with_borrow(Vec::len)), (1, 1));
    }

    #[test]
    fn a_pipe_that_still_holds_something_is_never_used_again() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(b"secret").unwrap();
        let mut pipe = Pipe::take().unwrap();
        pipe.fill(&far, AT_ONCE).unwrap();
        drop(pipe);
        assert_eq!((ALIVE.get(), POOL.with_borrow(Vec::len)), (0, 0));
    }

    #[test]
    fn what_a_pipe_holds_can_be_taken_along() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&[7; 10_000]).unwrap();
        let mut pipe = Pipe::take().unwrap();
        let filled = pipe.fill(&far, AT_ONCE).unwrap();
        let mut bytes = Vec::new();
        pipe.empty_into(&mut bytes).unwrap();
        assert_eq!((bytes, pipe.held()), (vec![7; filled], 0));
    }

    #[test]
    fn pipes_are_bounded() {
        let all: Vec<_> = std::iter::from_fn(Pipe::take).take(MOST + 1).collect();
        assert!(all.len() <= MOST);
        drop(all);
        assert_eq!((ALIVE.get(), POOL.with_borrow(Vec::len)), (SPARE, SPARE));
    }
}
