//! `proxy run`: the daemon, in the foreground or behind.

use std::path::Path;

use super::args::RunArgs;
use super::daemon::{self, Starter};
use crate::master::{self, MasterError, Options};

pub(super) fn run(args: RunArgs) -> u8 {
    if args.daemon {
        return daemon::start(&args);
    }
    let starter = if args.behind { Some(Starter::adopt()) } else { None };
    let result = serve(args, || {
        if let Some(starter) = &starter {
            starter.tell_ready();
        }
    });
    match (result, starter) {
        (Ok(()), _) => super::DONE,
        (Err(error), Some(starter)) => {
            starter.tell(&error.chain());
            super::REFUSED
        }
        (Err(error), None) => {
            eprintln!("proxy: {}", error.chain());
            super::REFUSED
        }
    }
}

fn serve(args: RunArgs, ready: impl FnOnce()) -> Result<(), MasterError> {
    let options = Options {
        config: absolute(&args.config),
        pid_file: args.pid_file.as_deref().map(absolute),
        take_over: args.take_over,
        finish: args.finish,
        terminate: args.terminate,
        quiet: args.quiet,
        behind: args.behind,
    };
    master::run(options, ready)
}

/// Reloads find the file wherever the daemon is by then.
pub(super) fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_empty| path.to_owned())
}
