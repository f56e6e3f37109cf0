//! Shows made-up bytes to `tests/properties/configuration.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::configuration::holds(bytes));
