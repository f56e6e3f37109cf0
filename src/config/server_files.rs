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
    /// Puts something in the place of what a backend had; returns which backend that is, unless it has no use for it: in
    /// another generation the backend of this name may go by other files.
    pub fn exchange(&mut self, backend: &str, files: ServerFiles) -> Option<usize> {
        let place = self.backends.iter().position(|known| known.name == backend)?;
        let tls = self.backends[place].tls.as_mut()?;
        match files {
            // Others that read the same file find the same in it.
            ServerFiles::Authorities(fresh) => {
                let known = self.authorities.get_mut(tls.authorities?)?;
                *known = Some(fresh).filter(|fresh| fresh.path == known.path)?;
            }
            ServerFiles::Revocations { path, crls } => {
                tls.crls = Some(crls).filter(|_| tls.crl_file.as_ref() == Some(&path))?;
            }
            ServerFiles::Identity { certificate, key } => {
                let known = tls.identity.as_mut()?;
                let same = (&known.path, &tls.identity_key) == (&certificate.path, &key);
                *known = Some(certificate).filter(|_| same)?;
            }
        }
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_backend_that_goes_by_another_file_has_no_use_for_what_this_one_holds() {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed([String::from("a.example")]).unwrap();
        fs::write(folder.path().join("own.pem"), made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
        let text = "config-version = 1\n[frontend.web]\nbind = \"127.0.0.1:1\"\nbackend = \"pool\"\n[backend.pool]\n\
            server = [{ name = \"one\", address = \"localhost:2\" }]\n\
            tls = { ca-file = \"own.pem\", client-cert = \"own.pem\", watch = true }\n";
        let loaded = crate::config::load_text(&folder.path().join("proxy.toml"), text, &|_| Ok(())).unwrap();
        let mut bundle = loaded.bundle;
        bundle.backends[0].tls.as_mut().unwrap().crl_file = Some(folder.path().join("list.pem"));
        let of = |bundle: &Bundle| ServerFiles::of(&bundle.backends[0], &bundle.authorities);
        let (before, other) = (of(&bundle), folder.path().join("other.pem"));
        assert_eq!(before.len(), 3);
        for mut files in before.clone() {
            match &mut files {
                ServerFiles::Authorities(list) => list.certificates.clear(),
                ServerFiles::Revocations { crls, .. } => crls.push(vec![1]),
                ServerFiles::Identity { certificate, .. } => certificate.names.clear(),
            }
            let same = files.clone();
            match &mut files {
                ServerFiles::Authorities(Authorities { path, .. })
                | ServerFiles::Revocations { path, .. }
                | ServerFiles::Identity { certificate: Certificate { path, .. }, .. } => path.clone_from(&other),
            }
            assert_eq!((bundle.exchange("pool", files.clone()), of(&bundle) == before), (None, true), "{files:?}");
            let mut exchanged = bundle.clone();
            assert_eq!((exchanged.exchange("pool", same.clone()), of(&exchanged).contains(&same)), (Some(0), true));
        }
    }
}
