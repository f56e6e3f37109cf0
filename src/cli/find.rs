//! The daemon that runs with a configuration, whatever its file says by now: an edit may have moved the admin socket.
//! Asked by `client` when nobody answers where the file points. Never trusts a name without having asked behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::master::facts_of;
use crate::socket::settled;

/// What our processes are called (proc(5), comm).
const NAME: &str = "proxy\n";

/// A connection to the daemon of this file, and the path of its admin socket.
pub(super) fn daemon(config: &Path) -> Option<(PathBuf, UnixStream)> {
    let inodes = sockets_of_daemons();
    let table = fs::read_to_string("/proc/net/unix").ok()?;
    let places = paths(&table, &inodes);
    let found = places.into_iter().find(|place| runs_with(place, config).unwrap_or(false))?;
    let stream = UnixStream::connect(&found).ok()?;
    Some((found, stream))
}

/// Inodes of the sockets that one process alone has of those that are called like us and that we may look at:
/// a master has its admin socket for itself, and shares those of its frontends with its workers.
fn sockets_of_daemons() -> BTreeSet<String> {
    let Ok(processes) = fs::read_dir("/proc") else { return BTreeSet::new() };
    let mut holders: BTreeMap<String, usize> = BTreeMap::new();
    for process in processes.filter_map(Result::ok) {
        if fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name == NAME)
            && let Ok(descriptors) = fs::read_dir(process.path().join("fd"))
        {
            let links = descriptors.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
            let inode = |link: PathBuf| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
            let own: BTreeSet<_> = links.filter_map(inode).collect();
            own.into_iter().for_each(|inode| *holders.entry(inode).or_default() += 1);
        }
    }
    holders.into_iter().filter(|(_, count)| *count == 1).map(|(inode, _)| inode).collect()
}

/// Where the listening ones of these sockets are, from a table as proc(5) describes it.
fn paths(table: &str, inodes: &BTreeSet<String>) -> BTreeSet<PathBuf> {
    table
        .lines()
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            let flags = u32::from_str_radix(columns.nth(3)?, 16).ok()?;
            let inode = columns.nth(2)?;
            let path = columns.next()?;
            // __SO_ACCEPTCON: it listens.
            (flags & 0x1_0000 != 0 && inodes.contains(inode)).then(|| settled(Path::new(path)))
        })
        .collect()
}

/// Whether the daemon behind a path runs with this configuration.
fn runs_with(place: &Path, config: &Path) -> Option<bool> {
    let its = PathBuf::from(facts_of(place)?.get("config")?.as_str()?);
    let same =
        |one: &Path, other: &Path| one.canonicalize().ok().is_some_and(|one| Some(one) == other.canonicalize().ok());
    Some(its == config || same(&its, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_of_the_right_processes_count() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0: 00000002 00000000 00010000 0001 01 111 /run/proxy/admin.sock.7.tmp\n\
            0: 00000002 00000000 00010000 0001 01 222 /run/other.sock\n\
            0: 00000003 00000000 00000000 0001 03 333 /run/proxy/admin.sock.7.tmp\n\
            0: 00000003 00000000 00000000 0001 03 444\n";
        let inodes = ["111", "333", "444"].map(String::from).into();
        assert_eq!(paths(table, &inodes), [PathBuf::from("/run/proxy/admin.sock")].into());
    }
}
