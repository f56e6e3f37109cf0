//! HAProxy itself, as its package installs it: to be replaced, to be followed, to be compared with.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};

use super::{PATIENCE, pid};

/// Where distributions put it; not everybody's PATH has this folder.
const HAPROXY: &str = "/usr/sbin/haproxy";

/// A running HAProxy; killed when dropped.
pub struct Haproxy(Child);

impl Haproxy {
    /// Starts it with a configuration; returns when somebody listens on `address` and `serves` says yes.
    pub fn start(
        folder: &Path,
        configuration: &str,
        arguments: &[&str],
        (address, serves): (SocketAddr, impl Fn() -> bool),
    ) -> Self {
        assert!(Path::new(HAPROXY).exists(), "{HAPROXY} is not installed, and this test is about it");
        let file = folder.join("haproxy.cfg");
        fs::write(&file, configuration).unwrap();
        let mut command = Command::new(HAPROXY);
        command.args(["-db", "-f"]).arg(&file).args(arguments).stdin(Stdio::null());
        let mut haproxy = Self(command.spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while !serves() || TcpStream::connect(address).is_err() {
            assert!(haproxy.0.try_wait().unwrap().is_none(), "haproxy has ended");
            assert!(Instant::now() < deadline, "haproxy does not serve");
        }
        haproxy
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill(pid(self.0.id()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}
