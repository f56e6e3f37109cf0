//! The configuration language: TOML in, a checked `Bundle` (or every problem at once) out.
//! Called by the master and `proxy check`. Never binds, forks or changes anything.

mod authorities;
mod backend;
mod bundle;
mod certificates;
mod check;
mod ciphers;
mod defaults;
mod expiry;
mod expression;
mod frontend;
mod frontend_tls;
mod listen;
mod load;
mod network;
mod process;
mod report;
mod retry;
mod rights;
mod route;
mod rule;
mod section;
mod server_files;
mod server_tls;
mod stats;
mod tls;
mod units;

#[cfg(test)]
mod tests;

pub use authorities::{lists_end, read_client_auth};
pub use backend::{Backend, Balance, Protocol, SendProxy, Server};
pub use bundle::*;
pub use certificates::{Facts, facts, read_certificates};
pub use check::{Check, CheckMethod, HttpCheck, Question};
pub use ciphers::openssl_cipher;
pub use expiry::Expiry;
pub use expression::{Converter, Fetch, Piece, Template};
pub use listen::{Access, Address, Bind, KEPT_NAMES, Source};
pub use network::Network;
pub use retry::RetryOn;
pub use route::{Destination, Route, When};
pub use rule::{Action, Redirect, Rule};
pub use server_files::ServerFiles;
pub use tls::*;

use serde::{Deserialize, Deserializer, Serializer};

/// Version of the configuration language.
pub const CONFIG_VERSION: i64 = 1;
/// Configuration read when `-f` is not given.
pub const DEFAULT_PATH: &str = "/etc/proxy/proxy.toml";

/// Every problem found in a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", .rendered)]
pub struct Rejected {
    /// Human-readable report: each problem with file:line:column, source line and caret.
    pub rendered: String,
    /// The same for a log: a line each, without source lines, which may hold secrets.
    pub brief: String,
    /// Number of problems.
    pub errors: usize,
    /// Whether the text alone is wrong: no file and no name that it names could make it right.
    pub lasting: bool,
}

/// A configuration that may be used.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration with the files it names.
    pub bundle: Bundle,
    /// Things worth telling the operator (clear-text passwords, open admin sockets …), rendered.
    pub warnings: Vec<String>,
}

pub use load::{admin_socket, load, load_text};
pub use report::nearest;
pub use rights::{may_become_anybody, may_confine, may_give_to};

/// Bytes as base64 text, for `#[serde(with)]`.
pub(crate) mod base64_bytes {
    use super::{Deserialize, Deserializer, Serializer};
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

mod base64_list {
    use super::{Deserialize, Deserializer, Serializer};
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::ser::SerializeSeq as _;

    pub(super) fn serialize<S: Serializer>(list: &[Vec<u8>], to: S) -> Result<S::Ok, S::Error> {
        let mut seq = to.serialize_seq(Some(list.len()))?;
        for bytes in list {
            seq.serialize_element(&STANDARD.encode(bytes))?;
        }
        seq.end()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let list = Vec::<String>::deserialize(from)?;
        list.into_iter().map(|text| STANDARD.decode(text).map_err(serde::de::Error::custom)).collect()
    }
}
