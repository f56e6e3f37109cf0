//! Loading: the configuration, and what only upper layers can check of it.
//! Called at start, at reload and by `proxy check`. Never applies anything.

use std::path::Path;

use super::MasterError;
use crate::config::{self, Loaded};
use crate::logging::Format;
use crate::tls::{self, TicketKeys, random_ticket_key};

/// Loads a configuration as a worker would have to use it.
///
/// # Errors
/// Every problem of the file, or settings the TLS library refuses.
pub fn load(path: &Path) -> Result<Loaded, MasterError> {
    let loaded = config::load(path, &|text| Format::compile(text).map(drop).map_err(|error| error.to_string()))?;
    let keys = TicketKeys::from_raw(&[random_ticket_key()?], loaded.bundle.global.tickets.lifetime())?;
    tls::acceptors(&loaded.bundle, &keys)?;
    tls::client_settings(&loaded.bundle)?;
    Ok(loaded)
}
