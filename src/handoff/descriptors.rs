//! The one place where a number becomes an owned descriptor, and memory files.
//! Called by `handoff` for what recvmsg(2) delivered. Never guesses a number.
#![expect(unsafe_code, reason = "descriptors from SCM_RIGHTS arrive as numbers and have to be adopted once")]

use std::fs::File;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::HandoffError;

/// Takes over a descriptor that the kernel has just installed for us.
pub(super) fn adopt(raw: RawFd) -> OwnedFd {
    // SAFETY: the number comes straight out of an SCM_RIGHTS message of this very call; the kernel
    // created it for this process and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

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
