//! The servers behind the products: an HTTP/1 origin as cheap as it can be, and a syslog sink that counts.
//! Started by `main`, on the load's core. Never the bottleneck by what it does, only by what the core gives.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memchr::memmem;
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, setsockopt, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of the answer to each path.
pub(crate) const SIZES: [(&str, usize); 3] = [("/120", 120), ("/64k", 64 * 1024), ("/1m", 1024 * 1024)];
/// Datagrams taken per system call.
const BATCH: usize = 64;
/// What the kernel may hold for a sink, so that no burst is lost there.
const SINK_BUFFER: usize = 64 * 1024 * 1024;

/// Starts the origin; returns where it listens.
pub(crate) fn start() -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::Builder::new().name("origin".to_owned()).spawn(move || runtime.block_on(serve(listener)))?;
    Ok(address)
}

async fn serve(listener: std::net::TcpListener) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let answers = Arc::new(SIZES.map(|(path, size)| (path.as_bytes(), answer(size))));
    loop {
        let (stream, _) = listener.accept().await?;
        let answers = Arc::clone(&answers);
        // A client that breaks off is the product's business.
        tokio::spawn(async move { converse(stream, &answers[..]).await });
    }
}

fn answer(size: usize) -> Vec<u8> {
    let mut bytes =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {size}\r\n\r\n").into_bytes();
    bytes.resize(bytes.len() + size, b'x');
    bytes
}

async fn converse(mut stream: TcpStream, answers: &[(&[u8], Vec<u8>)]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = vec![0; 64 * 1024];
    let mut filled = 0;
    loop {
        let head = loop {
            if let Some(end) = memmem::find(&input[..filled], b"\r\n\r\n") {
                break end + 4;
            }
            let read = stream.read(&mut input[filled..]).await?;
            if read == 0 {
                return Ok(());
            }
            filled += read;
        };
        let body = content_length(&input[..head]);
        let target = input[..head].split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        let answer = answers.iter().find(|(path, _)| *path == target).unwrap_or(&answers[0]);
        let mut left = body.saturating_sub(filled - head);
        filled = 0;
        while left > 0 {
            let read = stream.read(&mut input).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left = left.saturating_sub(read);
        }
        stream.write_all(&answer.1).await?;
    }
}

/// The value of the one Content-Length a head has; 0 without.
pub(crate) fn content_length(head: &[u8]) -> usize {
    const NAME: &[u8] = b"content-length:";
    let lines = head.split(|byte| *byte == b'\n');
    let mut values = lines.filter(|line| line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME));
    let text = values.next_back().map(|line| String::from_utf8_lossy(&line[NAME.len()..]).trim().to_owned());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A receiver of access lines.
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    lines: Arc<AtomicU64>,
}

impl Sink {
    /// Binds and starts counting.
    pub(crate) fn start() -> io::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        if setsockopt(&socket, sockopt::RcvBufForce, &SINK_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &SINK_BUFFER)?;
        }
        let (address, lines) = (socket.local_addr()?, Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&lines);
        std::thread::Builder::new().name("sink".to_owned()).spawn(move || receive(&socket, &count))?;
        Ok(Self { address, lines })
    }

    /// Access lines so far.
    pub(crate) fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }
}

/// Counts lines of requests: they alone quote one, or name the server of a TCP connection.
fn receive(socket: &UdpSocket, lines: &AtomicU64) {
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let mut buffers = vec![[0_u8; 512]; BATCH];
    loop {
        let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let received = recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_WAITFORONE, None);
        let lengths: Vec<usize> = received.map(|all| all.map(|one| one.bytes).collect()).unwrap_or_default();
        let access = lengths.iter().zip(&buffers).filter(|(length, line)| is_access(&line[..**length])).count();
        lines.fetch_add(access as u64, Ordering::Relaxed);
    }
}

fn is_access(line: &[u8]) -> bool {
    line.contains(&b'"') || memmem::find(line, b"pool/").is_some()
}
