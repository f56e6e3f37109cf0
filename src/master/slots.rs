//! Which place in the shared counters belongs to which name; the memory itself knows, so that whoever inherits it does.
//! Asked before each worker starts. A name keeps its place as long as there is room: one that no living worker uses is
//! given away when a new name finds no other, the longest unused first.

use std::collections::{HashMap, HashSet};

use aws_lc_rs::digest::{SHA256, digest};

use super::MasterError;
use crate::config::Bundle;
use crate::handoff::messages::Slots;
use crate::stats::{Kind, Memory, Owner};

/// Owners and their places.
pub(super) struct Directory {
    memory: Memory,
    places: HashMap<Owner, Place>,
    round: u64,
}

struct Place {
    index: u32,
    /// The last round in which somebody wanted it.
    wanted: u64,
}

/// A place that may be given away: since when it is unused, which one it is, and whose it was.
type Free = (u64, u32, Option<Owner>);

impl Directory {
    /// What a memory says of itself: nothing, if it is new.
    pub(super) fn of(memory: Memory) -> Self {
        let owners = (0..memory.given()).filter_map(|index| Some((memory.owner(index)?, index)));
        let places = owners.map(|(owner, index)| (owner, Place { index, wanted: 0 })).collect();
        Self { memory, places, round: 0 }
    }

    /// The places of everything a bundle names. Those `in_use` stay what they are.
    pub(super) fn slots(&mut self, bundle: &Bundle, in_use: &HashSet<u32>) -> Result<Slots, MasterError> {
        self.round += 1;
        let names = Names::of(bundle);
        for owner in names.all() {
            // First of all, so that none of them is given away to another of them.
            if let Some(place) = self.places.get_mut(owner) {
                place.wanted = self.round;
            }
        }
        let mut free = None;
        let mut place = |owner: &Owner| self.place(*owner, in_use, &mut free);
        Ok(Slots {
            frontends: names.frontends.iter().map(&mut place).collect::<Result<_, _>>()?,
            backends: names.backends.iter().map(&mut place).collect::<Result<_, _>>()?,
            servers: names
                .servers
                .iter()
                .map(|servers| servers.iter().map(&mut place).collect())
                .collect::<Result<_, _>>()?,
        })
    }

    /// What may be given away, the first choice last.
    fn free(&self, in_use: &HashSet<u32>) -> Vec<Free> {
        let unused =
            self.places.iter().filter(|(_, place)| place.wanted < self.round && !in_use.contains(&place.index));
        let mut free: Vec<_> = unused.map(|(owner, place)| (place.wanted, place.index, Some(*owner))).collect();
        // A master that died while it gave one away has left a place of nobody.
        let taken: HashSet<u32> = self.places.values().map(|place| place.index).collect();
        free.extend((0..self.memory.given()).filter(|index| !taken.contains(index)).map(|index| (0, index, None)));
        free.sort_by_key(|(wanted, index, _)| std::cmp::Reverse((*wanted, *index)));
        free
    }

    fn place(&mut self, owner: Owner, in_use: &HashSet<u32>, free: &mut Option<Vec<Free>>) -> Result<u32, MasterError> {
        if let Some(place) = self.places.get(&owner) {
            return Ok(place.index);
        }
        let (fresh, room) = (self.memory.given(), self.memory.slots());
        let index = if fresh < room {
            fresh
        } else {
            let free = free.get_or_insert_with(|| self.free(in_use));
            let (_, index, former) = free.pop().ok_or(MasterError::TooManyNames(room))?;
            former.map(|former| self.places.remove(&former));
            index
        };
        self.memory.give(index, owner);
        self.places.insert(owner, Place { index, wanted: self.round });
        Ok(index)
    }
}

/// Everything a bundle names.
struct Names {
    frontends: Vec<Owner>,
    backends: Vec<Owner>,
    servers: Vec<Vec<Owner>>,
}

impl Names {
    fn of(bundle: &Bundle) -> Self {
        let servers = |backend: &crate::config::Backend| {
            let names = backend.servers.iter().map(|server| format!("{}/{}", backend.name, server.name));
            names.map(|name| owner(Kind::Server, &name)).collect()
        };
        Self {
            frontends: bundle.frontends.iter().map(|frontend| owner(Kind::Frontend, &frontend.name)).collect(),
            backends: bundle.backends.iter().map(|backend| owner(Kind::Backend, &backend.name)).collect(),
            servers: bundle.backends.iter().map(servers).collect(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Owner> {
        self.frontends.iter().chain(&self.backends).chain(self.servers.iter().flatten())
    }
}

fn owner(kind: Kind, name: &str) -> Owner {
    let digest = digest(&SHA256, name.as_bytes());
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(digest.as_ref().chunks_exact(8)) {
        *word = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    Owner { kind, name: words }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::stats::Counter;

    /// A backend of this name with these servers, and nothing else.
    fn bundle(backend: &str, servers: &[&str]) -> Bundle {
        let file = tempfile::NamedTempFile::new().unwrap();
        let list: String =
            servers.iter().map(|name| format!("{{ name = \"{name}\", address = \"127.0.0.1:9\" }},")).collect();
        let text = format!(
            "[frontend.f]\nbind = \"127.0.0.1:1\"\nbackend = \"{backend}\"\n[backend.{backend}]\nserver = [{list}]\n"
        );
        std::fs::write(file.path(), text).unwrap();
        config::load(file.path(), &|_| Ok(())).unwrap().bundle
    }

    fn of(slots: &Slots) -> HashSet<u32> {
        slots.frontends.iter().chain(&slots.backends).chain(slots.servers.iter().flatten()).copied().collect()
    }

    #[test]
    fn a_name_keeps_its_place_and_whoever_inherits_the_memory_knows_it() {
        let (memory, _fd) = Memory::create(16).unwrap();
        let mut directory = Directory::of(memory);
        let first = directory.slots(&bundle("b", &["s1", "s2"]), &HashSet::new()).unwrap();
        assert_eq!(of(&first).len(), 4, "everybody has his own");
        let second = directory.slots(&bundle("b", &["s2"]), &of(&first)).unwrap();
        assert_eq!(second.servers[0], [first.servers[0][1]]);
        let back = Directory::of(memory).slots(&bundle("b", &["s2", "s1"]), &HashSet::new()).unwrap();
        assert_eq!(back.servers[0], [first.servers[0][1], first.servers[0][0]]);
    }

    #[test]
    fn thousands_of_changing_names_find_room_and_nobody_alive_loses_his() {
        let (memory, _fd) = Memory::create(12).unwrap();
        let mut directory = Directory::of(memory);
        let mut old = Slots::default();
        for round in 0..2000_u64 {
            let name = format!("b{round}");
            let new = directory.slots(&bundle(&name, &["s1", "s2"]), &of(&old)).unwrap();
            assert!(of(&new).is_disjoint(&of(&old)) || round == 0 || new.frontends == old.frontends);
            let shared: Vec<_> = of(&new).intersection(&of(&old)).copied().collect();
            assert!(
                shared.iter().all(|slot| old.frontends.contains(slot)),
                "only the frontend is the same: {shared:?}"
            );
            let slot = memory.slot(0, new.servers[0][0]).unwrap();
            assert_eq!(memory.count(new.servers[0][0], Counter::Requests), 0, "a new name starts at zero");
            slot.add(Counter::Requests, 1);
            let frontend = memory.slot(0, new.frontends[0]).unwrap();
            assert_eq!(frontend.take(Counter::Requests), round, "and an old one goes on");
            old = new;
        }
    }

    #[test]
    fn the_longest_unused_name_is_forgotten_first() {
        // Room for the frontend and two backends of one server.
        let (memory, _fd) = Memory::create(5).unwrap();
        let mut directory = Directory::of(memory);
        let none = HashSet::new();
        let a = directory.slots(&bundle("a", &["s"]), &none).unwrap();
        let b = directory.slots(&bundle("b", &["s"]), &none).unwrap();
        assert_eq!(directory.slots(&bundle("a", &["s"]), &none).unwrap(), a);
        let c = directory.slots(&bundle("c", &["s"]), &of(&a)).unwrap();
        assert_eq!(of(&c), of(&b));
        assert!(matches!(directory.slots(&bundle("d", &["s", "t", "u"]), &of(&c)), Err(MasterError::TooManyNames(5))));
    }
}
