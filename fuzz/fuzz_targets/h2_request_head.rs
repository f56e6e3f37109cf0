//! Shows made-up bytes to `tests/properties/h2_request_head.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::h2_request_head::holds(bytes));
