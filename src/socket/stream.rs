//! A connected TCP or Unix stream, read and written without the C library in between.
//! What connections of `upstream` and `proxy` are made of. Never buffers, never blocks.
//!
//! The C library's recv(3) and send(3) are cancellation points (pthreads(7)): in a program of several threads each call
//! switches cancellation on and off again, which shows where a request is four calls. A connection that never has to wait
//! is no business of the event loop's either: who asks once and is answered costs it nothing.

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// The stream.
#[derive(Debug)]
pub struct Socket(State);

#[derive(Debug)]
enum State {
    /// Has not had to wait for anything yet: the event loop does not know it. It is read once like this: whoever goes on
    /// reading has to let others have their turn, which the event loop sees to.
    Fresh { socket: OwnedFd, unread: bool },
    /// The event loop knows it.
    Known(TcpStream),
    /// The event loop had no room for it: as good as reset.
    Lost,
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self(State::Known(stream))
    }
}

/// For a descriptor that does not block.
impl From<OwnedFd> for Socket {
    fn from(socket: OwnedFd) -> Self {
        Self(State::Fresh { socket, unread: true })
    }
}

impl Socket {
    /// The descriptor, for whatever is neither reading nor writing.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            State::Fresh { socket, .. } => Some(socket.as_fd()),
            State::Known(stream) => Some(stream.as_fd()),
            State::Lost => None,
        }
    }

    /// The stream, if the event loop knows it.
    #[must_use]
    pub fn tcp(&self) -> Option<&TcpStream> {
        if let State::Known(stream) = &self.0 { Some(stream) } else { None }
    }

    /// The stream, which the event loop knows from now on.
    ///
    /// # Errors
    /// No room in the event loop (epoll_ctl(2)); the stream is closed then.
    pub fn known(&mut self) -> io::Result<&TcpStream> {
        if let State::Fresh { .. } = self.0
            && let State::Fresh { socket, .. } = std::mem::replace(&mut self.0, State::Lost)
        {
            self.0 = State::Known(TcpStream::from_std(socket.into())?);
        }
        self.tcp().ok_or_else(|| ErrorKind::NotConnected.into())
    }

    /// The same for good.
    #[must_use]
    pub fn into_tcp(mut self) -> Option<TcpStream> {
        self.known().ok()?;
        if let State::Known(stream) = self.0 { Some(stream) } else { None }
    }

    /// Reads without taking away.
    ///
    /// # Errors
    /// What recv(2) says.
    pub async fn peek(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| {
            let call = |fd: BorrowedFd<'_>| recv(fd, &mut *bytes, RecvFlags::PEEK).map(|(count, _)| count);
            // However much there is, it stays there.
            self.poll_call(cx, (Interest::READABLE, 0), call)
        })
        .await
    }

    /// Calls the kernel until it does something; it is told by `asked` how much was asked for.
    fn poll_call(
        &mut self,
        cx: &mut Context<'_>,
        (interest, asked): (Interest, usize),
        mut call: impl FnMut(BorrowedFd<'_>) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        if let State::Fresh { socket, unread } = &self.0
            && (*unread || interest.is_writable())
        {
            match call(socket.as_fd()) {
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                done => return Poll::Ready(done.map_err(io::Error::from)),
            }
        }
        let stream = self.known()?;
        loop {
            ready!(if interest.is_readable() { stream.poll_read_ready(cx) } else { stream.poll_write_ready(cx) })?;
            match stream.try_io(interest, || Ok(call(stream.as_fd())?)) {
                Ok(done) => {
                    if 0 < done && done < asked {
                        exhaust(stream, interest);
                    }
                    return Poll::Ready(Ok(done));
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// Has the other side see a break instead of an end when this is closed.
pub fn reset_on_close(socket: BorrowedFd<'_>) {
    // Best effort: without it the other side sees an end.
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}

/// Less than was asked for means that there is no more: the event loop will say when there is, and the call that
/// would be refused is spared (epoll(7), "Do I need to continuously read/write a file descriptor until EAGAIN").
/// Right only where the event loop runs on this very thread, as all of ours do: what it heard between the call and
/// this would be forgotten.
fn exhaust(stream: &TcpStream, interest: Interest) {
    let _ = stream.try_io(interest, || Err::<(), _>(ErrorKind::WouldBlock.into()));
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.initialize_unfilled();
        let asked = room.len();
        let call = |fd: BorrowedFd<'_>| recv(fd, &mut *room, RecvFlags::empty()).map(|(count, _)| count);
        let received = ready!(self.poll_call(cx, (Interest::READABLE, asked), call))?;
        buf.advance(received);
        if let State::Fresh { unread, .. } = &mut self.0 {
            *unread = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let call = |fd: BorrowedFd<'_>| send(fd, bytes, SendFlags::NOSIGNAL);
        self.poll_call(cx, (Interest::WRITABLE, bytes.len()), call)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let asked = bufs.iter().map(|buf| buf.len()).sum();
        let call = |fd: BorrowedFd<'_>| sendmsg(fd, bufs, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL);
        self.poll_call(cx, (Interest::WRITABLE, asked), call)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing is held back.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(socket) = self.fd() else { return Poll::Ready(Ok(())) };
        Poll::Ready(Ok(shutdown(socket, Shutdown::Write)?))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near.into(), listener.accept().await.unwrap().0.into())
    }

    #[tokio::test(flavor = "current_thread")]
    async fn more_than_the_kernel_holds_arrives_whole_and_then_the_end() {
        let (mut near, mut far) = pair().await;
        let sent: Vec<u8> = (0..8_000_000_u32).map(|number| number.to_le_bytes()[number as usize % 3]).collect();
        let mut received = Vec::new();
        let sending = async {
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let (_sent, read) = tokio::join!(sending, far.read_to_end(&mut received));
        assert_eq!((read.unwrap(), received == sent), (sent.len(), true));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn one_that_the_event_loop_does_not_know_waits_as_well_as_one_that_it_knows() {
        let (near, mut far) = pair().await;
        let socket = OwnedFd::from(near.into_tcp().unwrap().into_std().unwrap());
        let mut near = Socket::from(socket);
        let mut byte = [0; 16];
        far.write_all(b"at once").await.unwrap();
        far.tcp().unwrap().writable().await.unwrap();
        assert_eq!((near.peek(&mut byte).await.unwrap(), near.read(&mut byte).await.unwrap()), (7, 7));
        near.write_all(b"at once").await.unwrap();
        assert!(near.tcp().is_none(), "nobody has waited yet");
        let (read, _written) = tokio::join!(near.read(&mut byte), async {
            tokio::task::yield_now().await;
            far.write_all(b"late").await.unwrap();
        });
        assert_eq!((read.unwrap(), near.tcp().is_some()), (4, true));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn whoever_sends_without_pause_does_not_keep_the_thread_for_himself() {
        const READS: usize = 2000;
        let (near, mut far) = pair().await;
        let mut near = Socket::from(OwnedFd::from(near.into_tcp().unwrap().into_std().unwrap()));
        far.write_all(&[7; READS * 16]).await.unwrap();
        let turns = Rc::new(Cell::new(0));
        let other = Rc::clone(&turns);
        let local = tokio::task::LocalSet::new();
        local.spawn_local(async move {
            loop {
                other.set(other.get() + 1);
                tokio::task::yield_now().await;
            }
        });
        let reading = async {
            for _ in 0..READS {
                near.read_exact(&mut [0; 16]).await.unwrap();
            }
        };
        local.run_until(reading).await;
        assert!(turns.get() > 10, "{}", turns.get());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_was_only_looked_at_can_be_read_at_once() {
        let (mut near, mut far) = pair().await;
        let mut byte = [0; 16];
        let (seen, _sent) = tokio::join!(near.peek(&mut byte), far.write_all(b"short"));
        assert_eq!(seen.unwrap(), 5);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut read = ReadBuf::new(&mut byte);
        assert!(Pin::new(&mut near).poll_read(&mut context, &mut read).is_ready());
        assert_eq!(read.filled(), b"short");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn more_than_fits_waits_on_one_that_the_event_loop_does_not_know() {
        let (near, mut far) = pair().await;
        let mut near = Socket::from(OwnedFd::from(near.into_tcp().unwrap().into_std().unwrap()));
        let sending = async {
            near.write_all(&vec![7; 8_000_000]).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (_sent, read) = tokio::join!(sending, far.read_to_end(&mut received));
        assert_eq!(read.unwrap(), 8_000_000);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn slices_leave_in_order() {
        let (mut near, mut far) = pair().await;
        let slices = [IoSlice::new(b"one "), IoSlice::new(b""), IoSlice::new(b"two")];
        assert_eq!(near.write_vectored(&slices).await.unwrap(), 7);
        let mut received = [0; 7];
        far.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"one two");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_has_read_everything_is_woken_by_what_comes_next() {
        let (mut near, mut far) = pair().await;
        for number in 0..100_u8 {
            let (mut byte, sent) = ([0; 16], [number]);
            let (read, _written) = tokio::join!(far.read(&mut byte), near.write_all(&sent));
            assert_eq!((read.unwrap(), byte[0]), (1, number));
        }
    }
}
