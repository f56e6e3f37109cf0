//! Files in memory.
//! Called by `master` for the configuration bundle. Never has a name in a file system.

use std::fs::File;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::HandoffError;

/// A file in memory: memfd, or an unlinked temporary file on kernels before 3.17.
///
/// # Errors
/// What memfd_create(2) or open(2) says.
pub fn memfd(name: &str) -> Result<File, HandoffError> {
    match memfd_create(name, MFdFlags::MFD_CLOEXEC) {
        Ok(fd) => Ok(File::from(fd)),
        Err(Errno::ENOSYS) => unlinked_file().map_err(HandoffError::Io),
        Err(error) => Err(HandoffError::Channel(error)),
    }
}

fn unlinked_file() -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = std::env::temp_dir();
    std::fs::OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(nix::libc::O_TMPFILE).open(path)
}
