//! Shows made-up bytes to `tests/properties/request_head.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::request_head::holds(bytes));
