//! Configurations: whatever the text, there is a bundle that a worker can read or a reason, and a place in the text for
//! each reason.

use std::path::Path;

use proxy::config::{Bundle, Loaded, Rejected, load_text};
use proxy::logging::Format;

const PATH: &str = "/nonexistent/proxy.toml";

pub fn holds(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Names of files lead nowhere; devices that never end are no configuration's affair.
    if !(text.contains("/dev") || text.contains("/proc") || text.contains("..")) {
        // What it comes to is nobody's concern here.
        drop(read(text));
    }
}

/// The verdict on a text.
pub fn read(text: &str) -> Result<Loaded, Rejected> {
    let check = |format: &str| Format::compile(format).map(drop).map_err(|error| error.to_string());
    let verdict = load_text(Path::new(PATH), text, &check);
    match &verdict {
        Ok(loaded) => {
            let bundle = serde_json::to_value(&loaded.bundle).expect("a bundle can be written");
            let read: Bundle = serde_json::from_str(&bundle.to_string()).expect("a worker can read it");
            assert_eq!(serde_json::to_value(&read).expect("it can be written again"), bundle);
            for warning in &loaded.warnings {
                has_a_place(warning.strip_prefix("warning: ").expect(warning), text);
            }
        }
        Err(rejected) => {
            let rendered = rejected.rendered.lines().filter(|line| line.starts_with("error: ")).count();
            let lines: Vec<_> = rejected.brief.split('\n').collect();
            assert_eq!((rendered, lines.len()), (rejected.errors, rejected.errors), "{}\n{rejected}", rejected.brief);
            assert!(rejected.errors > 0);
            for line in lines {
                has_a_place(line, text);
            }
        }
    }
    verdict
}

/// `file:line:column: what is wrong; what would be right`, and the place is one of the text.
fn has_a_place(line: &str, text: &str) {
    assert!(!line.contains(char::is_control), "{line:?}");
    let place = line.strip_prefix(PATH).and_then(|rest| rest.strip_prefix(':')).expect(line);
    let mut parts = place.splitn(3, ':');
    let mut number = || parts.next().and_then(|number| number.parse::<usize>().ok()).expect(line);
    let (row, column) = (number(), number());
    let said = parts.next().expect(line);
    let (wrong, right) = said.split_once("; ").expect(line);
    assert!(!wrong.trim().is_empty() && !right.trim().is_empty(), "{line:?}");
    let place = text.split('\n').nth(row - 1).unwrap_or_else(|| panic!("{line:?} is about a line behind the last"));
    assert!((1..=place.chars().count() + 1).contains(&column), "{line:?} is about a column behind the last");
}
