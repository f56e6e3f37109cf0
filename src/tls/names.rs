//! Cipher suites and groups by the names configurations use.
//! Called by `tls` with names the configuration has checked. Never adds what was not asked for,
//! TLS 1.3 suites excepted.

use rustls::SupportedCipherSuite;
use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, SECP384R1, X25519, X25519MLKEM768};

use super::TlsError;
use crate::config::openssl_cipher;

/// The suites with these IANA names, in this order. TLS 1.3 suites that are not named stay, as in
/// HAProxy, where `ciphers` never spoke of them.
pub(super) fn suites(names: &[String], all: &[SupportedCipherSuite]) -> Result<Vec<SupportedCipherSuite>, TlsError> {
    let mut chosen = Vec::new();
    for name in names {
        let suite = all.iter().find(|suite| iana(suite) == *name).ok_or_else(|| TlsError::Cipher(name.clone()))?;
        chosen.push(*suite);
    }
    if !chosen.iter().any(|suite| suite.tls13().is_some()) {
        chosen.extend(all.iter().filter(|suite| suite.tls13().is_some()));
    }
    Ok(chosen)
}

/// The name of a suite as OpenSSL writes it.
#[must_use]
pub fn cipher_name(suite: &SupportedCipherSuite) -> String {
    let iana = iana(suite);
    openssl_cipher(&iana).map_or(iana.clone(), str::to_owned)
}

/// The library writes `TLS13_AES_…`, IANA writes `TLS_AES_…`.
fn iana(suite: &SupportedCipherSuite) -> String {
    let name = format!("{:?}", suite.suite());
    name.strip_prefix("TLS13_").map_or(name.clone(), |rest| format!("TLS_{rest}"))
}

/// The groups with these names, in this order.
pub(super) fn groups(names: &[String]) -> Result<Vec<&'static dyn SupportedKxGroup>, TlsError> {
    names
        .iter()
        .map(|name| match name.as_str() {
            "X25519MLKEM768" => Ok(X25519MLKEM768),
            "X25519" => Ok(X25519),
            "P-256" | "secp256r1" => Ok(SECP256R1),
            "P-384" | "secp384r1" => Ok(SECP384R1),
            _ => Err(TlsError::Group(name.clone())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naming_a_tls12_suite_keeps_the_tls13_ones() {
        let all = rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
        let chosen = suites(&["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384".to_owned()], all).unwrap();
        assert_eq!(iana(&chosen[0]), "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384");
        assert_eq!(chosen.iter().filter(|suite| suite.tls13().is_none()).count(), 1);
        assert_eq!(chosen.iter().filter(|suite| suite.tls13().is_some()).count(), 3);
        assert!(matches!(suites(&["TLS_NULL".to_owned()], all), Err(TlsError::Cipher(_))));
    }

    #[test]
    fn groups_keep_their_order() {
        let chosen = groups(&["P-256".to_owned(), "X25519MLKEM768".to_owned()]).unwrap();
        assert_eq!(chosen[0].name(), rustls::NamedGroup::secp256r1);
        assert_eq!(chosen[1].name(), rustls::NamedGroup::X25519MLKEM768);
        assert!(groups(&["P-521".to_owned()]).is_err());
    }
}
