//! Holds the verdict on every file of `tests/corpus/config`: `.ok` is a configuration, `.bad` is refused with reasons.
//! And with its end or a character missing at many a place: whatever the text, there is an answer.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::fs;
use std::path::{Path, PathBuf};

use proxy::config::{Loaded, Rejected, load_text};
use proxy::logging::Format;

fn corpus() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/config");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<_> = paths.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect();
    cases.sort();
    cases
}

fn load(text: &str) -> Result<Loaded, Rejected> {
    let check = |format: &str| Format::compile(format).map(drop).map_err(|error| error.to_string());
    let result = load_text(Path::new("/nonexistent/proxy.toml"), text, &check);
    if let Err(rejected) = &result {
        assert!(rejected.errors > 0 && rejected.rendered.contains("error: "), "{text}\n{rejected}");
        assert!(rejected.brief.contains("/nonexistent/proxy.toml"), "no place in {:?} of {text}", rejected.brief);
    }
    result
}

#[test]
fn every_configuration_of_the_corpus_gets_its_verdict() {
    let corpus = corpus();
    for (path, text) in &corpus {
        match (path.extension().and_then(|verdict| verdict.to_str()), load(text)) {
            (Some("ok"), Ok(_)) | (Some("bad"), Err(_)) => {}
            (_, Ok(_)) => panic!("{} is accepted", path.display()),
            (_, Err(rejected)) => panic!("{} is refused: {rejected}", path.display()),
        }
    }
    assert!(corpus.len() > 25);
}

#[test]
fn a_configuration_that_is_damaged_anywhere_gets_an_answer() {
    for (number, (_, text)) in corpus().into_iter().enumerate() {
        for (at, _) in text.char_indices().skip(number % 7).step_by(7) {
            let _ = load(&text[..at]);
            let mut rest = text[at..].chars();
            rest.next();
            let _ = load(&format!("{}{}", &text[..at], rest.as_str()));
        }
    }
}
