//! Numbers, times and sizes as text for people.
//!
//! Four significant digits say what a measurement can say; counts are exact and grouped; what was not measured is a
//! dash, never a zero.

use std::time::Duration;

/// Stands for "not measured" and "undetermined".
pub const NOTHING: &str = "–";

/// Four significant digits: `-0.3127`, `12.5`, `1.234e-7`. Whole numbers below a million stay whole.
pub fn number(value: f64) -> String {
    if value.is_nan() {
        return NOTHING.into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    if value == value.trunc() && value.abs() < 1e6 {
        return format!("{}", value as i64);
    }
    significant(value, 4)
}

/// `digits` significant digits without trailing zeros, in scientific notation where that is shorter to read.
pub fn significant(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return number(value);
    }
    if value == 0.0 {
        return "0".into();
    }
    // Rounding may carry into the next power of ten, so the exponent is taken after it.
    let scientific = format!("{value:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-3..6).contains(&exponent) {
        let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
        trimmed(&format!("{value:.decimals$}")).into()
    } else {
        format!("{}e{exponent}", trimmed(mantissa))
    }
}

/// Without zeros at the end of the fraction.
fn trimmed(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// A whole number in groups of three: `1,234,567`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 record`, `12 records`.
pub fn plural(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

/// The two largest units: `3 d 4 h`, `12 min 5 s`, `8 s`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}

/// A moment, in nanoseconds since 1970, as `2026-03-01 12:30:05 UTC`.
pub fn moment(nanoseconds: u64) -> String {
    let time = chrono::DateTime::from_timestamp_nanos(i64::try_from(nanoseconds).unwrap_or(i64::MAX));
    time.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A moment in RFC 3339 with all nine digits, for programs.
pub fn rfc3339(nanoseconds: u64) -> String {
    let time = chrono::DateTime::from_timestamp_nanos(i64::try_from(nanoseconds).unwrap_or(i64::MAX));
    time.format("%Y-%m-%dT%H:%M:%S%.9fZ").to_string()
}

/// Text from a ring is somebody else's: control characters in it must not reach a terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// At most `width` characters; an ellipsis says that some are missing.
pub fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.into();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept + "…"
}

/// At most `width` characters from the end: names of tensors differ there.
pub fn ending(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.into();
    }
    let kept: String = text.chars().skip(length + 1 - width.max(1)).collect();
    format!("…{kept}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits_and_no_noise() {
        for (value, text) in [
            (0.0, "0"),
            (-0.31267, "-0.3127"),
            (12.5, "12.5"),
            (3.0, "3"),
            (0.999996, "1"),
            (0.00123456, "0.001235"),
            (0.000123456, "1.235e-4"),
            (123456.7, "123457"),
            (1234567.8, "1.235e6"),
            (2.0e9, "2e9"),
            (f64::NAN, "–"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(number(value), text, "{value:e}");
        }
    }

    #[test]
    fn rounding_may_carry() {
        assert_eq!(significant(9.9996, 4), "10");
        assert_eq!(significant(0.00099999, 2), "0.001");
        assert_eq!(significant(999_999.9, 2), "1e6");
    }

    #[test]
    fn counts_are_grouped() {
        for (value, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(value), text);
        }
        assert_eq!((plural(1, "record"), plural(0, "record")), ("1 record".into(), "0 records".into()));
    }

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [(8, "8 s"), (65, "1 min 5 s"), (3700, "1 h 1 min"), (90_061, "1 d 1 h")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn moments() {
        assert_eq!(moment(1_772_368_205_000_000_000), "2026-03-01 12:30:05 UTC");
        assert_eq!(rfc3339(1_772_368_205_000_000_042), "2026-03-01T12:30:05.000000042Z");
    }

    #[test]
    fn foreign_text_is_tamed() {
        assert_eq!(printable("a\x1b[31mb"), "a\u{fffd}[31mb");
        assert_eq!((ending("abcdef", 4), ending("abc", 4)), ("…def".into(), "abc".into()));
        assert_eq!((shortened("abcdef", 4), shortened("abc", 4)), ("abc…".into(), "abc".into()));
    }
}
