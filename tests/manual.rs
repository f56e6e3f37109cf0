//! proxy.toml(5) names every key that the configuration's readers ask for, and none that they do not.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The ways `src/config/section.rs` asks for a key.
const READERS: [&str; 14] = [
    "boolean", "choice", "duration", "entry", "integer", "items", "named", "size", "string", "table", "tables", "text",
    "texts", "value",
];

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The literal at the beginning of a text, if it is a key.
fn key(text: &str) -> Option<String> {
    let word = text.trim_start().strip_prefix('"')?.split_once('"')?.0;
    let is_key = !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    is_key.then(|| word.to_owned())
}

/// Every key that is asked for by a literal.
fn accepted() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config");
    let mut keys = BTreeSet::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.file_name().unwrap() == "tests.rs" {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let source = source.split("#[cfg(test)]").next().unwrap();
        for reader in READERS {
            let call = format!(".{reader}(");
            keys.extend(source.match_indices(&call).filter_map(|(at, _)| key(&source[at + call.len()..])));
        }
        let call = "checked(&mut section,";
        keys.extend(source.match_indices(call).filter_map(|(at, _)| key(&source[at + call.len()..])));
    }
    keys
}

/// What the page sets in bold and could be a key.
fn described(page: &str) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for line in
        page.lines().filter(|line| line.starts_with(".B ") || line.starts_with(".BR ") || line.starts_with(".RB "))
    {
        words.extend(
            line.split([' ', '"', ',', '.']).map(|word| word.replace("\\-", "-")).filter(|word| !word.is_empty()),
        );
    }
    // [users.NAME] and the like are headings.
    let headings = page.lines().filter_map(|line| line.strip_prefix(".SS "));
    for heading in headings {
        words.extend(heading.split(['[', ']', '.']).map(str::to_owned));
    }
    words
}

#[test]
fn proxy_toml_5_describes_every_key() {
    let accepted = accepted();
    assert!(accepted.len() > 60, "{accepted:?}");
    let described = described(&read("man/proxy.toml.5"));
    let missing: Vec<_> = accepted.difference(&described).collect();
    assert!(missing.is_empty(), "man/proxy.toml.5 does not describe {missing:?} of src/config");
}

#[test]
fn proxy_toml_5_describes_no_key_that_is_refused() {
    let accepted = accepted();
    let page = read("man/proxy.toml.5");
    // The terms of the list: each is a key, or several.
    let lines: Vec<_> = page.lines().collect();
    let terms = lines.windows(2).filter(|pair| pair[0] == ".TP").filter_map(|pair| pair[1].split_once(' '));
    let mut count = 0;
    for (_, term) in terms.filter(|(macro_name, _)| macro_name.starts_with(".B")) {
        for word in term.split([' ', '"', ',']).filter(|word| !word.is_empty()) {
            let word = word.replace("\\-", "-");
            assert!(accepted.contains(&word), "man/proxy.toml.5 describes `{word}`, which nothing reads");
            count += 1;
        }
    }
    assert!(count > 45, "{count}");
}
