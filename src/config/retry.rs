//! `retry-on`: what of a failed attempt makes another one worth it.
//! Read by `defaults`, obeyed by `proxy` and `upstream`. Never says which requests may be repeated.

use serde::{Deserialize, Serialize};

use super::section::Section;

/// Kinds of failures after which a request is asked again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryOn {
    /// There was no connection.
    pub connection: bool,
    /// The server closed without a word.
    pub empty: bool,
    /// It said something that is no response.
    pub junk: bool,
    /// It said nothing in time.
    pub timeout: bool,
    /// It answered with one of these.
    pub statuses: Vec<u16>,
}

impl Default for RetryOn {
    fn default() -> Self {
        Self { connection: true, ..Self::none() }
    }
}

impl RetryOn {
    /// Nothing is asked again.
    fn none() -> Self {
        Self { connection: false, empty: false, junk: false, timeout: false, statuses: Vec::new() }
    }

    /// Whether anything matters beyond connections.
    #[must_use]
    pub fn looks_at_answers(&self) -> bool {
        self.empty || self.junk || self.timeout || !self.statuses.is_empty()
    }
}

/// Statuses that HAProxy asks again for, too.
const STATUSES: [u16; 11] = [401, 403, 404, 408, 425, 429, 500, 501, 502, 503, 504];

pub(super) fn retry_on(section: &mut Section<'_>) -> Option<RetryOn> {
    section.value("retry-on")?;
    let mut on = RetryOn::none();
    for word in section.texts("retry-on") {
        let status = word.text.parse().ok().filter(|status| STATUSES.contains(status));
        match (word.text.as_str(), status) {
            ("none", _) => on = RetryOn::none(),
            ("conn-failure", _) => on.connection = true,
            ("empty-response", _) => on.empty = true,
            ("junk-response", _) => on.junk = true,
            ("response-timeout", _) => on.timeout = true,
            (_, Some(status)) => on.statuses.push(status),
            _ => {
                let message = format!("`{}` is nothing to retry on", word.text);
                let fix = "write \"conn-failure\", \"empty-response\", \"junk-response\", \"response-timeout\", \
                           or a status such as \"503\"";
                section.report.error(word.span, message, fix);
            }
        }
    }
    Some(on)
}
