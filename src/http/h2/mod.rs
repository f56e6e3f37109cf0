//! HTTP/2 (RFC 9113): heads translated from and to HTTP/1, and a stream that reads and writes like a connection.
//! Called by `proxy` for clients and by `upstream` for servers; frames are the library's.
//! Never reads a socket, and never translates what RFC 9113 section 8 calls malformed.

mod request;
mod response;
mod stream;
mod trailers;
mod watch;

pub use request::{H2Request, read_request, write_request};
pub use response::{read_response, write_page, write_response};
pub use stream::{Io, Stream};
pub use trailers::{read_trailers, write_trailers};
pub use watch::{Budget, Watch};

/// What a client that speaks HTTP/2 without being asked begins with (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[cfg(test)]
mod tests;
