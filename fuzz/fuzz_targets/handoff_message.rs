//! Shows made-up bytes to `tests/properties/handoff_message.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::handoff_message::holds(bytes));
