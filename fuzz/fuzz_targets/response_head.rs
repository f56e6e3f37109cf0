//! Response heads: how they arrive does not matter, and what is accepted leaves with one meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::config::HeaderEdits;
use proxy::http::{Body, HeadLimits, Method, Name, Persistence, ResponseRewrite, parse_response, rebuild_response};

const LIMITS: HeadLimits = HeadLimits { size: 1024, fields: 16, target: 0 };
/// A rebuilt head may be a little longer than the one it was made from.
const LATER: HeadLimits = HeadLimits { size: 8192, fields: 32, target: 0 };

fuzz_target!(|bytes: &[u8]| {
    check(bytes, Method::Get);
    check(bytes, Method::Head);
});

fn check(bytes: &[u8], method: Method) {
    let mut fields = Vec::new();
    let whole = parse_response(bytes, method, &LIMITS, &mut fields);
    for end in 0..bytes.len() {
        match (parse_response(&bytes[..end], method, &LIMITS, &mut Vec::new()), &whole) {
            (Ok(None), _) => {}
            (Err(_), Err(_)) => return,
            (Ok(Some(part)), Ok(Some(whole))) => assert_eq!(format!("{part:?}"), format!("{whole:?}")),
            (part, whole) => panic!("{part:?} after {end} bytes, {whole:?} after all"),
        }
    }
    let Ok(Some(head)) = whole else { return };
    assert!(head.len <= bytes.len() && head.len <= LIMITS.size);
    let bodies = if head.body == Body::UntilClose { vec![Body::UntilClose, Body::Chunked] } else { vec![head.body] };
    for body in bodies {
        let mut out = Vec::new();
        let rewrite = ResponseRewrite { edits: &HeaderEdits::default(), persistence: Persistence::Close, body };
        rebuild_response(&mut out, bytes, &head, &fields, &rewrite);
        let mut rebuilt = Vec::new();
        let again = parse_response(&out, method, &LATER, &mut rebuilt).expect("valid").expect("complete");
        assert_eq!((again.len, again.status, again.body), (out.len(), head.status, body));
        let framing = |name| matches!(name, Name::ContentLength | Name::TransferEncoding);
        let framings = rebuilt.iter().filter(|field| framing(field.id)).count();
        match body {
            Body::Length(_) | Body::Chunked => assert_eq!(framings, 1),
            Body::UntilClose => assert_eq!(framings, 0),
            Body::None => assert!(framings <= 1),
        }
    }
}
