//! Basic authentication (RFC 7617) of the statistics page.
//! Called by the statistics listener for every request. Never logs or keeps a password.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha_crypt::{PasswordHashRef, PasswordVerifier as _, ShaCrypt};
use subtle::ConstantTimeEq as _;
use tokio::sync::Semaphore;

use crate::config::{Secret, User};

/// Longest user-id and password looked at; crypt(3) work grows with the password.
const LONGEST: usize = 512;

/// Decides who may look.
#[derive(Debug)]
pub(super) struct Gate {
    users: Arc<Vec<User>>,
    /// Digest of the last credentials a crypt(3) hash admitted: a page that refreshes itself must
    /// not cost milliseconds of hashing each time.
    admitted: Mutex<Option<[u8; 32]>>,
    /// One verification at a time, so that guessing cannot take every core.
    verifying: Semaphore,
}

impl Gate {
    pub(super) fn new(users: &[User]) -> Self {
        Self { users: Arc::new(users.to_vec()), admitted: Mutex::new(None), verifying: Semaphore::new(1) }
    }

    /// Whether the value of an `Authorization` field opens the gate.
    pub(super) async fn admits(&self, authorization: Option<&[u8]>) -> bool {
        if self.users.is_empty() {
            return true;
        }
        let Some((name, password)) = authorization.and_then(credentials) else { return false };
        let known = self.users.iter().find(|user| same(user.name.as_bytes(), &name));
        // An unknown name takes as long as a known one: it is checked against the first account.
        let Some(user) = known.or_else(|| self.users.first()) else { return false };
        let proven = match &user.secret {
            Secret::Clear(expected) => same(expected.as_bytes(), &password),
            Secret::Crypt(hash) => self.verified(&name, password, hash.clone()).await,
        };
        proven && known.is_some()
    }

    /// crypt(3) takes milliseconds by design, so it runs beside the serving thread.
    async fn verified(&self, name: &[u8], password: Vec<u8>, hash: String) -> bool {
        let seen = fingerprint(name, &password, &hash);
        let admitted = || *self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        if admitted().is_some_and(|last| bool::from(last.ct_eq(&seen))) {
            return true;
        }
        let Ok(_turn) = self.verifying.acquire().await else { return false };
        let proven = tokio::task::spawn_blocking(move || matches_crypt(&password, &hash)).await.unwrap_or(false);
        if proven {
            *self.admitted.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        }
        proven
    }
}

pub(super) fn matches_crypt(password: &[u8], hash: &str) -> bool {
    PasswordHashRef::new(hash).is_ok_and(|hash| ShaCrypt::default().verify_password(password, hash).is_ok())
}

/// Compares in a time that depends on neither content nor length of the expected value.
fn same(expected: &[u8], given: &[u8]) -> bool {
    digest(&SHA256, expected).as_ref().ct_eq(digest(&SHA256, given).as_ref()).into()
}

fn fingerprint(name: &[u8], password: &[u8], hash: &str) -> [u8; 32] {
    let parts = [name, password, hash.as_bytes()].map(|part| digest(&SHA256, part));
    let joined: Vec<u8> = parts.iter().flat_map(|part| part.as_ref().to_vec()).collect();
    let mut print = [0; 32];
    print.copy_from_slice(digest(&SHA256, &joined).as_ref());
    print
}

/// User-id and password of `Basic …`; the user-id ends at the first colon.
fn credentials(authorization: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (scheme, token) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") || token.len() > 2 * LONGEST {
        return None;
    }
    let decoded = STANDARD.decode(token.trim_ascii()).ok()?;
    let colon = decoded.iter().position(|&byte| byte == b':')?;
    let (name, password) = (&decoded[..colon], &decoded[colon + 1..]);
    (name.len() <= LONGEST && password.len() <= LONGEST).then(|| (name.to_vec(), password.to_vec()))
}

/// A realm as a quoted string (RFC 9110 section 5.6.4) that cannot end the field.
pub(super) fn challenge(realm: &str) -> String {
    let mut text = String::from("Basic realm=\"");
    for character in realm.chars().filter(|character| matches!(character, ' '..='~')) {
        if matches!(character, '"' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text.push_str("\", charset=\"UTF-8\"");
    text
}
