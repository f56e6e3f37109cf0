//! Certificates and keys: any order, repeated content, checked to belong together.
//! Called by `frontend` and `server_tls`. Never trusts a file's order.

use std::path::{Path, PathBuf};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject as _, SectionKind};
use toml::de::DeValue;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::ciphers::TlsDefaults;
use super::expiry::tell_end;
use super::section::{Section, as_section, as_text};
use super::{Certificate, KeyFormat, TlsServer};

/// What is wrong with a certificate file, and what would be right.
pub(super) type Trouble = (String, String);

/// A certificate as a configuration names it, and its key's own file: a file, or a table of two.
pub(super) fn certificate<'a>(
    item: &'a toml::Spanned<DeValue<'a>>,
    section: &Section<'a>,
    defaults: &TlsDefaults,
) -> Option<(Certificate, Option<PathBuf>)> {
    let report = section.report;
    let locate = |name: &str| defaults.cert_file(name, report);
    let (file, key) = match item.get_ref() {
        DeValue::Table(_) => {
            let mut table = as_section(item, String::from("certificate"), report)?;
            let (file, key) = (table.text("cert"), table.text("key"));
            if file.is_none() {
                report.error(
                    item.span(),
                    "a certificate without a file",
                    "write { cert = \"a.crt\", key = \"a.key\" }",
                );
            }
            table.finish();
            (file?, key)
        }
        _ => (as_text(item, report, "a file name")?, None),
    };
    let key = key.map(|key| locate(&key.text));
    match load(&locate(&file.text), key.as_deref()) {
        Ok(certificate) => {
            tell_end(certificate.not_after, &file, section);
            Some((certificate, key))
        }
        Err((problem, fix)) => {
            report.outside(file.span, problem, fix);
            None
        }
    }
}

/// The files `*.pem` of a folder that are not hidden, in the order of their names.
///
/// # Errors
/// The folder cannot be read.
pub(super) fn files_of(folder: &Path) -> Result<Vec<PathBuf>, Trouble> {
    let failed = |error: std::io::Error| (format!("cannot read `{}`", folder.display()), error.to_string());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // A hidden one is what an editor or a copy is still at.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "pem") {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// The certificates of a frontend as its files hold them now.
///
/// # Errors
/// The first file that cannot be used, and why; or that there is none.
pub fn read_certificates(tls: &TlsServer) -> Result<Vec<Certificate>, String> {
    let told = |(problem, fix): Trouble| format!("{problem}; {fix}");
    let named = tls.sources.iter().cloned();
    let more = tls.cert_dir.as_deref().map_or(Ok(Vec::new()), files_of).map_err(told)?;
    let all = named.chain(more.into_iter().map(|file| (file, None)));
    let certificates: Vec<_> =
        all.map(|(file, key)| load(&file, key.as_deref()).map_err(told)).collect::<Result<_, _>>()?;
    if certificates.is_empty() {
        return Err(String::from("there is no certificate any more"));
    }
    Ok(certificates)
}

/// Reads certificates and key from one file, or from two.
pub(super) fn load(certificates: &Path, key: Option<&Path>) -> Result<Certificate, Trouble> {
    // One by one: what is cut off in one file would run on into the next.
    let mut found = sections(certificates, &read(certificates)?)?;
    if let Some(key) = key {
        found.extend(sections(key, &read(key)?)?);
    }
    assemble(certificates.to_owned(), found)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Trouble> {
    std::fs::read(path).map_err(|error| (format!("cannot read `{}`", path.display()), error.to_string()))
}

/// The sections of a PEM text.
fn sections(file: &Path, text: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>, Trouble> {
    <(SectionKind, Vec<u8>)>::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| (format!("`{}` is not PEM", file.display()), broken(&error)))
}

/// Certificates and keys, each once: scripts that append on every run repeat them.
fn assemble(path: PathBuf, found: Vec<(SectionKind, Vec<u8>)>) -> Result<Certificate, Trouble> {
    let mut chain: Vec<Vec<u8>> = Vec::new();
    let mut keys: Vec<(KeyFormat, Vec<u8>)> = Vec::new();
    for (kind, der) in found {
        let format = match kind {
            SectionKind::Certificate => {
                if !chain.contains(&der) {
                    chain.push(der);
                }
                continue;
            }
            SectionKind::PrivateKey => KeyFormat::Pkcs8,
            SectionKind::RsaPrivateKey => KeyFormat::Pkcs1,
            SectionKind::EcPrivateKey => KeyFormat::Sec1,
            _ => continue,
        };
        if !keys.iter().any(|(_, known)| *known == der) {
            keys.push((format, der));
        }
    }
    if chain.is_empty() {
        return Err((
            format!("`{}` holds no certificate", path.display()),
            "put the chain and the key into one PEM file".into(),
        ));
    }
    if keys.is_empty() {
        return Err((
            format!("`{}` holds no private key", path.display()),
            "put the chain and the key into one PEM file".into(),
        ));
    }
    let (leaf, key_format, key) = match_key(&path, &chain, keys)?;
    let chain = order(leaf, chain);
    let leaf = x509(&path, &chain[0])?;
    let (names, not_after) = (names(&leaf), leaf.validity().not_after.timestamp());
    Ok(Certificate { path, chain, key, key_format, names, not_after })
}

/// What is wrong with a PEM text, in words: the library shows lines as numbers.
fn broken(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            format!("the section {} has no end", String::from_utf8_lossy(end_marker).escape_default())
        }
        pem::Error::IllegalSectionStart { .. } => String::from("a line that should begin a section does not"),
        other => other.to_string(),
    }
}

fn x509<'a>(path: &Path, der: &'a [u8]) -> Result<X509Certificate<'a>, Trouble> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| (format!("`{}` holds a broken certificate", path.display()), error.to_string()))
}

/// The certificate whose public key belongs to one of the private keys.
fn match_key(
    path: &Path,
    chain: &[Vec<u8>],
    keys: Vec<(KeyFormat, Vec<u8>)>,
) -> Result<(usize, KeyFormat, Vec<u8>), Trouble> {
    for (format, key) in keys {
        let der = match format {
            KeyFormat::Pkcs8 => PrivateKeyDer::Pkcs8(key.clone().into()),
            KeyFormat::Pkcs1 => PrivateKeyDer::Pkcs1(key.clone().into()),
            KeyFormat::Sec1 => PrivateKeyDer::Sec1(key.clone().into()),
        };
        let signing = any_supported_type(&der)
            .map_err(|error| (format!("the private key in `{}` is unusable", path.display()), error.to_string()))?;
        let Some(public) = signing.public_key() else { continue };
        for (index, certificate) in chain.iter().enumerate() {
            if x509(path, certificate)?.public_key().raw == public.as_ref() {
                return Ok((index, format, key));
            }
        }
    }
    Err((
        format!("no certificate in `{}` belongs to its private key", path.display()),
        "certificate and key must be of one pair".into(),
    ))
}

/// Leaf first, then each issuer; certificates that do not belong to the chain are left out.
fn order(leaf: usize, mut rest: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut chain = vec![rest.swap_remove(leaf)];
    loop {
        let issuer_of = chain.last().and_then(|der| X509Certificate::from_der(der).ok());
        let Some((_, last)) = issuer_of else { return chain };
        let next = rest.iter().position(|der| {
            X509Certificate::from_der(der).is_ok_and(|(_, candidate)| candidate.subject() == last.issuer())
        });
        match next {
            Some(next) if last.subject() != last.issuer() => {
                let der = rest.swap_remove(next);
                chain.push(der);
            }
            _ => return chain,
        }
    }
}

/// What a certificate says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// As in [`Certificate`].
    pub names: Vec<String>,
    /// Begin and end of validity, seconds since the epoch.
    pub validity: (i64, i64),
}

/// What a certificate says of itself; `None` for what is none.
#[must_use]
pub fn facts(der: &[u8]) -> Option<Facts> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    let validity = (validity.not_before.timestamp(), validity.not_after.timestamp());
    Some(Facts { names: names(&certificate), validity })
}

/// Names of the subject alternative name extension, else the common name.
fn names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let alternative: Vec<String> = match leaf.subject_alternative_name() {
        Ok(Some(extension)) => extension.value.general_names.iter().filter_map(name).collect(),
        _ => Vec::new(),
    };
    if !alternative.is_empty() {
        return alternative;
    }
    leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(str::to_ascii_lowercase).collect()
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|ip| std::net::Ipv4Addr::from(ip).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|ip| std::net::Ipv6Addr::from(ip).to_string()),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: PathBuf, text: &[u8]) -> Result<Certificate, Trouble> {
        let found = sections(&path, text)?;
        assemble(path, found)
    }

    fn pair(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn key_first_and_doubled_content_are_one_certificate() {
        let (certificate, key) = pair("a.example");
        let text = format!("{key}{certificate}{key}{certificate}");
        let loaded = parse(PathBuf::from("x.pem"), text.as_bytes()).unwrap();
        assert_eq!((loaded.chain.len(), loaded.names), (1, vec![String::from("a.example")]));
    }

    #[test]
    fn half_a_file_is_refused_in_words() {
        let text = pair("a.example").0;
        let trouble = parse(PathBuf::from("x.pem"), &text.as_bytes()[..text.len() / 2]).unwrap_err();
        assert_eq!(trouble, ("`x.pem` is not PEM".into(), "the section CERTIFICATE has no end".into()));
    }

    #[test]
    fn half_a_certificate_does_not_run_on_into_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("a.crt"), folder.path().join("a.key"));
        let (text, secret) = pair("a.example");
        // Whole lines of it: base64 that can go on.
        let whole = text.lines().take(3).map(|line| format!("{line}\n")).collect::<String>();
        std::fs::write(&certificate, whole).unwrap();
        std::fs::write(&key, secret).unwrap();
        let trouble = load(&certificate, Some(&key)).unwrap_err();
        assert!(trouble.0.ends_with("a.crt` is not PEM"), "{trouble:?}");
    }

    #[test]
    fn a_foreign_key_is_refused() {
        let ((certificate, _), (_, key)) = (pair("a.example"), pair("b.example"));
        let trouble = parse(PathBuf::from("x.pem"), format!("{certificate}{key}").as_bytes()).unwrap_err();
        assert!(trouble.0.contains("belongs to its private key"), "{trouble:?}");
    }

    #[test]
    fn a_certificate_with_only_a_common_name_has_that_name() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "Box.Example");
        let key = rcgen::KeyPair::generate().unwrap();
        let text = params.self_signed(&key).unwrap().pem() + &key.serialize_pem();
        assert_eq!(parse(PathBuf::from("x.pem"), text.as_bytes()).unwrap().names, ["box.example"]);
    }

    fn params(name: &str) -> rcgen::CertificateParams {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params
    }

    #[test]
    fn a_chain_in_any_order_begins_with_the_leaf_and_leaves_strangers_out() {
        let key = || rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertifiedIssuer::self_signed(params("root"), key()).unwrap();
        let middle = rcgen::CertifiedIssuer::signed_by(params("middle"), key(), &root).unwrap();
        let leaf_key = key();
        let leaf = params("leaf").signed_by(&leaf_key, &middle).unwrap();
        let parts = [leaf.pem(), middle.pem(), root.pem(), pair("stranger.example").0, leaf_key.serialize_pem()];
        let wanted = [leaf.der().to_vec(), middle.der().to_vec(), root.der().to_vec()];
        for turn in 0..parts.len() {
            // Their number is prime: every step visits each part once.
            for step in 1..parts.len() {
                let text: String = (0..parts.len()).map(|n| parts[(turn + n * step) % parts.len()].as_str()).collect();
                let loaded = parse(PathBuf::from("x.pem"), text.as_bytes()).unwrap();
                assert_eq!(loaded.chain, wanted, "turned by {turn}, in steps of {step}");
            }
        }
    }

    #[test]
    fn alternative_names_are_all_there_is_beside_a_common_name() {
        let names = ["A.example", "*.b.example", "192.0.2.1", "2001:db8::1"].map(str::to_owned);
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "c.example");
        let key = rcgen::KeyPair::generate().unwrap();
        let text = params.self_signed(&key).unwrap().pem() + &key.serialize_pem();
        let loaded = parse(PathBuf::from("x.pem"), text.as_bytes()).unwrap();
        assert_eq!(loaded.names, ["a.example", "*.b.example", "192.0.2.1", "2001:db8::1"]);
    }

    #[test]
    fn of_several_keys_the_one_of_a_certificate_is_taken() {
        let ((certificate, key), (_, other)) = (pair("a.example"), pair("b.example"));
        for text in [format!("{other}{key}{certificate}"), format!("{certificate}{key}{other}")] {
            let loaded = parse(PathBuf::from("x.pem"), text.as_bytes()).unwrap();
            let (_, expected) = <(SectionKind, Vec<u8>)>::pem_slice_iter(key.as_bytes()).next().unwrap().unwrap();
            assert_eq!((loaded.key_format, loaded.key), (KeyFormat::Pkcs8, expected));
        }
    }

    /// The key inside a PKCS#8 document, in the older form of its algorithm.
    fn older_form(key: &rcgen::KeyPair, label: &str, before: &[u8]) -> String {
        let pkcs8 = key.serialize_der();
        let at = pkcs8.windows(before.len()).position(|window| window == before).unwrap() + before.len();
        // The octet string's own length takes one byte, or three from 256 bytes on.
        let inner = if pkcs8[at] == 0x82 { &pkcs8[at + 3..] } else { &pkcs8[at + 1..] };
        let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, inner);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }

    #[test]
    fn keys_in_their_older_forms_are_understood() {
        let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let ec = rcgen::KeyPair::generate().unwrap();
        for (key, label, before, format) in [
            (&rsa, "RSA PRIVATE KEY", &[0x05, 0x00, 0x04][..], KeyFormat::Pkcs1),
            (&ec, "EC PRIVATE KEY", &[0x03, 0x01, 0x07, 0x04][..], KeyFormat::Sec1),
        ] {
            let text = params("a.example").self_signed(key).unwrap().pem() + &older_form(key, label, before);
            let loaded = parse(PathBuf::from("x.pem"), text.as_bytes()).unwrap();
            assert_eq!((loaded.key_format, loaded.names), (format, vec![String::from("a.example")]));
        }
    }

    #[test]
    fn certificate_and_key_may_be_two_files_without_final_newlines() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = pair("a.example");
        let (crt, secret) = (folder.path().join("a.crt"), folder.path().join("a.key"));
        std::fs::write(&crt, certificate.trim_end()).unwrap();
        std::fs::write(&secret, key.trim_end()).unwrap();
        assert_eq!(load(&crt, Some(&secret)).unwrap().names, ["a.example"]);
        let trouble = load(&folder.path().join("none.crt"), None).unwrap_err();
        assert!(trouble.0.contains("cannot read") && trouble.0.contains("none.crt"), "{trouble:?}");
    }

    #[test]
    fn broken_content_is_named_for_what_it_is() {
        let (certificate, key) = pair("a.example");
        let wrong_base64 = key.replace("-----\n", "-----\n!");
        let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let not_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for (text, problem) in [
            (format!("{certificate}{wrong_base64}"), "is not PEM"),
            (format!("{not_der}{key}"), "broken certificate"),
            (format!("{certificate}{not_key}"), "is unusable"),
            (String::new(), "no certificate"),
        ] {
            let trouble = parse(PathBuf::from("x.pem"), text.as_bytes()).unwrap_err();
            assert!(trouble.0.contains(problem) && trouble.0.contains("x.pem"), "{problem}: {trouble:?}");
        }
    }

    #[test]
    fn missing_halves_are_named() {
        let (certificate, key) = pair("a.example");
        assert!(parse(PathBuf::from("x.pem"), certificate.as_bytes()).unwrap_err().0.contains("no private key"));
        assert!(parse(PathBuf::from("x.pem"), key.as_bytes()).unwrap_err().0.contains("no certificate"));
    }
}
