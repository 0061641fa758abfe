//! The reports that follow from a change of an endpoint's health: it has failed for long, or it
//! works again.

use std::time::Duration;

use super::endpoint_health::EndpointHealth;
use crate::timestamp::Timestamp;

/// The parts of the time after which a webhook is disabled, in percent, at which its failing is
/// reported.
const FAILING_THRESHOLDS: [u32; 3] = [20, 50, 90];

/// A change of health that raises an operational event. The health stores which thresholds were
/// reached, so each raises one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthNotice {
    /// Every attempt failed for this part of the time.
    Failing {
        /// The time of the first failure since the latest success.
        since: Timestamp,
        /// The highest threshold that was reached, in percent.
        percent: u32,
    },
    /// An attempt succeeded after [`HealthNotice::Failing`].
    Recovered {
        /// The time of the first failure.
        failing_since: Timestamp,
    },
}

impl HealthNotice {
    /// The notice of the change from the stored health to the observed one, if there is one.
    pub fn between(
        stored: &EndpointHealth,
        observed: &EndpointHealth,
        disable_after: Duration,
        now: Timestamp,
    ) -> Option<Self> {
        if let Some(failing_since) = Self::recovery(stored, observed) {
            return Some(Self::Recovered { failing_since });
        }
        let since = observed.failing_since?;
        let percent = reached_threshold(since, disable_after, now);
        if percent > observed.notified_percent {
            Some(Self::Failing { since, percent })
        } else {
            None
        }
    }

    /// The time of the first failure, if that was reported, and an attempt succeeded since. Another
    /// one may have failed after it.
    pub fn recovery(stored: &EndpointHealth, observed: &EndpointHealth) -> Option<Timestamp> {
        let failing_since = stored.failing_since?;
        if stored.notified_percent == 0 || observed.failing_since == Some(failing_since) {
            return None;
        }
        Some(failing_since)
    }

    /// The health after the notice was raised.
    #[must_use]
    pub const fn apply_to(self, health: EndpointHealth) -> EndpointHealth {
        let notified_percent = match self {
            Self::Failing { percent, .. } => percent,
            Self::Recovered { .. } => 0,
        };
        EndpointHealth {
            notified_percent,
            ..health
        }
    }
}

/// The highest threshold that was reached, in percent; 0 if none was.
fn reached_threshold(since: Timestamp, disable_after: Duration, now: Timestamp) -> u32 {
    let mut reached = 0;
    for percent in FAILING_THRESHOLDS {
        if since + disable_after / 100 * percent <= now {
            reached = percent;
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISABLE_AFTER: Duration = Duration::from_hours(100);
    const NOW: Timestamp = Timestamp::from_millis(1_734_948_000_000);

    fn failing_for(hours: u64, notified_percent: u32) -> EndpointHealth {
        EndpointHealth {
            failing_since: Some(NOW - Duration::from_hours(hours)),
            notified_percent,
            ..EndpointHealth::default()
        }
    }

    /// Each threshold is raised once. If several are reached at once, the highest one is.
    #[test]
    fn thresholds_are_raised_once() {
        for (hours, notified, expected) in [
            (0, 0, None),
            (19, 0, None),
            (20, 0, Some(20)),
            (20, 20, None),
            (49, 20, None),
            (50, 20, Some(50)),
            (89, 50, None),
            (90, 50, Some(90)),
            (99, 0, Some(90)),
            (500, 90, None),
        ] {
            let observed = failing_for(hours, notified);
            let notice = HealthNotice::between(&observed, &observed, DISABLE_AFTER, NOW);
            let expected = expected.map(|percent| HealthNotice::Failing {
                since: NOW - Duration::from_hours(hours),
                percent,
            });
            assert_eq!(notice, expected, "{hours} {notified}");
            if let Some(notice) = notice {
                let raised = notice.apply_to(observed);
                let again = HealthNotice::between(&raised, &raised, DISABLE_AFTER, NOW);
                assert_eq!(again, None, "{hours}");
            }
        }
    }

    /// Only a failure that was reported is followed by a recovery.
    #[test]
    fn recovery_follows_notice() {
        let healthy = EndpointHealth::default();
        let reported = failing_for(30, 20);
        let failing_since = NOW - Duration::from_hours(30);
        let recovered = Some(HealthNotice::Recovered { failing_since });
        for (stored, observed, expected) in [
            (healthy, healthy, None),
            (failing_for(30, 0), healthy, None),
            (reported, healthy, recovered),
            // A success, and a failure after it.
            (reported, failing_for(0, 0), recovered),
            (reported, reported, None),
        ] {
            let notice = HealthNotice::between(&stored, &observed, DISABLE_AFTER, NOW);
            assert_eq!(notice, expected);
        }
    }
}
