//! How bytes that others chose are made harmless inside one log line.
//! Called by the formatter and by event lines. Never emits a control byte.

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Appends bytes the way HAProxy logs a request line: control bytes, everything from 127 up, `"`
/// and `#` become `#XX`. With `backslash`, `]` and `\` get a backslash before them (`%{+E}`).
pub(super) fn url(out: &mut Vec<u8>, bytes: &[u8], backslash: bool) {
    let mut rest = bytes;
    // Nearly all of a usual request is copied as it stands, in one piece.
    while let Some(at) = rest.iter().position(|&byte| is_special(byte) || (backslash && matches!(byte, b'\\' | b']'))) {
        out.extend_from_slice(&rest[..at]);
        if is_special(rest[at]) {
            hex(out, rest[at]);
        } else {
            out.extend([b'\\', rest[at]]);
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

fn is_special(byte: u8) -> bool {
    matches!(byte, 0..32 | 127.. | b'"' | b'#')
}

/// Appends text of our own that may quote somebody else's: control bytes become `#XX`, the rest
/// stays readable, UTF-8 included. C1 controls are two bytes in UTF-8 and both are encoded.
pub(super) fn event(out: &mut Vec<u8>, text: &str) {
    let mut buffer = [0; 4];
    for character in text.chars() {
        let bytes = character.encode_utf8(&mut buffer).as_bytes();
        if character.is_control() {
            bytes.iter().for_each(|&byte| hex(out, byte));
        } else {
            out.extend_from_slice(bytes);
        }
    }
}

/// Appends a JSON string with its quotes, in pure ASCII so that no terminal or collector sees a
/// control or bidirectional character. At most `limit` encoded bytes; returns whether all of it fitted.
pub(super) fn json(out: &mut Vec<u8>, bytes: &[u8], limit: usize) -> bool {
    out.push(b'"');
    let start = out.len();
    let text = String::from_utf8_lossy(bytes);
    for character in text.chars() {
        // Twelve bytes is the longest escape: a surrogate pair.
        if out.len() - start + 12 > limit {
            out.push(b'"');
            return false;
        }
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            ' '..='~' => out.push(character as u8),
            _ => {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    out.extend_from_slice(b"\\u");
                    for byte in unit.to_be_bytes() {
                        out.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
                    }
                }
            }
        }
    }
    out.push(b'"');
    true
}

fn hex(out: &mut Vec<u8>, byte: u8) {
    out.extend([b'#', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
}
