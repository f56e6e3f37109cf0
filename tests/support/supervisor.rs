//! A supervisor as systemd is one to its services: notifications, the descriptor store, sockets of socket units.
//! Used by tests that start the daemon again and again. Never a real one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{PATIENCE, PROXY, Site, await_end, pid, serving, text};

/// What systemd is to a service: it hears notifications, keeps what it is given, and gives it back at the next start.
pub struct Supervisor {
    path: PathBuf,
    socket: UnixDatagram,
    pub store: BTreeMap<String, OwnedFd>,
    pub child: Option<Child>,
    /// By which a service knows what its supervisor can do.
    pub says: Vec<(&'static str, &'static str)>,
}

impl Supervisor {
    pub fn new(site: &Site) -> Self {
        let path = site.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Self { path, socket, store: BTreeMap::new(), child: None, says: vec![("SYSTEMD_EXEC_PID", "1")] }
    }

    /// Starts the service with all that is kept, and with sockets of a socket unit by name; returns when it is ready.
    pub fn start(&mut self, site: &Site, units: &[(&str, &dyn AsFd)]) -> u32 {
        let child = self.command(site, units).spawn().unwrap();
        let child = self.child.insert(child).id();
        self.hear_until(|lines| lines.contains(&"READY=1"));
        child
    }

    /// Starts a service that is not going to serve; returns what it says.
    pub fn refused(&mut self, site: &Site, units: &[(&str, &dyn AsFd)]) -> String {
        let mut command = self.command(site, units);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                kill(pid(child.id()), Signal::SIGTERM).unwrap();
                panic!("it serves");
            }
            std::thread::yield_now();
        };
        assert!(!status.success());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    fn command(&mut self, site: &Site, units: &[(&str, &dyn AsFd)]) -> Command {
        self.catch_up();
        let units =
            units.iter().map(|(name, socket)| ((*name).to_owned(), socket.as_fd().try_clone_to_owned().unwrap()));
        let kept = self.store.iter().map(|(name, fd)| (name.clone(), fd.try_clone().unwrap()));
        let (sockets, files): (Vec<_>, Vec<_>) = units.chain(kept).partition(|(_, fd)| is_socket(fd));
        assert!(sockets.len() <= 2, "a socket travels as stdin or stdout");
        let mut names: Vec<_> = sockets.iter().map(|(name, _)| name.clone()).collect();
        let mut script = String::new();
        for (place, _) in sockets.iter().enumerate() {
            script += &format!("exec {}<&{place}; ", place + 3);
        }
        for (place, (name, _)) in files.iter().enumerate() {
            // The copy is closed before the command runs.
            let from = format!("/proc/{}/fd/{}", std::process::id(), self.store[name].as_raw_fd());
            script += &format!("exec {}<>{from}; ", place + 3 + sockets.len());
            names.push(name.clone());
        }
        let count = names.len();
        if count > 0 {
            script += &format!("export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES='{}'; ", names.join(":"));
        }
        script += "exec </dev/null >/dev/null; exec \"$0\" \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", &script, PROXY, "run", "-q", "-f"]).arg(site.config());
        command.env("NOTIFY_SOCKET", &self.path).envs(self.says.iter().copied());
        let mut sockets = sockets.into_iter().map(|(_, socket)| Stdio::from(socket));
        command.stdin(sockets.next().unwrap_or_else(Stdio::null));
        command.stdout(sockets.next().unwrap_or_else(Stdio::null));
        command
    }

    /// Hears notifications until one of them is what is waited for.
    pub fn hear_until(&mut self, wanted: impl Fn(&[&str]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "never heard it; kept: {:?}", self.store.keys());
            let Some((said, fds)) = self.hear() else { continue };
            self.obey(&said, fds);
            if wanted(&said.lines().collect::<Vec<_>>()) {
                return;
            }
        }
    }

    /// Hears everything that has been said.
    pub fn catch_up(&mut self) {
        while let Some((said, fds)) = self.hear() {
            self.obey(&said, fds);
        }
    }

    fn obey(&mut self, said: &str, fds: Vec<OwnedFd>) {
        let name = said.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default().to_owned();
        if said.lines().any(|line| line == "FDSTORE=1") {
            for fd in fds {
                assert!(self.store.insert(name.clone(), fd).is_none(), "{name} is given twice");
            }
        }
        if said.lines().any(|line| line == "FDSTOREREMOVE=1") {
            assert!(self.store.remove(&name).is_some(), "{name} was not kept");
        }
    }

    fn hear(&self) -> Option<(String, Vec<OwnedFd>)> {
        let (mut bytes, mut space) = ([0; 4096], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
        let mut fds = Vec::new();
        for item in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = item {
                fds.extend(received);
            }
        }
        Some((text(&bytes[..message.bytes]), fds))
    }

    pub fn count(&self, prefix: &str) -> usize {
        self.store.keys().filter(|name| name.starts_with(prefix)).count()
    }

    /// Everything that keeps a process of the service ends, the hard way.
    pub fn kill_all(&mut self, site: &Site) {
        let worker = serving(&site.status());
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // A worker without a master ends by itself, but later than this test can wait.
        let _ = kill(pid(worker), Signal::SIGKILL);
        await_end(worker);
    }

    /// As `systemctl restart` and `stop` begin.
    pub fn terminate(&mut self) {
        let mut child = self.child.take().unwrap();
        kill(pid(child.id()), Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = kill(pid(child.id()), Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

fn is_socket(fd: &OwnedFd) -> bool {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().to_string_lossy().starts_with("socket:")
}

/// Connects and asks; nobody may be there to answer yet.
pub fn asking(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /queued HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

pub fn is_answered(mut stream: TcpStream) -> bool {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).is_ok_and(|_| answer.starts_with("HTTP/1.1 200") && answer.contains("/queued"))
}
