//! Servers that fail as they are told, for tests of what is made of it.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, mpsc};

use super::client::{Message, read_head};
use super::origin::{Origin, ok};
use super::{PATIENCE, reset};

/// Reads whatever still comes, until the end.
pub fn until_end(mut stream: impl std::io::Read) -> Option<TcpStream> {
    let mut buffer = [0; 65_536];
    while matches!(stream.read(&mut buffer), Ok(1..)) {}
    None
}

/// A server that fails as its request's path says; what has to wait until the client has seen something waits for `go`.
pub fn faulty(go: mpsc::Receiver<()>) -> Origin {
    let go = Mutex::new(go);
    Origin::new(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(head) = read_head(&mut reader) {
            let length: u64 = head.field("content-length").map_or(0, |length| length.parse().unwrap());
            if head.path() == "/ok" {
                let _ = reader.by_ref().take(length).read_to_end(&mut Vec::new());
            }
            stream.write_all(said(&head).as_bytes()).unwrap();
            match head.path() {
                "/ok" | "/ok?q=1" | "/hints" | "/continue" | "/trailers" | "/missing" => continue,
                "/reset" => reset(stream),
                "/endless" => while stream.write_all(&[0; 65_536]).is_ok() {},
                "/silent" | "/stall" | "/early" | "/upgrade" | "/upload" | "/welcome" => drop(until_end(&mut reader)),
                "/late-nonsense" => {
                    go.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                    stream.write_all(b"nonsense\r\n").unwrap();
                    until_end(&mut reader);
                }
                "/late" => {
                    go.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                    let _ = stream.write_all(&ok("late"));
                }
                _ => {}
            }
            return;
        }
    })
}

fn said(head: &Message) -> &'static str {
    match head.path() {
        "/ok" if head.line.starts_with("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        "/ok" | "/ok?q=1" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "/early" => "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n",
        "/hints" => "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "/continue" => "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "/welcome" => "HTTP/1.1 100 Continue\r\n\r\n",
        "/missing" => "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone",
        "/trailers" => {
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: sum\r\n\r\n5\r\nhello\r\n0\r\nsum: 1\r\n\r\n"
        }
        "/until-close" => "HTTP/1.1 200 OK\r\n\r\nto the end",
        "/ssh" => "SSH-2.0-OpenSSH_9.9\r\n\r\n",
        "/half-a-head" => "HTTP/1.1 200 OK\r\nContent-",
        "/two-lengths" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        "/short" | "/reset" | "/stall" => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "/short-chunks" | "/late-nonsense" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "/nonsense" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        "/more" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi and more",
        "/upgrade" => {
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        }
        "/endless" => "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n",
        _ => "",
    }
}

/// A server of streams that does what their first four bytes say.
pub fn faulty_stream() -> Origin {
    Origin::new(|mut stream| {
        let mut word = [0; 4];
        if stream.read_exact(&mut word).is_err() {
            return;
        }
        match &word {
            b"echo" => {
                stream.write_all(&word).unwrap();
                until_end(stream);
            }
            b"kill" => {
                stream.write_all(b"part").unwrap();
                reset(stream);
            }
            b"floo" => while stream.write_all(&[0; 65_536]).is_ok() {},
            b"none" => drop(until_end(stream)),
            b"gone" => reset(stream),
            // Says it is done, and goes on listening.
            b"half" => {
                stream.shutdown(Shutdown::Write).unwrap();
                until_end(stream);
            }
            // Never ends, whatever the client does; the thread ends with the test.
            b"hold" => loop {
                std::thread::park();
            },
            _ => {}
        }
    })
}
