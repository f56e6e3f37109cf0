//! Conventions that matter, held by reading the source: layers, the unsafe fence, file openings, file length.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::fs;
use std::path::{Path, PathBuf};

/// Top to bottom; a layer may import only what stands below it. `master` and `worker` are level.
const LAYERS: [&[&str]; 12] = [
    &["cli"],
    &["master", "worker"],
    &["proxy"],
    &["upstream"],
    &["http"],
    &["tls"],
    &["stats"],
    &["handoff"],
    &["socket"],
    &["logging"],
    &["config"],
    &[],
];

/// The only files that may hold unsafe code.
const FENCE: [&str; 1] = ["src/stats/memory.rs"];

/// Lines a file of ours may have.
const LONGEST: usize = 520;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    rust_files(&root().join("src"), &mut found);
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).unwrap();
            (name, text)
        })
        .collect()
}

fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|level| level.contains(&layer))
}

#[test]
fn imports_only_point_down() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let Some(own) = name.strip_prefix("src/").and_then(|rest| rest.split('/').next()).and_then(rank) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            for (place, _) in line.match_indices("crate::") {
                let target: String =
                    line[place + 7..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                let same = name.starts_with(&format!("src/{target}/"));
                if !same && rank(&target).is_some_and(|theirs| theirs <= own) {
                    wrong.push(format!("{name}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "imports that point up or sideways:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_stays_behind_its_fence() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let word = code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl");
            if (word || code.contains("allow(unsafe_code") || code.contains("expect(unsafe_code"))
                && !FENCE.contains(&name.as_str())
            {
                wrong.push(format!("{name}:{}", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe outside {FENCE:?}: {wrong:?}");
}

#[test]
fn every_file_says_what_it_owns() {
    let silent: Vec<_> =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(name, _)| name).collect();
    assert!(silent.is_empty(), "files that do not open with what they own: {silent:?}");
}

#[test]
fn files_stay_readable_in_one_sitting() {
    let mut files = Vec::new();
    ["src", "tests", "bench"].iter().for_each(|folder| rust_files(&root().join(folder), &mut files));
    let lines = files.into_iter().map(|path| (fs::read_to_string(&path).unwrap().lines().count(), path));
    let long: Vec<_> = lines.filter(|(lines, _)| *lines > LONGEST).collect();
    assert!(long.is_empty(), "longer than {LONGEST} lines: {long:?}");
}

#[test]
fn the_map_names_every_folder_and_no_file_that_is_gone() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    rust_files(&root().join("tests"), &mut files);
    let named: Vec<_> = map.split('`').skip(1).step_by(2).filter(|word| word.ends_with(".rs")).collect();
    assert!(named.len() > 50, "{named:?}");
    let gone: Vec<_> = named.into_iter().filter(|name| !files.iter().any(|file| file.ends_with(name))).collect();
    assert!(gone.is_empty(), "ARCHITECTURE.md names {gone:?}");
    for layer in LAYERS.iter().flat_map(|level| level.iter()) {
        assert!(map.contains(&format!("| `src/{layer}/` | ")), "ARCHITECTURE.md does not say what src/{layer} owns");
    }
}

#[test]
fn no_module_is_named_after_nothing() {
    let vague = ["utils", "util", "helper", "helpers", "manager", "misc", "common"];
    let wrong: Vec<_> = sources()
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| {
            vague.iter().any(|word| name.ends_with(&format!("/{word}.rs")) || name.contains(&format!("/{word}/")))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// `socket/stream.rs` relies on it.
#[test]
fn every_event_loop_runs_on_the_thread_of_its_tasks() {
    for (name, text) in sources() {
        for other in ["new_multi_thread", "tokio::main", "Runtime::new("] {
            assert!(!text.contains(other), "{name}: {other}");
        }
    }
}
