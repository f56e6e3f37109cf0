//! Both sides of the account: what clients did, and the access lines that came of it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Condvar, Mutex};

use socket2::SockRef;

use crate::support::PATIENCE;

/// How a request ended: the status, and whether the answer was whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub status: u16,
    pub whole: bool,
}

/// What clients did, by the name each request carries in its path.
#[derive(Clone, Default)]
pub struct Done(Arc<Mutex<BTreeMap<String, Outcome>>>);

impl Done {
    pub fn note(&self, name: String, outcome: Outcome) {
        let before = self.0.lock().unwrap().insert(name, outcome);
        assert!(before.is_none(), "a name was used twice");
    }

    pub fn take(&self) -> BTreeMap<String, Outcome> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// One access line, as far as the account needs it.
#[derive(Debug, Clone)]
pub struct Line {
    pub frontend: String,
    pub status: String,
    pub state: String,
    /// The path without its query; empty in TCP mode.
    pub path: String,
}

/// Receives access lines all the time.
pub struct Lines {
    address: SocketAddr,
    received: Arc<(Mutex<Vec<Line>>, Condvar)>,
}

impl Lines {
    pub fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        // A burst must fit, however busy the machine.
        SockRef::from(&socket).set_recv_buffer_size(64 << 20).unwrap();
        let address = socket.local_addr().unwrap();
        let received: Arc<(Mutex<Vec<Line>>, Condvar)> = Arc::default();
        let all = Arc::clone(&received);
        std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while let Ok(length) = socket.recv(&mut buffer) {
                let line = parsed(std::str::from_utf8(&buffer[..length]).unwrap());
                all.0.lock().unwrap().push(line);
                all.1.notify_all();
            }
        });
        Self { address, received }
    }

    pub fn section(&self) -> String {
        format!("[[log]]\ntarget = \"syslog+udp:{}\"\nonly = [\"access\"]\n", self.address)
    }

    /// Waits until there are so many lines of these frontends, then takes all there are.
    pub fn take(&self, frontends: &[&str], least: usize) -> Vec<Line> {
        let (received, changed) = &*self.received;
        let missing = |lines: &mut Vec<Line>| lines.iter().filter(|line| line.is_of(frontends)).count() < least;
        let (mut lines, _late) = changed.wait_timeout_while(received.lock().unwrap(), PATIENCE, missing).unwrap();
        std::mem::take(&mut *lines)
    }
}

impl Line {
    pub fn is_of(&self, frontends: &[&str]) -> bool {
        frontends.contains(&self.frontend.trim_end_matches('~'))
    }
}

/// Panics where a line is torn.
fn parsed(line: &str) -> Line {
    let (_, message) = line.split_once("]: ").unwrap_or_else(|| panic!("torn: {line}"));
    let words: Vec<_> = message.splitn(12, ' ').collect();
    let frontend = words[2].to_owned();
    if words.len() < 12 {
        assert!(words.len() == 9 && words[8] == "0/0", "torn: {line}");
        return Line { frontend, status: String::new(), state: words[6].to_owned(), path: String::new() };
    }
    let request = words[11].strip_prefix("0/0 \"").and_then(|rest| rest.strip_suffix('"'));
    let request = request.unwrap_or_else(|| panic!("torn: {line}"));
    let target = request.split(' ').nth(1).unwrap_or_default();
    // HTTP/2 has absolute ones.
    let target = target.split_once("://").map_or(target, |(_, rest)| &rest[rest.find('/').unwrap_or(0)..]);
    let path = target.split('?').next().unwrap_or_default().to_owned();
    Line { frontend, status: words[5].to_owned(), state: words[9].to_owned(), path }
}
