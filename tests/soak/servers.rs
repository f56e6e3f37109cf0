//! Servers that die now and then, and come back on the same port: an echo that also gives downloads and tunnels.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use socket2::{Domain, Socket, Type};

use crate::support::Port;
use crate::support::client::{read_head, read_message};
use crate::support::origin::{download, ok};

const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: soak\r\n\r\n";

/// What a server does with its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trade {
    /// HTTP: echoes what it is asked, gives `/…?SIZE` that many bytes, switches protocols where it is asked to.
    Web,
    /// Sends back what it gets, until the end.
    Echo,
}

/// A server that can die.
pub struct Mortal {
    pub address: SocketAddr,
    /// Nobody else gets it while the server is dead.
    _port: Port,
    trade: Trade,
    alive: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Mortal {
    pub fn new(trade: Trade) -> Self {
        let port = Port::new();
        let mut mortal =
            Self { address: port.address, _port: port, trade, alive: Arc::default(), open: Arc::default() };
        mortal.live();
        mortal
    }

    /// Begins to serve, on the port it had before.
    pub fn live(&mut self) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&self.address.into()).unwrap();
        socket.listen(1024).unwrap();
        let listener: TcpListener = socket.into();
        self.alive = Arc::new(AtomicBool::new(true));
        let (trade, alive, open) = (self.trade, Arc::clone(&self.alive), Arc::clone(&self.open));
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if !alive.load(Ordering::SeqCst) {
                    return;
                }
                open.lock().unwrap().push(stream.try_clone().unwrap());
                std::thread::spawn(move || match trade {
                    Trade::Web => web(stream),
                    Trade::Echo => echo(BufReader::new(stream.try_clone().unwrap()), stream),
                });
            }
        });
    }

    /// Closes the port, and breaks off every connection.
    pub fn die(&self) {
        self.alive.store(false, Ordering::SeqCst);
        // Its thread looks around when somebody comes.
        drop(TcpStream::connect(self.address));
        self.hang_up();
    }

    /// Ends every connection.
    pub fn hang_up(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            // It may be over already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn web(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(buffered) = peek(&mut reader) {
        if buffered {
            let Some(_head) = read_head(&mut reader) else { break };
            if stream.write_all(SWITCH).is_ok() {
                echo(reader, stream);
            }
            return;
        }
        let Some(request) = read_message(&mut reader, false).filter(|request| request.complete) else { break };
        let size = request.path().split_once('?').and_then(|(_, size)| size.parse().ok());
        let answer = match size {
            Some(size) => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
                [head.as_bytes(), &download(size)].concat()
            }
            None => ok(&format!("{}\n{}", request.line, request.text())),
        };
        if stream.write_all(&answer).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Whether the next request asks for a tunnel; `None` at the end.
fn peek(reader: &mut BufReader<TcpStream>) -> Option<bool> {
    let bytes = reader.fill_buf().ok().filter(|bytes| !bytes.is_empty())?;
    Some(bytes.starts_with(b"GET /tunnel"))
}

fn echo(mut reader: BufReader<TcpStream>, mut stream: TcpStream) {
    // What was read ahead belongs to the tunnel.
    let _ = std::io::copy(&mut reader, &mut stream);
    let _ = stream.shutdown(Shutdown::Write);
}
