//! The files of a backend's TLS that may change while it serves: who is believed, what was revoked, what servers are shown.
//! Read anew by the master's watch, put into a bundle by master and worker. Never looks whether a file has changed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::authorities::{authorities, lists};
use super::certificates::{Trouble, load};
use super::{Authorities, Backend, Bundle, Certificate};

/// Files that count together, and what they hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerFiles {
    /// Who vouches for servers.
    Authorities(Authorities),
    /// What those have revoked.
    Revocations {
        /// Where the lists came from.
        path: PathBuf,
        /// DER revocation lists.
        #[serde(with = "super::base64_list")]
        crls: Vec<Vec<u8>>,
    },
    /// What a server is shown that asks who we are.
    Identity {
        /// Chain and key.
        certificate: Certificate,
        /// The key's own file, where it has one.
        key: Option<PathBuf>,
    },
}

impl ServerFiles {
    /// What a backend's TLS depends on; each stands alone.
    #[must_use]
    pub fn of(backend: &Backend, lists: &[Authorities]) -> Vec<Self> {
        let Some(tls) = &backend.tls else { return Vec::new() };
        let authorities = tls.authorities.and_then(|place| lists.get(place)).cloned().map(Self::Authorities);
        let revocations = tls.crl_file.clone().map(|path| Self::Revocations { path, crls: tls.crls.clone() });
        let identity = tls.identity.clone();
        let identity = identity.map(|certificate| Self::Identity { certificate, key: tls.identity_key.clone() });
        [authorities, revocations, identity].into_iter().flatten().collect()
    }

    /// Where it is read.
    #[must_use]
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            Self::Authorities(Authorities { path, .. }) | Self::Revocations { path, .. } => vec![path],
            Self::Identity { certificate, key } => {
                [Some(certificate.path.as_path()), key.as_deref()].into_iter().flatten().collect()
            }
        }
    }

    /// The same as the files hold it now.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(&self) -> Result<Self, String> {
        let read = match self {
            Self::Authorities(known) => authorities(known.path.clone()).map(Self::Authorities),
            Self::Revocations { path, .. } => lists(path).map(|crls| Self::Revocations { path: path.clone(), crls }),
            Self::Identity { certificate, key } => load(&certificate.path, key.as_deref())
                .map(|certificate| Self::Identity { certificate, key: key.clone() }),
        };
        read.map_err(|(problem, fix): Trouble| format!("{problem}; {fix}"))
    }

    /// What the log says of others.
    #[must_use]
    pub fn change(&self) -> &'static str {
        match self {
            Self::Authorities(_) => "other authorities for servers",
            Self::Revocations { .. } => "other revocation lists for servers",
            Self::Identity { .. } => "a new certificate to show servers",
        }
    }

    /// What it says where those that are new cannot be used.
    #[must_use]
    pub fn kept(&self) -> &'static str {
        match self {
            Self::Authorities(_) => "the authorities for servers stay as they are",
            Self::Revocations { .. } => "the revocation lists for servers stay as they are",
            Self::Identity { .. } => "the certificate to show servers stays as it is",
        }
    }
}

impl Bundle {
    /// Puts something in the place of what a backend had; returns which backend that is, unless it has no use for it.
    pub fn exchange(&mut self, backend: &str, files: ServerFiles) -> Option<usize> {
        let place = self.backends.iter().position(|known| known.name == backend)?;
        let tls = self.backends[place].tls.as_mut()?;
        match files {
            // Others that read the same file find the same in it.
            ServerFiles::Authorities(fresh) => *self.authorities.get_mut(tls.authorities?)? = fresh,
            ServerFiles::Revocations { crls, .. } => tls.crls = crls,
            ServerFiles::Identity { certificate, .. } => tls.identity = Some(certificate),
        }
        Some(place)
    }
}
