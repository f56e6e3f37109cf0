//! Shows made-up bytes to `tests/properties/taken_sockets.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::taken_sockets::holds(bytes));
