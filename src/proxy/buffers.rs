//! What a request needs while it lasts: handed from one connection to the next, so that an idle one owns nothing.
//! Used by `connection`; one store per thread. Never holds a byte of a request that is over.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use crate::http::Field;

/// Sets a thread keeps: what is busy at the same moment, not what is open.
const MOST: usize = 256;
/// Buffers above this size go back to the system.
const KEEP: usize = 4096;
/// Heads with more fields than this give their lists back too.
const KEEP_FIELDS: usize = 64;

/// What a request and its answer are taken apart and put together in.
#[derive(Debug)]
pub struct Desk {
    /// Bytes of the current request's head.
    pub head: Vec<u8>,
    /// Fields of the current request.
    pub fields: Vec<Field>,
    /// Fields of the current response.
    pub response_fields: Vec<Field>,
    /// Buffer of what is sent next.
    pub out: Vec<u8>,
}

static BARE: Desk = Desk { head: Vec::new(), fields: Vec::new(), response_fields: Vec::new(), out: Vec::new() };

/// A desk that is there as soon as something is put on it, and reads as a bare one before.
#[derive(Debug, Default)]
pub struct Room(Option<Box<Desk>>);

impl Deref for Room {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        self.0.as_deref().unwrap_or(&BARE)
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut Desk {
        self.0.get_or_insert_with(|| {
            Box::new(Desk { head: Vec::new(), fields: Vec::new(), response_fields: Vec::new(), out: Vec::new() })
        })
    }
}

/// The buffers of one request, empty.
#[derive(Default)]
pub struct Buffers {
    pub(super) input: Vec<u8>,
    pub(super) room: Room,
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
        if all.len() >= MOST || buffers.input.capacity() == 0 && buffers.room.0.is_none() {
            return;
        }
        empty(&mut buffers.input);
        if let Some(desk) = &mut buffers.room.0 {
            empty(&mut desk.head);
            empty(&mut desk.out);
            for fields in [&mut desk.fields, &mut desk.response_fields] {
                fields.clear();
                if fields.capacity() > KEEP_FIELDS {
                    *fields = Vec::new();
                }
            }
        }
        all.push(buffers);
    }
}

fn empty(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > KEEP {
        *buffer = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_empty_and_small() {
        let spare = Spare::default();
        let mut used = Buffers { input: b"secret".to_vec(), ..Buffers::default() };
        used.room.head = Vec::with_capacity(KEEP + 1);
        used.room.out = b"secret".to_vec();
        spare.give(used);
        let again = spare.take();
        assert!(again.input.is_empty() && again.input.capacity() > 0);
        assert!(again.room.out.is_empty() && again.room.out.capacity() > 0);
        assert_eq!(again.room.head.capacity(), 0);
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
        spare.give(Buffers::default());
        assert!(spare.take().input.capacity() > 0);
    }

    #[test]
    fn who_only_looks_at_a_desk_gets_none() {
        let room = Room::default();
        assert!(room.head.is_empty() && room.fields.is_empty());
        assert!(room.0.is_none());
    }
}
