//! The shipped completions in the shells they are for: what is begun is ended, what is hidden is not offered.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod support;

use std::process::Command;

use support::{code, text};

/// Lines as they are typed, and what their last word can become.
const LINES: [(&str, &[&str]); 6] = [
    ("proxy upg", &["upgrade"]),
    ("proxy reload --mode h", &["handover"]),
    ("proxy server set pool/s1 --state ma", &["maint"]),
    ("proxy status --js", &["--json"]),
    // What the master alone runs.
    ("proxy work", &[]),
    ("proxy run --rehe", &[]),
];

const BASH: &str = r#"
source "$1/proxy.bash"
COMP_WORDS=($2)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_proxy proxy "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

const FISH: &str = r#"
source $argv[1]/proxy.fish
complete -C $argv[2] | cut -f 1
"#;

/// It completes only where somebody types; what is run then says how the line has ended.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "fpath=($1 \$fpath); autoload -U compinit; compinit -u -D"
zpty -w shell "proxy() { print -r -- ran: \$*[-1] }; print loa''ded"
zpty -r -m shell seen '*loaded*'
zpty -w shell "$2"$'\t'
zpty -r -m shell seen '*ran: *'$'\n'
print -r -- ${seen##*ran: }
"#;

/// Has a shell complete every line by a script that gets the folder of completions and a line.
fn completes(shell: &str, arguments: &[&str], script: &str) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/completions");
    for (line, expected) in LINES {
        let mut command = Command::new(shell);
        command.args(arguments).args(["-c", script]);
        if shell != "fish" {
            // The others take the first argument for the script's name.
            command.arg(shell);
        }
        command.args([folder, line]);
        let output = support::output(command);
        assert_eq!((code(&output), text(&output.stderr).as_str()), (0, ""), "{shell}: {line}");
        let said = text(&output.stdout);
        let typed = line.split(' ').next_back().unwrap();
        let offered: Vec<_> = said.split_whitespace().filter(|word| *word != typed).collect();
        assert_eq!(offered, expected, "{shell}: {line}");
    }
}

#[test]
fn bash_completes_what_is_begun() {
    completes("bash", &["--norc"], BASH);
}

#[test]
#[ignore = "needs zsh; .ci/run runs it"]
fn zsh_completes_what_is_begun() {
    completes("zsh", &["-f"], ZSH);
}

#[test]
#[ignore = "needs fish; .ci/run runs it"]
fn fish_completes_what_is_begun() {
    completes("fish", &["--no-config"], FISH);
}
