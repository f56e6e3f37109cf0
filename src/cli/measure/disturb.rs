//! The loop that restarts or reloads the daemon while clients are served.
//! Started by `measure` for each run. Counts what it did, never hides a failure.

use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::subject::Script;

/// What was done in a run.
#[derive(Debug, Clone, Default)]
pub(super) struct Disturbances {
    /// How long each one took.
    pub(super) took: Vec<Duration>,
    /// How many did not succeed.
    pub(super) failed: usize,
    /// What the last one that failed said.
    pub(super) complaint: Option<String>,
}

/// A running loop.
pub(super) struct Disturbance {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Disturbances>,
}

impl Disturbance {
    /// Begins: run the script, pause, run it again.
    pub(super) fn begin(script: Script, pause: Duration) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut done = Disturbances::default();
            loop {
                let began = Instant::now();
                if let Err(complaint) = carry_out(&script) {
                    done.failed += 1;
                    done.complaint = Some(complaint);
                }
                done.took.push(began.elapsed());
                if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return done;
                }
            }
        });
        Self { stop, thread }
    }

    /// Ends after the script that is under way.
    pub(super) fn end(self) -> Disturbances {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}

fn carry_out(script: &Script) -> Result<(), String> {
    for command in &script.0 {
        let Some((program, arguments)) = command.split_first() else { continue };
        let run = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).output();
        let output = run.map_err(|error| format!("{program}: {error}"))?;
        if !output.status.success() {
            return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    Ok(())
}
