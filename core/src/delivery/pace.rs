//! The pace of a webhook: its deliveries are spaced in time (`max_per_second`).
//!
//! Attempts take turns: each has a slot, and slots follow each other at a fixed interval. A counter
//! in the tables hands them out, so the pace holds for all processes together. A delivery whose
//! slot is later waits until then, without using an attempt, and keeps its slot.

use std::time::Duration;

use super::lease::PACING_INTERVAL;
use crate::timestamp::Timestamp;

const MICROS_PER_SECOND: u64 = 1_000_000;
/// How long before its slot an attempt may start. Attempts of a burst that follow each other faster
/// than a request to the tables start together.
pub const SLOT_TOLERANCE: Duration = Duration::from_millis(100);

/// How long after its time a slot can be used. Messages of the queue have delays of whole seconds,
/// and are rarely later. What is later reserves another slot, so that a pause of all workers is not
/// followed by a burst.
const SLOT_LIFETIME: Duration = Duration::from_secs(3);
/// The longest lifetime of a slot.
const MAX_SLOT_LIFETIME: Duration = Duration::from_mins(1);

/// How long after its time a slot can be used by a delivery that missed `missed` slots in a row. It
/// doubles each time, so that messages that are always late do not miss all slots.
pub fn slot_lifetime(missed: u32) -> Duration {
    let factor = 2_u32.saturating_pow(missed);
    SLOT_LIFETIME.saturating_mul(factor).min(MAX_SLOT_LIFETIME)
}

/// The most attempts to an endpoint that start in a second: 1 to 1,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPerSecond(u32);

impl MaxPerSecond {
    /// The largest number. A webhook's deliveries share a table key, which takes 1,000 writes per
    /// second.
    pub const MAX: u32 = 1_000;

    /// Makes a limit; `None` unless `number` is 1 to [`Self::MAX`].
    pub fn new(number: u64) -> Option<Self> {
        match u32::try_from(number) {
            Ok(number @ 1..=Self::MAX) => Some(Self(number)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The time between two slots, in microseconds.
    pub const fn interval_micros(self) -> u64 {
        MICROS_PER_SECOND.div_ceil(self.0 as u64)
    }
}

/// The pace of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The most attempts that start in a second.
    pub max_per_second: MaxPerSecond,
    /// When it was set. Slots of an earlier pace are not used, so that two do not add up.
    pub since: Timestamp,
}

/// The time between two deliveries of a resume or a replay to one endpoint: 200 ms, or longer if
/// the webhook has a lower pace.
pub fn pacing_interval(pace: Option<Pace>) -> Duration {
    match pace {
        Some(pace) => {
            let interval = Duration::from_micros(pace.max_per_second.interval_micros());
            PACING_INTERVAL.max(interval)
        }
        None => PACING_INTERVAL,
    }
}

/// Consecutive slots of a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    first_micros: u64,
    interval_micros: u64,
}

impl Slots {
    /// Slots that follow each other from a time in microseconds since the epoch on.
    pub const fn new(first_micros: u64, limit: MaxPerSecond) -> Self {
        Self {
            first_micros,
            interval_micros: limit.interval_micros(),
        }
    }

    /// The slot at a position, the first at 0.
    pub fn at(self, index: usize) -> Timestamp {
        let index = u64::try_from(index).unwrap_or(u64::MAX);
        let offset = self.interval_micros.saturating_mul(index);
        let millis = self.first_micros.saturating_add(offset) / 1000;
        Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
    }
}

/// Whether the attempt of a slot may start.
pub fn is_open(slot: Timestamp, now: Timestamp) -> bool {
    slot <= now + SLOT_TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(number: u64) -> MaxPerSecond {
        MaxPerSecond::new(number).unwrap()
    }

    #[test]
    fn limit_is_one_to_thousand() {
        for number in [0, 1_001, u64::MAX] {
            assert_eq!(MaxPerSecond::new(number), None, "{number}");
        }
        assert_eq!(limit(1).get(), 1);
        assert_eq!(limit(1_000).get(), 1_000);
    }

    /// A second has as many slots as the limit says, whether or not the interval is a whole number
    /// of milliseconds.
    #[test]
    fn slots_fill_second() {
        for number in [1, 3, 7, 64, 999, 1_000] {
            let slots = Slots::new(5_000_000, limit(number));
            let count = usize::try_from(number).unwrap();
            assert_eq!(slots.at(0), Timestamp::from_millis(5_000), "{number}");
            assert!(slots.at(count - 1) < Timestamp::from_millis(6_000));
            assert!(slots.at(count) >= Timestamp::from_millis(6_000));
            assert!(slots.at(count) <= Timestamp::from_millis(6_002), "{number}");
        }
    }

    #[test]
    fn slot_opens_shortly_before_its_time() {
        let now = Timestamp::from_millis(1_000);
        for (millis, expected) in [(0, true), (1_000, true), (1_100, true), (1_101, false)] {
            let slot = Timestamp::from_millis(millis);
            assert_eq!(is_open(slot, now), expected, "{millis}");
        }
    }

    #[test]
    fn low_limit_slows_resumes() {
        for (number, millis) in [(1, 1_000), (4, 250), (5, 200), (1_000, 200)] {
            let interval = pacing_interval(Some(Pace {
                max_per_second: limit(number),
                since: Timestamp::from_millis(0),
            }));
            assert_eq!(interval, Duration::from_millis(millis), "{number}");
        }
        assert_eq!(pacing_interval(None), PACING_INTERVAL);
    }
}
