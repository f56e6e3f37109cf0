//! `proxy measure`: what clients lose while a daemon is restarted or reloaded all the time.
//! The article's experiment as one command, against our own installation or any running daemon.

mod disturb;
mod load;
mod subject;
mod table;
mod user;

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::disturb::{Disturbance, Disturbances};
use self::load::Plan;
use self::subject::{Action, Subject, SubjectError};
use self::table::Row;
use crate::socket::{Fittings, Wanted, raise_for};

/// Exit code when something was lost.
const LOST: u8 = 1;
/// Exit code when nothing could be measured.
const FAILED: u8 = 2;

/// What to measure.
#[derive(Debug, Args)]
pub(super) struct MeasureArgs {
    /// Requests of each run
    #[arg(short = 'n', long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    requests: u64,
    /// Parallel users; several numbers make several runs
    #[arg(short = 'c', long, value_delimiter = ',', default_values_t = [100, 200])]
    users: Vec<usize>,
    /// Pause between two reloads, seconds
    #[arg(long, default_value_t = 0.2)]
    every: f64,
    /// What is done to the daemon meanwhile; all four when absent
    #[arg(long = "do", value_name = "ACTION", value_delimiter = ',')]
    actions: Vec<Action>,
    /// Keep connections: half the users GET, half POST, none ever retries
    #[arg(long)]
    keep_alive: bool,
    /// Clients resume their TLS sessions, each its own
    #[arg(long)]
    resume: bool,
    /// Connections that stay idle meanwhile, and must answer once more at the end
    #[arg(long, default_value_t = 0)]
    idle: usize,
    /// Aim at a daemon that runs already (http or https)
    #[arg(long, value_name = "URL", requires = "reload_command")]
    url: Option<String>,
    /// How that daemon is reloaded: a command for sh
    #[arg(long, value_name = "COMMAND", requires = "url", conflicts_with = "actions")]
    reload_command: Option<String>,
    /// JSON for machines
    #[arg(long)]
    json: bool,
}

/// Runs every combination. 0: reload-socket (or the given command) lost nothing, 1: it did, 2: not measured.
pub(super) fn run(args: &MeasureArgs) -> u8 {
    match measure(args) {
        Ok(rows) => {
            if args.json {
                println!("{}", table::json(&rows));
            } else {
                print!("{}", table::text(&rows));
            }
            let judged: Vec<_> = rows.iter().filter(|row| row.action.must_be_lossless()).collect();
            if judged.iter().any(|row| row.result.failed() > 0 || row.disturbances.failed > 0) {
                LOST
            } else {
                super::DONE
            }
        }
        Err(error) => {
            eprintln!("proxy: {error}");
            FAILED
        }
    }
}

fn measure(args: &MeasureArgs) -> Result<Vec<Row>, SubjectError> {
    // As many descriptors as there may be; what is too much shows as lost connections.
    let _ = raise_for(Wanted::default(), Fittings::default());
    let subject = match (&args.url, &args.reload_command) {
        (Some(url), Some(command)) => Subject::running(url, command)?,
        _ => Subject::own()?,
    };
    let mut rows = Vec::new();
    for users in &args.users {
        for action in subject.actions(&args.actions) {
            rows.push(one(args, &subject, action, *users)?);
        }
    }
    Ok(rows)
}

fn one(args: &MeasureArgs, subject: &Subject, action: Action, users: usize) -> Result<Row, SubjectError> {
    subject.ensure_running()?;
    let progress = progress(args, action, users);
    let (target, requests, keep_alive) = (subject.target.clone(), args.requests, args.keep_alive);
    let plan = Plan { target, requests, users, keep_alive, idle: args.idle, resume: args.resume };
    let pause = Duration::try_from_secs_f64(args.every).unwrap_or_default();
    let bar = Arc::new(progress);
    let mut disturbances = Disturbances::default();
    let begin = || subject.script(action).map(|script| Disturbance::begin(script, pause));
    let end = |running: Option<Disturbance>| disturbances = running.map(Disturbance::end).unwrap_or_default();
    let result = load::run(&plan, &bar, begin, end);
    bar.finish_and_clear();
    Ok(Row { action, users, result: result?, disturbances })
}

fn progress(args: &MeasureArgs, action: Action, users: usize) -> ProgressBar {
    let target = if args.json || !std::io::stderr().is_terminal() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let bar = ProgressBar::with_draw_target(Some(args.requests), target);
    if let Ok(style) = ProgressStyle::with_template("{msg:32} {bar:40} {pos}/{len} {per_sec} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(format!("{action}, {users} users"));
    bar
}
