//! Session tickets under keys that every generation of workers shares, so that a reload costs no
//! client a full handshake. Called by the TLS library. Keys live in memory only.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use rustls::pki_types::UnixTime;
use rustls::server::ProducesTickets;

use super::{TlsError, session};

/// Bytes of a raw key: 16 of name, 32 of AES-256, the rest reserved, as HAProxy's and nginx's files.
const KEY_SIZE: usize = 80;
const NAME_SIZE: usize = 16;

struct Key {
    name: [u8; NAME_SIZE],
    seal: LessSafeKey,
}

/// Ticket keys, newest first: the first one encrypts, all decrypt.
pub struct TicketKeys {
    keys: RwLock<Vec<Key>>,
    lifetime: Duration,
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

/// A new raw key.
///
/// # Errors
/// When the system has no randomness.
pub fn random_ticket_key() -> Result<Vec<u8>, TlsError> {
    let mut key = vec![0; KEY_SIZE];
    rand::fill(&mut key).map_err(|_unspecified| TlsError::Random)?;
    Ok(key)
}

impl TicketKeys {
    /// Keys from their raw bytes; clients are told to come back within `lifetime`.
    ///
    /// # Errors
    /// A key of another size than 80 bytes, or none.
    pub fn from_raw(raw: &[Vec<u8>], lifetime: Duration) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self { keys: RwLock::new(parse(raw)?), lifetime }))
    }

    /// Exchanges the keys while handshakes go on.
    ///
    /// # Errors
    /// As [`Self::from_raw`]; the old keys stay.
    pub fn replace(&self, raw: &[Vec<u8>]) -> Result<(), TlsError> {
        let keys = parse(raw)?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Key>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(raw: &[Vec<u8>]) -> Result<Vec<Key>, TlsError> {
    let keys = raw.iter().map(|bytes| Key::new(bytes)).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() { Err(TlsError::NoTicketKey) } else { Ok(keys) }
}

impl Key {
    fn new(bytes: &[u8]) -> Result<Self, TlsError> {
        let wrong = || TlsError::TicketKey(bytes.len());
        if bytes.len() != KEY_SIZE {
            return Err(wrong());
        }
        let name = bytes[..NAME_SIZE].try_into().map_err(|_size| wrong())?;
        let secret = UnboundKey::new(&AES_256_GCM, &bytes[NAME_SIZE..NAME_SIZE + 32]).map_err(|_size| wrong())?;
        Ok(Self { name, seal: LessSafeKey::new(secret) })
    }

    fn bound_to(&self, rules: &[u8]) -> Aad<Vec<u8>> {
        Aad::from([&self.name[..], rules].concat())
    }
}

impl TicketKeys {
    /// Name, nonce, sealed state; the name is authenticated too, and the rules it was issued under.
    fn seal(&self, plain: &[u8], rules: &[u8]) -> Option<Vec<u8>> {
        let keys = self.read();
        let key = keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        key.seal
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), key.bound_to(rules), &mut sealed)
            .ok()?;
        Some([&key.name[..], &nonce[..], &sealed[..]].concat())
    }

    fn open(&self, ticket: &[u8], rules: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_SIZE)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.read();
        let key = keys.iter().find(|key| key.name == name)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        Some(key.seal.open_in_place(nonce, key.bound_to(rules), &mut sealed).ok()?.to_vec())
    }
}

impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(self.lifetime.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, b"")
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, b"")
    }
}

/// Tickets of a frontend whose clients prove who they are: good only where and while its rules are the same, and while
/// what the client has proven itself by is. A session that is resumed is not asked again; where it must not be, the
/// client has to prove itself once more, by a full handshake.
#[derive(Debug)]
pub(super) struct BoundTickets {
    keys: Arc<TicketKeys>,
    rules: Vec<u8>,
    /// When the first revocation list is out of date, in seconds since the epoch.
    end: Option<i64>,
}

impl BoundTickets {
    pub(super) fn new(keys: &Arc<TicketKeys>, rules: Vec<u8>, end: Option<i64>) -> Self {
        Self { keys: Arc::clone(keys), rules, end }
    }

    fn is_good(&self, state: &[u8]) -> bool {
        let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
        self.end.is_none_or(|end| now < end) && session::is_good(state, now)
    }
}

impl ProducesTickets for BoundTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.keys.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.seal(plain, &self.rules)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.keys.open(ticket, &self.rules).filter(|state| self.is_good(state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn keys(raw: &[&Vec<u8>]) -> Arc<TicketKeys> {
        TicketKeys::from_raw(&raw.iter().map(|key| (*key).clone()).collect::<Vec<_>>(), HOUR).unwrap()
    }

    #[test]
    fn a_ticket_outlives_the_process_and_the_rotation_that_follow() {
        let (old, new) = (random_ticket_key().unwrap(), random_ticket_key().unwrap());
        let ticket = keys(&[&old]).encrypt(b"state").unwrap();
        assert_eq!(keys(&[&old]).decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        assert_eq!(keys(&[&new, &old]).decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        assert_eq!(keys(&[&new]).decrypt(&ticket), None);
    }

    #[test]
    fn keys_that_are_replaced_under_way_take_effect_at_once() {
        let (old, new) = (random_ticket_key().unwrap(), random_ticket_key().unwrap());
        let shared = keys(&[&old]);
        let ticket = shared.encrypt(b"state").unwrap();
        shared.replace(&[new.clone(), old]).unwrap();
        assert_eq!(shared.decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        assert!(keys(&[&new]).decrypt(&shared.encrypt(b"state").unwrap()).is_some(), "the newest key encrypts");
        assert!(shared.replace(&[]).is_err() && shared.decrypt(&ticket).is_some(), "no key is no exchange");
    }

    #[test]
    fn a_ticket_is_good_under_the_rules_it_was_issued_under_alone() {
        let keys = keys(&[&random_ticket_key().unwrap()]);
        let bound = |rules: &[u8], end| BoundTickets::new(&keys, rules.to_vec(), end);
        let (here, there) = (bound(b"here", None), bound(b"there", None));
        // As the library writes a session without a client's certificate.
        let state = [&[0, 3, 4, 0x13, 1, 1, 7, 1, 0, 0, 0, 0][..], &[0; 12]].concat();
        let (tied, free) = (here.encrypt(&state).unwrap(), keys.encrypt(&state).unwrap());
        assert_eq!(here.decrypt(&tied), Some(state.clone()));
        assert_eq!((there.decrypt(&tied), keys.decrypt(&tied), here.decrypt(&free)), (None, None, None));
        let (over, not_yet) = (bound(b"here", Some(1)), bound(b"here", Some(i64::MAX)));
        assert_eq!((over.decrypt(&tied), not_yet.decrypt(&tied)), (None, Some(state)));
    }

    #[test]
    fn a_ticket_that_was_touched_is_worth_nothing() {
        let key = random_ticket_key().unwrap();
        let ticket = keys(&[&key]).encrypt(b"state").unwrap();
        for place in 0..ticket.len() {
            let mut broken = ticket.clone();
            broken[place] ^= 1;
            assert_eq!(keys(&[&key]).decrypt(&broken), None, "byte {place}");
        }
        assert_eq!(keys(&[&key]).decrypt(b""), None);
    }

    #[test]
    fn keys_of_another_size_are_refused() {
        assert!(matches!(TicketKeys::from_raw(&[vec![0; 48]], HOUR), Err(TlsError::TicketKey(48))));
        assert!(matches!(TicketKeys::from_raw(&[], HOUR), Err(TlsError::NoTicketKey)));
    }
}
