//! Messages between master and worker, and between workers: what is understood means the same when it is sent on.

use proxy::handoff::messages::{FromWorker, Moved, Moving, ToWorker};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What is understood; checks that it can be sent on.
fn understood<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> bool {
    let Ok(message) = serde_json::from_slice::<T>(bytes) else { return false };
    let text = serde_json::to_vec(&message).expect("a message can be written");
    assert_eq!(serde_json::from_slice::<T>(&text).ok(), Some(message));
    true
}

pub fn holds(bytes: &[u8]) {
    // No document means something to both sides: an echo is never taken for an order.
    let (from, to) = (understood::<FromWorker>(bytes), understood::<ToWorker>(bytes));
    assert!(!(from && to));
    let (moving, moved) = (understood::<Moving>(bytes), understood::<Moved>(bytes));
    assert!(!(moving && moved));
}
