//! A delivery: one event on its way to one webhook. What is decided about it is decided here, without I/O.

pub mod attempt;
pub mod endpoint_health;
pub mod lease;
pub mod retry_after;
pub mod schedule;
pub mod timings;

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    event::{EventId, traceparent::Traceparent},
    timestamp::Timestamp,
    webhook::{AccountId, EventType, WebhookId},
};
use attempt::{Attempt, AttemptOutcome};
use schedule::RetrySchedule;

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// Another attempt is due then.
    Pending(Timestamp),
    /// It waits until its webhook is enabled again.
    Paused,
    /// A 2xx was read.
    Delivered,
    /// The schedule is exhausted.
    Failed,
    /// The webhook was deleted before it was delivered.
    Cancelled,
}

impl DeliveryState {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending(_) | Self::Paused => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What names a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeliveryKey {
    /// Whose webhook it is.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    /// The event.
    pub event: EventId,
}

/// One event on its way to one webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// What names it.
    pub key: DeliveryKey,
    /// The type of the event.
    pub event_type: EventType,
    /// The job that ended; `None` for an event that is not of a job.
    pub task_id: Option<String>,
    /// Where it goes, as the webhook had it.
    pub url: String,
    /// The bytes that are signed and sent, in every attempt.
    pub body: Arc<str>,
    /// The trace that the job belongs to.
    pub traceparent: Option<Traceparent>,
    /// Where it stands.
    pub state: DeliveryState,
    /// Where it goes back to if the attempt that a person asked for fails; `None`: nobody did.
    pub state_before_retry: Option<DeliveryState>,
    /// The replay that asked for it; `None`: no replay did.
    pub replay: Option<ReplayId>,
    /// How many attempts were made.
    pub attempt_count: u32,
    /// How many of them the schedule asked for, rather than a person.
    pub schedule_step: u32,
    /// The attempts, the oldest first.
    pub attempts: Vec<Attempt>,
    /// When the event was taken from the stream.
    pub created_at: Timestamp,
}

/// Names a replay: `rpl_` and 16 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReplayId(String);

impl ReplayId {
    const PREFIX: &'static str = "rpl_";

    /// Makes an id of random bytes.
    pub fn from_random(random: [u8; 8]) -> Self {
        Self(format!("{}{}", Self::PREFIX, hex::encode(random)))
    }

    /// Reads one; `None` if `text` cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(Self::PREFIX)?;
        let known = digits.len() == 16
            && digits
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        known.then(|| Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReplayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Delivery {
    /// One of which no attempt was made, due at once.
    pub fn new(
        key: DeliveryKey,
        event_type: EventType,
        task_id: Option<String>,
        url: String,
        body: Arc<str>,
        now: Timestamp,
    ) -> Self {
        Self {
            key,
            event_type,
            task_id,
            url,
            body,
            traceparent: None,
            state: DeliveryState::Pending(now),
            state_before_retry: None,
            replay: None,
            attempt_count: 0,
            schedule_step: 0,
            attempts: Vec::new(),
            created_at: now,
        }
    }

    /// Makes the next attempt due at `at`, because a person asked for it; if it fails, the delivery stands again where it does.
    pub fn request_retry(&mut self, at: Timestamp) {
        // Asked for twice, it still goes back to where it stood before the first time.
        self.state_before_retry.get_or_insert(self.state);
        self.state = DeliveryState::Pending(at);
    }

    /// Takes back an attempt that a person asked for and that was not made; `false` if nobody did.
    pub fn cancel_requested_retry(&mut self) -> bool {
        let Some(before) = self.state_before_retry.take() else {
            return false;
        };
        self.state = before;
        self.replay = None;
        true
    }

    /// Takes an attempt that ended at `now` with `outcome`: it is kept among the latest, and decides where the delivery
    /// stands. `jitter` is from 0 to 1, and asked for after a failure on the schedule.
    pub fn record_attempt(
        &mut self,
        attempt: Attempt,
        outcome: &AttemptOutcome,
        schedule: &RetrySchedule,
        now: Timestamp,
        jitter: impl FnOnce() -> f64,
    ) {
        self.attempt_count = attempt.number;
        self.replay = None;
        self.state = match self.state_before_retry.take() {
            _ if outcome.failure.is_none() => DeliveryState::Delivered,
            // An attempt out of turn neither restarts the schedule nor uses it up.
            Some(before) if before != DeliveryState::Paused => before,
            // What was parked goes on as scheduled: its webhook is enabled again, and nobody else looks at it any more.
            _ => {
                self.schedule_step += 1;
                next_state(schedule, self.schedule_step, outcome, now, jitter())
            }
        };
        self.attempts.push(attempt);
        if self.attempts.len() > RetrySchedule::MAX_ATTEMPTS {
            self.attempts.remove(0);
        }
    }
}

/// Where a delivery stands after attempt `number` (1 for the first) ended at `now` with `outcome`. `jitter` is from 0 to 1.
fn next_state(
    schedule: &RetrySchedule,
    number: u32,
    outcome: &AttemptOutcome,
    now: Timestamp,
    jitter: f64,
) -> DeliveryState {
    if outcome.failure.is_none() {
        return DeliveryState::Delivered;
    }
    match schedule.delay_after(number, jitter, retry_after(outcome, now)) {
        Some(wait) => DeliveryState::Pending(now + wait),
        None => DeliveryState::Failed,
    }
}

/// What the receiver's `Retry-After` asks for; it is heard on 429 and 5xx alone.
fn retry_after(outcome: &AttemptOutcome, now: Timestamp) -> Option<Duration> {
    let heard = matches!(outcome.status_code, Some(429 | 500..=599));
    let value = outcome.retry_after.as_deref().filter(|_| heard)?;
    retry_after::parse(value, now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use attempt::Failure;

    #[test]
    fn only_an_outcome_without_failure_is_delivered_and_the_last_failure_is_final() {
        let schedule: RetrySchedule = "10s,1h".parse().unwrap();
        let now = Timestamp::from_millis(1_000_000);
        let ok = AttemptOutcome {
            duration: Duration::ZERO,
            timings: timings::PhaseTimings::default(),
            status_code: Some(204),
            failure: None,
            retry_after: Some("600".into()),
            body_excerpt: None,
        };
        let failed = |status, retry_after: Option<&str>| AttemptOutcome {
            duration: Duration::ZERO,
            timings: timings::PhaseTimings::default(),
            status_code: Some(status),
            failure: Some(Failure::Status(status)),
            retry_after: retry_after.map(str::to_owned),
            body_excerpt: None,
        };
        let broken = AttemptOutcome {
            duration: Duration::ZERO,
            timings: timings::PhaseTimings::default(),
            status_code: None,
            failure: Some(Failure::Timeout(attempt::TimeoutStage::AwaitingResponse)),
            retry_after: None,
            body_excerpt: None,
        };
        let due = |seconds: i64| {
            DeliveryState::Pending(Timestamp::from_millis(1_000_000 + seconds * 1000))
        };
        for (number, outcome, expected) in [
            (1, &ok, DeliveryState::Delivered),
            (3, &ok, DeliveryState::Delivered),
            (1, &broken, due(10)),
            (2, &broken, due(3600)),
            (3, &broken, DeliveryState::Failed),
            (1, &failed(500, None), due(10)),
            (1, &failed(503, Some("60")), due(60)),
            (1, &failed(429, Some("60")), due(60)),
            (1, &failed(404, Some("60")), due(10)),
            (1, &failed(503, Some("soon")), due(10)),
            (3, &failed(503, Some("60")), DeliveryState::Failed),
        ] {
            assert_eq!(
                next_state(&schedule, number, outcome, now, 0.5),
                expected,
                "{number} {outcome:?}"
            );
        }
    }
}
