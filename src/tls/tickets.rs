//! Session tickets under keys that every generation of workers shares, so that a reload costs no
//! client a full handshake. Called by the TLS library. Keys live in memory only.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;

use super::TlsError;

/// Bytes of a raw key: 16 of name, 32 of AES-256, the rest reserved, as HAProxy's and nginx's files.
const KEY_SIZE: usize = 80;
const NAME_SIZE: usize = 16;
/// How long a client may come back with a ticket, seconds.
const LIFETIME: u32 = 12 * 3600;

struct Key {
    name: [u8; NAME_SIZE],
    seal: LessSafeKey,
}

/// Ticket keys, newest first: the first one encrypts, all decrypt.
pub struct TicketKeys {
    keys: Vec<Key>,
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").field("keys", &self.keys.len()).finish()
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
    /// Keys from their raw bytes.
    ///
    /// # Errors
    /// A key of another size than 80 bytes, or none.
    pub fn from_raw(raw: &[Vec<u8>]) -> Result<Arc<Self>, TlsError> {
        let keys = raw.iter().map(|bytes| Key::new(bytes)).collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() { Err(TlsError::NoTicketKey) } else { Ok(Arc::new(Self { keys })) }
    }
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
}

impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    /// Name, nonce, sealed state; the name is authenticated too.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        key.seal
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&key.name), &mut sealed)
            .ok()?;
        Some([&key.name[..], &nonce[..], &sealed[..]].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_SIZE)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let key = self.keys.iter().find(|key| key.name == name)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        Some(key.seal.open_in_place(nonce, Aad::from(&key.name), &mut sealed).ok()?.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(raw: &[&Vec<u8>]) -> Arc<TicketKeys> {
        TicketKeys::from_raw(&raw.iter().map(|key| (*key).clone()).collect::<Vec<_>>()).unwrap()
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
        assert!(matches!(TicketKeys::from_raw(&[vec![0; 48]]), Err(TlsError::TicketKey(48))));
        assert!(matches!(TicketKeys::from_raw(&[]), Err(TlsError::NoTicketKey)));
    }
}
