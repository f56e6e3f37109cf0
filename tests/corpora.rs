//! Shows every file of `tests/corpus`, whole and damaged, to the property that its fuzz target holds against made-up bytes.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a failing test panics, and shows what it said")]

mod properties;

use std::fs;
use std::path::{Path, PathBuf};

/// Longest file that is damaged byte by byte too.
const SHORT: usize = 512;

/// The files of a folder, in order.
fn corpus(folder: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(folder);
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 5, "{paths:?}");
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn walk(folder: &str, holds: fn(&[u8])) {
    for (path, bytes) in corpus(folder) {
        // Shown where it fails.
        println!("{}", path.display());
        holds(&bytes);
        let step = if bytes.len() > SHORT { bytes.len() } else { bytes.len() / 32 + 1 };
        for at in (0..bytes.len()).step_by(step) {
            let (before, after) = (&bytes[..at], &bytes[at + 1..]);
            for instead in [&b""[..], b"\0", b"\n", b" ", b"\xff"] {
                holds(&[before, instead, after].concat());
            }
        }
    }
}

#[test]
fn access_lines() {
    walk("access", properties::access_line::holds);
}

#[test]
fn chunked_bodies() {
    walk("chunked", properties::chunked::holds);
}

#[test]
fn client_hellos() {
    walk("hello", properties::client_hello::holds);
}

#[test]
fn configurations() {
    walk("config", properties::configuration::holds);
}

#[test]
fn frames_of_http_2() {
    walk("frames", properties::h2_frames::holds);
}

#[test]
fn heads_of_http_2() {
    walk("h2", properties::h2_request_head::holds);
}

#[test]
fn messages_of_a_hand_over() {
    walk("handoff", properties::handoff_message::holds);
}

#[test]
fn introductions() {
    walk("proxy", properties::introduction::holds);
}

#[test]
fn request_heads() {
    walk("request", properties::request_head::holds);
}

#[test]
fn response_heads() {
    walk("response", properties::response_head::holds);
}

#[test]
fn sockets_of_another_daemon() {
    walk("getsocks", properties::taken_sockets::holds);
}

#[test]
fn every_head_of_http_2_gets_its_verdict() {
    let mut seen = [0, 0];
    for (path, bytes) in corpus("h2") {
        let wanted = path.extension().unwrap() == "ok";
        assert_eq!(properties::h2_request_head::is_translated(&bytes), wanted, "{}", path.display());
        seen[usize::from(wanted)] += 1;
    }
    assert!(seen.iter().all(|count| *count > 5), "{seen:?}");
}

#[test]
fn every_configuration_gets_its_verdict() {
    for (path, bytes) in corpus("config") {
        let verdict = properties::configuration::read(std::str::from_utf8(&bytes).unwrap());
        match (path.extension().and_then(|verdict| verdict.to_str()), verdict) {
            (Some("ok"), Ok(_)) | (Some("bad"), Err(_)) => {}
            (_, Ok(_)) => panic!("{} is accepted", path.display()),
            (_, Err(rejected)) => panic!("{} is refused: {rejected}", path.display()),
        }
    }
}

#[test]
fn a_configuration_that_is_damaged_anywhere_gets_an_answer() {
    for (number, (_, bytes)) in corpus("config").into_iter().enumerate() {
        let text = std::str::from_utf8(&bytes).unwrap();
        for (at, _) in text.char_indices().skip(number % 7).step_by(7) {
            drop(properties::configuration::read(&text[..at]));
            let mut rest = text[at..].chars();
            rest.next();
            drop(properties::configuration::read(&format!("{}{}", &text[..at], rest.as_str())));
        }
    }
}
