//! PROXY headers: what more bytes cannot change is never said too early, what is said never changes, and what was
//! understood can be said again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::config::SendProxy;
use proxy::socket::{introduce, read_introduction};

fuzz_target!(|bytes: &[u8]| {
    let whole = read_introduction(bytes);
    for end in 0..bytes.len() {
        match read_introduction(&bytes[..end]) {
            Ok(None) => {}
            part => assert_eq!(part, whole, "after {end} bytes"),
        }
    }
    if let Ok(Some(header)) = whole {
        assert!(header.length <= bytes.len());
        if let Some(addresses) = header.addresses {
            for version in [SendProxy::V1, SendProxy::V2] {
                let again = read_introduction(&introduce(version, addresses, None));
                assert_eq!(again.ok().flatten().and_then(|again| again.addresses), Some(addresses));
            }
        }
    }
});
