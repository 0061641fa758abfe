//! Time. This module is the only one that reads a clock.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use nano_webhooks_core::timestamp::Timestamp;

/// A source of wall-clock time.
#[derive(Clone)]
pub struct Clock(ClockSource);

#[derive(Clone)]
enum ClockSource {
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The system's clock.
    pub const fn system() -> Self {
        Self(ClockSource::System)
    }

    /// A clock for tests, which stays at `start` until [`Clock::advance`] moves it. Clones move
    /// together.
    pub fn manual(start: Timestamp) -> Self {
        Self(ClockSource::Manual(Arc::new(AtomicI64::new(
            start.as_unix_millis(),
        ))))
    }

    /// The current time.
    #[expect(
        clippy::disallowed_methods,
        reason = "this module is the one that reads a clock"
    )]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            ClockSource::System => {
                let since_epoch = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap_or_default();
                Timestamp::from_millis(to_millis(since_epoch))
            }
            ClockSource::Manual(millis) => Timestamp::from_millis(millis.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock forward. Does nothing to the system's clock.
    pub fn advance(&self, duration: Duration) {
        if let ClockSource::Manual(millis) = &self.0 {
            millis.fetch_add(to_millis(duration), Ordering::SeqCst);
        }
    }
}

fn to_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            ClockSource::System => "Clock(system)",
            ClockSource::Manual(_) => "Clock(manual)",
        })
    }
}

/// Measures elapsed time.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(tokio::time::Instant);

impl Stopwatch {
    /// Starts a measurement.
    #[expect(
        clippy::disallowed_methods,
        reason = "this module is the one that reads a clock"
    )]
    pub fn start() -> Self {
        Self(tokio::time::Instant::now())
    }

    /// The time since the start.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// The time by which an invocation must have handed over its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(tokio::time::Instant);

impl Deadline {
    /// The deadline in `duration` from now.
    pub fn from_now(duration: Duration) -> Self {
        Self(Stopwatch::start().0 + duration)
    }

    /// The remaining time; zero after the deadline.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Stopwatch::start().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clones of a manual clock move together, and only by `advance`.
    #[test]
    fn manual_clock_moves_by_hand() {
        let clock = Clock::manual(Timestamp::from_millis(5));
        let other = clock.clone();
        clock.advance(Duration::from_secs(1));
        assert_eq!(other.now(), Timestamp::from_millis(1005));
    }
}
