//! Response heads: how they arrive does not matter, a second reader reads the same, and what is accepted leaves with one
//! meaning, whatever the client speaks.

use proxy::config::HeaderEdits;
use proxy::http::h2::{read_response, write_response};
use proxy::http::{
    Body, Field, HeadLimits, Method, Persistence, ResponseHead, ResponseRewrite, parse_response, rebuild_response,
};

use super::plain::{self, Plain, grouped};

const LIMITS: HeadLimits = HeadLimits { size: 1024, fields: 16, target: 0 };
/// A rebuilt head may be a little longer than the one it was made from.
const LATER: HeadLimits = HeadLimits { size: 8192, fields: 32, target: 0 };

pub fn holds(bytes: &[u8]) {
    holds_for(bytes, Method::Get);
    holds_for(bytes, Method::Head);
}

fn holds_for(bytes: &[u8], method: Method) {
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
    let plain = plain::read(&bytes[..head.len]);
    reads_the_same(bytes, &head, &fields, &plain);
    let bodies = if head.body == Body::UntilClose { vec![Body::UntilClose, Body::Chunked] } else { vec![head.body] };
    for body in bodies {
        let out = rebuilt((bytes, &head, &fields), body);
        let again = parse_response(&out, method, &LATER, &mut Vec::new()).expect("valid").expect("complete");
        assert_eq!((again.len, again.status, again.body), (out.len(), head.status, body));
        assert_eq!(again.reason.of(&out), head.reason.of(bytes));
        let after = plain::read(&out);
        let framings = after.count(&["content-length", "transfer-encoding"]);
        match body {
            Body::Length(_) | Body::Chunked => assert_eq!(framings, 1),
            Body::UntilClose => assert_eq!(framings, 0),
            Body::None => assert!(framings <= 1),
        }
        assert_eq!(after.own(&[]), plain.own(&[]));
    }
    leaves_by_http_2_as_by_http_1((bytes, &head, &fields), method);
}

fn reads_the_same(bytes: &[u8], head: &ResponseHead, fields: &[Field], plain: &Plain) {
    assert_eq!(std::str::from_utf8(&plain.line[9..12]).ok().and_then(|status| status.parse().ok()), Some(head.status));
    assert_eq!(plain.line.get(13..).unwrap_or_default(), head.reason.of(bytes));
    let fields: Vec<_> = fields
        .iter()
        .map(|field| (field.name.of(bytes).to_ascii_lowercase(), field.value.of(bytes).to_vec()))
        .map(|(name, value)| (String::from_utf8(name).expect("ASCII"), value))
        .collect();
    assert_eq!(fields, plain.fields);
}

type Head<'a> = (&'a [u8], &'a ResponseHead, &'a [Field]);

fn rebuilt((bytes, head, fields): Head<'_>, body: Body) -> Vec<u8> {
    let mut out = Vec::new();
    let rewrite = ResponseRewrite { edits: &HeaderEdits::default(), persistence: Persistence::Close, body };
    rebuild_response(&mut out, bytes, head, fields, &rewrite);
    out
}

/// What a client of HTTP/2 gets is what one of HTTP/1 would have got.
fn leaves_by_http_2_as_by_http_1((bytes, head, fields): Head<'_>, method: Method) {
    let edits = HeaderEdits::default();
    let streamed = matches!(head.body, Body::Chunked | Body::UntilClose);
    let body = if streamed { Body::UntilClose } else { head.body };
    let rewrite = ResponseRewrite { edits: &edits, persistence: Persistence::KeepAliveImplicit, body };
    let (response, _size) = write_response(bytes, head, fields, &rewrite).expect("100 to 599 can be expressed");
    let (mut buf, mut read) = (Vec::new(), Vec::new());
    let ended = head.status >= 200 && matches!(body, Body::None | Body::Length(0));
    let said = (response.status().as_u16(), response.headers(), ended);
    let again = read_response(said, method.into(), &LATER, (&mut buf, &mut read)).expect("what we say we understand");
    let body = if streamed { Body::Chunked } else { head.body };
    let over = plain::read(&rebuilt((&buf, &again, &read), body));
    let direct = plain::read(&rebuilt((bytes, head, fields), body));
    assert_eq!(over.line[..12], direct.line[..12]);
    assert_eq!(again.body, if streamed { Body::UntilClose } else { head.body });
    assert_eq!(grouped(over.fields), grouped(direct.fields));
}
