//! Endpoint health: the state of the circuit breaker and a speed estimate, as pure functions of
//! observed attempts. [`super::breaker`] decides what an open breaker allows.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::failure::FailureKind;
use crate::timestamp::Timestamp;

/// Consecutive failures to respond that open the breaker.
pub const FAILURE_THRESHOLD: u32 = 5;
/// Failed attempts without a success that disabling requires. A webhook that is seldom called is
/// not disabled for one failure.
const MIN_FAILED_ATTEMPTS: u32 = 10;
/// A response that takes longer makes the endpoint slow. A stream batch waits for its direct
/// attempts, and the batches behind it wait too.
const SLOW_THRESHOLD: Duration = Duration::from_millis(500);
/// A slow endpoint recovers with a response within this time. It is shorter than
/// [`SLOW_THRESHOLD`], so that the endpoint does not alternate between the two.
const RECOVERY_THRESHOLD: Duration = Duration::from_millis(250);
/// The shortest time on the queue after a relapse, doubled with each further relapse. An endpoint
/// that hangs now and then does not delay a batch each time.
const RELAPSE_PENALTY: Duration = Duration::from_secs(10);
/// The number of relapses at which the penalty stops growing.
const MAX_RELAPSES: u32 = 6;
/// Becoming slow within this time after a recovery is a relapse.
const RELAPSE_WINDOW: Duration = Duration::from_mins(10);
/// Late direct attempts within [`LATE_WINDOW`] after which first attempts are made from the queue.
/// An endpoint that often needs seconds to wake up does not hold an environment each time.
const MAX_LATE_ATTEMPTS: u32 = 3;
/// The time in which late direct attempts add up.
const LATE_WINDOW: Duration = Duration::from_hours(24);
/// Queued attempts in flight to one endpoint, in one process.
const MAX_IN_FLIGHT_QUEUED: usize = 64;
/// The same for a slow endpoint, whose attempts take longer.
const MAX_IN_FLIGHT_SLOW: usize = 32;
/// The same while the breaker is open: the probe, and manual retries.
const MAX_IN_FLIGHT_OPEN: usize = 8;

/// The health of one endpoint. The default is an endpoint without attempts.
///
/// The serialized names are those of version 0.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointHealth {
    /// Whether the endpoint accepted an event since it was created or enabled.
    #[serde(default, rename = "proven")]
    pub has_succeeded: bool,
    /// Whether the endpoint was slow or timed out and has not recovered since.
    #[serde(default)]
    pub slow: bool,
    /// The end of the penalty of the latest slow period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_until: Option<Timestamp>,
    /// The number of relapses in a row, at most `MAX_RELAPSES`.
    #[serde(default, rename = "relapses")]
    pub relapse_count: u32,
    /// The batches since `late_since` that stopped waiting for a direct attempt, at most
    /// `MAX_LATE_ATTEMPTS`.
    #[serde(default)]
    pub late_attempts: u32,
    /// When the first of them was late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_since: Option<Timestamp>,
    /// Consecutive failures to respond, see [`is_unresponsive`]. While the breaker is open, every
    /// failure counts.
    #[serde(default, rename = "failures")]
    pub consecutive_failures: u32,
    /// When the latest probe started, or the breaker opened. `None` while the breaker is closed, or
    /// if an earlier version opened it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probed_at: Option<Timestamp>,
    /// The number of probes since the breaker opened.
    #[serde(default, rename = "probes")]
    pub probe_count: u32,
    /// The time of the first failure since the latest success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Timestamp>,
    /// The number of failed attempts since the latest success, at most `MIN_FAILED_ATTEMPTS`.
    #[serde(default)]
    pub failed_attempts: u32,
    /// The highest threshold of failing time that was reported, in percent. See
    /// [`super::health_notice`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub notified_percent: u32,
    /// The time of the first success after a failure. Later successes do not update it, which
    /// saves writes.
    #[serde(
        default,
        rename = "last_success_at",
        skip_serializing_if = "Option::is_none"
    )]
    pub first_success_after_failure_at: Option<Timestamp>,
    /// The kind of the latest failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<FailureKind>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The failed attempts of an endpoint, in two counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailureCounts {
    /// Consecutive failures to respond, see [`is_unresponsive`].
    pub consecutive: u32,
    /// Failed attempts since the latest success, at most `MIN_FAILED_ATTEMPTS`.
    pub since_success: u32,
}

impl FailureCounts {
    /// The counts after an attempt.
    #[must_use]
    pub fn observe(self, observation: Observation) -> Self {
        let Some(kind) = observation.failure else {
            return Self::default();
        };
        // A fast error status delays no other delivery and does not count towards the breaker. It
        // does not close the breaker either: what waits would be sent in vain.
        let is_open = self.consecutive >= FAILURE_THRESHOLD;
        let consecutive = if is_open || is_unresponsive(kind) {
            self.consecutive.saturating_add(1)
        } else {
            0
        };
        Self {
            consecutive,
            since_success: (self.since_success + 1).min(MIN_FAILED_ATTEMPTS),
        }
    }
}

/// How the dispatcher makes the first attempts to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DispatchMode {
    /// Directly, while the stream batch waits.
    Direct,
    /// One directly; the others as well if it succeeds, else from the queue.
    Probe,
    /// From the queue.
    Queued,
}

/// The state of an endpoint, as users see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// No attempt was made yet.
    Unknown,
    /// Attempts succeed.
    Healthy,
    /// Attempts succeed, but take long.
    Slow,
    /// Every attempt since a time failed.
    Failing,
    /// The circuit breaker is open.
    Unreachable,
}

impl HealthState {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Unknown,
        Self::Healthy,
        Self::Slow,
        Self::Failing,
        Self::Unreachable,
    ];

    /// The name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Slow => "slow",
            Self::Failing => "failing",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The part of an attempt's outcome that health depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The kind of failure; `None` for a success.
    pub failure: Option<FailureKind>,
    /// The time that the attempt took.
    pub duration: Duration,
}

impl EndpointHealth {
    /// Decides how the first attempts are made while the breaker is closed.
    pub fn dispatch_mode(&self, now: Timestamp) -> DispatchMode {
        if self.slow || self.is_often_late(now) {
            DispatchMode::Queued
        } else if self.has_succeeded {
            DispatchMode::Direct
        } else {
            DispatchMode::Probe
        }
    }

    /// The state that users see.
    pub fn state(&self) -> HealthState {
        if self.is_open() {
            HealthState::Unreachable
        } else if self.failing_since.is_some() {
            HealthState::Failing
        } else if self.slow {
            HealthState::Slow
        } else if self.has_succeeded {
            HealthState::Healthy
        } else {
            HealthState::Unknown
        }
    }

    /// The limit of queued attempts in flight in one process.
    pub fn max_in_flight(&self) -> usize {
        if self.is_open() {
            MAX_IN_FLIGHT_OPEN
        } else if self.slow {
            MAX_IN_FLIGHT_SLOW
        } else {
            MAX_IN_FLIGHT_QUEUED
        }
    }

    /// The counts of failed attempts.
    pub const fn failure_counts(&self) -> FailureCounts {
        FailureCounts {
            consecutive: self.consecutive_failures,
            since_success: self.failed_attempts,
        }
    }

    /// The same health with other counts of failed attempts.
    #[must_use]
    pub const fn with_failure_counts(self, counts: FailureCounts) -> Self {
        Self {
            consecutive_failures: counts.consecutive,
            failed_attempts: counts.since_success,
            ..self
        }
    }

    /// Whether the breaker is open.
    pub const fn is_open(&self) -> bool {
        self.consecutive_failures >= FAILURE_THRESHOLD
    }

    /// The health after an attempt that ended at `now`.
    ///
    /// A success changes nothing on a healthy endpoint, so that there is nothing to write.
    #[must_use]
    pub fn observe(self, observation: Observation, now: Timestamp) -> Self {
        let counts = self.failure_counts().observe(observation);
        let health = match observation.failure {
            None => self.observe_success(observation.duration, now),
            Some(kind) => self.observe_failure(kind, now),
        };
        health.with_failure_counts(counts)
    }

    /// The health after a batch has stopped waiting for a direct attempt, which is still open.
    #[must_use]
    pub fn observe_late(self, now: Timestamp) -> Self {
        // A late probe does not say more than the open breaker.
        if self.is_open() {
            return self;
        }
        let (late_since, earlier) = match self.late_since {
            Some(since) if now < since + LATE_WINDOW => (since, self.late_attempts),
            _ => (now, 0),
        };
        Self {
            late_attempts: (earlier + 1).min(MAX_LATE_ATTEMPTS),
            late_since: Some(late_since),
            ..self.mark_slow(now)
        }
    }

    fn is_often_late(&self, now: Timestamp) -> bool {
        match self.late_since {
            Some(since) => self.late_attempts >= MAX_LATE_ATTEMPTS && now < since + LATE_WINDOW,
            None => false,
        }
    }

    fn observe_success(self, duration: Duration, now: Timestamp) -> Self {
        let is_fast = if self.slow {
            duration <= RECOVERY_THRESHOLD && self.penalty_is_over(now)
        } else {
            duration <= SLOW_THRESHOLD
        };
        let speed_is_unchanged = self.slow != is_fast;
        let has_no_failures = self.consecutive_failures == 0 && self.failing_since.is_none();
        if self.has_succeeded && has_no_failures && speed_is_unchanged {
            return self;
        }
        let health = if is_fast {
            Self {
                slow: false,
                ..self
            }
        } else {
            self.mark_slow(now)
        };
        Self {
            has_succeeded: true,
            failing_since: None,
            notified_percent: 0,
            first_success_after_failure_at: Some(now),
            ..health
        }
    }

    fn observe_failure(self, kind: FailureKind, now: Timestamp) -> Self {
        let health = if kind == FailureKind::Timeout {
            self.mark_slow(now)
        } else {
            self
        };
        Self {
            failing_since: self.failing_since.or(Some(now)),
            last_failure: Some(kind),
            ..health
        }
    }

    fn penalty_is_over(&self, now: Timestamp) -> bool {
        match self.slow_until {
            Some(until) => until <= now,
            None => true,
        }
    }

    fn mark_slow(self, now: Timestamp) -> Self {
        if self.slow {
            return self;
        }
        let relapse_count = match self.slow_until {
            Some(until) if now < until + RELAPSE_WINDOW => {
                (self.relapse_count + 1).min(MAX_RELAPSES)
            }
            _ => 0,
        };
        let penalty = match relapse_count {
            0 => Duration::ZERO,
            count => RELAPSE_PENALTY * 2_u32.pow(count - 1),
        };
        Self {
            slow: true,
            slow_until: Some(now + penalty),
            relapse_count,
            ..self
        }
    }

    /// Whether the change from `previous` must be stored.
    ///
    /// Consecutive failures beyond `FAILURE_THRESHOLD` add nothing.
    pub fn needs_write(&self, previous: &Self) -> bool {
        self.with_capped_failures() != previous.with_capped_failures()
    }

    fn with_capped_failures(&self) -> Self {
        Self {
            consecutive_failures: self.consecutive_failures.min(FAILURE_THRESHOLD),
            ..*self
        }
    }

    /// Whether every attempt has failed for `limit`, and enough attempts were made to judge the
    /// endpoint.
    pub fn has_failed_for(&self, limit: Duration, now: Timestamp) -> bool {
        match self.failing_since {
            Some(since) => since + limit <= now && self.failed_attempts >= MIN_FAILED_ATTEMPTS,
            None => false,
        }
    }
}

/// Whether a failure means that the endpoint did not respond. A response that rejects the event
/// does not count.
pub const fn is_unresponsive(kind: FailureKind) -> bool {
    matches!(
        kind,
        FailureKind::Timeout | FailureKind::Connect | FailureKind::Dns | FailureKind::Tls
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST_OK: Observation = Observation {
        failure: None,
        duration: Duration::from_millis(20),
    };
    const FAIR_OK: Observation = Observation {
        failure: None,
        duration: Duration::from_millis(400),
    };
    const SLOW_OK: Observation = Observation {
        failure: None,
        duration: Duration::from_secs(3),
    };

    fn failed(kind: FailureKind) -> Observation {
        Observation {
            failure: Some(kind),
            duration: Duration::from_secs(1),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn observe_all(observations: &[Observation]) -> EndpointHealth {
        let mut health = EndpointHealth::default();
        for (second, observation) in (0..).zip(observations) {
            health = health.observe(*observation, at(second));
        }
        health
    }

    /// The mode and the breaker follow from the observations alone.
    #[test]
    fn observations_decide_dispatch_mode() {
        use DispatchMode::{Direct, Probe, Queued};
        let status = failed(FailureKind::Status);
        let timeout = failed(FailureKind::Timeout);
        let connect = failed(FailureKind::Connect);
        let dns = failed(FailureKind::Dns);
        let tls = failed(FailureKind::Tls);
        for (observations, mode, is_open) in [
            (&[][..], Probe, false),
            (&[FAST_OK], Direct, false),
            (&[status], Probe, false),
            (
                &[FAST_OK, status, status, status, status, status],
                Direct,
                false,
            ),
            (&[FAST_OK, timeout], Queued, false),
            (&[FAST_OK, FAIR_OK], Direct, false),
            (&[FAST_OK, SLOW_OK], Queued, false),
            (&[FAST_OK, timeout, FAIR_OK], Queued, false),
            (&[FAST_OK, timeout, SLOW_OK], Queued, false),
            (&[FAST_OK, timeout, SLOW_OK, FAST_OK], Direct, false),
            (
                &[FAST_OK, connect, connect, connect, connect],
                Direct,
                false,
            ),
            (
                &[FAST_OK, connect, dns, tls, connect, connect],
                Direct,
                true,
            ),
            (
                &[FAST_OK, connect, dns, tls, connect, connect, status],
                Direct,
                true,
            ),
            (
                &[FAST_OK, connect, connect, status, connect, connect],
                Direct,
                false,
            ),
            (&[timeout, timeout, timeout, timeout, timeout], Queued, true),
            (
                &[connect, connect, connect, connect, connect, FAST_OK],
                Direct,
                false,
            ),
        ] {
            let health = observe_all(observations);
            assert_eq!(health.dispatch_mode(at(100)), mode, "{observations:?}");
            assert_eq!(health.is_open(), is_open, "{observations:?}");
        }
    }

    #[test]
    fn state_follows_observations() {
        let status = failed(FailureKind::Status);
        let connect = failed(FailureKind::Connect);
        for (observations, expected) in [
            (&[][..], "unknown"),
            (&[FAST_OK], "healthy"),
            (&[SLOW_OK], "slow"),
            (&[status], "failing"),
            (&[FAST_OK, connect], "failing"),
            (&[FAST_OK, connect, FAST_OK], "healthy"),
            (&[connect; 5], "unreachable"),
            (
                &[connect, connect, connect, connect, connect, status],
                "unreachable",
            ),
            (
                &[connect, connect, connect, connect, connect, FAST_OK],
                "healthy",
            ),
        ] {
            let state = observe_all(observations).state();
            assert_eq!(state.as_str(), expected, "{observations:?}");
        }
    }

    #[test]
    fn limit_in_flight_follows_health() {
        let timeouts = [failed(FailureKind::Timeout); 5];
        assert_eq!(observe_all(&[]).max_in_flight(), MAX_IN_FLIGHT_QUEUED);
        assert_eq!(
            observe_all(&timeouts[..1]).max_in_flight(),
            MAX_IN_FLIGHT_SLOW
        );
        assert_eq!(observe_all(&timeouts).max_in_flight(), MAX_IN_FLIGHT_OPEN);
    }

    #[test]
    fn repeated_success_changes_nothing() {
        let healthy = observe_all(&[FAST_OK]);
        assert_eq!(healthy.observe(FAST_OK, at(100)), healthy);
        assert_eq!(healthy.observe(FAIR_OK, at(100)), healthy);
    }

    /// The failing time starts with the first failure of any kind and ends with a success.
    #[test]
    fn success_ends_failing_time() {
        let limit = Duration::from_mins(1);
        let mut observations = vec![FAST_OK, failed(FailureKind::Timeout)];
        observations.extend([failed(FailureKind::Status); 9]);
        let failing = observe_all(&observations);
        assert_eq!(failing.failing_since, Some(at(1)));
        assert!(!failing.has_failed_for(limit, at(60)) && failing.has_failed_for(limit, at(61)));
        let recovered = failing.observe(SLOW_OK, at(62));
        assert_eq!(recovered.failure_counts(), FailureCounts::default());
        let failing_again = recovered.observe(failed(FailureKind::Status), at(63));
        assert!(!failing_again.has_failed_for(limit, at(1000)));
    }

    #[test]
    fn few_failures_are_no_failing_time() {
        let limit = Duration::from_mins(1);
        for (failures, expected) in [(1, false), (9, false), (10, true), (30, true)] {
            let health = observe_all(&vec![failed(FailureKind::Status); failures]);
            assert_eq!(
                health.has_failed_for(limit, at(1000)),
                expected,
                "{failures}"
            );
        }
    }

    /// Earlier versions stored no count: attempts count from zero.
    #[test]
    fn stored_health_without_count_is_read() {
        let stored = serde_json::json!({
            "proven": true, "slow": false, "relapses": 0, "failures": 7, "failing_since": 5000,
            "last_failure": "timeout",
        });
        let health: EndpointHealth = serde_json::from_value(stored).unwrap();
        let counts = FailureCounts {
            consecutive: 7,
            since_success: 0,
        };
        assert_eq!(health.failure_counts(), counts);
        assert_eq!(health.failing_since, Some(at(5)));
    }

    /// Each relapse extends the time on the queue, until the endpoint was fast for a while.
    #[test]
    fn relapse_extends_slow_period() {
        let mut health = EndpointHealth::default().observe(FAST_OK, at(0));
        let mut now = 0;
        for penalty in [0, 10, 20, 40, 80, 160, 320, 320] {
            health = health.observe(failed(FailureKind::Timeout), at(now));
            if penalty > 0 {
                assert_eq!(
                    health
                        .observe(FAST_OK, at(now + penalty - 1))
                        .dispatch_mode(at(now)),
                    DispatchMode::Queued,
                    "{penalty}"
                );
            }
            now += penalty;
            health = health.observe(FAST_OK, at(now));
            assert_eq!(
                health.dispatch_mode(at(now)),
                DispatchMode::Direct,
                "{penalty}"
            );
        }
        let later = health.observe(failed(FailureKind::Timeout), at(now + 600));
        assert_eq!(
            later
                .observe(FAST_OK, at(now + 600))
                .dispatch_mode(at(now + 600)),
            DispatchMode::Direct,
            "the relapse count starts again"
        );
    }

    /// Each late attempt makes the endpoint slow until it responds fast. The third one of a day
    /// keeps it on the queue until that day has passed.
    #[test]
    fn third_late_attempt_keeps_endpoint_on_queue() {
        const DAY: i64 = 24 * 3600;
        let mut health = EndpointHealth::default().observe(FAST_OK, at(0));
        for (late_at, then) in [
            (100, DispatchMode::Direct),
            (20_000, DispatchMode::Direct),
            (40_000, DispatchMode::Queued),
            (60_000, DispatchMode::Queued),
        ] {
            health = health.observe_late(at(late_at));
            assert_eq!(health.dispatch_mode(at(late_at)), DispatchMode::Queued);
            health = health.observe(FAST_OK, at(late_at + 1_000));
            assert_eq!(health.dispatch_mode(at(late_at + 1_000)), then, "{late_at}");
        }
        assert_eq!(health.dispatch_mode(at(100 + DAY)), DispatchMode::Direct);
        let open = EndpointHealth {
            consecutive_failures: FAILURE_THRESHOLD,
            ..health
        };
        assert_eq!(open.observe_late(at(100 + DAY)), open);
        let next_day = health.observe_late(at(100 + DAY));
        assert_eq!(next_day.late_attempts, 1);
    }

    #[test]
    fn failures_beyond_threshold_need_no_write() {
        let open = observe_all(&[failed(FailureKind::Timeout); 10]);
        assert!(
            !open
                .observe(failed(FailureKind::Timeout), at(9))
                .needs_write(&open)
        );
        assert!(
            open.observe(failed(FailureKind::Connect), at(9))
                .needs_write(&open),
            "another kind is written"
        );
        assert!(open.observe(FAST_OK, at(9)).needs_write(&open));
    }
}
