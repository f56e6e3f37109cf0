//! What the kernel says of processes and listening sockets (proc(5)).

use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};

use super::{PATIENCE, pid};

/// A process that stands still; goes on at the latest when this is dropped.
pub struct Stopped(u32);

impl Stopped {
    /// Returns when no thread of the process runs any more: from now on it accepts nobody.
    pub fn new(number: u32) -> Self {
        kill(pid(number), Signal::SIGSTOP).unwrap();
        let stopped = Self(number);
        let deadline = Instant::now() + PATIENCE;
        while !stopped.still() {
            assert!(Instant::now() < deadline, "process {number} does not stop");
            std::thread::yield_now();
        }
        stopped
    }

    /// Whether all its threads stand still.
    pub fn still(&self) -> bool {
        fs::read_dir(format!("/proc/{}/task", self.0)).unwrap().all(|thread| {
            let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // A process that was killed meanwhile does not mind.
        let _ = kill(pid(self.0), Signal::SIGCONT);
    }
}

/// A socket that listens: how many connections wait in its queue, and its inode.
#[derive(Debug, PartialEq, Eq)]
pub struct Listening {
    pub queued: usize,
    pub inode: String,
}

/// The sockets that listen on the port of an address.
pub fn listening(address: SocketAddr) -> Vec<Listening> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X}", address.port());
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[1].ends_with(&port) && row[3] == "0A")
        .map(|row| {
            let (_, queued) = row[4].split_once(':').unwrap();
            Listening { queued: usize::from_str_radix(queued, 16).unwrap(), inode: row[9].to_owned() }
        })
        .collect()
}

/// Waits until so many connections wait in the queues of an address.
pub fn await_queued(address: SocketAddr, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let queued: usize = listening(address).iter().map(|socket| socket.queued).sum();
        if queued == count {
            return;
        }
        assert!(Instant::now() < deadline, "{queued} instead of {count} connections are queued");
        std::thread::yield_now();
    }
}

/// Open descriptors of a process.
pub fn descriptors(number: u32) -> usize {
    fs::read_dir(format!("/proc/{number}/fd")).unwrap().count()
}

/// What the open descriptors of a process lead to.
pub fn descriptor_names(number: u32) -> Vec<String> {
    let fds = fs::read_dir(format!("/proc/{number}/fd")).unwrap();
    // One that is closed meanwhile is none.
    let names = fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// Open descriptors of a process: those of pipes, and all others.
pub fn pipes_and_others(number: u32) -> (usize, usize) {
    let names = descriptor_names(number);
    let pipes = names.iter().filter(|name| name.starts_with("pipe:")).count();
    (pipes, names.len() - pipes)
}

/// Resident memory of a process in KiB.
pub fn resident(number: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{number}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Lets this process open so many descriptors.
pub fn allow_descriptors(count: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(hard >= count, "this needs {count} descriptors, the hard limit is {hard} (ulimit -Hn)");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(count), hard).unwrap();
}

/// The length to which the queue of a listening TCP socket may grow, as sock_diag(7) tells it.
pub fn backlog(address: SocketAddr) -> u32 {
    use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket};
    let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag);
    let asking = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).unwrap();
    // SOCK_DIAG_BY_FAMILY, a dump of everything: AF_INET, IPPROTO_TCP, state LISTEN.
    let mut request = [0_u8; 72];
    request[0] = 72;
    request[4] = 20;
    request[6..8].copy_from_slice(&0x301_u16.to_ne_bytes());
    request[16..18].copy_from_slice(&[2, 6]);
    request[20..24].copy_from_slice(&(1_u32 << 10).to_ne_bytes());
    let kernel = NetlinkAddr::new(0, 0);
    sendto(asking.as_raw_fd(), &request, &kernel, nix::sys::socket::MsgFlags::empty()).unwrap();
    let number = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
    let mut found = None;
    loop {
        let mut buffer = vec![0; 64 * 1024];
        let length = nix::unistd::read(&asking, &mut buffer).unwrap();
        let mut left = &buffer[..length];
        while left.len() >= 16 {
            let size = usize::try_from(number(&left[..4])).unwrap();
            // NLMSG_DONE.
            if left[4] == 3 {
                return found.unwrap_or_else(|| panic!("nobody listens on {address}"));
            }
            assert_eq!(left[4], 20, "the kernel refuses");
            if left[20..22] == address.port().to_be_bytes() {
                found = Some(number(&left[76..80]));
            }
            left = &left[size.next_multiple_of(4).min(left.len())..];
        }
    }
}
