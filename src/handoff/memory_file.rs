//! Files in memory that have no name.
//! Called by `master` for the configuration bundle and by `stats` for the counters. Never has a name in a file system.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// Where a nameless file is made when the kernel has no memfd: memory first, any disk last.
const DIRECTORIES: [&str; 3] = ["/dev/shm", "/run", "/tmp"];

/// A memfd, or on kernels before 3.17 a nameless file of a file system. (The system call itself: glibc knows it from
/// 2.27 only.)
///
/// # Errors
/// What memfd_create(2) says, or open(2) of the last directory.
pub fn memory_file(name: &str) -> io::Result<File> {
    match memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING) {
        Ok(file) => Ok(file.into()),
        Err(Errno::NOSYS) => nameless_file(),
        Err(error) => Err(error.into()),
    }
}

/// Keeps everybody from changing a file's length, where the kernel can: nameless files have no seals.
///
/// # Errors
/// What fcntl(2) says of a memfd.
pub fn seal_length(file: &File) -> io::Result<()> {
    match fcntl_add_seals(file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL) {
        // Not a memfd: file systems without seals say the first, tmpfs the second.
        Ok(()) | Err(Errno::INVAL | Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What the administrator is told where [`memory_file`] has to make do.
#[must_use]
pub fn memfd_is_missing() -> Option<&'static str> {
    let missing = memfd_create("probe", MemfdFlags::CLOEXEC).err() == Some(Errno::NOSYS);
    missing.then_some(
        "this kernel has no memfd_create(2) (Linux 3.17): configuration and counters are in nameless files of \
         /dev/shm, /run or /tmp instead",
    )
}

fn nameless_file() -> io::Result<File> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for directory in DIRECTORIES {
        let mut options = OpenOptions::new();
        match options.read(true).write(true).mode(0o600).custom_flags(nix::libc::O_TMPFILE).open(directory) {
            Ok(file) => return Ok(file),
            Err(error) => last = error,
        }
    }
    Err(last)
}
