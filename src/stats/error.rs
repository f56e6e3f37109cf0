//! What can go wrong with the shared counters.
//! Returned by `Memory`. Never carries configuration.

use std::io;

/// The shared memory could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// No anonymous file could be made.
    #[error("cannot create {bytes} bytes of shared memory for counters")]
    Create {
        /// Size asked for.
        bytes: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// mmap(2) or fstat(2) failed.
    #[error("cannot map the shared counters")]
    Map(#[source] io::Error),
    /// The descriptor is not a file of counters.
    #[error("this descriptor does not hold shared counters")]
    Magic,
    /// Another version of the layout.
    #[error("shared counters have layout {found}, this version reads {LAYOUT}", LAYOUT = super::memory::LAYOUT)]
    Layout {
        /// Version found in the header.
        found: u32,
    },
    /// The file is shorter than its header says, or holds no or too many slots.
    #[error("shared counters for {slots} slots do not fit a file of {bytes} bytes")]
    Size {
        /// Slots by the header or the caller.
        slots: u32,
        /// Size of the file.
        bytes: u64,
    },
}
