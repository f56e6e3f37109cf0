//! What can be wrong with an access-log format.
//! Returned by `Format::compile`. Never carries a client's bytes.

/// A format text that cannot be compiled; columns are byte offsets counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A `%` that is followed by no known variable.
    #[error("unknown variable `%{name}` at column {column}")]
    UnknownVariable {
        /// The letters after the `%`.
        name: String,
        /// Where the `%` is.
        column: usize,
    },
    /// A flag other than `+Q -Q +E -E` in `%{…}`.
    #[error("unknown flag `{flag}` at column {column} (known: +Q -Q +E -E)")]
    UnknownFlag {
        /// The flag as written.
        flag: String,
        /// Where the `%` is.
        column: usize,
    },
    /// `%{` without `}`.
    #[error("`%{{` at column {column} is never closed")]
    UnclosedFlags {
        /// Where the `%` is.
        column: usize,
    },
    /// Text without any variable, which is most likely a misspelt format name.
    #[error("`{text}` is no known format (httplog, tcplog, clf, json) and holds no %variable")]
    NoVariable {
        /// The whole text.
        text: String,
    },
}
