//! Which versions of what crosses from one program to the next this one speaks.
//! Printed by `proxy version --json`, judged by the master before an upgrade. Pure.

use serde::{Deserialize, Serialize};

use super::messages::PROTOCOL_VERSION;

/// Version of the manifest that a master leaves for its successor. Fields that older readers may ignore and newer ones
/// may miss are added without a new one.
pub const MANIFEST_VERSION: u32 = 1;
/// The oldest version that is still written and read: at least the one before.
const OLDEST_MANIFEST: u32 = 1;
/// The oldest version of the messages that is still understood: at least the one before.
const OLDEST_PROTOCOL: u32 = 1;

/// An inclusive range of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The oldest one.
    pub oldest: u32,
    /// The newest one.
    pub newest: u32,
}

impl Span {
    /// The newest version that both speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }

    /// Whether a version is in it.
    #[must_use]
    pub fn holds(self, version: u32) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.oldest == self.newest {
            true => write!(f, "{}", self.newest),
            false => write!(f, "{} to {}", self.oldest, self.newest),
        }
    }
}

/// What a program speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Its own version.
    pub program: String,
    /// Manifests.
    pub manifest: Span,
    /// Messages between master and workers, and between workers.
    pub messages: Span,
}

/// Why one program cannot go on where another is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("proxy {theirs} speaks version {their_span} of the {what}, proxy {ours} speaks {our_span}: restart instead")]
pub struct Incompatible {
    what: &'static str,
    theirs: String,
    their_span: Span,
    ours: String,
    our_span: Span,
}

impl Versions {
    /// Those of this program.
    #[must_use]
    pub fn ours() -> Self {
        let ours = Self {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Span { oldest: OLDEST_MANIFEST, newest: MANIFEST_VERSION },
            messages: Span { oldest: OLDEST_PROTOCOL, newest: PROTOCOL_VERSION },
        };
        super::fault::pretended().unwrap_or(ours)
    }

    /// The newest manifest that both understand.
    ///
    /// # Errors
    /// Says which versions do not meet.
    pub fn meet(&self, theirs: &Self) -> Result<u32, Incompatible> {
        let apart = |what, our_span, their_span| Incompatible {
            what,
            theirs: theirs.program.clone(),
            their_span,
            ours: self.program.clone(),
            our_span,
        };
        self.messages
            .common(theirs.messages)
            .ok_or_else(|| apart("messages between workers", self.messages, theirs.messages))?;
        self.manifest.common(theirs.manifest).ok_or_else(|| apart("manifest", self.manifest, theirs.manifest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speaking(manifest: (u32, u32), messages: (u32, u32)) -> Versions {
        let span = |(oldest, newest)| Span { oldest, newest };
        Versions { program: "9.9.9".into(), manifest: span(manifest), messages: span(messages) }
    }

    #[test]
    fn neighbours_meet_in_both_directions_and_strangers_do_not() {
        let (old, new, newer) = (speaking((1, 1), (1, 1)), speaking((1, 2), (1, 2)), speaking((2, 3), (2, 3)));
        assert_eq!((old.meet(&new), new.meet(&old)), (Ok(1), Ok(1)));
        assert_eq!((new.meet(&newer), newer.meet(&new)), (Ok(2), Ok(2)));
        let apart = old.meet(&newer).unwrap_err().to_string();
        assert!(apart.contains("speaks version 2 to 3 of the messages") && apart.contains("speaks 1:"), "{apart}");
        let apart = speaking((1, 1), (1, 2)).meet(&newer).unwrap_err().to_string();
        assert!(apart.contains("of the manifest"), "{apart}");
    }

    #[test]
    fn a_program_meets_itself() {
        assert_eq!(Versions::ours().meet(&Versions::ours()), Ok(MANIFEST_VERSION));
    }
}
