//! A delivery: one event for one webhook, and the decisions about it.

pub mod attempt;
pub mod breaker;
pub mod deferral_backoff;
pub mod endpoint_health;
pub mod failure;
pub mod health_notice;
pub mod host_concurrency;
pub mod lease;
pub mod pace;
pub mod retry_after;
pub mod schedule;
pub mod scheduled_retry;
pub mod status;
pub mod timings;
pub mod tls_fault;
pub mod wait_reason;

use std::{sync::Arc, time::Duration};

use crate::{
    account_id::AccountId,
    event::{EventId, traceparent::Traceparent},
    event_type::EventType,
    replay::ReplayId,
    timestamp::Timestamp,
    webhook::WebhookId,
};
use attempt::{Attempt, AttemptOutcome};
use breaker::AfterFailure;
use deferral_backoff::DeferralBackoff;
use pace::{Pace, slot_lifetime};
use schedule::RetrySchedule;
use status::DeliveryStatus;
use wait_reason::WaitReason;

/// The state of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// The next attempt is due at this time.
    Pending(Timestamp),
    /// Waits until the webhook is enabled or can be read again, or its endpoint responds again.
    /// Users see it as `pending`.
    Paused,
    /// The endpoint returned a 2xx status.
    Delivered,
    /// The retry schedule is exhausted.
    Failed,
    /// The webhook was deleted before the delivery succeeded, or it could not be read when the
    /// event occurred and does not subscribe to it.
    Cancelled,
}

impl DeliveryState {
    /// The status that the API shows and the tables store.
    pub const fn status(self) -> DeliveryStatus {
        match self {
            Self::Pending(_) | Self::Paused => DeliveryStatus::Pending,
            Self::Delivered => DeliveryStatus::Delivered,
            Self::Failed => DeliveryStatus::Failed,
            Self::Cancelled => DeliveryStatus::Cancelled,
        }
    }

    /// Whether no further attempt follows by itself.
    pub const fn is_settled(&self) -> bool {
        matches!(self, Self::Delivered | Self::Failed | Self::Cancelled)
    }
}

/// Identifies a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeliveryKey {
    /// The owner of the webhook.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    /// The event.
    pub event: EventId,
}

/// One event for one webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Identifies the delivery.
    pub key: DeliveryKey,
    /// The type of the event.
    pub event_type: EventType,
    /// The job's id; `None` for an operational event.
    pub task_id: Option<String>,
    /// The endpoint's URL at the latest attempt; empty before it if the webhook could not be read
    /// when the event occurred.
    pub url: String,
    /// The exact bytes that every attempt signs and sends.
    pub payload: Arc<str>,
    /// The job's trace context.
    pub traceparent: Option<Traceparent>,
    /// The current state.
    pub state: DeliveryState,
    /// Why the delivery waits, if its state does not say so; `None` unless it is pending.
    pub waiting_for: Option<WaitReason>,
    /// The number of consecutive deferrals because the secrets could not be decrypted or the attempt
    /// could not be made, or of slots that it missed in a row.
    pub deferrals: u32,
    /// The start of the pace that its slot belongs to, if it waits for its slot.
    pub paced_since: Option<Timestamp>,
    /// The state to restore if a manual retry or a replay fails; `None` if neither is pending.
    pub state_before_retry: Option<DeliveryState>,
    /// The replay that requested the next attempt.
    pub replay: Option<ReplayId>,
    /// The number of attempts, manual retries included.
    pub attempt_count: u32,
    /// The number of attempts that used a step of the retry schedule.
    pub schedule_step: u32,
    /// The latest attempts, oldest first, at most [`RetrySchedule::MAX_ATTEMPTS`].
    pub attempts: Vec<Attempt>,
    /// The time at which the dispatcher received the event.
    pub created_at: Timestamp,
}

impl Delivery {
    /// Creates a delivery without attempts that is due now.
    pub fn new(
        key: DeliveryKey,
        event_type: EventType,
        task_id: Option<String>,
        url: String,
        payload: Arc<str>,
        now: Timestamp,
    ) -> Self {
        Self {
            key,
            event_type,
            task_id,
            url,
            payload,
            traceparent: None,
            state: DeliveryState::Pending(now),
            waiting_for: None,
            deferrals: 0,
            paced_since: None,
            state_before_retry: None,
            replay: None,
            attempt_count: 0,
            schedule_step: 0,
            attempts: Vec::new(),
            created_at: now,
        }
    }

    /// Whether nothing is known of the webhook but its id, because it could not be read when the
    /// event occurred. Then it may not subscribe to the event.
    pub const fn is_subscription_unknown(&self) -> bool {
        self.url.is_empty()
    }

    /// Schedules an attempt outside the retry schedule, for a manual retry or a replay.
    ///
    /// If that attempt fails, the delivery returns to its present state.
    pub fn request_retry(&mut self, due_at: Timestamp) {
        // A second request keeps the state from before the first one.
        self.state_before_retry.get_or_insert(self.state);
        self.state = DeliveryState::Pending(due_at);
        self.clear_wait();
    }

    /// Defers the next attempt, because the webhook's secrets cannot be decrypted now. Uses no
    /// attempt. `jitter` is a number from 0 to 1.
    pub fn wait_for_secret(&mut self, now: Timestamp, jitter: f64) {
        let wait = DeferralBackoff::SECRET.wait(self.deferrals, jitter);
        self.state = DeliveryState::Pending(now + wait);
        self.waiting_for = Some(WaitReason::Secret);
        self.paced_since = None;
        self.deferrals = self.deferrals.saturating_add(1);
    }

    /// Defers the next attempt, because the process could not make it. Uses no attempt. A requested
    /// retry stays requested. `jitter` is a number from 0 to 1.
    pub fn defer_attempt(&mut self, now: Timestamp, jitter: f64) {
        if self.waiting_for.is_some() {
            self.clear_wait();
        }
        let wait = DeferralBackoff::ATTEMPT.wait(self.deferrals, jitter);
        self.state = DeliveryState::Pending(now + wait);
        self.deferrals = self.deferrals.saturating_add(1);
    }

    /// Defers the next attempt until its slot, because deliveries of the webhook are spaced in
    /// time. Uses no attempt. A requested retry stays requested.
    pub fn wait_for_slot(&mut self, slot: Timestamp, pace: Pace) {
        let missed = match self.waiting_for {
            Some(WaitReason::Rate) if self.paced_since == Some(pace.since) => {
                self.deferrals.saturating_add(1)
            }
            _ => 0,
        };
        self.clear_wait();
        self.deferrals = missed;
        self.state = DeliveryState::Pending(slot);
        self.waiting_for = Some(WaitReason::Rate);
        self.paced_since = Some(pace.since);
    }

    /// Forgets why the delivery waited.
    pub const fn clear_wait(&mut self) {
        self.waiting_for = None;
        self.deferrals = 0;
        self.paced_since = None;
    }

    /// Whether the next attempt has a slot of this pace at `now`. A slot that was missed, because
    /// no worker ran, is reserved again: otherwise all that were missed would be used at once.
    pub fn has_slot(&self, pace: Pace, now: Timestamp) -> bool {
        match self.state {
            DeliveryState::Pending(slot) => {
                self.waiting_for == Some(WaitReason::Rate)
                    && self.paced_since == Some(pace.since)
                    && now <= slot + slot_lifetime(self.deferrals)
            }
            _ => false,
        }
    }

    /// Pauses the delivery until its endpoint responds again. A requested retry stays requested.
    pub const fn wait_for_endpoint(&mut self) {
        self.clear_wait();
        self.state = DeliveryState::Paused;
        self.waiting_for = Some(WaitReason::Endpoint);
    }

    /// Whether a user requested the next attempt. It is made even if the endpoint is unreachable.
    pub const fn is_manual_retry(&self) -> bool {
        self.state_before_retry.is_some() && self.replay.is_none()
    }

    /// Whether the last attempt of the retry schedule was made since `before`, and failed. A
    /// requested attempt does not use the schedule.
    pub fn has_exhausted_schedule(&self, before: &Self) -> bool {
        self.state == DeliveryState::Failed && self.schedule_step > before.schedule_step
    }

    /// Cancels a requested attempt that was not made. Returns whether one was requested.
    pub fn cancel_requested_retry(&mut self) -> bool {
        let Some(previous) = self.state_before_retry.take() else {
            return false;
        };
        self.state = previous;
        self.clear_wait();
        self.replay = None;
        true
    }

    /// Adds an attempt that ended at `now` and moves the delivery to its next state.
    ///
    /// `jitter` returns a number from 0 to 1. It is called only after a failure that uses the
    /// schedule.
    pub fn record_attempt(
        &mut self,
        attempt: Attempt,
        outcome: &AttemptOutcome,
        after_failure: AfterFailure,
        schedule: &RetrySchedule,
        now: Timestamp,
        jitter: impl FnOnce() -> f64,
    ) {
        self.attempt_count = attempt.number;
        self.clear_wait();
        self.replay = None;
        let previous = self.state_before_retry.take();
        if outcome.is_success() {
            self.state = DeliveryState::Delivered;
        } else if let Some(settled) = previous.filter(DeliveryState::is_settled) {
            // A requested attempt does not restart the schedule.
            self.state = settled;
        } else if after_failure == AfterFailure::WaitForEndpoint {
            self.wait_for_endpoint();
        } else if let Some(due @ DeliveryState::Pending(_)) = previous {
            // A requested attempt does not use the schedule either.
            self.state = due;
        } else {
            // A paused delivery continues on the schedule: its webhook is enabled again, or its
            // endpoint responds, and no resume job will look at it a second time.
            self.schedule_step += 1;
            self.state = state_after_failure(schedule, self.schedule_step, outcome, now, jitter());
        }
        self.attempts.push(attempt);
        if self.attempts.len() > RetrySchedule::MAX_ATTEMPTS {
            self.attempts.remove(0);
        }
    }
}

/// Decides the state after the failed attempt with this step of the schedule, 1 for the first.
fn state_after_failure(
    schedule: &RetrySchedule,
    step: u32,
    outcome: &AttemptOutcome,
    now: Timestamp,
    jitter: f64,
) -> DeliveryState {
    match schedule.delay_after(step, jitter, requested_delay(outcome, now)) {
        Some(delay) => DeliveryState::Pending(now + delay),
        None => DeliveryState::Failed,
    }
}

/// The delay that the endpoint requested. `Retry-After` is honored with 429 and 5xx only.
fn requested_delay(outcome: &AttemptOutcome, now: Timestamp) -> Option<Duration> {
    match outcome.status_code {
        Some(429 | 500..=599) => retry_after::parse(outcome.retry_after.as_deref()?, now),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::static_headers::StaticHeaders;
    use failure::{Failure, TimeoutStage};
    use timings::PhaseTimings;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn outcome(
        status_code: Option<u16>,
        failure: Option<Failure>,
        retry_after: Option<&str>,
    ) -> AttemptOutcome {
        AttemptOutcome {
            duration: Duration::ZERO,
            timings: PhaseTimings::default(),
            status_code,
            failure,
            retry_after: retry_after.map(str::to_owned),
            body_excerpt: None,
        }
    }

    fn status(status: u16, retry_after: Option<&str>) -> AttemptOutcome {
        outcome(Some(status), Some(Failure::Status(status)), retry_after)
    }

    fn due_in(seconds: u64) -> DeliveryState {
        DeliveryState::Pending(NOW + Duration::from_secs(seconds))
    }

    fn delivery(schedule_step: u32) -> Delivery {
        let key = DeliveryKey {
            account: AccountId::parse("acme").unwrap(),
            webhook: WebhookId::new(1).unwrap(),
            event: EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
        };
        let url = "https://example.com/".to_owned();
        let mut delivery = Delivery::new(key, EventType::JobCompleted, None, url, "{}".into(), NOW);
        delivery.schedule_step = schedule_step;
        delivery
    }

    fn attempt(number: u32, outcome: &AttemptOutcome) -> Attempt {
        let event = EventId::parse("evt_01JFS8TX800000000000000000").unwrap();
        let request = attempt::WebhookRequest {
            event_id: &event,
            event_type: EventType::JobCompleted,
            attempt_number: number,
            started_at: NOW,
            signatures: None,
            traceparent: None,
            static_headers: &StaticHeaders::NONE,
            version: "0",
        };
        Attempt::new(&request, outcome)
    }

    /// Only an attempt without failure delivers, the last step's failure is final, and
    /// `Retry-After` lengthens a delay on 429 and 5xx.
    #[test]
    fn outcome_decides_next_state() {
        let schedule: RetrySchedule = "10s,1h".parse().unwrap();
        let timeout = outcome(
            None,
            Some(Failure::Timeout(TimeoutStage::AwaitingResponse)),
            None,
        );
        let success = outcome(Some(204), None, Some("600"));
        for (step, outcome, expected) in [
            (1, &success, DeliveryState::Delivered),
            (3, &success, DeliveryState::Delivered),
            (1, &timeout, due_in(10)),
            (2, &timeout, due_in(3600)),
            (3, &timeout, DeliveryState::Failed),
            (1, &status(500, None), due_in(10)),
            (1, &status(503, Some("60")), due_in(66)),
            (1, &status(429, Some("60")), due_in(66)),
            (1, &status(404, Some("60")), due_in(10)),
            (1, &status(503, Some("soon")), due_in(10)),
            (3, &status(503, Some("60")), DeliveryState::Failed),
        ] {
            let mut delivery = delivery(step - 1);
            let attempt = attempt(step, outcome);
            record(
                &mut delivery,
                attempt,
                outcome,
                AfterFailure::Retry,
                &schedule,
            );
            assert_eq!(delivery.state, expected, "{step} {outcome:?}");
        }
    }

    /// The waits of an attempt that could not be made grow, and count apart from other waits.
    #[test]
    fn deferred_attempt_uses_no_attempt() {
        let mut delivery = delivery(2);
        delivery.wait_for_secret(NOW, 0.0);
        for (seconds, deferrals) in [(1, 1), (2, 2), (4, 3)] {
            delivery.defer_attempt(NOW, 0.0);
            assert_eq!(delivery.state, due_in(seconds));
            let waits = (delivery.waiting_for, delivery.deferrals);
            assert_eq!(waits, (None, deferrals));
        }
        assert_eq!((delivery.attempt_count, delivery.schedule_step), (0, 2));
    }

    /// The waits for the secret grow. An attempt or a request for one starts them again.
    #[test]
    fn waits_for_secret_grow_until_attempt() {
        let mut delivery = delivery(0);
        for (minutes, deferrals) in [(1, 1), (2, 2), (4, 3), (8, 4), (10, 5), (10, 6)] {
            delivery.wait_for_secret(NOW, 0.0);
            assert_eq!(delivery.state, due_in(minutes * 60));
            let waits = (delivery.waiting_for, delivery.deferrals);
            assert_eq!(waits, (Some(WaitReason::Secret), deferrals));
        }
        assert_eq!(delivery.attempt_count, 0);
        let schedule: RetrySchedule = "10s".parse().unwrap();
        let failure = status(500, None);
        let attempt = attempt(1, &failure);
        let mut requested = delivery.clone();
        requested.request_retry(NOW);
        record(
            &mut delivery,
            attempt,
            &failure,
            AfterFailure::Retry,
            &schedule,
        );
        for delivery in [delivery, requested] {
            assert_eq!((delivery.waiting_for, delivery.deferrals), (None, 0));
        }
    }

    fn record(
        delivery: &mut Delivery,
        attempt: Attempt,
        outcome: &AttemptOutcome,
        after_failure: AfterFailure,
        schedule: &RetrySchedule,
    ) {
        delivery.record_attempt(attempt, outcome, after_failure, schedule, NOW, || 0.5);
    }

    /// While the breaker is open, a failed attempt uses no step of the schedule. Only a requested
    /// attempt of a settled delivery restores its state.
    #[test]
    fn failed_probe_waits_for_endpoint() {
        let schedule: RetrySchedule = "10s".parse().unwrap();
        let failure = outcome(
            None,
            Some(Failure::Timeout(TimeoutStage::AwaitingResponse)),
            None,
        );
        let waits = (DeliveryState::Paused, Some(WaitReason::Endpoint));
        for (before, expected) in [
            (None, waits),
            (Some(DeliveryState::Paused), waits),
            (Some(due_in(77)), waits),
            (Some(DeliveryState::Failed), (DeliveryState::Failed, None)),
            (
                Some(DeliveryState::Delivered),
                (DeliveryState::Delivered, None),
            ),
        ] {
            let mut delivery = delivery(1);
            delivery.state_before_retry = before;
            let attempt = attempt(1, &failure);
            let after_failure = AfterFailure::WaitForEndpoint;
            record(&mut delivery, attempt, &failure, after_failure, &schedule);
            assert_eq!(
                (delivery.state, delivery.waiting_for),
                expected,
                "{before:?}"
            );
            assert_eq!((delivery.attempt_count, delivery.schedule_step), (1, 1));
        }
        let mut delivery = delivery(1);
        let success = outcome(Some(204), None, None);
        let attempt = attempt(1, &success);
        let after_failure = AfterFailure::WaitForEndpoint;
        record(&mut delivery, attempt, &success, after_failure, &schedule);
        assert_eq!(delivery.state, DeliveryState::Delivered);
    }

    /// A manual retry of a waiting delivery is attempted at once. A replay of it is not.
    #[test]
    fn only_manual_retry_ignores_unreachable_endpoint() {
        let mut delivery = delivery(0);
        assert!(!delivery.is_manual_retry());
        delivery.wait_for_endpoint();
        delivery.request_retry(NOW);
        assert_eq!(
            (delivery.state, delivery.waiting_for),
            (DeliveryState::Pending(NOW), None)
        );
        assert!(delivery.is_manual_retry());
        delivery.replay = Some(ReplayId::from_random([7; 8]));
        assert!(!delivery.is_manual_retry());
    }

    /// A requested attempt that fails restores the state from before the first request, except
    /// for a paused delivery, which continues on the schedule.
    #[test]
    fn failed_manual_retry_restores_state() {
        let schedule = RetrySchedule::default();
        let failure = status(500, None);
        for (before, expected) in [
            (DeliveryState::Failed, DeliveryState::Failed),
            (DeliveryState::Delivered, DeliveryState::Delivered),
            (due_in(77), due_in(77)),
            (DeliveryState::Paused, due_in(5)),
        ] {
            let mut delivery = delivery(0);
            delivery.state = before;
            delivery.request_retry(NOW);
            delivery.request_retry(NOW);
            let attempt = attempt(1, &failure);
            record(
                &mut delivery,
                attempt,
                &failure,
                AfterFailure::Retry,
                &schedule,
            );
            assert_eq!(delivery.state, expected, "{before:?}");
            assert!(!delivery.cancel_requested_retry());
        }
    }

    #[test]
    fn old_attempts_are_dropped() {
        let schedule = RetrySchedule::default();
        let failure = status(500, None);
        let mut delivery = delivery(0);
        let limit = u32::try_from(RetrySchedule::MAX_ATTEMPTS).unwrap();
        for number in 1..=limit + 1 {
            let attempt = attempt(number, &failure);
            record(
                &mut delivery,
                attempt,
                &failure,
                AfterFailure::Retry,
                &schedule,
            );
        }
        assert_eq!(delivery.attempts.len(), RetrySchedule::MAX_ATTEMPTS);
        assert_eq!(delivery.attempts[0].number, 2);
    }
}
