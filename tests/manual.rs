//! proxy.toml(5) names every key that the configuration's readers ask for, and none that they do not; and the words that
//! they take.

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

/// What reads the configuration, without its tests.
fn sources() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config");
    let paths = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let sources = paths.filter(|path| path.file_name().unwrap() != "tests.rs").map(|path| {
        let source = fs::read_to_string(path).unwrap();
        source.split("#[cfg(test)]").next().unwrap().to_owned()
    });
    sources.collect()
}

/// Every key that is asked for by a literal.
fn accepted() -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for source in sources() {
        for reader in READERS {
            let call = format!(".{reader}(");
            keys.extend(source.match_indices(&call).filter_map(|(at, _)| key(&source[at + call.len()..])));
        }
        for call in ["checked(&mut section,", "asked(&mut section,"] {
            keys.extend(source.match_indices(call).filter_map(|(at, _)| key(&source[at + call.len()..])));
        }
        // Those that are asked for, or refused, one after the other.
        let lists = source.match_indices("&[\"");
        for (at, _) in lists.filter(|(at, _)| !source[..*at].ends_with("suggestion(other, ")) {
            let list = source[at + 2..].split(']').next().unwrap();
            keys.extend(list.split(',').filter_map(key));
        }
    }
    keys
}

/// Every word that stands for a variant: `("drain", State::Drain)`, or `Self::Drain => "drain"`.
fn words() -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    // What an expression may hold is written there without quotation marks.
    for source in sources().iter().filter(|source| !source.contains("enum Fetch")) {
        let pairs = source.match_indices("(\"").filter_map(|(at, _)| source[at + 2..].split_once('"'));
        let pairs = pairs.filter(|(_, rest)| {
            let value = rest.strip_prefix(", ").and_then(|rest| rest.split_once(')')).map_or("", |(value, _)| value);
            value.contains("::") && value.starts_with(|c: char| c.is_ascii_uppercase())
        });
        words.extend(pairs.map(|(word, _)| word.to_owned()));
        let arms = source.lines().filter_map(|line| line.trim().strip_prefix("Self::")?.split_once(" => \""));
        words.extend(arms.filter_map(|(_, rest)| Some(rest.split_once("\",")?.0.to_owned())));
    }
    words.retain(|word| word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'));
    words
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
fn proxy_toml_5_names_every_word_that_a_key_may_hold() {
    let words = words();
    assert!(words.len() > 20 && words.contains("roundrobin") && words.contains("h2c"), "{words:?}");
    let page = read("man/proxy.toml.5").replace("\\-", "-");
    let missing: Vec<_> = words.iter().filter(|word| !page.contains(&format!("\\(dq{word}\\(dq"))).collect();
    assert!(missing.is_empty(), "man/proxy.toml.5 does not name {missing:?} of src/config");
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

/// The arguments of a macro, as roff takes them apart.
fn arguments(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (vec![String::new()], false);
    for character in line.chars() {
        match (character, words.last_mut()) {
            ('"', _) => quoted = !quoted,
            (' ', Some(word)) if !quoted => {
                if !word.is_empty() {
                    words.push(String::new());
                }
            }
            (_, Some(word)) => word.push(character),
            (_, None) => {}
        }
    }
    words
}

#[test]
fn words_that_a_page_sets_in_turn_are_not_run_together() {
    let pages = ["man/proxy.8", "man/proxy.toml.5"].map(read);
    let lines = pages.iter().flat_map(|page| page.lines());
    let alternating =
        lines.filter(|line| [".BR ", ".RB ", ".IR ", ".RI ", ".BI ", ".IB "].contains(&&line[..line.len().min(4)]));
    let mut count = 0;
    for line in alternating {
        // Between two arguments there is no space but their own.
        for pair in arguments(&line[4..]).windows(2) {
            let ends = pair[0].ends_with(|last: char| last.is_alphanumeric() || ",.;:)".contains(last));
            assert!(!ends || !pair[1].starts_with(char::is_alphanumeric), "{line}: {pair:?}");
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}
