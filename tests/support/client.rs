//! A client for tests that never retries and takes nothing for granted.

use std::io::{BufRead, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::PATIENCE;

/// A request or response as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// First line.
    pub line: String,
    /// Header fields in order, names lower case.
    pub fields: Vec<(String, String)>,
    /// Body, chunks joined.
    pub body: Vec<u8>,
    /// Trailer fields of a chunked body, names lower case.
    pub trailers: Vec<(String, String)>,
    /// Whether the body was complete.
    pub complete: bool,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order, as a sender does that has said everything.
    Closed,
    /// Broken off.
    Reset,
}

impl Message {
    /// First value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.values(name).first().copied()
    }

    /// Every value of a field, in order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Path of a request.
    pub fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    /// Status code of a response.
    pub fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection to the daemon.
pub struct Client {
    pub reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { reader: BufReader::new(stream) }
    }

    /// Connects to a Unix socket, which is read and written as any other.
    pub fn connect_unix(path: &Path) -> Self {
        let stream = TcpStream::from(OwnedFd::from(UnixStream::connect(path).unwrap()));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { reader: BufReader::new(stream) }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.reader.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// The next response; `None` when the connection ended before one began.
    pub fn response(&mut self) -> Option<Message> {
        read_message(&mut self.reader, true)
    }

    /// The next response to a HEAD, or any other that has no body whatever its header says.
    pub fn head(&mut self) -> Option<Message> {
        read_head(&mut self.reader)
    }

    pub fn get(&mut self, path: &str) -> Message {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
        self.response().unwrap()
    }

    /// Sends a request and reads its response.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request);
        self.response().unwrap()
    }

    /// Everything until the connection ends.
    pub fn rest(&mut self) -> Vec<u8> {
        self.end().0
    }

    /// Everything until the connection ends, and how it ended; panics when it does not end.
    pub fn end(&mut self) -> (Vec<u8>, End) {
        let mut bytes = Vec::new();
        match self.reader.read_to_end(&mut bytes) {
            Ok(_) => (bytes, End::Closed),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => (bytes, End::Reset),
            Err(error) => panic!("the connection did not end: {error}"),
        }
    }

    /// Whether nothing more comes and the other side has ended the connection in order.
    pub fn at_end(&mut self) -> bool {
        matches!(self.reader.fill_buf(), Ok(bytes) if bytes.is_empty())
    }

    /// Whether nothing at all comes within a time: the opposite of an event has to be waited for.
    pub fn silent_for(&mut self, time: Duration) -> bool {
        self.reader.get_ref().set_read_timeout(Some(time)).unwrap();
        let silent = matches!(self.reader.fill_buf(), Err(error) if error.kind() == ErrorKind::WouldBlock);
        self.reader.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        silent
    }
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Message {
    Client::connect(address).get(path)
}

fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).ok()?;
    let line = line.strip_suffix(b"\r\n")?;
    Some(String::from_utf8_lossy(line).into_owned())
}

/// A head without looking for a body.
pub fn read_head(reader: &mut impl BufRead) -> Option<Message> {
    let mut message = Message { line: line(reader)?, ..Message::default() };
    message.fields = read_fields(reader)?;
    Some(message)
}

fn read_fields(reader: &mut impl BufRead) -> Option<Vec<(String, String)>> {
    let mut fields = Vec::new();
    loop {
        let field = line(reader)?;
        if field.is_empty() {
            return Some(fields);
        }
        let (name, value) = field.split_once(':')?;
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// A message with its body; `None` at a clean end or inside a head. Interim responses are messages too.
pub fn read_message(reader: &mut impl BufRead, response: bool) -> Option<Message> {
    let mut message = read_head(reader)?;
    let bodiless = response && (message.status() < 200 || matches!(message.status(), 204 | 304));
    if bodiless {
        message.complete = true;
    } else if message.field("transfer-encoding").is_some() {
        let trailers = read_chunks(reader, &mut message.body);
        message.complete = trailers.is_some();
        message.trailers = trailers.unwrap_or_default();
    } else if let Some(length) = message.field("content-length") {
        let length: u64 = length.parse().unwrap();
        let read = reader.take(length).read_to_end(&mut message.body);
        message.complete = read.is_ok_and(|read| read as u64 == length);
    } else if response {
        message.complete = reader.read_to_end(&mut message.body).is_ok();
    } else {
        message.complete = true;
    }
    Some(message)
}

/// Reads a chunked body; its trailers when it is complete.
fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Option<Vec<(String, String)>> {
    loop {
        let size = line(reader)?;
        let size = u64::from_str_radix(size.split(';').next()?, 16).ok()?;
        if size == 0 {
            return read_fields(reader);
        }
        let before = body.len();
        reader.by_ref().take(size).read_to_end(body).ok()?;
        if (body.len() - before) as u64 != size || !line(reader)?.is_empty() {
            return None;
        }
    }
}
