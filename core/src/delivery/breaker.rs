//! The circuit breaker: what happens to the deliveries of an endpoint that does not respond.
//!
//! ```text
//! closed ──(consecutive failures to respond)──▶ open ──(an attempt succeeds)──▶ closed
//! ```
//!
//! While the breaker is open, the deliveries of the endpoint wait without attempts and without
//! periodic work. A single attempt at a time, the probe, finds out whether the endpoint responds
//! again. The right to probe is a conditional write of the health item, so the limit holds for all
//! processes together. A success closes the breaker, and what waits is resumed.

use std::time::Duration;

use super::endpoint_health::EndpointHealth;
use crate::{timestamp::Timestamp, webhook::WebhookStatus};

/// The shortest time between the starts of two probes of an endpoint.
pub const MIN_PROBE_INTERVAL: Duration = Duration::from_mins(1);
/// The longest time until a waiting delivery is made due as the next probe.
pub const MAX_PROBE_INTERVAL: Duration = Duration::from_mins(15);
/// The times until the next probe: after the breaker has opened, after the first probe, and so on.
/// The last one repeats.
const PROBE_INTERVALS: [Duration; 5] = [
    MIN_PROBE_INTERVAL,
    Duration::from_mins(2),
    Duration::from_mins(5),
    Duration::from_mins(10),
    MAX_PROBE_INTERVAL,
];

/// The time until a waiting delivery is made due as the next probe, after `probe_count` probes
/// since the breaker opened.
pub fn probe_interval(probe_count: u32) -> Duration {
    let index = usize::try_from(probe_count).unwrap_or(usize::MAX);
    PROBE_INTERVALS
        .get(index)
        .copied()
        .unwrap_or(MAX_PROBE_INTERVAL)
}

/// How a change of an endpoint's health changes its breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerChange {
    /// Deliveries wait from now on.
    Opened,
    /// What waits is resumed.
    Closed,
}

impl BreakerChange {
    /// The change from one health to the next; `None` if the breaker stays as it is.
    pub fn between(previous: &EndpointHealth, next: &EndpointHealth) -> Option<Self> {
        match (previous.is_open(), next.is_open()) {
            (false, true) => Some(Self::Opened),
            (true, false) => Some(Self::Closed),
            (false, false) | (true, true) => None,
        }
    }

    /// The health with the probes that follow from the change at `now`: none after the breaker
    /// closed, and the first one a while after it opened.
    #[must_use]
    pub const fn reset_probes(self, health: EndpointHealth, now: Timestamp) -> EndpointHealth {
        let probed_at = match self {
            Self::Opened => Some(now),
            Self::Closed => None,
        };
        EndpointHealth {
            probed_at,
            probe_count: 0,
            ..health
        }
    }
}

/// What the breaker allows a delivery that comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerDecision {
    /// An attempt: the breaker is closed.
    Attempt,
    /// An attempt as the probe, if the right to probe is granted. Otherwise the delivery waits.
    Probe,
    /// Nothing: the delivery waits for the endpoint.
    Wait,
}

impl BreakerDecision {
    /// Decides about a delivery of an active webhook with this health.
    pub fn new(health: &EndpointHealth, now: Timestamp) -> Self {
        if !health.is_open() {
            return Self::Attempt;
        }
        match health.probed_at {
            Some(probed_at) if now < probed_at + MIN_PROBE_INTERVAL => Self::Wait,
            // Without a time, an earlier version opened the breaker.
            Some(_) | None => Self::Probe,
        }
    }
}

/// What a failed attempt leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// The next step of the retry schedule.
    Retry,
    /// A wait for the endpoint, without using a step of the schedule.
    WaitForEndpoint,
}

impl AfterFailure {
    /// What a failed attempt to an endpoint with this health leads to.
    pub fn new(health: &EndpointHealth) -> Self {
        if health.is_open() {
            Self::WaitForEndpoint
        } else {
            Self::Retry
        }
    }
}

/// What to do about the marker of an endpoint whose breaker opened, when its next probe is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeStep {
    /// Make a waiting delivery due as the probe.
    MakeDue,
    /// Nothing: a probe was made within the last minute.
    Skip,
    /// Resume what waits and delete the marker: the breaker is closed.
    Resume,
    /// Delete the marker: the webhook is deleted or disabled. Enabling it resumes what waits.
    Delete,
}

impl ProbeStep {
    /// Decides about the marker of a webhook; `None` if the webhook was deleted.
    pub fn new(webhook: Option<(WebhookStatus, &EndpointHealth)>, now: Timestamp) -> Self {
        let Some((WebhookStatus::Active, health)) = webhook else {
            return Self::Delete;
        };
        match BreakerDecision::new(health, now) {
            BreakerDecision::Attempt => Self::Resume,
            BreakerDecision::Probe => Self::MakeDue,
            BreakerDecision::Wait => Self::Skip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::endpoint_health::FAILURE_THRESHOLD;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);

    fn health(consecutive_failures: u32, probed_ago: Option<Duration>) -> EndpointHealth {
        EndpointHealth {
            consecutive_failures,
            probed_at: probed_ago.map(|time| NOW - time),
            ..EndpointHealth::default()
        }
    }

    #[test]
    fn probe_intervals_grow_to_quarter_hour() {
        for (probe_count, minutes) in [
            (0, 1),
            (1, 2),
            (2, 5),
            (3, 10),
            (4, 15),
            (5, 15),
            (u32::MAX, 15),
        ] {
            let expected = Duration::from_mins(minutes);
            assert_eq!(probe_interval(probe_count), expected, "{probe_count}");
        }
    }

    /// The breaker allows one probe a minute. A breaker that an earlier version opened allows one
    /// at once.
    #[test]
    fn open_breaker_allows_one_probe_per_minute() {
        let minute = Duration::from_mins(1);
        let almost = minute.saturating_sub(Duration::from_millis(1));
        let open = FAILURE_THRESHOLD;
        for (failures, probed_ago, decision, step) in [
            (0, None, BreakerDecision::Attempt, ProbeStep::Resume),
            (open - 1, None, BreakerDecision::Attempt, ProbeStep::Resume),
            (open, None, BreakerDecision::Probe, ProbeStep::MakeDue),
            (
                open,
                Some(Duration::ZERO),
                BreakerDecision::Wait,
                ProbeStep::Skip,
            ),
            (open, Some(almost), BreakerDecision::Wait, ProbeStep::Skip),
            (
                open,
                Some(minute),
                BreakerDecision::Probe,
                ProbeStep::MakeDue,
            ),
            (
                open + 9,
                Some(minute),
                BreakerDecision::Probe,
                ProbeStep::MakeDue,
            ),
        ] {
            let health = health(failures, probed_ago);
            assert_eq!(BreakerDecision::new(&health, NOW), decision, "{health:?}");
            let webhook = Some((WebhookStatus::Active, &health));
            assert_eq!(ProbeStep::new(webhook, NOW), step, "{health:?}");
        }
    }

    #[test]
    fn deleted_or_disabled_webhook_is_not_probed() {
        let open = health(FAILURE_THRESHOLD, None);
        let disabled = Some((WebhookStatus::Disabled, &open));
        assert_eq!(ProbeStep::new(disabled, NOW), ProbeStep::Delete);
        assert_eq!(ProbeStep::new(None, NOW), ProbeStep::Delete);
    }

    #[test]
    fn failed_probe_waits_again() {
        let closed = health(FAILURE_THRESHOLD - 1, None);
        assert_eq!(AfterFailure::new(&closed), AfterFailure::Retry);
        let open = health(FAILURE_THRESHOLD, None);
        assert_eq!(AfterFailure::new(&open), AfterFailure::WaitForEndpoint);
    }

    /// The first probe of an open breaker is counted from its opening, and a closed breaker forgets
    /// the probes.
    #[test]
    fn breaker_change_resets_probes() {
        let probed = EndpointHealth {
            probe_count: 7,
            ..health(0, Some(Duration::from_hours(1)))
        };
        let opened = BreakerChange::Opened.reset_probes(probed, NOW);
        assert_eq!(opened, health(0, Some(Duration::ZERO)));
        let closed = BreakerChange::Closed.reset_probes(probed, NOW);
        assert_eq!(closed, health(0, None));
    }

    #[test]
    fn breaker_changes_at_threshold() {
        let closed = health(FAILURE_THRESHOLD - 1, None);
        let open = health(FAILURE_THRESHOLD, None);
        for (previous, next, expected) in [
            (&closed, &closed, None),
            (&closed, &open, Some(BreakerChange::Opened)),
            (&open, &open, None),
            (&open, &closed, Some(BreakerChange::Closed)),
        ] {
            assert_eq!(BreakerChange::between(previous, next), expected);
        }
    }
}
