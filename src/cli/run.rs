//! `proxy run`: the daemon, in the foreground or behind.

use std::path::{Path, PathBuf};

use super::args::RunArgs;
use super::daemon::{self, Starter};
use crate::master::{self, MasterError, Options};

pub(super) fn run(args: RunArgs) -> u8 {
    if args.daemon {
        return daemon::start(&args);
    }
    if args.resume {
        return resume(args);
    }
    let starter = if args.behind { Some(Starter::adopt()) } else { None };
    let sockets_are_held = std::env::var_os("LISTEN_FDS").is_some();
    let result = serve(args, || {
        if let Some(starter) = &starter {
            starter.tell_ready();
        }
    });
    match (result, starter) {
        (Ok(()), _) => super::DONE,
        (Err(error), Some(starter)) => {
            starter.tell(&error.chain());
            refused(&error)
        }
        (Err(error), None) => {
            eprintln!("proxy: {}", error.chain());
            if sockets_are_held && !error.is_lasting() {
                eprintln!("proxy: the supervisor holds listening sockets: their clients wait until a start succeeds");
            }
            refused(&error)
        }
    }
}

/// A supervisor need not try again what will be refused again.
fn refused(error: &MasterError) -> u8 {
    if error.is_lasting() { super::NOT_CONFIGURED } else { super::REFUSED }
}

/// This process was another program until now, which left everything on our stdin.
fn resume(args: RunArgs) -> u8 {
    let channel = match super::worker::channel_on_stdin() {
        Ok(channel) => channel,
        Err(error) => {
            eprintln!("proxy: a daemon is resumed by itself only: {error}");
            return super::REFUSED;
        }
    };
    ended(match args.rehearse {
        true => master::rehearse(&absolute(&args.config), &channel),
        false => master::resume(&options(args), &channel),
    })
}

/// How a master that nobody starts again has ended; returns the exit code.
pub(super) fn ended(result: Result<(), MasterError>) -> u8 {
    match result {
        Ok(()) => super::DONE,
        Err(error) => {
            eprintln!("proxy: {}", error.chain());
            super::REFUSED
        }
    }
}

fn serve(args: RunArgs, ready: impl FnOnce()) -> Result<(), MasterError> {
    master::run(options(args), ready)
}

fn options(args: RunArgs) -> Options {
    Options {
        program: program(),
        config: absolute(&args.config),
        pid_file: args.pid_file.as_deref().map(absolute),
        take_over: args.take_over,
        finish: args.finish,
        terminate: args.terminate,
        quiet: args.quiet,
    }
}

/// Where this program lies: as it was called, so that a link that is changed leads to the next one; else as the kernel
/// says.
pub(super) fn program() -> PathBuf {
    let running = std::env::current_exe().unwrap_or_default();
    // The kernel adds this once another file has taken the name.
    let running =
        running.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map_or(running.clone(), PathBuf::from);
    let called = std::env::args_os().next().map(|called| absolute(Path::new(&called)));
    let called = called.filter(|called| called.canonicalize().is_ok_and(|real| real == running));
    called.unwrap_or(running)
}

/// Reloads find the file wherever the daemon is by then.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_empty| path.to_owned())
}
