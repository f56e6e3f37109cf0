//! Trailer sections between the lists of HTTP/2 and the lines of chunked coding.
//! Called by `Stream` and `proxy`. Never lets a field trail that frames, routes or authenticates.

use http::HeaderMap;

use super::super::chunked::{may_trail, write_field};
use super::super::line::parse_field;
use super::super::rebuild::Fields as _;
use super::super::{HeadLimits, Name};

/// Lines for the fields that may trail; those beyond `limits` are left out.
#[must_use]
pub fn read_trailers(map: &HeaderMap, limits: &HeadLimits) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in map.iter().take(limits.fields) {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        if may_trail(name, Name::of(name)) && out.len() + name.len() + value.len() + 4 <= limits.size {
            write_field(&mut out, name, value);
        }
    }
    out
}

/// The list for lines that were checked before; `None` when there are none.
#[must_use]
pub fn write_trailers(lines: &[u8]) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    let mut at = 0;
    while at < lines.len() {
        let Ok((field, next)) = parse_field(lines, at) else { break };
        map.put(field.name.of(lines), field.value.of(lines));
        at = next;
    }
    (!map.is_empty()).then_some(map)
}
