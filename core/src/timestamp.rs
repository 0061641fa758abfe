//! Wall-clock time in milliseconds, and its RFC 3339 form.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// A point in time: milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// `0000-01-01T00:00:00Z`, the first time that RFC 3339 can express.
    const MIN: i64 = -62_167_219_200_000;
    /// `9999-12-31T23:59:59.999Z`, the last one.
    const MAX: i64 = 253_402_300_799_999;

    /// Converts milliseconds since the Unix epoch, clamped to the years 0 to 9999, so that every
    /// timestamp has an RFC 3339 form.
    pub const fn from_millis(millis: i64) -> Self {
        if millis < Self::MIN {
            Self(Self::MIN)
        } else if millis > Self::MAX {
            Self(Self::MAX)
        } else {
            Self(millis)
        }
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_unix_millis(self) -> i64 {
        self.0
    }

    /// The time since `earlier`; zero if `earlier` is later.
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The start of the second.
    #[must_use]
    pub const fn floor_to_second(self) -> Self {
        Self(self.0 - self.0.rem_euclid(1000))
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn as_unix_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Parses an RFC 3339 time and truncates it to milliseconds.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let nanos = OffsetDateTime::parse(text, &Rfc3339)
            .ok()?
            .unix_timestamp_nanos();
        i64::try_from(nanos.div_euclid(1_000_000))
            .ok()
            .map(Self::from_millis)
    }

    /// The RFC 3339 form in UTC, with `Z`, and with a fraction only if it is not zero.
    pub fn to_rfc3339(self) -> String {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .ok()
            .and_then(|at| at.format(&Rfc3339).ok())
            .expect("a timestamp is within the years of RFC 3339")
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_add(millis))
    }
}

impl std::ops::Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_sub(millis))
    }
}

/// Converts an RFC 3339 time to UTC with `Z`; `None` if `text` is malformed or out of range.
///
/// Keeps up to nine digits of the fraction, without trailing zeros.
pub fn normalize_rfc3339(text: &str) -> Option<String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()?
        .checked_to_offset(UtcOffset::UTC)?
        .format(&Rfc3339)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_is_normalized_to_utc() {
        for (given, written) in [
            ("2024-12-23T10:00:00Z", Some("2024-12-23T10:00:00Z")),
            ("2024-12-23T12:30:00+02:30", Some("2024-12-23T10:00:00Z")),
            ("2024-12-23T10:00:00.120Z", Some("2024-12-23T10:00:00.12Z")),
            ("2024-12-23T10:00:00-00:00", Some("2024-12-23T10:00:00Z")),
            ("2024-12-23", None),
            ("2024-12-23T10:00:00", None),
            ("2024-02-30T10:00:00Z", None),
            ("1734948000", None),
            ("0000-01-01T00:00:00+23:59", None),
            ("9999-12-31T23:59:59-23:59", None),
            ("", None),
        ] {
            assert_eq!(normalize_rfc3339(given).as_deref(), written, "{given}");
        }
    }

    #[test]
    fn fraction_is_written_only_when_present() {
        assert_eq!(
            Timestamp::from_millis(1_734_948_000_000).to_rfc3339(),
            "2024-12-23T10:00:00Z"
        );
        assert_eq!(
            Timestamp::from_millis(1_734_948_000_050).to_rfc3339(),
            "2024-12-23T10:00:00.05Z"
        );
        assert_eq!(
            Timestamp::from_millis(i64::MAX).to_rfc3339(),
            "9999-12-31T23:59:59.999Z"
        );
        assert_eq!(
            Timestamp::from_millis(i64::MIN).to_rfc3339(),
            "0000-01-01T00:00:00Z"
        );
    }
}
