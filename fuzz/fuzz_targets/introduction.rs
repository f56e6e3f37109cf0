//! Shows made-up bytes to `tests/properties/introduction.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::introduction::holds(bytes));
