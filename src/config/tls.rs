//! The parts of a `Bundle` that TLS is made of: certificates, keys, authorities, settings.
//! Filled by `frontend`, `server_tls` and `authorities`, read by `tls`. Never builds anything of the TLS library.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// TLS settings of one frontend, defaults applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsServer {
    /// Certificates; the first is the default for unknown or absent SNI.
    pub certificates: Vec<Certificate>,
    /// Application protocols offered (ALPN), preferred first; empty only in TCP mode.
    #[serde(default = "alpn")]
    pub alpn: Vec<String>,
    /// Whether TLS 1.2 is offered beside 1.3.
    pub tls12: bool,
    /// IANA names of the cipher suites offered, in order; empty is the library's list.
    /// TLS 1.3 suites that are not named stay available.
    pub ciphers: Vec<String>,
    /// Key-exchange groups by name (`X25519MLKEM768`, `X25519`, `P-256`, `P-384`); empty is the library's list.
    pub groups: Vec<String>,
    /// Where the certificates came from: files of both, or of chain and key.
    #[serde(default)]
    pub sources: Vec<(PathBuf, Option<PathBuf>)>,
    /// A folder whose files `*.pem` hold more of them.
    #[serde(default)]
    pub cert_dir: Option<PathBuf>,
    /// Whether files that change are served without a reload.
    #[serde(default)]
    pub watch: bool,
    /// Whether a client that asks for a name we have no certificate for is refused.
    #[serde(default)]
    pub strict_sni: bool,
    /// Whether a request for a host that the connection's certificate is not for is refused.
    #[serde(default)]
    pub host_must_match_sni: bool,
    /// Whether and how clients prove who they are.
    #[serde(default)]
    pub client_auth: Option<ClientAuth>,
}

/// `client-auth`: certificates of clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientAuth {
    /// Whether a client without a certificate is refused.
    pub required: bool,
    /// Those that vouch for clients.
    pub authorities: Authorities,
    /// Where the revocation lists came from.
    pub crl_file: Option<PathBuf>,
    /// DER revocation lists; with any, every certificate of a chain has to be covered.
    #[serde(with = "super::base64_list")]
    pub crls: Vec<Vec<u8>>,
}

pub(super) fn alpn() -> Vec<String> {
    vec![String::from("h2"), String::from("http/1.1")]
}

/// A certificate chain with its key, already proven to match.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Where it came from.
    pub path: PathBuf,
    /// DER certificates, leaf first, base64 in the bundle.
    #[serde(with = "super::base64_list")]
    pub chain: Vec<Vec<u8>>,
    /// PKCS#8, PKCS#1 or SEC1 DER key.
    #[serde(with = "super::base64_bytes")]
    pub key: Vec<u8>,
    /// Which of the three the key is.
    pub key_format: KeyFormat,
    /// DNS names and addresses it answers for, lower case, `*.` wildcards kept; SAN, else CN.
    pub names: Vec<String>,
    /// End of validity, seconds since the epoch.
    pub not_after: i64,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("path", &self.path).field("names", &self.names).finish_non_exhaustive()
    }
}

/// Encoding of a private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyFormat {
    /// `PRIVATE KEY`.
    Pkcs8,
    /// `RSA PRIVATE KEY`.
    Pkcs1,
    /// `EC PRIVATE KEY`.
    Sec1,
}

/// The authorities of one file.
#[derive(Clone, Serialize, Deserialize)]
pub struct Authorities {
    /// Where they came from.
    pub path: PathBuf,
    /// DER certificates.
    #[serde(with = "super::base64_list")]
    pub certificates: Vec<Vec<u8>>,
    /// When they end, in seconds since the epoch, the first one first; see [`Authorities::end`].
    #[serde(default)]
    pub(super) ends: Vec<i64>,
}

/// The ends are the certificates' own, and unknown where an older version has read them.
impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        (&self.path, &self.certificates) == (&other.path, &other.certificates)
    }
}

impl Eq for Authorities {}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorities").field("path", &self.path).finish_non_exhaustive()
    }
}

/// TLS towards the servers of a backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TlsClient {
    /// Place in `Bundle::authorities` of those that a server's certificate is checked with; `None` takes any.
    pub authorities: Option<usize>,
    /// DER revocation lists; with any, every certificate of a chain has to be covered.
    #[serde(with = "super::base64_list")]
    pub crls: Vec<Vec<u8>>,
    /// Where the revocation lists came from.
    #[serde(default)]
    pub crl_file: Option<PathBuf>,
    /// The name servers are asked for and have to prove, instead of each one's own host.
    pub sni: Option<String>,
    /// What a server is shown that asks who we are.
    pub identity: Option<Certificate>,
    /// The file of its key, where it has one of its own.
    #[serde(default)]
    pub identity_key: Option<PathBuf>,
    /// Whether files that change count without a reload.
    #[serde(default)]
    pub watch: bool,
    /// Whether TLS 1.2 is offered beside 1.3.
    pub tls12: bool,
    /// As in [`TlsServer`].
    pub ciphers: Vec<String>,
    /// As in [`TlsServer`].
    pub groups: Vec<String>,
}
