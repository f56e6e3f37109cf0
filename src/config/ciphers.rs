//! TLS settings by name: versions, cipher suites, groups.
//! Called by `load` for `[global.tls]` and by `frontend`. Never builds anything of the TLS library.

use std::path::{Path, PathBuf};

use super::report::{Report, suggestion};
use super::section::{Section, Text};

/// IANA name and OpenSSL name of each suite the TLS library has.
const SUITES: [(&str, &str); 9] = [
    ("TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
    ("TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
    ("TLS_CHACHA20_POLY1305_SHA256", "TLS_CHACHA20_POLY1305_SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305"),
];

const GROUPS: [&str; 6] = ["X25519MLKEM768", "X25519", "P-256", "P-384", "secp256r1", "secp384r1"];

/// What `[global.tls]` gives every frontend.
#[derive(Clone)]
pub(super) struct TlsDefaults {
    pub(super) tls12: bool,
    pub(super) ciphers: Vec<String>,
    pub(super) groups: Vec<String>,
    pub(super) cert_base: Option<PathBuf>,
    pub(super) ca_base: Option<PathBuf>,
}

impl Default for TlsDefaults {
    fn default() -> Self {
        Self { tls12: true, ciphers: Vec::new(), groups: Vec::new(), cert_base: None, ca_base: None }
    }
}

impl TlsDefaults {
    /// These settings as changed by a section.
    pub(super) fn with(&self, section: &mut Section<'_>) -> Self {
        let versions = [("1.2", true), ("1.3", false)];
        let tls12 = section.choice("min-version", &versions).unwrap_or(self.tls12);
        let ciphers: Vec<_> = section.texts("ciphers").iter().filter_map(|name| suite(name, section)).collect();
        let groups: Vec<_> = section.texts("groups").into_iter().filter_map(|name| group(name, section)).collect();
        Self {
            tls12,
            ciphers: if ciphers.is_empty() { self.ciphers.clone() } else { ciphers },
            groups: if groups.is_empty() { self.groups.clone() } else { groups },
            cert_base: self.cert_base.clone(),
            ca_base: self.ca_base.clone(),
        }
    }

    /// The path of a certificate.
    pub(super) fn cert_file(&self, name: &str, report: &Report<'_>) -> PathBuf {
        based(self.cert_base.as_deref(), name, report)
    }

    /// The path of a file of authorities, or of what they revoked.
    pub(super) fn ca_file(&self, name: &str, report: &Report<'_>) -> PathBuf {
        based(self.ca_base.as_deref(), name, report)
    }
}

/// Relative names start at a base, which may itself be relative to the configuration's folder.
fn based(base: Option<&Path>, name: &str, report: &Report<'_>) -> PathBuf {
    base.map_or_else(|| report.resolve(name), |base| report.resolve(&base.to_string_lossy()).join(name))
}

/// The OpenSSL name of a suite with this IANA name.
#[must_use]
pub fn openssl_cipher(iana: &str) -> Option<&'static str> {
    SUITES.iter().find(|(name, _)| *name == iana).map(|(_, openssl)| *openssl)
}

/// The IANA name of a suite written either way.
fn suite(name: &Text, section: &Section<'_>) -> Option<String> {
    let found = SUITES
        .iter()
        .find(|(iana, openssl)| name.text.eq_ignore_ascii_case(iana) || name.text.eq_ignore_ascii_case(openssl));
    if let Some((iana, _)) = found {
        return Some((*iana).to_owned());
    }
    let known: Vec<_> = SUITES.iter().flat_map(|(iana, openssl)| [*openssl, *iana]).collect();
    let upper = name.text.to_uppercase();
    let label =
        if upper.starts_with("DHE-") || upper.contains("_DHE_") || upper.contains("CBC") || upper.contains("RC4") {
            String::from("suites without elliptic curves or without AEAD do not exist here; leave it out")
        } else {
            suggestion(&name.text, &known)
        };
    section.report.error(name.span.clone(), format!("unknown cipher suite `{}`", name.text), label);
    None
}

fn group(name: Text, section: &Section<'_>) -> Option<String> {
    if GROUPS.contains(&name.text.as_str()) {
        return Some(name.text);
    }
    let label = suggestion(&name.text, &GROUPS);
    section.report.error(name.span, format!("unknown group `{}`", name.text), label);
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use toml::de::DeTable;

    use super::*;
    use crate::config::report::Report;

    #[test]
    fn every_suite_of_the_library_has_its_two_names_here() {
        let library: BTreeSet<_> = rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES
            .iter()
            .map(|suite| format!("{:?}", suite.suite()).replace("TLS13_", "TLS_"))
            .collect();
        assert_eq!(SUITES.map(|(iana, _)| iana.to_owned()).into_iter().collect::<BTreeSet<_>>(), library);
        let openssl = |iana: &str| {
            let words = iana.trim_start_matches("TLS_").replace("_WITH", "").replace('_', "-");
            words.replace("AES-", "AES").replace("CHACHA20-POLY1305-SHA256", "CHACHA20-POLY1305")
        };
        for (iana, name) in SUITES.into_iter().filter(|(iana, _)| iana.contains("_WITH_")) {
            assert_eq!(openssl(iana), name);
        }
    }

    /// Settings read from a TLS section, and what was wrong with it.
    fn read(text: &str, defaults: &TlsDefaults) -> (TlsDefaults, String) {
        let table = DeTable::parse(text).unwrap();
        let report = Report::new(Path::new("f.toml"), text);
        let settings = defaults.with(&mut Section::new(table.get_ref(), 0..0, "[tls]", &report));
        (settings, report.errors().0)
    }

    #[test]
    fn settings_of_a_section_replace_the_defaults_one_by_one() {
        let defaults = TlsDefaults { groups: vec!["P-256".into()], ..TlsDefaults::default() };
        let text = "min-version = \"1.3\"\nciphers = [\"ecdhe-rsa-aes256-gcm-sha384\", \"tls_aes_128_gcm_sha256\"]";
        let (settings, errors) = read(text, &defaults);
        assert_eq!(errors, "");
        assert!(!settings.tls12);
        assert_eq!(settings.ciphers, ["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"]);
        assert_eq!(settings.groups, ["P-256"]);
        let (settings, errors) = read("groups = [\"X25519\"]", &defaults);
        assert_eq!((settings.tls12, settings.groups, errors), (true, vec![String::from("X25519")], String::new()));
    }

    #[test]
    fn what_the_library_lacks_is_refused_with_advice() {
        for (text, problem, advice) in [
            ("ciphers = \"DHE-RSA-AES256-GCM-SHA384\"", "DHE-RSA-AES256-GCM-SHA384", "leave it out"),
            ("ciphers = \"TLS_RSA_WITH_AES_128_CBC_SHA\"", "TLS_RSA_WITH_AES_128_CBC_SHA", "leave it out"),
            ("ciphers = \"RC4-SHA\"", "RC4-SHA", "leave it out"),
            ("ciphers = \"ECDHE-RSA-AES256-GCM-SHA385\"", "unknown cipher suite", "did you mean"),
            ("groups = \"X25518\"", "unknown group", "did you mean `X25519`?"),
            ("groups = \"sect571r1\"", "unknown group", "`secp"),
            ("min-version = \"1.1\"", "`min-version` cannot be `1.1`", "`1.2`"),
        ] {
            let (_, errors) = read(text, &TlsDefaults::default());
            assert!(errors.contains(problem) && errors.contains(advice), "{text}: {errors}");
        }
    }
}
