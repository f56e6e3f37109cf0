//! Messages between master and worker: what is understood means the same when it is sent on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::handoff::messages::{FromWorker, ToWorker};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = serde_json::from_slice::<FromWorker>(bytes) {
        let text = serde_json::to_vec(&message).expect("a message can be written");
        assert_eq!(serde_json::from_slice::<FromWorker>(&text).ok(), Some(message));
        // No document means something to both sides: an echo is never taken for an order.
        assert!(serde_json::from_slice::<ToWorker>(bytes).is_err());
    } else if let Ok(message) = serde_json::from_slice::<ToWorker>(bytes) {
        let text = serde_json::to_vec(&message).expect("a message can be written");
        assert_eq!(serde_json::from_slice::<ToWorker>(&text).ok(), Some(message));
    }
});
