//! Request heads: how they arrive does not matter, and what is accepted leaves with one meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::config::HeaderEdits;
use proxy::http::{Body, HeadLimits, Name, RequestHead, RequestRewrite, parse_request, rebuild_request};

const LIMITS: HeadLimits = HeadLimits { size: 1024, fields: 16, target: 256 };
/// A rebuilt head may be a little longer than the one it was made from.
const LATER: HeadLimits = HeadLimits { size: 8192, fields: 32, target: 512 };

fn rebuilt(bytes: &[u8], limits: &HeadLimits) -> (Vec<u8>, RequestHead) {
    let mut fields = Vec::new();
    let head = parse_request(bytes, limits, &mut fields).expect("accepted before").expect("complete before");
    let mut out = Vec::new();
    let rewrite = RequestRewrite { edits: &HeaderEdits::default(), forwarded_for: None, close: false };
    rebuild_request(&mut out, bytes, &head, &fields, &rewrite);
    (out, head)
}

fuzz_target!(|bytes: &[u8]| {
    let whole = parse_request(bytes, &LIMITS, &mut Vec::new());
    for end in 0..bytes.len() {
        match (parse_request(&bytes[..end], &LIMITS, &mut Vec::new()), &whole) {
            (Ok(None), _) => {}
            (Err(_), Err(_)) => return,
            (Ok(Some(part)), Ok(Some(whole))) => assert_eq!(format!("{part:?}"), format!("{whole:?}")),
            (part, whole) => panic!("{part:?} after {end} bytes, {whole:?} after all"),
        }
    }
    let Ok(Some(head)) = whole else { return };
    assert!(head.len <= bytes.len() && head.len <= LIMITS.size);
    let (first, _) = rebuilt(bytes, &LIMITS);
    let (second, again) = rebuilt(&first, &LATER);
    assert_eq!((again.len, again.body, again.method), (first.len(), head.body, head.method));
    assert_eq!(rebuilt(&second, &LATER).0, second);
    let mut fields = Vec::new();
    parse_request(&first, &LATER, &mut fields).expect("accepted before");
    let count = |wanted: &[Name]| fields.iter().filter(|field| wanted.contains(&field.id)).count();
    assert_eq!(count(&[Name::ContentLength, Name::TransferEncoding]), usize::from(head.body != Body::None));
    assert_eq!(count(&[Name::Host]), 1);
});
