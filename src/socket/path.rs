//! The path of a Unix listening socket: bound under a name of its own, renamed into place, removed with it.
//! Called by `bind` and by `master` when a reload is decided. Never removes what is somebody else's.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::unistd::{Gid, Uid, chown};
use socket2::{Domain, SockAddr, Socket, Type};

use super::Sharing;
use crate::config::Access;

/// Where the path of a socket is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Life {
    /// Bound beside its place.
    Draft(PathBuf, Sharing),
    /// In its place, and removed with the socket.
    Ours,
    /// Put there by a daemon that is going to be replaced; ours once it is.
    Inherited,
    /// In its place; somebody else removes it.
    Foreign,
}

/// Who made a socket that we did not make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Former {
    /// A daemon that is replaced: what was its own becomes ours.
    Daemon,
    /// A supervisor, which looks after its paths itself.
    Supervisor,
}

/// A path that leads to a socket.
#[derive(Debug)]
pub(super) struct SocketPath {
    place: PathBuf,
    /// Device and inode of the socket's file; none when there was none any more.
    file: Option<(u64, u64)>,
    life: Mutex<Life>,
}

impl SocketPath {
    /// Binds a socket beside its place.
    pub(super) fn bind(place: &Path, sharing: Sharing) -> io::Result<(OwnedFd, Self)> {
        free(place, sharing)?;
        let draft = beside(place, "tmp");
        let _absent = fs::remove_file(&draft);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(&draft)?)?;
        let file = Some(file(&draft)?);
        Ok((socket.into(), Self { place: place.to_owned(), file, life: Mutex::new(Life::Draft(draft, sharing)) }))
    }

    /// The path of a socket that another process bound; none when it leads elsewhere by now.
    pub(super) fn of(name: &Path, former: Former) -> Option<Self> {
        Some(Self::named(name, former)).filter(|path| path.file.is_some())
    }

    /// The same, whether or not it leads anywhere.
    pub(super) fn named(name: &Path, former: Former) -> Self {
        let place = settled(name);
        let life = match former {
            Former::Daemon => Life::Inherited,
            Former::Supervisor => Life::Foreign,
        };
        Self { file: file(&place).ok(), place, life: Mutex::new(life) }
    }

    /// Whether it leads to the socket from this place.
    pub(super) fn leads_from(&self, place: &Path) -> bool {
        self.place == place && self.file.is_some() && file(place).ok() == self.file
    }

    /// Where it is, or is going to be.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Gives the file its owner and mode, wherever it is.
    pub(super) fn grant(&self, access: Access) -> io::Result<()> {
        if access == Access::default() {
            return Ok(());
        }
        let life = self.life();
        let path = if let Life::Draft(draft, _) = &*life { draft } else { &self.place };
        let now = fs::symlink_metadata(path)?;
        let (user, group) = (access.user.filter(|uid| *uid != now.uid()), access.group.filter(|gid| *gid != now.gid()));
        if user.is_some() || group.is_some() {
            chown(path, user.map(Uid::from_raw), group.map(Gid::from_raw))?;
        }
        match access.mode.filter(|mode| *mode != now.mode() & 0o777) {
            Some(mode) => fs::set_permissions(path, Permissions::from_mode(mode)),
            None => Ok(()),
        }
    }

    /// Puts a draft in its place; what another socket has there is kept beside it.
    pub(super) fn publish(&self) -> io::Result<Option<Displaced>> {
        let mut life = self.life();
        let Life::Draft(draft, sharing) = &*life else { return Ok(None) };
        // Two daemons that start at once may both have found it free.
        free(&self.place, *sharing)?;
        let mut displaced = None;
        if in_use(&self.place)? {
            let kept = beside(&self.place, "bak");
            let _absent = fs::remove_file(&kept);
            fs::hard_link(&self.place, &kept)?;
            displaced = Some(Displaced { kept, place: self.place.clone(), settled: false });
        }
        fs::rename(draft, &self.place)?;
        *life = Life::Ours;
        Ok(displaced)
    }

    /// The daemon that put it there is replaced: from now on the path goes away with the socket.
    pub(super) fn inherit(&self) {
        let mut life = self.life();
        if *life == Life::Inherited {
            *life = Life::Ours;
        }
    }

    /// From now on another process has the socket too, and the path with it.
    pub(super) fn share(&self) {
        let mut life = self.life();
        if *life == Life::Ours {
            *life = Life::Foreign;
        }
    }

    /// Whether it goes away with the socket.
    pub(super) fn is_ours(&self) -> bool {
        *self.life() == Life::Ours
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        // Nothing is left to do about a path that cannot be removed.
        let _ = match &*self.life() {
            Life::Draft(draft, _) => fs::remove_file(draft),
            Life::Ours if self.leads_from(&self.place) => fs::remove_file(&self.place),
            Life::Ours | Life::Inherited | Life::Foreign => return,
        };
    }
}

/// What a socket replaced; back in its place when this is dropped before it is final.
#[derive(Debug)]
pub(super) struct Displaced {
    kept: PathBuf,
    place: PathBuf,
    settled: bool,
}

impl Displaced {
    /// It is not needed any more.
    pub(super) fn forget(mut self) {
        self.settled = true;
    }
}

impl Drop for Displaced {
    fn drop(&mut self) {
        // Nothing is left to do about a path that cannot be changed.
        let _ = if self.settled { fs::remove_file(&self.kept) } else { fs::rename(&self.kept, &self.place) };
    }
}

/// The name of a socket where it is found, as HAProxy has it too: it is bound as `PATH.PID.tmp`, and keeps that
/// name for ever.
#[must_use]
pub fn settled(name: &Path) -> PathBuf {
    let bytes = name.as_os_str().as_bytes();
    let stem = [&b".tmp"[..], b".bak"].iter().find_map(|end| bytes.strip_suffix(*end)).and_then(|rest| {
        let dot = rest.iter().rposition(|byte| *byte == b'.')?;
        let digits = &rest[dot + 1..];
        (!digits.is_empty() && digits.iter().all(u8::is_ascii_digit)).then_some(&rest[..dot])
    });
    PathBuf::from(std::ffi::OsStr::from_bytes(stem.unwrap_or(bytes)))
}

/// Fails where the place of a socket is taken: by another kind of file, or by a process that has a socket there.
fn free(place: &Path, sharing: Sharing) -> io::Result<()> {
    match fs::symlink_metadata(place) {
        Ok(found) if !found.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is no socket"))
        }
        Ok(_) if sharing == Sharing::Exclusive && in_use(place)? => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a process has a socket at a path. Asked with the wrong type of socket: the kernel looks whether there
/// is one before it looks which, and whoever listens there is not disturbed.
fn in_use(place: &Path) -> io::Result<bool> {
    let probe = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let refused = probe.connect(&SockAddr::unix(place)?);
    let nobody = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
    Ok(!refused.is_err_and(|error| nobody.contains(&error.kind())))
}

/// A name beside a socket's place, for this process alone.
#[must_use]
pub fn beside(place: &Path, end: &str) -> PathBuf {
    let mut name = place.as_os_str().to_owned();
    name.push(format!(".{}.{end}", std::process::id()));
    PathBuf::from(name)
}

fn file(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_name_is_known_by_what_it_is_settled_as() {
        for (name, place) in [
            ("/run/a.sock", "/run/a.sock"),
            ("/run/a.sock.4242.tmp", "/run/a.sock"),
            ("/run/a.sock.1.bak", "/run/a.sock"),
            ("/run/a.sock.x1.tmp", "/run/a.sock.x1.tmp"),
            ("/run/a..tmp", "/run/a..tmp"),
            ("/run/a.tmp", "/run/a.tmp"),
        ] {
            assert_eq!(settled(Path::new(name)), Path::new(place));
        }
    }

    #[test]
    fn a_stale_path_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("s");
        let living = UnixListener::bind(&place).unwrap();
        let refused = SocketPath::bind(&place, Sharing::Exclusive).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        living.set_nonblocking(true).unwrap();
        assert!(living.accept().is_err(), "nobody came to ask");
        drop(living);
        assert!(place.exists());
        let (_fd, path) = SocketPath::bind(&place, Sharing::Exclusive).unwrap();
        assert!(path.publish().unwrap().is_none());
        assert!(path.leads_from(&place));
        drop(path);
        assert!(!place.exists(), "it goes with its socket");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("s");
        fs::write(&place, "precious").unwrap();
        let refused = SocketPath::bind(&place, Sharing::Reuse).unwrap_err().to_string();
        assert!(refused.contains("no socket"), "{refused}");
        assert_eq!(fs::read(&place).unwrap(), b"precious");
    }

    #[test]
    fn what_was_displaced_comes_back_unless_it_is_final() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("s");
        let old = UnixListener::bind(&place).unwrap();
        let before = file(&place).unwrap();
        for last in [false, true] {
            let (fd, path) = SocketPath::bind(&place, Sharing::Reuse).unwrap();
            let displaced = path.publish().unwrap().unwrap();
            assert!(path.leads_from(&place));
            if last {
                displaced.forget();
                drop((fd, path));
                assert!(!place.exists());
            } else {
                drop(displaced);
                drop((fd, path));
                assert_eq!(file(&place).unwrap(), before);
            }
            assert!(fs::read_dir(folder.path()).unwrap().count() <= 1);
        }
        drop(old);
    }

    #[test]
    fn whoever_shares_a_socket_leaves_its_path_alone() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("s");
        let (_fd, path) = SocketPath::bind(&place, Sharing::Exclusive).unwrap();
        path.publish().unwrap();
        let taken = SocketPath::of(&place, Former::Daemon).unwrap();
        path.share();
        drop(path);
        assert!(place.exists());
        drop(SocketPath::of(&place, Former::Daemon).unwrap());
        assert!(place.exists(), "not before the one before is replaced");
        taken.inherit();
        drop(taken);
        assert!(!place.exists());
    }
}
