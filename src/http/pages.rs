//! Responses of our own: error pages and redirects.
//! Called by `proxy` when no server's response is to be had.
//! Never contains anything the client sent, but for a checked Location.

use std::io::Write as _;

use super::Persistence;
use super::rebuild::{write_edits, write_persistence};
use crate::config::HeaderEdits;

/// Writes an error response that ends the connection. `page` is a raw response sent as it is; with `head_only` (the
/// request was HEAD) only up to its empty line.
pub fn write_error_response(out: &mut Vec<u8>, status: u16, page: Option<&[u8]>, head_only: bool) {
    if let Some(page) = page {
        out.extend_from_slice(if head_only { head_of(page) } else { page });
        return;
    }
    let (reason, text) = wording(status);
    const HEAD: &str = "<html><body><h1>";
    const MIDDLE: &str = "</h1>\n";
    const TAIL: &str = "\n</body></html>\n";
    // Three digits and a space stand before the reason.
    let length = HEAD.len() + 4 + reason.len() + MIDDLE.len() + text.len() + TAIL.len();
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "HTTP/1.1 {status} {reason}\r\nContent-Length: {length}\r\nCache-Control: no-cache\r\n\
         Connection: close\r\nContent-Type: text/html\r\n\r\n"
    );
    if !head_only {
        let _ = write!(out, "{HEAD}{status} {reason}{MIDDLE}{text}{TAIL}");
    }
}

/// A raw page up to its empty line, whichever line ends its author used.
fn head_of(page: &[u8]) -> &[u8] {
    let ends = [&b"\r\n\r\n"[..], b"\n\n"].map(|end| memchr::memmem::find(page, end).map(|at| at + end.len()));
    &page[..ends.into_iter().flatten().min().unwrap_or(page.len())]
}

/// Writes a redirect without a body. `location` comes from [`super::redirect_location`].
pub fn write_redirect(out: &mut Vec<u8>, code: u16, location: &[u8], persistence: Persistence, edits: &HeaderEdits) {
    let reason = wording(code).0;
    let _ = write!(out, "HTTP/1.1 {code} {reason}\r\nContent-Length: 0\r\nLocation: ");
    out.extend_from_slice(location);
    out.extend_from_slice(b"\r\n");
    write_edits(out, edits);
    write_persistence(out, persistence);
    out.extend_from_slice(b"\r\n");
}

/// Reason phrase and sentence for a status, worded like HAProxy's.
fn wording(status: u16) -> (&'static str, &'static str) {
    match status {
        301 => ("Moved Permanently", ""),
        302 => ("Found", ""),
        303 => ("See Other", ""),
        307 => ("Temporary Redirect", ""),
        308 => ("Permanent Redirect", ""),
        400 => ("Bad request", "Your browser sent an invalid request."),
        401 => ("Unauthorized", "You need a valid user and password to access this content."),
        403 => ("Forbidden", "Request forbidden by administrative rules."),
        404 => ("Not Found", "The resource could not be found."),
        405 => ("Method Not Allowed", "The request method is not supported by this resource."),
        408 => ("Request Time-out", "Your browser didn't send a complete request in time."),
        413 => ("Payload Too Large", "The request entity exceeds the maximum allowed."),
        414 => ("URI Too Long", "The request target exceeds the maximum allowed."),
        421 => ("Misdirected Request", "This connection is for another host."),
        429 => ("Too Many Requests", "You have sent too many requests in a given amount of time."),
        431 => ("Request Header Fields Too Large", "The request header exceeds the maximum allowed."),
        501 => ("Not Implemented", "The server does not support the functionality required to fulfill the request."),
        502 => ("Bad Gateway", "The server returned an invalid or incomplete response."),
        503 => ("Service Unavailable", "No server is available to handle this request."),
        504 => ("Gateway Time-out", "The server didn't respond in time."),
        505 => ("HTTP Version Not Supported", "The HTTP version of the request is not supported."),
        500 => ("Internal Server Error", "An internal server error occurred."),
        _ if status < 500 => ("Client Error", "The request could not be served."),
        _ => ("Server Error", "The request could not be served."),
    }
}
