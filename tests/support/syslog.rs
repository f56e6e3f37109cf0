//! A syslog daemon for tests that look at access lines.

use std::net::{SocketAddr, UdpSocket};

use super::PATIENCE;

/// Receives lines over UDP.
pub struct Syslog(UdpSocket);

impl Syslog {
    pub fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// The `[[log]]` section that leads here.
    pub fn section(&self) -> String {
        format!("[[log]]\ntarget = \"syslog+udp:{}\"\nonly = [\"access\"]\n", self.address())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// The next line without its prefix.
    pub fn line(&self) -> String {
        let mut buffer = [0; 65_536];
        let length = self.0.recv(&mut buffer).unwrap_or_else(|error| panic!("no log line: {error}"));
        let line = String::from_utf8(buffer[..length].to_vec()).unwrap();
        line.split_once("]: ").unwrap().1.to_owned()
    }

    /// The words of the next line.
    pub fn words(&self) -> Vec<String> {
        self.line().split(' ').map(str::to_owned).collect()
    }

    /// Lines that are there and that nobody has asked for.
    pub fn left(&self) -> usize {
        self.0.set_nonblocking(true).unwrap();
        let count = std::iter::from_fn(|| self.0.recv(&mut [0; 1]).ok()).count();
        self.0.set_nonblocking(false).unwrap();
        count
    }
}
