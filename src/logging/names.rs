//! The configured names a log line shows, by bundle index.
//! Taken from the bundle once per worker, used by the formatter. Never refers back to the bundle.

use crate::config::Bundle;

/// Names of frontends, backends and servers in bundle order.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Frontends.
    pub frontends: Vec<String>,
    /// Backends.
    pub backends: Vec<String>,
    /// Servers per backend.
    pub servers: Vec<Vec<String>>,
}

impl Names {
    /// Copies the names of a bundle.
    #[must_use]
    pub fn of(bundle: &Bundle) -> Self {
        Self {
            frontends: bundle.frontends.iter().map(|frontend| frontend.name.clone()).collect(),
            backends: bundle.backends.iter().map(|backend| backend.name.clone()).collect(),
            servers: bundle
                .backends
                .iter()
                .map(|backend| backend.servers.iter().map(|server| server.name.clone()).collect())
                .collect(),
        }
    }

    /// `%f`.
    pub(super) fn frontend(&self, index: usize) -> &str {
        self.frontends.get(index).map_or("-", String::as_str)
    }

    /// `%b`: the frontend's name when no backend was reached.
    pub(super) fn backend(&self, backend: Option<usize>, frontend: usize) -> &str {
        backend.and_then(|index| self.backends.get(index)).map_or_else(|| self.frontend(frontend), String::as_str)
    }

    /// `%s`: `None` when no server was chosen.
    pub(super) fn server(&self, backend: Option<usize>, server: Option<usize>) -> Option<&str> {
        self.servers.get(backend?)?.get(server?).map(String::as_str)
    }
}
