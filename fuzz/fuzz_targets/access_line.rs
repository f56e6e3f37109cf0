//! Shows made-up bytes to `tests/properties/access_line.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::access_line::holds(bytes));
