//! Who listens on an address: the kernel's tables in /proc/net and the descriptors of every process.
//! Called by `bind` for its error message. Best effort: of another user's process only the user may be known.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use nix::unistd::{Uid, User};

use super::path::settled;
use crate::config::Address;

/// A listening socket of a table.
#[derive(Debug, PartialEq, Eq)]
struct Listening {
    inode: String,
    /// Whose it is; the table of Unix sockets does not say.
    uid: Option<u32>,
}

/// "pid 123 (nginx)", if it can be found out, else whose process it is.
pub(super) fn of(address: &Address) -> Option<String> {
    let read = |table| fs::read_to_string(table).unwrap_or_default();
    let listening = match address {
        Address::Internet(address) => {
            let (four, six) = (read("/proc/net/tcp"), read("/proc/net/tcp6"));
            listeners(&four, *address).chain(listeners(&six, *address)).collect::<Vec<_>>()
        }
        Address::Unix(path) => unix_listeners(&read("/proc/net/unix"), path).collect(),
        Address::Passed(_) => Vec::new(),
    };
    process(&listening).or_else(|| {
        let uid = listening.iter().find_map(|socket| socket.uid)?;
        let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| format!(" ({})", user.name));
        Some(format!("a process of uid {uid}{}", name.unwrap_or_default()))
    })
}

fn process(listening: &[Listening]) -> Option<String> {
    let links: Vec<_> = listening.iter().map(|socket| format!("socket:[{}]", socket.inode)).collect();
    fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|process| {
        let pid = process.file_name().to_str()?.parse::<u32>().ok()?;
        let holds = fs::read_dir(process.path().join("fd")).ok()?.filter_map(Result::ok).any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|target| links.iter().any(|link| *target.as_os_str() == **link))
        });
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        holds.then(|| format!("pid {pid} ({})", name.trim()))
    })
}

/// Sockets that listen where `wanted` cannot be bound beside them, from a table as proc(5) describes it.
fn listeners(table: &str, wanted: SocketAddr) -> impl Iterator<Item = Listening> {
    table.lines().skip(1).filter_map(move |line| {
        let mut columns = line.split_whitespace();
        let (ip, port) = columns.nth(1)?.rsplit_once(':')?;
        let state = columns.nth(1)?;
        let uid = columns.nth(3)?.parse().ok();
        let inode = columns.nth(1)?.to_owned();
        let (ip, port) = (address(ip)?, u16::from_str_radix(port, 16).ok()?);
        let overlap = ip == wanted.ip() || ip.is_unspecified() || wanted.ip().is_unspecified();
        (state == "0A" && port == wanted.port() && overlap).then_some(Listening { inode, uid })
    })
}

/// An address as the kernel prints it: hexadecimal words in the byte order of the machine.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    if hex.len() == 8 {
        return Some(IpAddr::V4(Ipv4Addr::from(word(0)?)));
    }
    let mut bytes = [0; 16];
    for (place, part) in bytes.chunks_exact_mut(4).enumerate() {
        part.copy_from_slice(&word(place * 8)?);
    }
    let ip = Ipv6Addr::from(bytes);
    Some(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4))
}

/// Unix sockets of a path that listen: flag `__SO_ACCEPTCON`.
fn unix_listeners(table: &str, wanted: &Path) -> impl Iterator<Item = Listening> {
    table.lines().skip(1).filter_map(move |line| {
        let mut columns = line.split_whitespace();
        let flags = u32::from_str_radix(columns.nth(3)?, 16).ok()?;
        let inode = columns.nth(2)?.to_owned();
        let path = columns.next()?;
        (flags & 0x1_0000 != 0 && settled(Path::new(path)) == wanted).then_some(Listening { inode, uid: None })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_of_the_address_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 4242 1 0 100 0 0 10 0\n\
            1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4343 1 0 100 0 0 10 0\n\
            2: 0200007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4444 1 0 100 0 0 10 0\n\
            3: 00000000000000000000000000000000:1F91 00000000000000000000000000000000:0000 0A 0:0 00:0 0 7 0 4545 1\n";
        let found = |address: &str| listeners(table, address.parse().unwrap()).collect::<Vec<_>>();
        let here = |inode: &str, uid| Listening { inode: inode.into(), uid: Some(uid) };
        assert_eq!(found("127.0.0.1:8080"), [here("4242", 33)]);
        assert_eq!(found("0.0.0.0:8080"), [here("4242", 33), here("4444", 0)]);
        assert_eq!(found("10.0.0.1:8081"), [here("4545", 7)]);
        assert!(found("127.0.0.1:80").is_empty());
    }

    #[test]
    fn a_unix_socket_is_found_under_the_name_it_was_bound_with() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 111 /run/a.sock.77.tmp\n\
            0000000000000000: 00000002 00000000 00000000 0001 03 222 /run/a.sock.77.tmp\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 333\n";
        let found: Vec<_> = unix_listeners(table, Path::new("/run/a.sock")).map(|found| found.inode).collect();
        assert_eq!(found, ["111"]);
    }
}
