//! The HTTP/1 codec: heads, bodies and rewritten heads, as pure functions from bytes to values.
//! Called by `proxy` and `upstream` with whatever a peer has sent so far.
//! Never reads or writes a socket, and never passes on what RFC 9112 lets two parsers read differently.

mod chunked;
mod error;
mod framing;
pub mod h2;
mod line;
mod name;
mod pages;
mod rebuild;
mod redirect;
mod request;
mod response;
mod span;
mod upgrade;

pub use chunked::{Chunked, Decoded, without_fields, write_chunk_header, write_last_chunk};
pub use error::Refusal;
pub use framing::Body;
pub use line::HeadLimits;
pub use name::{Field, Name};
pub use pages::{write_error_response, write_redirect};
pub use rebuild::{Persistence, RequestRewrite, ResponseRewrite, rebuild_request, rebuild_response};
pub use redirect::redirect_location;
pub use request::{Method, RequestHead, Version, parse_request};
pub use response::{ResponseHead, parse_response};
pub use span::Span;
pub use upgrade::{Asked, is_switch_between};

#[cfg(test)]
mod tests;
