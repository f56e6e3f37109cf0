//! Whom to believe: certificates of authorities and lists of what they have revoked.
//! Called by `server_tls` and `frontend_tls`, and when files have changed. Never decides about a certificate.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{PemObject as _, SectionKind};
use webpki::BorrowedCertRevocationList;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Version};

use super::certificates::{Trouble, facts, read};
use super::expiry::now;
use super::section::Section;
use super::{Authorities, ClientAuth};

/// Where distributions keep the authorities that everybody believes.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Every file of authorities that is named, each once.
#[derive(Default)]
pub(super) struct Trust {
    /// With whether the file is watched: what changes for some stays for others as it was read.
    lists: RefCell<Vec<(Authorities, bool)>>,
}

impl Trust {
    /// The place of a file's authorities in the bundle; those of the system where none is named.
    pub(super) fn place(&self, file: Option<PathBuf>, watched: bool) -> Result<usize, Trouble> {
        let path = file.clone().unwrap_or_else(|| PathBuf::from(SYSTEM));
        let known = self.lists.borrow().iter().position(|(list, its)| list.path == path && *its == watched);
        if let Some(known) = known {
            return Ok(known);
        }
        let missing = |trouble: Trouble| match file {
            Some(_) => trouble,
            None => (trouble.0, String::from("name a `ca-file`, or install the package ca-certificates")),
        };
        let list = authorities(path).map_err(missing)?;
        self.lists.borrow_mut().push((list, watched));
        Ok(self.lists.borrow().len() - 1)
    }

    /// As [`Authorities::end`] of those at a place.
    pub(super) fn end(&self, place: usize) -> Option<i64> {
        self.lists.borrow().get(place).and_then(|(list, _watched)| list.end(now()))
    }

    /// What was collected.
    pub(super) fn into_lists(self) -> Vec<Authorities> {
        self.lists.into_inner().into_iter().map(|(list, _watched)| list).collect()
    }
}

impl Authorities {
    /// When the next of them ends, in seconds since the epoch; one that has ended tells nothing as long as another lives.
    /// What a distribution keeps is not for anybody here to renew.
    #[must_use]
    pub fn end(&self, now: i64) -> Option<i64> {
        self.ends.iter().find(|end| **end >= now).or(self.ends.last()).copied()
    }
}

/// The authorities of a file.
pub(super) fn authorities(path: PathBuf) -> Result<Authorities, Trouble> {
    let mut certificates: Vec<Vec<u8>> = Vec::new();
    for der in sections(&path, SectionKind::Certificate)? {
        if !certificates.contains(&der) {
            certificates.push(der);
        }
    }
    let ders = certificates.iter().map(|der| CertificateDer::from(der.as_slice()));
    let (usable, _unusable) = RootCertStore::empty().add_parsable_certificates(ders);
    if usable == 0 {
        let problem = format!("`{}` holds no certificate of an authority", path.display());
        return Err((problem, String::from("put the authorities' certificates into one PEM file")));
    }
    // Parsed here, once: they are asked for with every look at the daemon.
    let own: &[_] = if path == Path::new(SYSTEM) { &[] } else { &certificates };
    let mut ends: Vec<_> = own.iter().filter_map(|der| facts(der)).map(|facts| facts.validity.1).collect();
    ends.sort_unstable();
    Ok(Authorities { path, certificates, ends })
}

/// What vouches for clients, as the files hold it now.
///
/// # Errors
/// The first file that cannot be used, and why.
pub fn read_client_auth(auth: &ClientAuth) -> Result<ClientAuth, String> {
    let told = |(problem, fix): Trouble| format!("{problem}; {fix}");
    let authorities = authorities(auth.authorities.path.clone()).map_err(told)?;
    let crls = auth.crl_file.as_deref().map_or(Ok(Vec::new()), lists).map_err(told)?;
    Ok(ClientAuth { authorities, crls, ..auth.clone() })
}

/// The revocation lists of a file that the configuration names.
pub(super) fn revocations(file: &Path, section: &Section<'_>) -> Vec<Vec<u8>> {
    let place = section.place("crl-file");
    let lists = match lists(file) {
        Ok(lists) => lists,
        Err((problem, fix)) => {
            section.report.outside(place, problem, fix);
            return Vec::new();
        }
    };
    if lists_end(&lists).is_some_and(|end| end < now()) {
        let problem = format!("a revocation list in `{}` is out of date", file.display());
        section.report.warning(place, problem, "every certificate of its issuer is refused");
    }
    lists
}

/// When the first of these lists is out of date, in seconds since the epoch.
#[must_use]
pub fn lists_end(lists: &[Vec<u8>]) -> Option<i64> {
    let end = |der: &Vec<u8>| Some(CertificateRevocationList::from_der(der).ok()?.1.next_update()?.timestamp());
    lists.iter().filter_map(end).min()
}

/// The revocation lists of a file.
pub(super) fn lists(file: &Path) -> Result<Vec<Vec<u8>>, Trouble> {
    let lists = sections(file, SectionKind::Crl)?;
    if lists.is_empty() {
        let problem = format!("`{}` holds no revocation list", file.display());
        return Err((problem, String::from("put the lists of all authorities of a chain into one PEM file")));
    }
    for der in &lists {
        match CertificateRevocationList::from_der(der) {
            Ok((_, list)) if list.version() != Some(X509Version::V2) => {
                let problem = format!("`{}` holds a revocation list of version 1", file.display());
                let fix = "make it with extensions: `crl_extensions` in openssl.cnf, or `-crlexts`";
                return Err((problem, fix.to_owned()));
            }
            // Whether the verifier understands all of it; what it would refuse could start no worker.
            Ok(_) => {
                if let Err(error) = BorrowedCertRevocationList::from_der(der) {
                    return Err((format!("`{}` holds a revocation list of no use", file.display()), error.to_string()));
                }
            }
            Err(error) => {
                return Err((format!("`{}` holds a broken revocation list", file.display()), error.to_string()));
            }
        }
    }
    Ok(lists)
}

/// What a PEM file holds of one kind.
fn sections(path: &Path, wanted: SectionKind) -> Result<Vec<Vec<u8>>, Trouble> {
    let pem = read(path)?;
    let mut found = Vec::new();
    for item in <(SectionKind, Vec<u8>)>::pem_slice_iter(&pem) {
        let (kind, der) = item.map_err(|error| (format!("`{}` is not PEM", path.display()), error.to_string()))?;
        if kind == wanted {
            found.push(der);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_authorities_is_read_once_and_holds_some() {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec![String::from("ca.example")]).unwrap();
        let (good, bad) = (folder.path().join("ca.pem"), folder.path().join("none.pem"));
        std::fs::write(&good, made.cert.pem().repeat(2)).unwrap();
        std::fs::write(&bad, made.signing_key.serialize_pem()).unwrap();
        let trust = Trust::default();
        assert_eq!((trust.place(Some(good.clone()), false), trust.place(Some(good.clone()), false)), (Ok(0), Ok(0)));
        // Who watches it has his own.
        assert_eq!((trust.place(Some(good.clone()), true), trust.place(Some(good), false)), (Ok(1), Ok(0)));
        let (problem, _) = trust.place(Some(bad), false).unwrap_err();
        assert!(problem.contains("none.pem` holds no certificate of an authority"), "{problem}");
        let lists = trust.into_lists();
        assert_eq!((lists.len(), lists[0].certificates.len()), (2, 1));
    }

    #[test]
    fn of_authorities_the_next_end_counts_and_one_that_is_past_only_without_another() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let made = |year| {
            let mut params = rcgen::CertificateParams::new([format!("{year}.example")]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
        };
        std::fs::write(&file, made(2050) + &made(2020) + &made(2040) + &made(2021)).unwrap();
        let all = authorities(file).unwrap();
        let first_of = |year| rcgen::date_time_ymd(year, 1, 1).unix_timestamp();
        for (now, expected) in [(2019, 2020), (2030, 2040), (2040, 2040), (2045, 2050), (2060, 2050)] {
            assert_eq!(all.end(first_of(now)), Some(first_of(expected)), "in {now}");
        }
    }

    #[test]
    fn authorities_of_an_older_version_are_the_same_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, rcgen::generate_simple_self_signed([String::from("ca")]).unwrap().cert.pem()).unwrap();
        let read = authorities(file).unwrap();
        let mut document = serde_json::to_value(&read).unwrap();
        document.as_object_mut().unwrap().remove("ends").unwrap();
        let older: Authorities = serde_json::from_value(document).unwrap();
        assert!(older == read && older.end(0).is_none() && read.end(0).is_some());
    }
}
