//! Chunked bodies: how they arrive does not matter, and written anew they are the same body.

use proxy::http::{Chunked, write_chunk_header, write_last_chunk};

#[derive(Debug, Default, PartialEq, Eq)]
struct Unchunked {
    done: bool,
    body: Vec<u8>,
    trailers: Vec<u8>,
    consumed: usize,
}

/// `None` when it is refused.
fn unchunk<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<Unchunked> {
    let (mut decoder, mut got) = (Chunked::new(), Unchunked::default());
    for piece in pieces {
        let mut rest = piece;
        while !rest.is_empty() && !got.done {
            let step = decoder.decode(rest).ok()?;
            assert!(step.consumed <= rest.len() && step.data.end <= step.consumed);
            assert!(step.consumed > 0, "no progress");
            got.body.extend_from_slice(&rest[step.data]);
            got.consumed += step.consumed;
            got.done = step.done;
            rest = &rest[step.consumed..];
        }
    }
    got.trailers = decoder.trailers().to_vec();
    Some(got)
}

pub fn holds(bytes: &[u8]) {
    let whole = unchunk([bytes]);
    assert_eq!(unchunk(bytes.chunks(1)), whole);
    assert_eq!(unchunk(bytes.chunks(7)), whole);
    let Some(whole) = whole.filter(|whole| whole.done) else { return };
    // What follows the body is not looked at.
    assert_eq!(unchunk([&bytes[..whole.consumed]]).as_ref(), Some(&whole));
    let mut out = Vec::new();
    for piece in whole.body.chunks(5) {
        write_chunk_header(&mut out, piece.len());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    write_last_chunk(&mut out, &whole.trailers);
    let again = unchunk([&out[..]]);
    assert_eq!(again, Some(Unchunked { consumed: out.len(), ..whole }));
}
