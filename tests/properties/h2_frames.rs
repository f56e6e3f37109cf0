//! Frames of HTTP/2: however they are cut, a flood is one or it is none, as counted frame by frame.

use std::time::Instant;

use proxy::http::h2::{Budget, PREFACE, Watch};

const BURST: u32 = 3;

pub fn holds(bytes: &[u8]) {
    let now = Instant::now();
    // Nothing is earned by time, which stands still.
    let budget = Budget { burst: BURST, per_second: 0 };
    let bytes = [&PREFACE[..], bytes].concat();
    let (mut whole, mut cut) = (Watch::new(budget, now), Watch::new(budget, now));
    let (lowest, last) = counted(&bytes[PREFACE.len()..]);
    assert_eq!(whole.read(&bytes, now), last >= 0, "looked at once, what counts is where it ends");
    let piecemeal = bytes.iter().all(|byte| cut.read(std::slice::from_ref(byte), now));
    assert_eq!(piecemeal, lowest >= 0, "byte by byte, what counts is the lowest point");
    if piecemeal {
        assert_eq!(format!("{whole:?}"), format!("{cut:?}"));
    }
}

/// Lowest and last credit.
fn counted(mut bytes: &[u8]) -> (i64, i64) {
    let burst = i64::from(BURST);
    let (mut lowest, mut credit) = (burst, burst);
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        credit += match kind {
            0 if length > 0 || flags & 1 == 1 => 0,
            1 => 1,
            3 => -2,
            _ => -1,
        };
        credit = credit.min(burst);
        lowest = lowest.min(credit);
        bytes = rest.get(length..).unwrap_or_default();
    }
    (lowest, credit)
}
