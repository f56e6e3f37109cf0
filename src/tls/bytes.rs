//! Numbers and vectors as TLS writes them (RFC 8446 section 3).
//! Used by `hello` and `session`. Never copies.

/// What is left of a message; each method takes something off its front, or nothing where that is too short.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn short(&mut self) -> Option<usize> {
        self.take(2).map(|bytes| usize::from(bytes[0]) << 8 | usize::from(bytes[1]))
    }

    pub(super) fn byte_vector(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    pub(super) fn short_vector(&mut self) -> Option<&'a [u8]> {
        let length = self.short()?;
        self.take(length)
    }

    pub(super) fn long_vector(&mut self) -> Option<&'a [u8]> {
        let length = self.take(3)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        self.take(length)
    }
}
