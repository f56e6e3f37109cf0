//! Configurations: whatever the text, there is a bundle or a reason, and a place for each reason.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use proxy::config::load_text;
use proxy::logging::Format;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Names of files lead nowhere; devices that never end are no configuration's affair.
    if text.contains("/dev") || text.contains("/proc") || text.contains("..") {
        return;
    }
    let check = |format: &str| Format::compile(format).map(drop).map_err(|error| error.to_string());
    match load_text(Path::new("/nonexistent/proxy.toml"), text, &check) {
        Ok(loaded) => {
            let bundle = serde_json::to_vec(&loaded.bundle).expect("a bundle can be written");
            assert!(serde_json::from_slice::<proxy::config::Bundle>(&bundle).is_ok(), "a worker cannot read it");
        }
        Err(rejected) => {
            assert!(rejected.errors > 0 && !rejected.rendered.is_empty() && !rejected.brief.is_empty());
        }
    }
});
