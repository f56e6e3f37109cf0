//! Shows made-up bytes to `tests/properties/client_hello.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::client_hello::holds(bytes));
