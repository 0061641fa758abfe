//! The health of an endpoint: how its deliveries go out. A circuit breaker, as a pure function of what was seen.
//!
//! closed ──(consecutive failures to answer)──▶ open ──(an attempt from the queue succeeds)──▶ closed
//!
//! An open endpoint's deliveries skip the direct attempt and go to the queue, where few of them are in flight at a time;
//! each of those is the trial that may close it. Their schedule and their numbers stay what they are.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::attempt::FailureKind;
use crate::timestamp::Timestamp;

/// How many failures to answer in a row open the breaker.
const FAILURE_THRESHOLD: u32 = 5;
/// An endpoint that takes longer is slow: while a batch of the stream waits for it, so do the batches behind.
const SLOW_THRESHOLD: Duration = Duration::from_millis(500);
/// One that answers within this time is fast again: less than what makes it slow, so that it does not change sides with each
/// answer.
const RECOVERY_THRESHOLD: Duration = Duration::from_millis(250);
/// How long an endpoint that was slow again soon after it was well stays on the queue at least: this, doubled with each such
/// relapse, so that one that hangs now and then does not hold up a batch each time.
const RELAPSE_PENALTY: Duration = Duration::from_secs(10);
/// The most doublings.
const MAX_RELAPSES: u32 = 6;
/// How soon is soon: an endpoint that was well for longer begins anew.
const RELAPSE_WINDOW: Duration = Duration::from_mins(10);
/// How many attempts from the queue may be in flight to one endpoint, in one process.
const MAX_IN_FLIGHT_QUEUED: usize = 64;
/// The same while the endpoint is slow: each of them takes its time.
const MAX_IN_FLIGHT_SLOW: usize = 32;
/// The same while the breaker is open.
const MAX_IN_FLIGHT_OPEN: usize = 8;

/// What is known of an endpoint. An endpoint of which nothing is known has never answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointHealth {
    /// It has accepted an event at least once since it was created or enabled again.
    #[serde(default, rename = "proven")]
    pub has_succeeded: bool,
    /// It did not answer in good time, and has not answered fast since.
    #[serde(default)]
    pub slow: bool,
    /// Until when it stays slow at least, or did the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_until: Option<Timestamp>,
    /// How often it was slow again soon after it was well.
    #[serde(default, rename = "relapses")]
    pub relapse_count: u32,
    /// Failures to answer, one after the other.
    #[serde(default, rename = "failures")]
    pub consecutive_failures: u32,
    /// Since when every attempt has failed, in whatever way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Timestamp>,
    /// The first success since something was wrong, or ever; a success among successes is not written down.
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

/// How the first attempts for an endpoint are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DispatchMode {
    /// Straight from the stream.
    Direct,
    /// One straight from the stream; the rest too if that one succeeds, else from the queue.
    Probe,
    /// From the queue.
    Queued,
}

/// How an attempt ended, as far as health is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Why it failed; `None`: it succeeded.
    pub failure: Option<FailureKind>,
    /// How long it took.
    pub duration: Duration,
}

impl EndpointHealth {
    /// How the first attempts are to be made.
    pub fn dispatch_mode(&self) -> DispatchMode {
        if self.slow || self.is_open() {
            DispatchMode::Queued
        } else if self.has_succeeded {
            DispatchMode::Direct
        } else {
            DispatchMode::Probe
        }
    }

    /// How the endpoint does, in a word.
    pub fn label(&self) -> &'static str {
        if self.is_open() || self.failing_since.is_some() {
            "failing"
        } else if self.slow {
            "slow"
        } else {
            "healthy"
        }
    }

    /// How many attempts from the queue may be in flight in one process.
    pub fn max_in_flight(&self) -> usize {
        match (self.is_open(), self.slow) {
            (true, _) => MAX_IN_FLIGHT_OPEN,
            (false, true) => MAX_IN_FLIGHT_SLOW,
            (false, false) => MAX_IN_FLIGHT_QUEUED,
        }
    }

    /// Whether the breaker is open.
    pub fn is_open(&self) -> bool {
        self.consecutive_failures >= FAILURE_THRESHOLD
    }

    /// What is known after an attempt that ended `now`. Unchanged after a success of an endpoint that has nothing wrong
    /// with it, so that there is nothing to write.
    #[must_use]
    pub fn observe(self, seen: Observation, now: Timestamp) -> Self {
        match seen.failure {
            None => {
                let is_fast = if self.slow {
                    seen.duration <= RECOVERY_THRESHOLD
                        && self.slow_until.is_none_or(|until| until <= now)
                } else {
                    seen.duration <= SLOW_THRESHOLD
                };
                if self.has_succeeded
                    && self.slow != is_fast
                    && self.consecutive_failures == 0
                    && self.failing_since.is_none()
                {
                    return self;
                }
                let after = if is_fast {
                    Self {
                        slow: false,
                        ..self
                    }
                } else {
                    self.mark_slow(now)
                };
                Self {
                    has_succeeded: true,
                    consecutive_failures: 0,
                    failing_since: None,
                    first_success_after_failure_at: Some(now),
                    ..after
                }
            }
            Some(kind) => {
                let after = if kind == FailureKind::Timeout {
                    self.mark_slow(now)
                } else {
                    self
                };
                Self {
                    // Only what keeps others waiting counts: a fast 500 holds nobody back.
                    consecutive_failures: if is_unresponsive(kind) {
                        self.consecutive_failures.saturating_add(1)
                    } else {
                        0
                    },
                    failing_since: self.failing_since.or(Some(now)),
                    last_failure: Some(kind),
                    ..after
                }
            }
        }
    }

    /// Slow from `now` on: the first time until it answers fast again, after a relapse for longer.
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
        let penalty = if relapse_count == 0 {
            Duration::ZERO
        } else {
            RELAPSE_PENALTY * 2_u32.pow(relapse_count - 1)
        };
        Self {
            slow: true,
            slow_until: Some(now + penalty),
            relapse_count,
            ..self
        }
    }

    /// Whether what changed from `before` is worth a write: another path, the begin or the end of a failing time, another
    /// count on the way to open. Beyond that, repeated failures say nothing new.
    pub fn needs_write(&self, before: &Self) -> bool {
        let capped = |health: &Self| Self {
            consecutive_failures: health.consecutive_failures.min(FAILURE_THRESHOLD),
            ..*health
        };
        capped(self) != capped(before)
    }

    /// Whether nothing but failures has been seen for `limit`.
    pub fn has_failed_for(&self, limit: Duration, now: Timestamp) -> bool {
        self.failing_since.is_some_and(|since| since + limit <= now)
    }
}

/// Whether a failure means that no answer came, rather than one that refuses.
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

    fn after(seen: &[Observation]) -> EndpointHealth {
        (0..)
            .zip(seen)
            .fold(EndpointHealth::default(), |health, (second, seen)| {
                health.observe(*seen, at(second))
            })
    }

    #[test]
    fn the_path_follows_from_what_was_seen() {
        use FailureKind::{Connect, Dns, Status, Timeout, Tls};
        let (one, many) = (DispatchMode::Probe, DispatchMode::Direct);
        for (seen, path, open) in [
            (&[][..], one, false),
            (&[FAST_OK], many, false),
            (&[failed(Status)], one, false),
            (
                &[
                    FAST_OK,
                    failed(Status),
                    failed(Status),
                    failed(Status),
                    failed(Status),
                    failed(Status),
                ],
                many,
                false,
            ),
            (&[FAST_OK, failed(Timeout)], DispatchMode::Queued, false),
            (&[FAST_OK, FAIR_OK], many, false),
            (&[FAST_OK, SLOW_OK], DispatchMode::Queued, false),
            (
                &[FAST_OK, failed(Timeout), FAIR_OK],
                DispatchMode::Queued,
                false,
            ),
            (
                &[FAST_OK, failed(Timeout), SLOW_OK],
                DispatchMode::Queued,
                false,
            ),
            (&[FAST_OK, failed(Timeout), SLOW_OK, FAST_OK], many, false),
            (
                &[
                    FAST_OK,
                    failed(Connect),
                    failed(Connect),
                    failed(Connect),
                    failed(Connect),
                ],
                many,
                false,
            ),
            (
                &[
                    FAST_OK,
                    failed(Connect),
                    failed(Dns),
                    failed(Tls),
                    failed(Connect),
                    failed(Connect),
                ],
                DispatchMode::Queued,
                true,
            ),
            (
                &[
                    FAST_OK,
                    failed(Connect),
                    failed(Connect),
                    failed(Status),
                    failed(Connect),
                    failed(Connect),
                ],
                many,
                false,
            ),
            (
                &[
                    failed(Timeout),
                    failed(Timeout),
                    failed(Timeout),
                    failed(Timeout),
                    failed(Timeout),
                ],
                DispatchMode::Queued,
                true,
            ),
            (
                &[
                    failed(Connect),
                    failed(Connect),
                    failed(Connect),
                    failed(Connect),
                    failed(Connect),
                    FAST_OK,
                ],
                many,
                false,
            ),
        ] {
            let health = after(seen);
            assert_eq!(
                (health.dispatch_mode(), health.is_open()),
                (path, open),
                "{seen:?}"
            );
            let in_flight = if open {
                MAX_IN_FLIGHT_OPEN
            } else if health.slow {
                MAX_IN_FLIGHT_SLOW
            } else {
                MAX_IN_FLIGHT_QUEUED
            };
            assert_eq!(health.max_in_flight(), in_flight);
        }
    }

    #[test]
    fn a_success_among_successes_changes_nothing() {
        let healthy = after(&[FAST_OK]);
        assert_eq!(healthy.observe(FAST_OK, at(100)), healthy);
        assert_eq!(healthy.observe(FAIR_OK, at(100)), healthy);
    }

    #[test]
    fn failing_time_begins_with_the_first_failure_of_any_kind_and_ends_with_a_success() {
        let limit = Duration::from_mins(1);
        let failing = after(&[
            FAST_OK,
            failed(FailureKind::Status),
            failed(FailureKind::InvalidResponse),
        ]);
        assert_eq!(failing.failing_since, Some(at(1)));
        assert!(!failing.has_failed_for(limit, at(60)) && failing.has_failed_for(limit, at(61)));
        assert!(
            !failing
                .observe(SLOW_OK, at(62))
                .has_failed_for(limit, at(1000))
        );
    }

    #[test]
    fn an_endpoint_that_relapses_stays_on_the_queue_for_longer_each_time_until_it_was_well_for_a_while()
     {
        let mut health = EndpointHealth::default().observe(FAST_OK, at(0));
        let mut now = 0;
        for at_least in [0, 10, 20, 40, 80, 160, 320, 320] {
            health = health.observe(failed(FailureKind::Timeout), at(now));
            if at_least > 0 {
                assert_eq!(
                    health
                        .observe(FAST_OK, at(now + at_least - 1))
                        .dispatch_mode(),
                    DispatchMode::Queued,
                    "{at_least}"
                );
            }
            now += at_least;
            health = health.observe(FAST_OK, at(now));
            assert_eq!(health.dispatch_mode(), DispatchMode::Direct, "{at_least}");
        }
        let later = health.observe(failed(FailureKind::Timeout), at(now + 600));
        assert_eq!(
            later.observe(FAST_OK, at(now + 600)).dispatch_mode(),
            DispatchMode::Direct,
            "it begins anew"
        );
    }

    #[test]
    fn repeated_failures_of_an_open_endpoint_are_not_worth_a_write() {
        let open = after(&[failed(FailureKind::Timeout); 5]);
        assert!(
            !open
                .observe(failed(FailureKind::Timeout), at(9))
                .needs_write(&open)
        );
        assert!(
            open.observe(failed(FailureKind::Connect), at(9))
                .needs_write(&open),
            "another kind is"
        );
        assert!(open.observe(FAST_OK, at(9)).needs_write(&open));
    }
}
