//! Durations in words, for texts that people read.

use std::{fmt, time::Duration};

const MILLIS_PER_SECOND: u128 = 1_000;
const MILLIS_PER_MINUTE: u128 = 60 * MILLIS_PER_SECOND;
const MILLIS_PER_HOUR: u128 = 60 * MILLIS_PER_MINUTE;
const MILLIS_PER_DAY: u128 = 24 * MILLIS_PER_HOUR;

/// The units, the largest first, with their length in milliseconds.
const UNITS: [(&str, u128); 5] = [
    ("day", MILLIS_PER_DAY),
    ("hour", MILLIS_PER_HOUR),
    ("minute", MILLIS_PER_MINUTE),
    ("second", MILLIS_PER_SECOND),
    ("millisecond", 1),
];

/// Writes a duration as `5 days`, `1 day and 12 hours` or `90 minutes`. The text is exact to the
/// millisecond.
#[derive(Clone, Copy, Debug)]
pub struct ReadableDuration(pub Duration);

impl fmt::Display for ReadableDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis();
        let mut parts = Vec::new();
        for (name, unit) in UNITS {
            if prefers_smaller_unit(rest, unit) {
                continue;
            }
            let count = rest / unit;
            rest %= unit;
            match count {
                0 => {}
                1 => parts.push(format!("1 {name}")),
                count => parts.push(format!("{count} {name}s")),
            }
        }
        match parts.split_last() {
            None => f.write_str("0 seconds"),
            Some((only, [])) => f.write_str(only),
            Some((last, others)) => write!(f, "{} and {last}", others.join(", ")),
        }
    }
}

/// Less than two hours or two minutes read better in the smaller unit, such as `90 minutes`.
fn prefers_smaller_unit(millis: u128, unit: u128) -> bool {
    let is_hour_or_minute = unit == MILLIS_PER_HOUR || unit == MILLIS_PER_MINUTE;
    is_hour_or_minute && millis > unit && millis < 2 * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_words() {
        for (seconds, expected) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (60, "1 minute"),
            (90, "90 seconds"),
            (150, "2 minutes and 30 seconds"),
            (3_600, "1 hour"),
            (5_400, "90 minutes"),
            (9_000, "2 hours and 30 minutes"),
            (36 * 3_600, "1 day and 12 hours"),
            (120 * 3_600, "5 days"),
            (86_400 + 5_400, "1 day and 90 minutes"),
            (
                2 * 86_400 + 7_325,
                "2 days, 2 hours, 2 minutes and 5 seconds",
            ),
        ] {
            let text = ReadableDuration(Duration::from_secs(seconds)).to_string();
            assert_eq!(text, expected);
        }
        let text = ReadableDuration(Duration::from_millis(1_250)).to_string();
        assert_eq!(text, "1 second and 250 milliseconds");
    }
}
