//! What a request needs while it lasts: handed from one connection to the next, so that an idle one owns nothing.
//! Used by `connection`; one store per thread. Never holds a byte of a request that is over.

use std::cell::RefCell;

use crate::http::Field;

/// Sets a thread keeps: what is busy at the same moment, not what is open.
const MOST: usize = 256;
/// Buffers above this size go back to the system.
const KEEP: usize = 4096;
/// Heads with more fields than this give their lists back too.
const KEEP_FIELDS: usize = 64;

/// The buffers of one request, empty.
#[derive(Default)]
pub struct Buffers {
    pub(super) input: Vec<u8>,
    pub(super) head: Vec<u8>,
    pub(super) out: Vec<u8>,
    pub(super) fields: Vec<Field>,
    pub(super) response_fields: Vec<Field>,
}

impl Buffers {
    fn own_something(&self) -> bool {
        let bytes = [&self.input, &self.head, &self.out].iter().any(|buffer| buffer.capacity() > 0);
        bytes || [&self.fields, &self.response_fields].iter().any(|fields| fields.capacity() > 0)
    }
}

/// A thread's spare buffers, last used first.
#[derive(Default)]
pub struct Spare(RefCell<Vec<Buffers>>);

impl Spare {
    /// A set of buffers.
    #[must_use]
    pub fn take(&self) -> Buffers {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps a set that is needed no more.
    pub fn give(&self, mut buffers: Buffers) {
        let mut all = self.0.borrow_mut();
        if all.len() >= MOST {
            return;
        }
        for buffer in [&mut buffers.input, &mut buffers.head, &mut buffers.out] {
            buffer.clear();
            if buffer.capacity() > KEEP {
                *buffer = Vec::new();
            }
        }
        for fields in [&mut buffers.fields, &mut buffers.response_fields] {
            fields.clear();
            if fields.capacity() > KEEP_FIELDS {
                *fields = Vec::new();
            }
        }
        if buffers.own_something() {
            all.push(buffers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_empty_and_small() {
        let spare = Spare::default();
        let large = Vec::with_capacity(KEEP + 1);
        spare.give(Buffers { input: b"secret".to_vec(), head: large, ..Buffers::default() });
        let again = spare.take();
        assert!(again.input.is_empty() && again.input.capacity() > 0);
        assert_eq!(again.head.capacity(), 0);
        assert_eq!(spare.take().input.capacity(), 0);
    }

    #[test]
    fn spare_buffers_are_bounded() {
        let spare = Spare::default();
        (0..=MOST).for_each(|_| spare.give(Buffers { input: b"used".to_vec(), ..Buffers::default() }));
        assert_eq!(spare.0.borrow().len(), MOST);
    }

    #[test]
    fn a_set_that_owns_nothing_is_not_kept() {
        let spare = Spare::default();
        spare.give(Buffers { input: b"used".to_vec(), ..Buffers::default() });
        spare.give(Buffers { out: Vec::with_capacity(KEEP + 1), ..Buffers::default() });
        spare.give(Buffers::default());
        assert!(spare.take().input.capacity() > 0);
    }
}
