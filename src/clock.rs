//! Time: the one reader of the machine's clock, and the instant that everything else takes as a parameter.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// An instant: milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instant(i64);

impl Instant {
    /// The first instant that RFC 3339 can write, `0000-01-01T00:00:00Z`.
    const MIN: i64 = -62_167_219_200_000;
    /// The last one, `9999-12-31T23:59:59.999Z`.
    const MAX: i64 = 253_402_300_799_999;

    /// From milliseconds since the Unix epoch; held to the years 0 to 9999, so that every instant has an RFC 3339 form.
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
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// The time from `earlier` until this instant; nothing if it lies before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The beginning of this instant's second.
    #[must_use]
    pub const fn floor_to_second(self) -> Self {
        Self(self.0 - self.0.rem_euclid(1000))
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Reads an RFC 3339 time; what is finer than a millisecond is cut.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let nanos = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos();
        i64::try_from(nanos.div_euclid(1_000_000)).ok().map(Self::from_millis)
    }

    /// The instant in RFC 3339, UTC with `Z`; a fraction only if there is one.
    pub fn rfc3339(self) -> String {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .ok()
            .and_then(|at| at.format(&Rfc3339).ok())
            .expect("an instant is held to the years that RFC 3339 can write")
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Self;

    fn add(self, wait: Duration) -> Self {
        let millis = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_add(millis))
    }
}

impl std::ops::Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, wait: Duration) -> Self {
        let millis = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_sub(millis))
    }
}

/// The same time in UTC, if `text` is an RFC 3339 time that can be written in UTC. A fraction loses its trailing zeros
/// and what is finer than a nanosecond.
pub fn rfc3339_in_utc(text: &str) -> Option<String> {
    OffsetDateTime::parse(text, &Rfc3339).ok()?.checked_to_offset(UtcOffset::UTC)?.format(&Rfc3339).ok()
}

/// Where the time comes from: the machine, or a test's hand.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's clock.
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still at `start` until it is moved with [`Clock::advance`]; clones move together.
    pub fn manual(start: Instant) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(start.0))))
    }

    /// Now.
    #[expect(clippy::disallowed_methods, reason = "this is the one reader of the clock")]
    pub fn now(&self) -> Instant {
        match &self.0 {
            Source::System => {
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                Instant::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
            Source::Manual(at) => Instant::from_millis(at.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock forward; the machine's clock moves by itself.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(at) = &self.0 {
            at.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Source::System => "Clock(system)",
            Source::Manual(_) => "Clock(manual)",
        })
    }
}

/// Measures how long something takes.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(tokio::time::Instant);

impl Stopwatch {
    /// Starts now.
    #[expect(clippy::disallowed_methods, reason = "this is the one reader of the clock")]
    pub fn start() -> Self {
        Self(tokio::time::Instant::now())
    }

    /// The time since it was started.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// The moment by which an invocation must have handed over its work.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(tokio::time::Instant);

impl Deadline {
    /// The moment `wait` from now.
    pub fn after(wait: Duration) -> Self {
        Self(Stopwatch::start().0 + wait)
    }

    /// What is left of the time; nothing once it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Stopwatch::start().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_utc_with_z() {
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
            assert_eq!(rfc3339_in_utc(given).as_deref(), written, "{given}");
        }
    }

    #[test]
    fn an_instant_is_written_with_a_fraction_only_if_it_has_one() {
        assert_eq!(Instant::from_millis(1_734_948_000_000).rfc3339(), "2024-12-23T10:00:00Z");
        assert_eq!(Instant::from_millis(1_734_948_000_050).rfc3339(), "2024-12-23T10:00:00.05Z");
        assert_eq!(Instant::from_millis(i64::MAX).rfc3339(), "9999-12-31T23:59:59.999Z");
        assert_eq!(Instant::from_millis(i64::MIN).rfc3339(), "0000-01-01T00:00:00Z");
    }

    #[test]
    fn a_manual_clock_moves_only_by_hand_and_its_clones_with_it() {
        let clock = Clock::manual(Instant::from_millis(5));
        let other = clock.clone();
        clock.advance(Duration::from_secs(1));
        assert_eq!(other.now(), Instant::from_millis(1005));
    }
}
