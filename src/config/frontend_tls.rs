//! `tls` of a frontend: certificates, who may be a client.
//! Called by `frontend`. Never listens.

use super::authorities::revocations;
use super::certificates::certificate;
use super::section::Section;
use super::server_tls::TlsFiles;
use super::{ClientAuth, Mode, TlsServer, tls};

pub(super) fn tls_server(mut section: Section<'_>, (mode, files): (Mode, TlsFiles<'_>)) -> TlsServer {
    let settings = files.bases.with(&mut section);
    let alpn = alpn(&mut section, mode);
    let mut certificates = Vec::new();
    for item in section.items("certificates") {
        certificates.extend(certificate(item, &section, files.bases));
    }
    if section.value("certificates").is_none() {
        section.report.error(
            section.span.clone(),
            format!("{} has no certificates", section.name),
            "add certificates = [\"FILE.pem\"]",
        );
    }
    let client_auth = section.table("client-auth").and_then(|section| client_auth(section, files));
    section.finish();
    TlsServer {
        certificates,
        alpn,
        tls12: settings.tls12,
        ciphers: settings.ciphers,
        groups: settings.groups,
        client_auth,
    }
}

/// Application protocols, preferred first.
fn alpn(section: &mut Section<'_>, mode: Mode) -> Vec<String> {
    if mode == Mode::Tcp {
        section.refuse(&["alpn"], "means nothing where no request is understood", "leave it out");
        return vec![String::from("http/1.1")];
    }
    let mut protocols = Vec::new();
    let texts = section.texts("alpn");
    for text in &texts {
        if !["h2", "http/1.1"].contains(&text.text.as_str()) {
            let message = format!("`{}` is no protocol spoken here", text.text);
            section.report.error(text.span.clone(), message, "write \"h2\" or \"http/1.1\"");
        }
        protocols.push(text.text.clone());
    }
    if section.value("alpn").is_some() && texts.is_empty() {
        section.report.error(section.place("alpn"), "no protocol at all", "name one, or leave it out for both");
    }
    if protocols.is_empty() { tls::alpn() } else { protocols }
}

/// Which clients are let in. Without a named authority there is none: those of the system issue to anybody.
fn client_auth(mut section: Section<'_>, files: TlsFiles<'_>) -> Option<ClientAuth> {
    let required = section.choice("mode", &[("required", true), ("optional", false)]).unwrap_or(true);
    let file = section.text("ca-file");
    if section.value("ca-file").is_none() {
        let problem = format!("{} has no ca-file", section.name);
        section.report.error(section.span.clone(), problem, "add ca-file = \"FILE.pem\": who issues to clients");
    }
    let authorities = file.and_then(|name| {
        let placed = files.trust.place(Some(files.bases.ca_file(&name.text, section.report)));
        placed.map_err(|(problem, fix)| section.report.error(name.span, problem, fix)).ok()
    });
    let crls = section.text("crl-file").map(|name| files.bases.ca_file(&name.text, section.report));
    let crls = crls.map(|file| revocations(&file, &section)).unwrap_or_default();
    section.finish();
    Some(ClientAuth { required, authorities: authorities?, crls })
}
