//! Durations and sizes with their units.
//! Called by `section`. Never accepts a bare number.

use std::time::Duration;

/// `5s`, `250ms`, `1h`, `1m30s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(String::from("write a number and a unit: \"5s\", \"250ms\", \"1m30s\""));
    }
    while !rest.is_empty() {
        let (number, unit, after) = split(rest);
        let count: u64 =
            number.parse().map_err(|_error| String::from("write a number and a unit: \"5s\", \"250ms\", \"1m30s\""))?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err(format!("a unit is missing: write \"{count}s\" or \"{count}ms\"")),
            _ => return Err(format!("unknown unit `{unit}`; use ms, s, m, h or d")),
        };
        let part = count.checked_mul(millis).map(Duration::from_millis);
        total = part.and_then(|part| total.checked_add(part)).ok_or("too long")?;
        rest = after;
    }
    Ok(total)
}

/// `16KiB`, `8KB`, `512B`, `1MiB`.
pub(super) fn size(text: &str) -> Result<usize, String> {
    let (number, unit, rest) = split(text);
    let count: usize = number.parse().map_err(|_error| String::from("write a number and a unit: \"16KiB\""))?;
    let factor = match unit {
        "B" => 1,
        "KB" | "kB" => 1_000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "" => return Err(format!("a unit is missing: write \"{count}B\" or \"{count}KiB\"")),
        _ => return Err(format!("unknown unit `{unit}`; use B, KB, KiB, MB or MiB")),
    };
    if rest.is_empty() {
        count.checked_mul(factor).ok_or_else(|| String::from("too large"))
    } else {
        Err(String::from("write one number and one unit: \"16KiB\""))
    }
}

/// Number, unit, and what follows.
fn split(text: &str) -> (&str, &str, &str) {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, after) = rest.split_at(letters);
    (number, unit, after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_carry_units() {
        for (text, millis) in [("5s", 5_000), ("250ms", 250), ("1m30s", 90_000), ("2d", 172_800_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("5"), Err(String::from("a unit is missing: write \"5s\" or \"5ms\"")));
        for bad in ["", "s", "5y", "-5s", "5 s", "1.5s", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(duration(&"18446744073709551615ms".repeat(1001)), Err(String::from("too long")));
        assert_eq!(duration("18446744073709551615s"), Err(String::from("too long")));
    }

    #[test]
    fn sizes_carry_units() {
        for (text, bytes) in [("16KiB", 16_384), ("8KB", 8_000), ("512B", 512), ("1MiB", 1_048_576)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "16", "16kb", "1KiB2B", "KiB", "-1B", "1.5KiB", "1 KiB", "18446744073709551615KiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
