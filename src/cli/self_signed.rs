//! `proxy self-signed`: a certificate for a first start, and for the showcase.
//! Called by `cli::main` and `showcase`. Never replaces a file.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::args::SelfSignedArgs;

/// As long as the usual tool of Debian gives.
const VALIDITY: time::Duration = time::Duration::days(3650);

pub(super) fn run(args: &SelfSignedArgs) -> u8 {
    let names = if args.names.is_empty() { this_machine() } else { args.names.clone() };
    let made = certificate(names).map_err(|error| error.to_string());
    match made.and_then(|pem| keep(&args.out, &pem).map_err(|error| error.to_string())) {
        Ok(()) => super::DONE,
        Err(error) => {
            eprintln!("proxy: cannot make {}: {error}", args.out.display());
            super::REFUSED
        }
    }
}

/// A certificate for these host names and addresses with its key, in one PEM as HAProxy wants it.
pub(super) fn certificate(names: Vec<String>) -> Result<String, rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let mut parameters = rcgen::CertificateParams::new(names.clone())?;
    if let Some(name) = names.into_iter().next() {
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
    }
    // A clock that is a little behind must not find it invalid.
    let now = time::OffsetDateTime::now_utc();
    parameters.not_before = now - time::Duration::DAY;
    parameters.not_after = now + VALIDITY;
    Ok(parameters.self_signed(&key)?.pem() + &key.serialize_pem())
}

/// What clients may call this machine.
fn this_machine() -> Vec<String> {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let own = host.filter(|name| !name.is_empty() && name != "localhost");
    own.into_iter().chain(["localhost", "127.0.0.1", "::1"].map(String::from)).collect()
}

/// Only for its owner; who else may read the key is for the caller to say.
fn keep(path: &Path, pem: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(pem.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a certificate would keep the next attempt from making a whole one.
        let _ = std::fs::remove_file(path);
    }
    written
}
