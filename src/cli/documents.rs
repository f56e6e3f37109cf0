//! Manual page and shell completions, made of the definitions of the command line, compared with what is shipped.
//! Tests of `cli` alone. Writes only where PROXY_WRITE_DOCUMENTS is set: `PROXY_WRITE_DOCUMENTS=1 cargo test documents`.

use std::fs;
use std::path::Path;

use clap::{Arg, Command, CommandFactory as _};
use clap_complete::Shell;

use super::args::Arguments;

/// The line of `man/proxy.8.in` that stands for all commands.
const PLACE: &str = ".\\\" COMMANDS\n";

#[test]
fn shipped_documents_follow_the_definitions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for (name, expected) in documents(folder) {
        let path = folder.join(name);
        if std::env::var_os("PROXY_WRITE_DOCUMENTS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &expected).unwrap();
        }
        if fs::read_to_string(&path).unwrap_or_default() != expected {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?} are stale: PROXY_WRITE_DOCUMENTS=1 cargo test --lib documents");
}

fn documents(folder: &Path) -> Vec<(&'static str, String)> {
    let frame = fs::read_to_string(folder.join("man/proxy.8.in")).unwrap();
    assert_eq!(frame.matches(PLACE).count(), 1);
    let page = frame.replace(PLACE, &commands()).lines().skip(1).map(|line| format!("{line}\n")).collect();
    vec![
        ("man/proxy.8", page),
        ("completions/proxy.bash", completion(Shell::Bash)),
        ("completions/_proxy", completion(Shell::Zsh)),
        ("completions/proxy.fish", completion(Shell::Fish)),
    ]
}

fn completion(shell: Shell) -> String {
    let mut made = Vec::new();
    clap_complete::generate(shell, &mut shown(&Arguments::command()), "proxy", &mut made);
    // Ends of lines that differ between shells' templates would be whitespace errors here.
    let text = String::from_utf8(made).unwrap();
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// The same command without what is hidden, which completions would offer.
fn shown(command: &Command) -> Command {
    // As long as the process lives, which clap asks of names that were not written into the program.
    let name: &'static str = command.get_name().to_owned().leak();
    let shown = Command::new(name)
        .args(command.get_arguments().filter(|option| !option.is_hide_set()).cloned())
        .subcommands(command.get_subcommands().filter(|below| !below.is_hide_set()).map(self::shown));
    match command.get_about() {
        Some(about) => shown.about(about.clone()),
        None => shown,
    }
}

fn commands() -> String {
    let mut whole = Arguments::command();
    whole.build();
    whole
        .get_subcommands()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help")
        .map(|one| command("", one))
        .collect()
}

/// One command: what it does, and its options as a list.
fn command(above: &str, command: &Command) -> String {
    let name = format!("{above}{}", command.get_name());
    let below = command.get_subcommands().filter(|below| below.get_name() != "help");
    let below: String = below.map(|below| self::command(&format!("{name} "), below)).collect();
    if !below.is_empty() {
        return below;
    }
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let options = command.get_arguments().filter(|option| !option.is_hide_set() && option.get_id() != "help");
    let options: String = options.map(option).collect();
    format!(".SS {name}\n{}.\n{options}", roff(&about))
}

/// `-f, --config FILE`, what it is for, and what it is when absent.
fn option(option: &Arg) -> String {
    let short = option.get_short().map(|letter| format!("\\fB\\-{letter}\\fR"));
    let long = option.get_long().map(|word| format!("\\fB\\-\\-{}\\fR", roff(word)));
    let names: Vec<_> = short.into_iter().chain(long).collect();
    let takes = option.get_action().takes_values();
    let values = option.get_value_names().unwrap_or_default().iter().filter(|_| takes);
    let before = if option.is_positional() { "" } else { " " };
    let values: String = values.map(|name| format!("{before}\\fI{}\\fR", roff(name))).collect();
    let several = if takes && option.get_num_args().is_some_and(|count| count.max_values() > 1) { "..." } else { "" };
    let help = option.get_help().map(ToString::to_string).unwrap_or_default();
    let known: Vec<_> = option.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let known = if takes && !known.is_empty() { format!(" One of {}.", known.join(", ")) } else { String::new() };
    let usual: Vec<_> = option.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let usual = if takes && !usual.is_empty() { format!(" Usually {}.", usual.join(" ")) } else { String::new() };
    format!(".TP\n{}{values}{several}\n{}\n", names.join(", "), roff(&format!("{help}.{known}{usual}")))
}

/// Text as roff wants it: a dash is one, and no line is taken for a request.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('`', "");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}
