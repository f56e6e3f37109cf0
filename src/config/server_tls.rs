//! `tls` of a backend: TLS towards its servers.
//! Called by `backend`. Never connects.

use rustls::pki_types::ServerName;

use super::authorities::{Trust, revocations};
use super::certificates::certificate;
use super::ciphers::TlsDefaults;
use super::expiry::tell_end_of_authority;
use super::section::Section;
use super::{Server, TlsClient};

/// What is read with a backend's TLS.
#[derive(Clone, Copy)]
pub(super) struct TlsFiles<'a> {
    /// Where relative names start.
    pub(super) bases: &'a TlsDefaults,
    pub(super) trust: &'a Trust,
}

pub(super) fn tls_client(mut section: Section<'_>, files: TlsFiles<'_>, servers: &[Server]) -> TlsClient {
    // What `[global.tls]` says is meant for clients.
    let settings = TlsDefaults::default().with(&mut section);
    let verify = section.boolean("verify").unwrap_or(true);
    if !verify {
        section.refuse(&["ca-file", "crl-file"], "means nothing without `verify`", "write verify = true");
        section.report.warning(
            section.place("verify"),
            "whoever answers is taken for the server",
            "leave `verify` out, and name a `ca-file` where the authority is your own",
        );
    }
    let watch = section.boolean("watch").unwrap_or(false);
    let authorities = if verify { authorities(&mut section, files, watch) } else { None };
    let crl_file =
        section.text("crl-file").filter(|_| verify).map(|name| files.bases.ca_file(&name.text, section.report));
    let sni = section.text("sni");
    if let Some(name) = &sni
        && !matches!(ServerName::try_from(name.text.as_str()), Ok(ServerName::DnsName(_)))
    {
        section.report.error(name.span.clone(), format!("`{}` is no name of a host", name.text), "write \"a.example\"");
    }
    for server in servers.iter().filter(|_| sni.is_none()) {
        if ServerName::try_from(server.host.as_str()).is_err() {
            let problem = format!("no certificate can be for `{}`", server.host);
            section.report.error(section.span.clone(), problem, "add sni = \"NAME\"");
        }
    }
    let (identity, identity_key) = match section.value("client-cert") {
        Some(item) => {
            certificate(item, &section, files.bases).map_or((None, None), |(certificate, key)| (Some(certificate), key))
        }
        None => (None, None),
    };
    if watch && !verify && section.value("client-cert").is_none() {
        section.report.error(section.place("watch"), "there is no file to watch", "leave it out");
    }
    let client = TlsClient {
        authorities,
        crls: crl_file.as_deref().map(|file| revocations(file, &section)).unwrap_or_default(),
        crl_file,
        sni: sni.map(|name| name.text),
        identity,
        identity_key,
        watch,
        tls12: settings.tls12,
        ciphers: settings.ciphers,
        groups: settings.groups,
    };
    section.finish();
    client
}

fn authorities(section: &mut Section<'_>, files: TlsFiles<'_>, watched: bool) -> Option<usize> {
    let name = section.text("ca-file");
    let file = name.as_ref().map(|name| files.bases.ca_file(&name.text, section.report));
    let place = match files.trust.place(file, watched) {
        Ok(place) => place,
        Err((problem, fix)) => {
            section.report.outside(section.place("ca-file"), problem, fix);
            return None;
        }
    };
    if let (Some(name), Some(end)) = (&name, files.trust.end(place)) {
        tell_end_of_authority(end, name, section);
    }
    Some(place)
}
