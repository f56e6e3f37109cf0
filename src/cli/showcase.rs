//! A whole installation in a temporary folder: certificate, configuration, three origin servers.
//! Used by `demo` and `measure`. Everything is gone when it is dropped.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::origin;
use super::self_signed::certificate;

/// The installation.
pub(super) struct Showcase {
    folder: tempfile::TempDir,
    /// Plain HTTP, which redirects.
    pub(super) http: SocketAddr,
    /// HTTPS.
    pub(super) https: SocketAddr,
    /// The statistics page.
    pub(super) stats: SocketAddr,
    /// Origin servers.
    pub(super) origins: Vec<SocketAddr>,
}

/// Why it cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShowcaseError {
    /// Files or sockets.
    #[error("cannot prepare the installation: {0}")]
    Io(#[from] io::Error),
    /// The certificate.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

impl Showcase {
    /// Makes the files and starts the origin servers.
    pub(super) fn new() -> Result<Self, ShowcaseError> {
        let folder = tempfile::Builder::new().prefix("proxy-demo.").tempdir()?;
        let origins: Vec<_> = [9000, 9001, 9002].into_iter().map(listener).collect::<Result<_, _>>()?;
        let addresses = origins.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
        origin::serve(origins)?;
        // Held together until all are known, so that no two of them are the same.
        let own = [listener(8080)?, listener(8443)?, listener(8404)?];
        let [http, https, stats] = [own[0].local_addr()?, own[1].local_addr()?, own[2].local_addr()?];
        drop(own);
        let showcase = Self { folder, http, https, stats, origins: addresses };
        showcase.write("site.pem", &certificate(vec!["localhost".into(), "127.0.0.1".into()])?)?;
        showcase.write("proxy.toml", &showcase.configuration())?;
        Ok(showcase)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn config(&self) -> PathBuf {
        self.folder().join("proxy.toml")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder().join("admin.sock")
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let path = self.folder().join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
    }

    fn configuration(&self) -> String {
        let folder = self.folder().display();
        let servers: Vec<_> = self.origins.iter().map(|at| format!("  \"{at}\",\n")).collect();
        format!(
            r#"config-version = 1

[admin]
socket = "{folder}/admin.sock"
mode = "0600"
level = "admin"

[defaults]
forwarded-for = true
connection-mode = "keep-alive"

[stats]
bind = "{stats}"
uri = "/admin?stats"
auth = "demo"
realm = "Strictly Private"
refresh = "5s"

[users.demo]
admin = {{ insecure-password = "demo" }}

[frontend.http]
bind = "{http}"
rule = [{{ redirect = {{ prefix = "https://{https}", code = 301 }} }}]

[frontend.https]
bind = "{https}"
backend = "web"
tls.certificates = ["{folder}/site.pem"]
request-headers.set = {{ X-Forwarded-Proto = "https" }}

[backend.web]
balance = "roundrobin"
servers = [
{servers}]
"#,
            stats = self.stats,
            http = self.http,
            https = self.https,
            servers = servers.concat(),
        )
    }
}

/// The article's port where it is free, else one of the kernel's choice.
fn listener(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).or_else(|_taken| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_configuration_is_valid() {
        let showcase = Showcase::new().unwrap();
        let loaded = crate::master::load(&showcase.config()).unwrap();
        assert_eq!(loaded.bundle.backends[0].servers.len(), 3);
    }
}
