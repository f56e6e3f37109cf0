//! How a server's response begins for a client, in the client's own protocol.
//! Called by `forward` once a response head is there. Never waits for a server.

use http::Response;

use super::exchange::Exchange;
use super::pump::Broken;
use super::{Edits, Failure};
use crate::config::HeaderEdits;
use crate::http::h2::write_response;
use crate::http::{
    Body, Field, Persistence, Refusal, RequestHead, ResponseHead, ResponseRewrite, Span, Version, is_switch_between,
    rebuild_response,
};

/// Framing and persistence of a response towards the client.
pub struct Plan {
    /// Framing; what ends with its stream is `UntilClose`.
    pub body: Body,
    /// What becomes of the connection.
    pub persistence: Persistence,
}

/// `may_keep`: nothing but the messages themselves stands against keeping the connection. A request whose
/// body is still coming when the answer starts may never be finished.
pub fn plan_response(head: &RequestHead, response: &ResponseHead, may_keep: bool) -> Plan {
    let body = match (response.body, head.version) {
        (Body::Chunked | Body::UntilClose, Version::Http10 | Version::Http2) => Body::UntilClose,
        (Body::Chunked | Body::UntilClose, Version::Http11) => Body::Chunked,
        (body, _) => body,
    };
    let keep = may_keep && head.keep_alive && body != Body::UntilClose;
    Plan { body, persistence: persistence(keep, head.version) }
}

/// What a client of this version is told.
pub fn persistence(keep: bool, version: Version) -> Persistence {
    match (keep, version) {
        (false, _) => Persistence::Close,
        (true, Version::Http11 | Version::Http2) => Persistence::KeepAliveImplicit,
        (true, Version::Http10) => Persistence::KeepAliveExplicit,
    }
}

/// The head of a response as the client will see it.
pub struct Opening {
    /// As text, empty where the client has another way.
    pub text: Vec<u8>,
    /// For a stream of HTTP/2, with the bytes it counts for.
    pub head: Option<(Response<()>, u64)>,
}

impl Opening {
    /// The head that stands in front of what the server sent.
    pub fn new(
        exchange: &Exchange<'_>,
        (response, fields): (&ResponseHead, &[Field]),
        plan: &Plan,
        edits: &HeaderEdits,
    ) -> Result<Self, Failure> {
        let rewrite = ResponseRewrite { edits, persistence: plan.persistence, body: plan.body };
        let input = &exchange.server.input;
        if exchange.client.is_h2() {
            let head = write_response(input, response, fields, &rewrite).map_err(Failure::BadResponse)?;
            return Ok(Self { text: Vec::new(), head: Some(head) });
        }
        let mut text = Vec::with_capacity(512);
        rebuild_response(&mut text, input, response, fields, &rewrite);
        Ok(Self { text, head: None })
    }
}

/// Passes a 1xx on and takes it out of the input: an old client gets none. A 101 is the last word, and edited as such;
/// over HTTP/2 it is a 200. Returns the bytes sent.
pub async fn pass_interim(
    exchange: &mut Exchange<'_>,
    (head, response): (&RequestHead, &ResponseHead),
    fields: &[Field],
    edits: &Edits,
) -> Result<u64, Failure> {
    let switched = response.upgrade.is_some();
    let edits = if switched { &edits.response } else { &HeaderEdits::default() };
    let rewrite = ResponseRewrite { edits, persistence: Persistence::KeepAliveImplicit, body: Body::None };
    let input = &mut exchange.server.input;
    if let Some(stream) = exchange.client.as_h2() {
        let (head, size) = write_response(input, response, fields, &rewrite).map_err(Failure::BadResponse)?;
        input.drain(..response.len);
        if switched {
            stream.respond(head, Body::UntilClose)?
        } else {
            stream.inform(head)?
        }
        return Ok(size);
    }
    let mut out = Vec::new();
    if head.version != Version::Http10 {
        rebuild_response(&mut out, input, response, fields, &rewrite);
    }
    input.drain(..response.len);
    exchange.interim(&out).await
}

/// A server switches to what it was asked for, once it has the whole request.
pub fn check_switch(
    exchange: &Exchange<'_>,
    (head, buf): (&RequestHead, &[u8]),
    protocol: Span,
) -> Result<(), Failure> {
    let asked = head.upgrade.map_or(&b""[..], |asked| asked.of(buf));
    if exchange.request_open || !is_switch_between(asked, protocol.of(&exchange.server.input)) {
        return Err(Failure::BadResponse(Refusal::SwitchedProtocols));
    }
    Ok(())
}

/// A plain success in place of a 101 would tell a client of HTTP/2 that its tunnel is there (RFC 8441 section 5).
pub fn check_no_switch(head: &RequestHead, response: &ResponseHead) -> Result<(), Failure> {
    if head.version == Version::Http2 && head.upgrade.is_some() && response.status < 300 {
        return Err(Failure::BadResponse(Refusal::SwitchedProtocols));
    }
    Ok(())
}

/// What a pump's end says of the response.
pub fn broken_response(broken: Broken) -> Failure {
    match broken {
        Broken::Framing(refusal) => Failure::BadResponse(refusal),
        Broken::Sender | Broken::Receiver => Failure::ResponseTruncated,
    }
}
