//! The command line: one file a subcommand. Parses, prints, chooses the exit code.
//! Called by `main`. Never keeps state: a daemon is asked over its admin socket.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this layer is for")]

mod answer;
mod args;
mod check;
mod client;
mod daemon;
mod demo;
#[cfg(test)]
mod documents;
mod find;
mod measure;
mod origin;
mod reload;
mod run;
mod self_signed;
mod server;
mod showcase;
mod status;
mod stop;
mod upgrade;
mod worker;

use std::process::ExitCode;

use clap::Parser as _;

use crate::logging::Zone;
use args::{Arguments, Command};

/// The command was carried out.
const DONE: u8 = 0;
/// The configuration was refused, or the command cannot be carried out.
const REFUSED: u8 = 1;
/// Busy, or not finished in time.
const BUSY: u8 = 3;
/// No daemon answers.
const NOT_RUNNING: u8 = 4;
/// A daemon cannot start from this configuration, however often it is tried; as the LSB has it.
const NOT_CONFIGURED: u8 = 6;

/// Runs the command of this process.
#[must_use]
pub fn main() -> ExitCode {
    // The local time zone is a file: read now, before threads exist and chroot hides it.
    Zone::local();
    // Started through /proc/self/exe, the kernel would call us "exe"; a wrong name is no reason to fail.
    let _ = nix::sys::prctl::set_name(c"proxy");
    let argv: Vec<String> = match std::env::args_os().map(std::ffi::OsString::into_string).collect() {
        Ok(argv) => argv,
        Err(argument) => {
            eprintln!("proxy: an argument is not UTF-8: {}", argument.display());
            return REFUSED.into();
        }
    };
    let arguments = match Arguments::try_parse_from(args::normalise(argv)) {
        Ok(arguments) => arguments,
        Err(usage) => {
            // Where nobody reads, nobody is told.
            let _ = usage.print();
            // Help is an answer. A mistake is a refusal: clap's own 2 would mean rolled back.
            return ExitCode::from(if usage.use_stderr() { REFUSED } else { DONE });
        }
    };
    let code = match arguments.command {
        Command::Run(run) => run::run(run),
        Command::Check(check) => check::run(&check),
        Command::Reload(reload) => reload::run(&reload.target, reload.mode.map(Into::into)),
        Command::ReloadSocket(target) => reload::run(&target, Some(crate::config::ReloadMode::Handover)),
        Command::Status(status) => status::run(&status),
        Command::Server(command) => server::run(&command),
        Command::Upgrade(target) => upgrade::run(&target),
        Command::Stop(stop) => stop::run(&stop),
        Command::SelfSigned(wanted) => self_signed::run(&wanted),
        Command::Demo(demo) => demo::run(&demo),
        Command::Measure(measure) => measure::run(&measure),
        Command::Version(version) => version.print(),
        Command::Worker => worker::run(),
    };
    ExitCode::from(code)
}
