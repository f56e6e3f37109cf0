//! What the TLS library keeps of a session in a ticket, as far as it says who the client is.
//! Called by `tickets`. Pure: knows no key. What it does not understand is never resumed, so that a library that writes
//! something else costs full handshakes and lets nobody in.

use super::bytes::Reader;
use crate::config::facts;

/// Whether every certificate that the client has shown is good at this time, in seconds since the epoch. Its authorities
/// need not be asked again: a ticket is good only while they are the same.
pub(super) fn is_good(state: &[u8], now: i64) -> bool {
    let good = |der: &&[u8]| facts(der).is_some_and(|facts| facts.validity.0 <= now && now <= facts.validity.1);
    chain(state).is_some_and(|chain| chain.iter().all(good))
}

/// The client's certificates, leaf first; none if it has shown none.
fn chain(state: &[u8]) -> Option<Vec<&[u8]>> {
    let mut reader = Reader(state);
    let _sni = option(&mut reader, Reader::byte_vector)?;
    let (_version, _suite) = (reader.short()?, reader.short()?);
    let (_secret, _extended) = (reader.byte_vector()?, reader.take(1)?);
    let mut list = Reader(option(&mut reader, Reader::long_vector)?.unwrap_or_default());
    let _alpn = option(&mut reader, Reader::byte_vector)?;
    let (_application_data, _created, _age) = (reader.short_vector()?, reader.take(8)?, reader.take(4)?);
    if !reader.0.is_empty() {
        return None;
    }
    let mut chain = Vec::new();
    while !list.0.is_empty() {
        chain.push(list.long_vector()?);
    }
    Some(chain)
}

/// A value that may be absent: the outer `None` is nonsense.
fn option<'a>(
    reader: &mut Reader<'a>,
    read: impl FnOnce(&mut Reader<'a>) -> Option<&'a [u8]>,
) -> Option<Option<&'a [u8]>> {
    match reader.take(1)? {
        [0] => Some(None),
        [1] => read(reader).map(Some),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session as the library writes it, with these certificates.
    fn state(chain: Option<&[&[u8]]>) -> Vec<u8> {
        let mut state = [&[1, 4][..], b"name", &[3, 4, 0x13, 1, 2, 7, 7, 1]].concat();
        match chain {
            None => state.push(0),
            Some(chain) => {
                let long = |length: usize| u32::try_from(length).unwrap().to_be_bytes()[1..].to_vec();
                let list: Vec<u8> = chain.iter().flat_map(|der| [&long(der.len()), *der].concat()).collect();
                state.push(1);
                state.extend(long(list.len()));
                state.extend(list);
            }
        }
        [&state[..], &[1, 2], b"h2", &[0, 0], &[0; 8], &[0; 4]].concat()
    }

    fn certificate(from: i32, until: i32) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec![String::from("a.example")]).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(until, 1, 1));
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_session_is_good_while_every_certificate_is() {
        const IN_2026: i64 = 1_780_000_000;
        let (good, old, new) = (certificate(2020, 2040), certificate(2020, 2025), certificate(2030, 2040));
        for (chain, expected) in [
            (None, true),
            (Some(&[&good[..]][..]), true),
            (Some(&[&good[..], &good[..]]), true),
            (Some(&[&old[..]]), false),
            (Some(&[&good[..], &old[..]]), false),
            (Some(&[&new[..], &good[..]]), false),
            (Some(&[b"no certificate"]), false),
        ] {
            assert_eq!(is_good(&state(chain), IN_2026), expected);
        }
    }

    #[test]
    fn what_is_not_understood_to_its_last_byte_is_not_good() {
        let whole = state(None);
        for length in 0..whole.len() {
            assert!(!is_good(&whole[..length], 0), "{length} of {} bytes", whole.len());
        }
        assert!(is_good(&whole, 0) && !is_good(&[&whole[..], b"more"].concat(), 0));
        assert!(!is_good(&[&[2][..], &whole[1..]].concat(), 0));
    }
}
