//! Durations as Go writes them: `1h30m`, `250ms`, `0`, `0s`.

use std::time::Duration;

const UNITS: [(&str, f64); 8] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("μs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// Go's `time.ParseDuration` without negative values, which no kube-proxy option allows.
///
/// # Errors
/// A sentence that says what is allowed.
pub fn parse(text: &str) -> Result<Duration, &'static str> {
    const ALLOWED: &str = "a duration such as 30s, 1h30m or 250ms, not negative";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(ALLOWED);
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(ALLOWED)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(ALLOWED)?;
        seconds += number.parse::<f64>().map_err(|_| ALLOWED)? * scale;
        rest = tail;
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| ALLOWED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        let good = [
            ("0", 0),
            ("0s", 0),
            ("15m0s", 900_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1_500),
            ("250ms", 250),
            ("+2s", 2_000),
        ];
        for (text, millis) in good {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "-1s", "1d", "s", "1s2", "1..5s", "1 s", "9e99h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
