//! ClientHello: what more bytes cannot change is never said too early, and what is said never changes.

use proxy::tls::{Hello, read_hello};

pub fn holds(bytes: &[u8]) {
    let whole = read_hello(bytes);
    if let Hello::Name(name) = &whole {
        assert!(name.len() <= 255 && name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()));
    }
    for end in 0..bytes.len() {
        let part = read_hello(&bytes[..end]);
        assert!(part == Hello::Incomplete || part == whole, "{part:?} after {end} bytes, then {whole:?}");
    }
}
