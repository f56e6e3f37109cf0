//! What callers may ask the master for, in which words, with which rights, and how it is answered.
//! Read by `admin`, answered by `lifecycle` and `transaction`. Pure.

use serde::{Deserialize, Serialize};

use super::orders::{self, ServerRequest};
use crate::config::{AdminLevel, ReloadMode};

/// What a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    Status,
    Servers(ServerRequest),
    Reload(Option<ReloadMode>),
    Upgrade,
    Stop { graceful: bool },
}

/// How a request ended; the discriminant is the exit code of the command that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Done.
    Applied = 0,
    /// Refused before anything was changed.
    Rejected = 1,
    /// Tried and undone.
    RolledBack = 2,
    /// Busy or timed out.
    Busy = 3,
}

/// The answer to a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// How it ended.
    pub outcome: Outcome,
    /// What to tell the caller.
    pub message: String,
    /// What the caller should know beside it.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Facts, for `status`.
    #[serde(default)]
    pub facts: serde_json::Value,
    /// What a stranger is told instead of `message`, which may quote the configuration.
    #[serde(skip)]
    pub(super) brief: Option<String>,
}

impl Answer {
    pub(super) fn new(outcome: Outcome, message: impl Into<String>) -> Self {
        Self { outcome, message: message.into(), warnings: Vec::new(), facts: serde_json::Value::Null, brief: None }
    }
}

/// What a line says.
pub(super) fn parse(line: &str) -> Result<Request, String> {
    Ok(match line {
        "status" => Request::Status,
        "reload" => Request::Reload(None),
        "reload handover" => Request::Reload(Some(ReloadMode::Handover)),
        "reload rebind" => Request::Reload(Some(ReloadMode::Rebind)),
        "upgrade" => Request::Upgrade,
        "stop" => Request::Stop { graceful: false },
        "stop graceful" => Request::Stop { graceful: true },
        _ => {
            let servers = orders::parse(line).ok_or_else(|| format!("unknown command `{line}`"))?;
            Request::Servers(servers?)
        }
    })
}

/// Looking needs `user`, reloading `operator`, changing servers `admin` as in HAProxy, upgrading and stopping, too;
/// strangers whom the socket's mode lets in never do the last two.
pub(super) fn permitted(request: &Request, level: AdminLevel, trusted: bool) -> bool {
    match request {
        Request::Status | Request::Servers(ServerRequest::List) => true,
        Request::Servers(ServerRequest::Set(_)) => level >= AdminLevel::Admin,
        Request::Reload(_) => level >= AdminLevel::Operator,
        Request::Upgrade | Request::Stop { .. } => level >= AdminLevel::Admin && trusted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_follow_level_and_caller() {
        let stop = Request::Stop { graceful: false };
        let drain = parse("server set b/s state drain").unwrap();
        for (request, level, trusted, expected) in [
            (Request::Status, AdminLevel::User, false, true),
            (Request::Reload(None), AdminLevel::User, true, false),
            (Request::Reload(None), AdminLevel::Operator, false, true),
            (Request::Upgrade, AdminLevel::Admin, false, false),
            (Request::Upgrade, AdminLevel::Admin, true, true),
            (Request::Servers(ServerRequest::List), AdminLevel::User, false, true),
            (drain.clone(), AdminLevel::Operator, true, false),
            (drain, AdminLevel::Admin, false, true),
            (stop.clone(), AdminLevel::Operator, true, false),
            (stop.clone(), AdminLevel::Admin, false, false),
            (stop, AdminLevel::Admin, true, true),
        ] {
            assert_eq!(permitted(&request, level, trusted), expected, "{request:?} {level:?} {trusted}");
        }
    }

    #[test]
    fn commands_are_words_not_prefixes() {
        assert_eq!(parse("reload rebind"), Ok(Request::Reload(Some(ReloadMode::Rebind))));
        assert!(parse("reload  rebind").is_err());
        assert!(parse("stopp").is_err());
    }
}
