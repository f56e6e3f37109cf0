//! What the certificate that a client showed says, field by field, as HAProxy would say it.
//! Called by `proxy` once per connection that asks. Never decides whether a certificate is believed.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::config::Fetch;

/// Names of attributes as OpenSSL shortens them.
const ATTRIBUTES: [(&str, &str); 14] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.42", "GN"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
];

/// A field of a certificate, raw; empty where it has none.
#[must_use]
pub fn certificate_field(der: &[u8], field: &Fetch) -> Vec<u8> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Vec::new() };
    let time = |at: i64| time(at).into_bytes();
    match field {
        Fetch::SslCSDn(entry) => name(certificate.subject(), entry.as_deref()),
        Fetch::SslCIDn(entry) => name(certificate.issuer(), entry.as_deref()),
        Fetch::SslCSerial => certificate.raw_serial().to_vec(),
        Fetch::SslCSha1 => digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref().to_vec(),
        Fetch::SslCDer => der.to_vec(),
        Fetch::SslCNotBefore => time(certificate.validity().not_before.timestamp()),
        Fetch::SslCNotAfter => time(certificate.validity().not_after.timestamp()),
        _ => Vec::new(),
    }
}

/// The first entry of that kind, or all of them: `/C=FR/O=Example/CN=name`. A slash inside an entry is
/// escaped, so that no entry can look like two.
fn name(name: &X509Name<'_>, entry: Option<&str>) -> Vec<u8> {
    let mut all = Vec::new();
    for attribute in name.iter_attributes() {
        let oid = attribute.attr_type().to_id_string();
        let known = ATTRIBUTES.iter().find(|(id, _)| *id == oid).map(|(_, short)| *short);
        match entry {
            Some(entry) if known.unwrap_or(&oid).eq_ignore_ascii_case(entry) => return text(attribute),
            Some(_) => {}
            None => {
                all.push(b'/');
                all.extend(known.unwrap_or(&oid).bytes());
                all.push(b'=');
                for byte in text(attribute) {
                    if matches!(byte, b'/' | b'\\') {
                        all.push(b'\\');
                    }
                    all.push(byte);
                }
            }
        }
    }
    all
}

fn text(attribute: &AttributeTypeAndValue<'_>) -> Vec<u8> {
    match attribute.as_str() {
        Ok(text) => text.as_bytes().to_vec(),
        Err(_other_kind) => attribute.as_slice().to_vec(),
    }
}

/// `YYMMDDhhmmssZ`.
fn time(at: i64) -> String {
    let Ok(at) = time::OffsetDateTime::from_unix_timestamp(at) else { return String::new() };
    let (year, month) = (at.year().rem_euclid(100), u8::from(at.month()));
    format!("{year:02}{month:02}{:02}{:02}{:02}{:02}Z", at.day(), at.hour(), at.minute(), at.second())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SerialNumber};

    use super::*;

    #[test]
    fn fields_are_those_that_openssl_shows() {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, "FR");
        params.distinguished_name.push(DnType::OrganizationName, "a/CN=b\\");
        params.distinguished_name.push(DnType::CommonName, "Zoë\r\nX: 1");
        params.serial_number = Some(SerialNumber::from_slice(&[0x0A, 0xBC]));
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2101, 12, 31);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let field = |field: Fetch| certificate_field(made.der(), &field);
        let entry = |name: &str| field(Fetch::SslCSDn(Some(name.to_owned())));
        assert_eq!(field(Fetch::SslCSDn(None)), "/C=FR/O=a\\/CN=b\\\\/CN=Zoë\r\nX: 1".as_bytes());
        assert_eq!(field(Fetch::SslCIDn(Some(String::from("c")))), b"FR");
        assert_eq!((entry("cn"), entry("O"), entry("ou")), ("Zoë\r\nX: 1".into(), b"a/CN=b\\".to_vec(), Vec::new()));
        assert_eq!(field(Fetch::SslCSerial), [0x0A, 0xBC]);
        assert_eq!(field(Fetch::SslCNotBefore), b"260102000000Z");
        assert_eq!(field(Fetch::SslCNotAfter), b"011231000000Z");
        assert_eq!((field(Fetch::SslCSha1).len(), field(Fetch::SslCDer)), (20, made.der().to_vec()));
        assert_eq!(certificate_field(b"no certificate", &Fetch::SslCSerial), b"");
    }
}
