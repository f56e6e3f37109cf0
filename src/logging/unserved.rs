//! The line of a connection that ended before there was anything to answer, in HAProxy's words for it.
//! Filled by `proxy`, written by the log thread. Never about a connection that has asked for something.

use std::io::Write as _;
use std::time::SystemTime;

use super::clock::epoch_seconds;
use super::escape;
use super::format::{Context, json_key};
use super::record::Endpoint;

/// A client with whom there is no TLS session.
#[derive(Debug)]
pub struct Unserved {
    /// When the connection was accepted.
    pub accepted: SystemTime,
    /// Client address.
    pub client: Endpoint,
    /// Index of the frontend in the bundle.
    pub frontend: usize,
    /// Number of the bind in the frontend, from 1.
    pub bind: usize,
    /// Why.
    pub reason: String,
}

/// Longest reason shown as JSON.
const REASON: usize = 512;

impl Unserved {
    /// Appends the line: HAProxy's, or an object for a target of objects.
    pub(super) fn render(&self, context: &Context, as_json: bool, out: &mut Vec<u8>) {
        let frontend = context.names.frontend(self.frontend);
        let client = self.client.ip().map_or_else(|| String::from("unix"), |ip| ip.to_string());
        if as_json {
            return self.json((&client, frontend), context, out);
        }
        // Writing to a vector cannot fail.
        let _ = write!(out, "{client}:{} [", self.client.port());
        context.zone.with_milliseconds(out, self.accepted);
        let _ = write!(out, "] {frontend}/{}: SSL handshake failure (", self.bind);
        escape::event(out, &self.reason);
        out.push(b')');
    }

    fn json(&self, (client, frontend): (&str, &str), context: &Context, out: &mut Vec<u8>) {
        let mut date = Vec::with_capacity(26);
        context.zone.with_offset(&mut date, self.accepted);
        let _ = write!(out, "{{\"timestamp\":{},\"client_port\":{}", epoch_seconds(self.accepted), self.client.port());
        let texts = [("date", &date[..]), ("client_ip", client.as_bytes()), ("frontend", frontend.as_bytes())];
        for (key, value) in texts.into_iter().chain([("handshake_failure", self.reason.as_bytes())]) {
            out.push(b',');
            json_key(out, key);
            escape::json(out, value, REASON);
        }
        out.push(b'}');
    }
}
