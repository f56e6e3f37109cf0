//! HAProxy's `_getsocks`: whatever the other daemon answers, there are sockets or a reason, and none stays open.
#![no_main]

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use proxy::handoff::getsocks::take_from;

fuzz_target!(|bytes: &[u8]| {
    // What fits into the socket is written before anybody reads.
    let bytes = &bytes[..bytes.len().min(4096)];
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    theirs.write_all(bytes).expect("room");
    theirs.shutdown(Shutdown::Write).expect("open");
    if let Ok(taken) = take_from(ours) {
        // No descriptor came, so only a promise of none can be kept.
        assert!(taken.is_empty() && bytes.starts_with(&[0; 4]));
    }
});
