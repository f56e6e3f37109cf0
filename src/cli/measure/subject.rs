//! What is measured: an installation of our own, or a daemon that somebody else runs.
//! Used by `measure`. Knows how each action is carried out.

use std::fmt;
use std::net::ToSocketAddrs as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::ValueEnum;
use hyper::Uri;

use super::user::Target;
use crate::cli::showcase::{Showcase, ShowcaseError};

/// What is done to the daemon while clients are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Action {
    /// Nothing
    None,
    /// Stop and start
    Restart,
    /// Reload onto freshly bound sockets
    Reload,
    /// Reload with the sockets handed over
    ReloadSocket,
    /// The command of `--reload-command`
    #[value(skip)]
    Given,
}

impl Action {
    /// Whether a lost request decides the exit code.
    pub(super) fn must_be_lossless(self) -> bool {
        matches!(self, Self::None | Self::ReloadSocket | Self::Given)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Restart => "restart",
            Self::Reload => "reload",
            Self::ReloadSocket => "reload-socket",
            Self::Given => "given command",
        })
    }
}

/// Why nothing can be measured.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubjectError {
    /// The installation.
    #[error(transparent)]
    Showcase(#[from] ShowcaseError),
    /// The daemon.
    #[error("the daemon does not start: {0}")]
    Start(String),
    /// The address to aim at.
    #[error("{0} is not a usable URL: write http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH")]
    Url(String),
    /// The load cannot be made.
    #[error("cannot make load: {0}")]
    Load(#[from] std::io::Error),
    /// TLS as a client.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// The daemon under measurement.
pub(super) struct Subject {
    pub(super) target: Target,
    kind: Kind,
}

enum Kind {
    Own { showcase: Showcase, program: PathBuf },
    Running { command: String },
}

impl Subject {
    /// An installation of our own, in a temporary folder.
    pub(super) fn own() -> Result<Self, SubjectError> {
        let showcase = Showcase::new()?;
        let target = Target::new(showcase.https, "localhost", "/", true)?;
        Ok(Self { target, kind: Kind::Own { showcase, program: std::env::current_exe()? } })
    }

    /// A daemon that runs already.
    pub(super) fn running(url: &str, command: &str) -> Result<Self, SubjectError> {
        let unusable = || SubjectError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_invalid| unusable())?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(unusable()),
        };
        let host = uri.host().ok_or_else(unusable)?;
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let address = (host.trim_matches(['[', ']']), port).to_socket_addrs()?.next().ok_or_else(unusable)?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            target: Target::new(address, host, path, secure)?,
            kind: Kind::Running { command: command.to_owned() },
        })
    }

    /// What is to be measured of this subject.
    pub(super) fn actions(&self, wanted: &[Action]) -> Vec<Action> {
        match self.kind {
            Kind::Running { .. } => vec![Action::None, Action::Given],
            Kind::Own { .. } if wanted.is_empty() => {
                vec![Action::None, Action::Restart, Action::Reload, Action::ReloadSocket]
            }
            Kind::Own { .. } => wanted.to_vec(),
        }
    }

    /// The shell script that carries an action out once.
    pub(super) fn script(&self, action: Action) -> Option<Script> {
        let Kind::Own { showcase, program } = &self.kind else {
            let Kind::Running { command } = &self.kind else { return None };
            return (action == Action::Given).then(|| Script(vec![shell(command)]));
        };
        let own = |arguments: &[&str]| {
            let mut command = vec![program.display().to_string()];
            command.extend(arguments.iter().map(ToString::to_string));
            command.extend(["-f".into(), showcase.config().display().to_string()]);
            command
        };
        Some(Script(match action {
            Action::None | Action::Given => return None,
            Action::Restart => vec![own(&["stop"]), own(&["run", "-D", "-q"])],
            Action::Reload => vec![own(&["reload", "--mode", "rebind"])],
            Action::ReloadSocket => vec![own(&["reload-socket"])],
        }))
    }

    /// Starts our own daemon where it does not run.
    pub(super) fn ensure_running(&self) -> Result<(), SubjectError> {
        let Kind::Own { showcase, program } = &self.kind else { return Ok(()) };
        let status = Command::new(program).arg("status").arg("-s").arg(showcase.socket()).output()?;
        if status.status.success() {
            return Ok(());
        }
        let mut start = Command::new(program);
        start.args(["run", "-D", "-q", "-f"]).arg(showcase.config()).stderr(Stdio::piped());
        let started = start.output()?;
        if started.status.success() {
            Ok(())
        } else {
            Err(SubjectError::Start(String::from_utf8_lossy(&started.stderr).trim().to_owned()))
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Kind::Own { showcase, program } = &self.kind {
            // Its folder goes next: a daemon that cannot be stopped is reported by its own stderr.
            let _ = Command::new(program).arg("stop").arg("-s").arg(showcase.socket()).stderr(Stdio::null()).status();
        }
    }
}

fn shell(command: &str) -> Vec<String> {
    vec!["sh".into(), "-c".into(), command.into()]
}

/// Commands run one after the other.
#[derive(Debug, Clone)]
pub(super) struct Script(pub(super) Vec<Vec<String>>);
