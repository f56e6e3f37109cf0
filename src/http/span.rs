//! A range of bytes inside the buffer a head was parsed from.
//! Made by the parsers, resolved by whoever still holds the buffer.
//! Never owns or copies the bytes.

/// Byte range into the buffer of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The bytes of this span; empty when `buf` is not the buffer it was made from.
    #[must_use]
    pub fn of(self, buf: &[u8]) -> &[u8] {
        buf.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// Heads are bounded far below 4 GiB by [`super::HeadLimits`], so offsets saturate only in theory.
    pub(super) fn new(start: usize, end: usize) -> Self {
        Self { start: u32::try_from(start).unwrap_or(u32::MAX), end: u32::try_from(end).unwrap_or(u32::MAX) }
    }
}
