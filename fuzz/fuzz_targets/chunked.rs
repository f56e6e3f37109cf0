//! Shows made-up bytes to `tests/properties/chunked.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::chunked::holds(bytes));
