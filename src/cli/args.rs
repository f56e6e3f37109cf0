//! What may be written on the command line, HAProxy's flags without a subcommand included.
//! Parsed by `cli::main`. Pure.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{demo, measure};
use crate::config::{DEFAULT_PATH, ReloadMode};
use crate::handoff::Versions;

/// HTTP reverse proxy and load balancer whose reloads no client ever sees.
#[derive(Debug, Parser)]
#[command(name = "proxy", version, disable_version_flag = true, after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Command,
}

const AFTER_HELP: &str = "HAProxy's flags work without a subcommand: proxy -f FILE -c; proxy -f FILE -D -p PIDFILE -x SOCKET -sf PID...; -v; -vv
Exit codes: 0 done, 1 refused and nothing changed, 2 rolled back, 3 busy or timed out, 4 not running.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve, in the foreground or as a daemon
    Run(RunArgs),
    /// Check the configuration and everything it names; change nothing
    Check(CheckArgs),
    /// Load the configuration anew; returns when the new generation serves
    Reload(ReloadArgs),
    /// Reload with the listening sockets handed over: `reload --mode handover`
    ReloadSocket(Target),
    /// Show generations, listeners, connections and the last reload
    Status(ShowArgs),
    /// Show servers, take them out of service, give them another weight
    #[command(subcommand)]
    Server(ServerCommand),
    /// Let the running daemon become the program that is installed now; same pid, nothing is closed
    Upgrade(Target),
    /// Stop the daemon
    Stop(StopArgs),
    /// Make a self-signed certificate with its key, in one PEM
    SelfSigned(SelfSignedArgs),
    /// Show it at work: three servers, TLS, statistics; no files, no root
    Demo(demo::DemoArgs),
    /// Measure what clients lose while the daemon is restarted or reloaded
    Measure(measure::MeasureArgs),
    /// Show the version
    Version(VersionArgs),
    /// A worker process (started by the master only)
    #[command(hide = true)]
    Worker,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Configuration file
    #[arg(short = 'f', long = "config", value_name = "FILE", default_value = DEFAULT_PATH)]
    pub(super) config: PathBuf,
    /// Go to the background; return when the daemon serves, or fail with its reason
    #[arg(short = 'D', long = "daemon", conflicts_with = "foreground")]
    pub(super) daemon: bool,
    /// Pid file, instead of the configuration's
    #[arg(short = 'p', long = "pid-file", value_name = "PIDFILE")]
    pub(super) pid_file: Option<PathBuf>,
    /// Take the listening sockets of the daemon behind this admin socket
    #[arg(short = 'x', long = "take-over", value_name = "SOCKET")]
    pub(super) take_over: Option<PathBuf>,
    /// Let these processes finish once this one serves (-sf PID...)
    #[arg(long = "finish", value_name = "PID", num_args = 0.., value_parser = clap::value_parser!(i32).range(2..))]
    pub(super) finish: Vec<i32>,
    /// End these processes once this one serves (-st PID...)
    #[arg(long = "terminate", value_name = "PID", num_args = 0.., value_parser = clap::value_parser!(i32).range(2..))]
    pub(super) terminate: Vec<i32>,
    /// Stay in the foreground (-db), which is what happens without -D
    #[arg(long = "foreground")]
    pub(super) foreground: bool,
    /// Say nothing but errors
    #[arg(short = 'q', long = "quiet")]
    pub(super) quiet: bool,
    /// This process is the daemon that `-D` started
    #[arg(long = "behind", hide = true)]
    pub(super) behind: bool,
    /// This process was a daemon already; what it left is on stdin
    #[arg(long = "resume", hide = true, conflicts_with = "behind")]
    pub(super) resume: bool,
    /// With --resume: look at what is on stdin, say whether it can be resumed, change nothing
    #[arg(long = "rehearse", hide = true, requires = "resume")]
    pub(super) rehearse: bool,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Configuration file
    #[arg(short = 'f', long = "config", value_name = "FILE", default_value = DEFAULT_PATH)]
    pub(super) config: PathBuf,
    /// Say nothing but errors
    #[arg(short = 'q', long = "quiet")]
    pub(super) quiet: bool,
}

/// Which daemon is meant.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// Configuration file that names the admin socket
    #[arg(short = 'f', long = "config", value_name = "FILE", default_value = DEFAULT_PATH)]
    pub(super) config: PathBuf,
    /// Admin socket, instead of the configuration's
    #[arg(short = 's', long = "socket", value_name = "SOCKET")]
    pub(super) socket: Option<PathBuf>,
    /// Wait at most this many seconds for the outcome
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(super) timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let count: f64 = text.parse().map_err(|_not_a_number| String::from("write a number of seconds"))?;
    Duration::try_from_secs_f64(count).ok().filter(|time| !time.is_zero()).ok_or("write a positive number".into())
}

#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    pub(super) target: Target,
    /// How listeners reach the new worker; the configuration's strategy when absent
    #[arg(long)]
    pub(super) mode: Option<Mode>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Mode {
    /// The very same listening sockets
    Handover,
    /// Freshly bound sockets; the old queues are emptied
    Rebind,
}

impl From<Mode> for ReloadMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Handover => Self::Handover,
            Mode::Rebind => Self::Rebind,
        }
    }
}

/// Facts, for people or machines.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    pub(super) target: Target,
    /// For machines
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum ServerCommand {
    /// Show all servers with their state
    List(ShowArgs),
    /// Change a server's state or weight, until it is changed again: reloads, crashes and upgrades keep it
    Set(ServerSetArgs),
}

#[derive(Debug, Args)]
pub(super) struct ServerSetArgs {
    /// Which server
    #[arg(value_name = "BACKEND/SERVER")]
    pub(super) server: String,
    #[command(flatten)]
    pub(super) target: Target,
    /// Whether it takes requests
    #[arg(long, required_unless_present = "weight")]
    pub(super) state: Option<ServerState>,
    /// Its share of requests: 0 to 256, or 0% to 100% of the configured one
    #[arg(long, value_name = "WEIGHT")]
    pub(super) weight: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ServerState {
    /// It takes requests
    Ready,
    /// No new requests; checks go on
    Drain,
    /// No new requests, no checks, no idle connections
    Maint,
}

#[derive(Debug, Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    pub(super) target: Target,
    /// Let open connections finish first
    #[arg(long)]
    pub(super) graceful: bool,
}

#[derive(Debug, Args)]
pub(super) struct SelfSignedArgs {
    /// File to make; one that exists is never replaced
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
    /// Host name or address it is for, repeatable; this machine's name, localhost, 127.0.0.1 and ::1 when absent
    #[arg(long = "name", value_name = "NAME")]
    pub(super) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct VersionArgs {
    /// Also what it is made of
    #[arg(long)]
    pub(super) verbose: bool,
    /// For machines: which versions of what crosses in an upgrade it speaks
    #[arg(long, conflicts_with = "verbose")]
    pub(super) json: bool,
}

impl VersionArgs {
    pub(super) fn print(&self) -> u8 {
        if self.json {
            println!("{}", serde_json::to_string(&Versions::ours()).unwrap_or_default());
            return super::DONE;
        }
        println!("proxy {}", env!("CARGO_PKG_VERSION"));
        if self.verbose {
            println!("target: {} {}", std::env::consts::ARCH, std::env::consts::OS);
            println!("TLS: rustls with aws-lc-rs, TLS 1.2 and 1.3, X25519MLKEM768");
            println!("configuration language: {}", crate::config::CONFIG_VERSION);
            println!("hand-over messages: {}", crate::handoff::messages::PROTOCOL_VERSION);
            println!("default configuration: {DEFAULT_PATH}");
        }
        super::DONE
    }
}

/// Flags of HAProxy that are longer than one letter after one dash, which clap would read as clusters.
const LONG_FLAGS: [(&str, &str); 3] = [("-sf", "--finish"), ("-st", "--terminate"), ("-db", "--foreground")];

/// Turns HAProxy's command line into ours; anything else stays as it is.
pub(super) fn normalise(argv: Vec<String>) -> Vec<String> {
    let first = argv.get(1).map_or("", String::as_str);
    let of_haproxy = first.starts_with('-') && !matches!(first, "-h" | "--help" | "--version");
    if !of_haproxy && !matches!(first, "run" | "--version") {
        return argv;
    }
    let has = |flag: &str| argv.iter().skip(1).any(|argument| argument == flag);
    let mut out: Vec<String> = argv.iter().take(1).cloned().collect();
    if of_haproxy || first == "--version" {
        if has("-v") || first == "--version" {
            return out.into_iter().chain(["version".into()]).collect();
        }
        if has("-vv") {
            return out.into_iter().chain(["version".into(), "--verbose".into()]).collect();
        }
        out.push(if has("-c") { "check" } else { "run" }.into());
    }
    for argument in argv.into_iter().skip(1) {
        match LONG_FLAGS.iter().find(|(theirs, _)| *theirs == argument) {
            Some((_, ours)) => out.push((*ours).into()),
            // What `-W`, `-Ws` and `-V` ask for is how it always works.
            None if of_haproxy && matches!(argument.as_str(), "-c" | "-W" | "-Ws" | "-V") => {}
            None => out.push(argument),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Command {
        let argv = line.split_whitespace().map(String::from).collect();
        Arguments::try_parse_from(normalise(argv)).unwrap().command
    }

    #[test]
    fn the_definitions_are_consistent() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn haproxys_start_line_means_the_same_here() {
        let Command::Run(run) = parsed("proxy -f p.toml -D -p /run/p.pid -x /run/s.sock -sf 12 13 -q") else {
            panic!()
        };
        assert_eq!((run.daemon, run.quiet, run.finish.as_slice()), (true, true, &[12, 13][..]));
        assert_eq!(run.take_over, Some("/run/s.sock".into()));
        let Command::Run(run) = parsed("proxy -f p.toml -p x -D -sf") else { panic!() };
        assert!(run.finish.is_empty(), "no old process is no mistake");
        let Command::Run(run) = parsed("proxy run -f p.toml -st 7") else { panic!() };
        assert_eq!(run.terminate, [7]);
    }

    #[test]
    fn haproxys_check_and_version() {
        let Command::Check(check) = parsed("proxy -f p.toml -c -q") else { panic!() };
        assert_eq!(check.config, PathBuf::from("p.toml"));
        let Command::Check(_) = parsed("proxy -c -V -f p.toml") else { panic!() };
        let Command::Version(version) = parsed("proxy -vv") else { panic!() };
        assert!(version.verbose);
        let Command::Version(version) = parsed("proxy --version") else { panic!() };
        assert!(!version.verbose);
    }

    #[test]
    fn a_pid_that_would_signal_everybody_is_refused() {
        for pid in ["1", "0", "-1"] {
            let argv = ["proxy", "run", "--finish", pid].map(String::from).to_vec();
            assert!(Arguments::try_parse_from(normalise(argv)).is_err(), "{pid}");
        }
    }
}
