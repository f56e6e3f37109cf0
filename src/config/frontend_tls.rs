//! `tls` of a frontend: certificates, who may be a client.
//! Called by `frontend`. Never listens.

use std::path::PathBuf;

use super::authorities::{authorities, revocations};
use super::certificates::{Trouble, certificate, files_of, load};
use super::expiry::{now, tell_end, tell_end_of_authority};
use super::section::{Section, Text};
use super::server_tls::TlsFiles;
use super::{Certificate, ClientAuth, Mode, TlsServer, tls};

/// RFC 7301 section 3.1.
const LONGEST_PROTOCOL: usize = 255;

pub(super) fn tls_server(mut section: Section<'_>, (mode, files): (Mode, TlsFiles<'_>)) -> TlsServer {
    let settings = files.bases.with(&mut section);
    let alpn = alpn(&mut section, mode);
    let (mut certificates, mut sources) = (Vec::new(), Vec::new());
    for item in section.items("certificates") {
        if let Some((certificate, key)) = certificate(item, &section, files.bases) {
            sources.push((certificate.path.clone(), key));
            certificates.push(certificate);
        }
    }
    let folder = section.text("cert-dir");
    let cert_dir = folder.map(|name| cert_dir(&name, &section, files, &mut certificates));
    if section.value("certificates").is_none() && section.value("cert-dir").is_none() {
        section.report.error(
            section.span.clone(),
            format!("{} has no certificates", section.name),
            "add certificates = [\"FILE.pem\"], or cert-dir = \"FOLDER\"",
        );
    }
    let watch = section.boolean("watch").unwrap_or(false);
    let strict_sni = section.boolean("strict-sni").unwrap_or(false);
    if mode == Mode::Tcp {
        let because = "means nothing where no request is understood";
        section.refuse(&["host-must-match-sni"], because, "leave it out");
    }
    let host_must_match_sni = section.boolean("host-must-match-sni").unwrap_or(false);
    let client_auth = section.table("client-auth").and_then(|section| client_auth(section, files));
    section.finish();
    TlsServer {
        certificates,
        alpn,
        tls12: settings.tls12,
        ciphers: settings.ciphers,
        groups: settings.groups,
        sources,
        cert_dir,
        watch,
        strict_sni,
        host_must_match_sni,
        client_auth,
    }
}

/// The certificates of a folder, behind those that are named.
fn cert_dir(name: &Text, section: &Section<'_>, files: TlsFiles<'_>, to: &mut Vec<Certificate>) -> PathBuf {
    let folder = files.bases.cert_file(&name.text, section.report);
    let report = |(problem, fix): Trouble| section.report.outside(name.span.clone(), problem, fix);
    match files_of(&folder) {
        Ok(paths) => {
            if paths.is_empty() && to.is_empty() {
                let fix = "put a file with chain and key there, or name one in `certificates`";
                section.report.outside(name.span.clone(), format!("there is no *.pem in `{}`", folder.display()), fix);
            }
            for path in paths {
                match load(&path, None) {
                    Ok(certificate) => {
                        let file = Text { text: path.display().to_string(), span: name.span.clone() };
                        tell_end(certificate.not_after, &file, section);
                        to.push(certificate);
                    }
                    Err(trouble) => report(trouble),
                }
            }
        }
        Err(trouble) => report(trouble),
    }
    folder
}

/// Application protocols, preferred first. In TCP mode whoever is behind speaks them: any will do, and none is offered
/// unless named, because a client that wants another one would be refused.
fn alpn(section: &mut Section<'_>, mode: Mode) -> Vec<String> {
    let mut protocols = Vec::new();
    let texts = section.texts("alpn");
    for text in &texts {
        let spoken = mode == Mode::Tcp || ["h2", "http/1.1"].contains(&text.text.as_str());
        if !spoken {
            let message = format!("`{}` is no protocol spoken here", text.text);
            section.report.error(text.span.clone(), message, "write \"h2\" or \"http/1.1\"");
        } else if !(1..=LONGEST_PROTOCOL).contains(&text.text.len()) {
            let message = format!("the name of a protocol has 1 to {LONGEST_PROTOCOL} bytes");
            section.report.error(text.span.clone(), message, "write it as it is registered, \"mqtt\" or \"imap\"");
        }
        protocols.push(text.text.clone());
    }
    if section.value("alpn").is_some() && texts.is_empty() {
        let without = if mode == Mode::Tcp { "none" } else { "both" };
        let fix = format!("name one, or leave it out for {without}");
        section.report.error(section.place("alpn"), "no protocol at all", fix);
    }
    if protocols.is_empty() && mode == Mode::Http { tls::alpn() } else { protocols }
}

/// Which clients are let in. Without a named authority there is none: those of the system issue to anybody.
fn client_auth(mut section: Section<'_>, files: TlsFiles<'_>) -> Option<ClientAuth> {
    let required = section.choice("mode", &[("required", true), ("optional", false)]).unwrap_or(true);
    let file = section.text("ca-file");
    if section.value("ca-file").is_none() {
        let problem = format!("{} has no ca-file", section.name);
        section.report.error(section.span.clone(), problem, "add ca-file = \"FILE.pem\": who issues to clients");
    }
    let authorities = file.and_then(|name| match authorities(files.bases.ca_file(&name.text, section.report)) {
        Ok(authorities) => {
            authorities.end(now()).into_iter().for_each(|end| tell_end_of_authority(end, &name, &section));
            Some(authorities)
        }
        Err((problem, fix)) => {
            section.report.outside(name.span, problem, fix);
            None
        }
    });
    let crl_file = section.text("crl-file").map(|name| files.bases.ca_file(&name.text, section.report));
    let crls = crl_file.as_deref().map(|file| revocations(file, &section)).unwrap_or_default();
    section.finish();
    Some(ClientAuth { required, authorities: authorities?, crl_file, crls })
}
