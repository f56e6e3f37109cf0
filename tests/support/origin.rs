//! Origin servers for tests: a thread per connection, told by a closure what to do with it.

use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::PATIENCE;
use super::client::{Message, read_message};

/// An origin server; its thread ends with the test process.
pub struct Origin {
    pub address: SocketAddr,
    /// Connections accepted.
    pub connections: Arc<AtomicUsize>,
}

impl Origin {
    /// Every connection is given to `serve`.
    pub fn new(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (serve, count) = (Arc::new(serve), Arc::clone(&connections));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                count.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { address, connections }
    }

    /// Answers every request of a connection with what `answer` returns: a raw response.
    pub fn answering(answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::new(move |stream| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut writer = stream;
            while let Some(request) = read_message(&mut reader, false) {
                if writer.write_all(&answer(&request)).is_err() {
                    return;
                }
            }
        })
    }

    /// As [`Origin::answering`]; every request is told to the test before it is answered.
    pub fn recording(answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static) -> (Self, Requests) {
        let (sender, requests) = mpsc::channel();
        let origin = Self::answering(move |request| {
            // The test may be over already.
            let _ = sender.send(request.clone());
            answer(request)
        });
        (origin, Requests(requests))
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Answers 200 with the request's line and body, so that no client can get another one's answer unnoticed.
    pub fn echo() -> Self {
        Self::answering(|request| ok(&format!("{}\n{}", request.line, request.text())))
    }

    /// Answers `/slow…` with "first half, " at once and "second half" when the gate lets it; the rest like `echo`.
    pub fn gated() -> (Self, Gate) {
        let (arrive, arrived) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let released = Mutex::new(released);
        let origin = Self::new(move |stream| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut writer = stream;
            while let Some(request) = read_message(&mut reader, false) {
                let whole = ok(&format!("{}\n{}", request.line, request.text()));
                let sent = if request.line.contains(" /slow") {
                    let first = b"HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\nfirst half, ";
                    let sent = writer.write_all(first);
                    arrive.send(()).unwrap();
                    let _ended_with_the_test = released.lock().unwrap().recv();
                    sent.and_then(|()| writer.write_all(b"second half"))
                } else {
                    writer.write_all(&whole)
                };
                if sent.is_err() {
                    return;
                }
            }
        });
        (origin, Gate { arrived, release })
    }

    /// Answers every request with [`download`], piece by piece as the test allows; all connections go in step.
    pub fn paced(pieces: usize, size: usize) -> (Self, Pace) {
        let pace = Pace(Arc::default());
        let allowed = pace.clone();
        let body = download(pieces * size);
        let origin = Self::new(move |stream| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut writer = stream;
            while read_message(&mut reader, false).is_some() {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let mut sent = writer.write_all(head.as_bytes());
                for (number, piece) in body.chunks(size).enumerate() {
                    allowed.await_piece(number);
                    sent = sent.and_then(|()| writer.write_all(piece));
                }
                if sent.is_err() {
                    return;
                }
            }
        });
        (origin, pace)
    }

    /// Answers 200 with its own name as body.
    pub fn named(name: &'static str) -> Self {
        Self::answering(move |_| ok(name))
    }
}

/// An address where a connection is neither accepted nor refused: its queue is full.
pub struct Full {
    pub address: SocketAddr,
    _held: Vec<Socket>,
}

impl Full {
    pub fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut held = vec![listener];
        // The first ones find room; whoever is not connected soon never will be.
        while held.last().is_some_and(|last| held.len() == 1 || last.peer_addr().is_ok()) {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            // Its end is looked at above.
            let _ = client.connect_timeout(&address.into(), Duration::from_millis(300));
            held.push(client);
        }
        held.pop();
        Self { address, _held: held }
    }
}

/// What an origin was asked.
pub struct Requests(mpsc::Receiver<Message>);

impl Requests {
    /// The next request.
    pub fn next(&self) -> Message {
        self.0.recv_timeout(PATIENCE).unwrap()
    }

    /// How many came that nobody looked at.
    pub fn left(&self) -> usize {
        self.0.try_iter().count()
    }
}

/// What an origin holds back until the test lets it go on.
pub struct Gate {
    arrived: mpsc::Receiver<()>,
    release: mpsc::Sender<()>,
}

impl Gate {
    /// Waits until a request has arrived and half of its answer is sent.
    pub fn arrived(&self) {
        self.arrived.recv_timeout(PATIENCE).unwrap();
    }

    /// Lets one held request be answered to its end.
    pub fn release(&self) {
        self.release.send(()).unwrap();
    }
}

/// How far the downloads of [`Origin::paced`] may get.
#[derive(Clone)]
pub struct Pace(Arc<(Mutex<usize>, Condvar)>);

impl Pace {
    /// Lets every download have one more piece.
    pub fn allow(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_all();
    }

    /// From now on a download gets nothing, not even its first piece, before it is allowed anew.
    pub fn hold(&self) {
        *self.0.0.lock().unwrap() = 0;
    }

    fn await_piece(&self, number: usize) {
        let allowed = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(allowed, |allowed| *allowed <= number).unwrap());
    }
}

/// Bytes in which no piece looks like another: what is lost, doubled or swapped shows.
pub fn download(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).take(length.div_ceil(8)).flatten().take(length).collect()
}

/// A 200 response with a body.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
