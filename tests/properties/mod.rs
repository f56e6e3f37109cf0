//! What holds for whatever bytes a stranger sends, one file for each fuzz target.
//! Shown made-up bytes by `fuzz/fuzz_targets`, and every file of `tests/corpus` by `tests/corpora.rs`. Each panics where
//! its property does not hold; none looks at what only one of its callers knows.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a property that does not hold panics")]

pub mod access_line;
pub mod chunked;
pub mod client_hello;
pub mod configuration;
pub mod h2_frames;
pub mod h2_request_head;
pub mod handoff_message;
pub mod introduction;
mod plain;
pub mod request_head;
pub mod response_head;
pub mod taken_sockets;
