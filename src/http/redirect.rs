//! Where a redirect rule sends a client.
//! Called by `proxy` when a rule matches; the answer itself is written by `pages`.
//! Never lets a byte through that could end the Location field.

use super::line::is_value;
use super::rebuild::origin_form;
use super::{Refusal, RequestHead};
use crate::config::Redirect;

/// Appends the location `rule` gives for the request to `out`.
///
/// # Errors
/// [`Refusal::HostMissing`] when the host is needed and absent, [`Refusal::Target`] when the location holds
/// a space or control byte.
pub fn redirect_location(
    rule: &Redirect,
    tls: bool,
    buf: &[u8],
    head: &RequestHead,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let start = out.len();
    if let Some(location) = &rule.location {
        out.extend_from_slice(location.as_bytes());
    } else {
        let (before, path) = origin_form(head.method, head.target.of(buf));
        if let Some(prefix) = &rule.prefix {
            out.extend_from_slice(prefix.as_bytes());
        } else {
            write_origin(rule, tls, head.host.map_or(&b""[..], |host| host.of(buf)), out)?;
        }
        // Asterisk-form has no path.
        if before == b"*" || path == b"*" {
            out.push(b'/');
        } else {
            out.extend_from_slice(before);
            out.extend_from_slice(path);
        }
    }
    if out[start..].iter().any(|&b| !is_value(b) || b == b' ' || b == b'\t') {
        out.truncate(start);
        return Err(Refusal::Target);
    }
    Ok(())
}

fn write_origin(rule: &Redirect, tls: bool, host: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
    let current = if tls { "https" } else { "http" };
    let scheme = rule.scheme.as_deref().unwrap_or(current);
    let host = match &rule.host {
        Some(host) => host.as_bytes(),
        None if host.is_empty() => return Err(Refusal::HostMissing),
        None if scheme.eq_ignore_ascii_case(current) => host,
        // The port belongs to the scheme that is left.
        None => without_port(host),
    };
    out.extend_from_slice(scheme.as_bytes());
    out.extend_from_slice(b"://");
    out.extend_from_slice(host);
    Ok(())
}

fn without_port(host: &[u8]) -> &[u8] {
    match memchr::memrchr(b':', host) {
        Some(colon) if !host[colon..].contains(&b']') => &host[..colon],
        _ => host,
    }
}
