//! `-D`: the daemon is this program started once more; we return when it serves or says why not.
//! Called by `cli::run` on both sides. Never forks a process that already has threads.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use super::args::RunArgs;
use super::run::{absolute, program};

/// What the daemon says once it serves.
const READY: &str = "ready";

/// Starts the daemon and waits for its verdict.
pub(super) fn start(args: &RunArgs) -> u8 {
    match verdict(args) {
        Ok((said, _)) if said == READY => super::DONE,
        Ok((said, code)) => {
            eprintln!("proxy: {}", if said.is_empty() { "the daemon ended before it served" } else { &said });
            code
        }
        Err(error) => {
            eprintln!("proxy: cannot start the daemon: {error}");
            super::REFUSED
        }
    }
}

/// What the daemon says, and its exit code where it does not serve.
fn verdict(args: &RunArgs) -> std::io::Result<(String, u8)> {
    let (mut child, mut ours) = launch(args)?;
    let mut said = String::new();
    ours.read_to_string(&mut said)?;
    if said == READY {
        return Ok((said, super::DONE));
    }
    // Of one that was killed there is no code, and one that was told to end has not served either.
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok());
    let code = code.filter(|code| *code != super::DONE).unwrap_or(super::REFUSED);
    Ok((said, code))
}

fn launch(args: &RunArgs) -> std::io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0(program()).args(["run", "--behind", "--config"]).arg(absolute(&args.config));
    if let Some(path) = &args.pid_file {
        command.arg("--pid-file").arg(absolute(path));
    }
    if let Some(path) = &args.take_over {
        command.arg("--take-over").arg(absolute(path));
    }
    for (flag, pids) in [("--finish", &args.finish), ("--terminate", &args.terminate)] {
        if !pids.is_empty() {
            command.arg(flag).args(pids.iter().map(i32::to_string));
        }
    }
    if args.quiet {
        command.arg("--quiet");
    }
    let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
    Ok((child, ours))
}

/// The process that waits for us to serve.
pub(super) struct Starter {
    stream: Option<UnixStream>,
}

impl Starter {
    /// Leaves the terminal; what is on stdin is the line to who started us.
    pub(super) fn adopt() -> Self {
        let stream = std::io::stdin().as_fd().try_clone_to_owned().ok().map(UnixStream::from);
        // Both fail only for a process that leads a session or whose root is gone; it serves anyway.
        let _ = nix::unistd::setsid();
        let _ = std::env::set_current_dir("/");
        if let Ok(null) = std::fs::File::open("/dev/null") {
            let _ = nix::unistd::dup2_stdin(null);
        }
        Self { stream }
    }

    /// We serve: lets the starter go and the terminal with it.
    pub(super) fn tell_ready(&self) {
        self.tell(READY);
        if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
            // From here on nobody reads; a failure leaves the starter's own files open.
            let _ = nix::unistd::dup2_stdout(&null);
            let _ = nix::unistd::dup2_stderr(&null);
        }
    }

    /// A last word; the starter reads to its end.
    pub(super) fn tell(&self, text: &str) {
        if let Some(mut stream) = self.stream.as_ref() {
            // A starter that was killed hears nothing.
            let _ = stream.write_all(text.as_bytes());
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}
