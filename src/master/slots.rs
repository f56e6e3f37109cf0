//! Which place in the shared counters belongs to which name, for as long as the master lives.
//! Asked before each worker starts. Never gives a place to a second name.

use std::collections::HashMap;

use super::MasterError;
use crate::config::Bundle;
use crate::handoff::messages::Slots;
use crate::stats::SLOTS;

/// Names and their places.
#[derive(Default)]
pub(super) struct Directory {
    places: HashMap<String, u32>,
}

impl Directory {
    /// The places of everything a bundle names.
    pub(super) fn slots(&mut self, bundle: &Bundle) -> Result<Slots, MasterError> {
        let mut slots = Slots::default();
        for frontend in &bundle.frontends {
            slots.frontends.push(self.place(format!("F:{}", frontend.name))?);
        }
        for backend in &bundle.backends {
            slots.backends.push(self.place(format!("B:{}", backend.name))?);
            let mut servers = Vec::with_capacity(backend.servers.len());
            for server in &backend.servers {
                servers.push(self.place(format!("S:{}/{}", backend.name, server.name))?);
            }
            slots.servers.push(servers);
        }
        Ok(slots)
    }

    /// Places given so far; they are the first ones of the shared memory.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    fn place(&mut self, name: String) -> Result<u32, MasterError> {
        let next = u32::try_from(self.places.len()).unwrap_or(SLOTS);
        if let Some(place) = self.places.get(&name) {
            return Ok(*place);
        }
        if next >= SLOTS {
            return Err(MasterError::TooManyNames(SLOTS));
        }
        self.places.insert(name, next);
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_place() {
        let mut directory = Directory::default();
        let first = directory.place("F:www".into()).unwrap();
        let second = directory.place("B:www".into()).unwrap();
        assert_ne!(first, second);
        assert_eq!(directory.place("F:www".into()).unwrap(), first);
    }
}
