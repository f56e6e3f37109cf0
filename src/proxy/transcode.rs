//! A body from one framing into another, chunk by chunk: bytes in, bytes out.
//! Driven by `pump`. Never does I/O.

use crate::config::HeaderEdits;
use crate::http::{Body, Chunked, Refusal, without_fields, write_chunk_header, write_last_chunk};

/// Where a body ends on the side that sends it.
enum Source {
    Length(u64),
    Chunked(Box<Chunked>),
    UntilClose,
    Finished,
}

/// Turns the framing a body arrives in into the framing it leaves in.
pub struct Transcoder {
    source: Source,
    chunked_out: bool,
    /// Names of trailers that do not pass, where no decoder knows them.
    dropped: Vec<String>,
    trailers: Vec<u8>,
}

/// What became of some input.
pub struct Step {
    /// Bytes of the input that belong to the body; the rest is the next message's.
    pub consumed: usize,
    /// The consumed bytes can be sent as they are, nothing was put into `out`.
    pub as_is: bool,
}

impl Transcoder {
    /// A body that arrives as `from` and leaves as `to`; only `Chunked` differs from raw bytes there.
    pub fn new(from: Body, to: Body) -> Self {
        let source = match from {
            Body::None | Body::Length(0) => Source::Finished,
            Body::Length(length) => Source::Length(length),
            Body::Chunked => Source::Chunked(Box::default()),
            Body::UntilClose => Source::UntilClose,
        };
        Self { source, chunked_out: to == Body::Chunked, dropped: Vec::new(), trailers: Vec::new() }
    }

    /// Keeps fields that are edited in the header out of the trailers as well.
    pub fn edited(mut self, edits: &HeaderEdits) -> Self {
        let names = edits.del.iter().chain(edits.set.iter().map(|(name, _)| name)).cloned();
        match &mut self.source {
            Source::Chunked(decoder) => decoder.drop_trailers(names),
            Source::UntilClose => self.dropped.extend(names),
            Source::Length(_) | Source::Finished => {}
        }
        self
    }

    /// What came behind the body, for a side that is not chunked.
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// How many of the sender's next bytes leave as they come, whatever they are.
    pub fn unchanged(&self) -> u64 {
        match self.source {
            Source::Length(left) => left,
            Source::UntilClose if !self.chunked_out => u64::MAX,
            Source::UntilClose | Source::Chunked(_) | Source::Finished => 0,
        }
    }

    /// So many of them went by without being seen.
    pub fn pass(&mut self, count: u64) {
        if let Source::Length(left) = &mut self.source {
            *left = left.saturating_sub(count);
            if *left == 0 {
                self.source = Source::Finished;
            }
        }
    }

    /// Whether the whole body has been consumed.
    pub fn is_finished(&self) -> bool {
        matches!(self.source, Source::Finished)
    }

    /// Consumes body bytes. Unless `as_is` comes back, what is to be sent is appended to `out`.
    ///
    /// # Errors
    /// Broken chunked framing.
    pub fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Step, Refusal> {
        match &mut self.source {
            Source::Finished => Ok(Step { consumed: 0, as_is: true }),
            Source::Length(left) => {
                let consumed = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= consumed as u64;
                if *left == 0 {
                    self.source = Source::Finished;
                }
                Ok(Step { consumed, as_is: true })
            }
            Source::UntilClose if self.chunked_out => {
                if !input.is_empty() {
                    append_chunk(out, input);
                }
                Ok(Step { consumed: input.len(), as_is: false })
            }
            Source::UntilClose => Ok(Step { consumed: input.len(), as_is: true }),
            Source::Chunked(_) => self.push_chunked(input, out),
        }
    }

    fn push_chunked(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Step, Refusal> {
        let Source::Chunked(decoder) = &mut self.source else { return Ok(Step { consumed: 0, as_is: true }) };
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            let step = decoder.decode(rest)?;
            consumed += step.consumed;
            let data = &rest[step.data];
            if !data.is_empty() {
                if self.chunked_out { append_chunk(out, data) } else { out.extend_from_slice(data) }
            }
            if step.done {
                if self.chunked_out {
                    write_last_chunk(out, decoder.trailers());
                } else {
                    self.trailers.extend_from_slice(decoder.trailers());
                }
                self.source = Source::Finished;
                return Ok(Step { consumed, as_is: false });
            }
            if step.consumed == 0 || consumed == input.len() {
                return Ok(Step { consumed, as_is: false });
            }
        }
    }

    /// The sender closed, after `trailers` where its protocol has them. True when that is a proper end of this body.
    pub fn end_of_input(&mut self, out: &mut Vec<u8>, trailers: &[u8]) -> bool {
        match self.source {
            Source::Finished => true,
            Source::UntilClose => {
                let kept = without_fields(trailers, &self.dropped);
                if self.chunked_out {
                    write_last_chunk(out, &kept);
                } else {
                    self.trailers.extend_from_slice(&kept);
                }
                self.source = Source::Finished;
                true
            }
            Source::Length(_) | Source::Chunked(_) => false,
        }
    }
}

fn append_chunk(out: &mut Vec<u8>, data: &[u8]) {
    write_chunk_header(out, data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(from: Body, to: Body, pieces: &[&[u8]]) -> (Vec<u8>, Vec<u8>, bool) {
        let mut transcoder = Transcoder::new(from, to);
        let (mut sent, mut left) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut out = Vec::new();
            let step = transcoder.push(piece, &mut out).unwrap();
            sent.extend_from_slice(if step.as_is { &piece[..step.consumed] } else { &out });
            left.extend_from_slice(&piece[step.consumed..]);
        }
        (sent, left, transcoder.is_finished())
    }

    #[test]
    fn a_length_ends_where_it_says_and_leaves_the_next_request() {
        let (sent, left, finished) = run(Body::Length(5), Body::Length(5), &[b"hel", b"loGET /"]);
        assert_eq!((sent.as_slice(), left.as_slice(), finished), (&b"hello"[..], &b"GET /"[..], true));
    }

    #[test]
    fn what_goes_by_unseen_counts() {
        let mut transcoder = Transcoder::new(Body::Length(5), Body::Length(5));
        assert_eq!(transcoder.unchanged(), 5);
        transcoder.pass(3);
        assert_eq!((transcoder.unchanged(), transcoder.is_finished()), (2, false));
        transcoder.pass(2);
        assert_eq!((transcoder.unchanged(), transcoder.is_finished()), (0, true));
        assert_eq!(Transcoder::new(Body::UntilClose, Body::UntilClose).unchanged(), u64::MAX);
        assert_eq!(Transcoder::new(Body::UntilClose, Body::Chunked).unchanged(), 0);
        assert_eq!(Transcoder::new(Body::Chunked, Body::Chunked).unchanged(), 0);
    }

    #[test]
    fn chunks_become_plain_bytes_for_an_old_client() {
        let (sent, left, finished) = run(Body::Chunked, Body::UntilClose, &[b"3\r\nabc\r\n", b"0\r\n\r\nrest"]);
        assert_eq!((sent.as_slice(), left.as_slice(), finished), (&b"abc"[..], &b"rest"[..], true));
    }

    #[test]
    fn chunks_are_rebuilt_not_forwarded() {
        let (sent, _, finished) = run(Body::Chunked, Body::Chunked, &[b"0003;x=y\r\nabc\r\n0\r\n\r\n"]);
        assert_eq!((sent.as_slice(), finished), (&b"3\r\nabc\r\n0\r\n\r\n"[..], true));
    }

    #[test]
    fn a_body_until_close_is_chunked_and_ended() {
        let mut transcoder = Transcoder::new(Body::UntilClose, Body::Chunked);
        let mut out = Vec::new();
        transcoder.push(b"xy", &mut out).unwrap();
        assert!(transcoder.end_of_input(&mut out, b""));
        assert_eq!(out, b"2\r\nxy\r\n0\r\n\r\n");
    }

    #[test]
    fn an_early_end_is_a_truncation() {
        let mut out = Vec::new();
        assert!(!Transcoder::new(Body::Length(3), Body::Length(3)).end_of_input(&mut out, b""));
        assert!(!Transcoder::new(Body::Chunked, Body::Chunked).end_of_input(&mut out, b""));
    }
}
