//! A message from the retry queue: the next attempt of a delivery.

use std::{sync::Arc, time::Duration};

use super::{
    attempt::Attempter,
    completion::Completer,
    in_flight::{EndpointKey, InFlightLimiter, NoFreeSlot},
    poison::PoisonRecorder,
    poison_reason::PoisonReason,
    probe::{ProbeRight, Prober},
};
use crate::{
    clock::Clock,
    error_chain::error_chain,
    queue::scheduler::RetryScheduler,
    random,
    store::{
        Error, Result, Store, WriteOutcome,
        leases::{ClaimOutcome, Lease},
        poison::PoisonWebhook,
        replays::{ReplayKey, ReplayState},
        secrets::Credentials,
        webhooks::WebhookRecord,
    },
};
use nano_webhooks_core::delivery::scheduled_retry::{RetryMessage, ScheduledRetry};
use nano_webhooks_core::{
    delivery::{
        Delivery, DeliveryKey, DeliveryState,
        breaker::BreakerDecision,
        deferral_backoff::DeferralBackoff,
        lease::fits_in_queue,
        pace::{self, Pace},
    },
    timestamp::Timestamp,
    webhook::WebhookStatus,
};

/// Handles messages of the retry queue.
#[derive(Clone, Copy)]
pub(super) struct RetryWorker<'a> {
    pub store: &'a Store,
    pub scheduler: RetryScheduler<'a>,
    pub limiter: &'a InFlightLimiter,
    pub clock: &'a Clock,
    pub retention: Duration,
    pub attempter: Attempter<'a>,
    pub poison_recorder: PoisonRecorder<'a>,
    pub completer: Completer<'a>,
    pub prober: Prober<'a>,
}

/// Whether an attempt may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Availability {
    Available,
    Paused,
}

/// Whether the attempt of a leased delivery may be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clearance {
    Attempt,
    /// The breaker is open, and the delivery is not the probe.
    WaitForEndpoint,
    /// Deliveries of the webhook are spaced in time, and it is its turn at this time.
    WaitForSlot(Timestamp, Pace),
}

impl RetryWorker<'_> {
    /// Makes the attempt that a message asks for, if the message is not stale. Afterwards the
    /// message can be deleted: the delivery is settled, or due later with a message or the sweep to
    /// continue it.
    ///
    /// # Errors
    /// If DynamoDB does not respond. The message must be received again.
    pub(super) async fn retry(self, message: &RetryMessage) -> Result<()> {
        let key = &message.key;
        let now = self.clock.now();
        // Loaded for each attempt, because the webhook may have been changed, disabled or deleted.
        let webhooks = self.store.webhooks();
        let record = match webhooks.get_record(&key.account, key.webhook).await {
            Ok(Some(record)) => record,
            Ok(None) => {
                self.store.leases().cancel(key, now, self.retention).await?;
                return Ok(());
            }
            Err(error @ Error::Unreadable(_)) => {
                let reason = PoisonReason::UnreadableWebhook {
                    webhook: key.webhook,
                    source: Arc::new(error),
                };
                return self.pause_until_repaired(message, &reason, now).await;
            }
            Err(error) => return Err(error),
        };
        if self.pause_if_unavailable(message, &record, now).await? == Availability::Paused {
            return Ok(());
        }
        let decrypted = webhooks
            .decrypt_credentials(&key.account, &record, now)
            .await;
        match decrypted {
            Ok(credentials) => self.attempt(message, &record, &credentials, now).await,
            // Nothing is sent without its signature and headers. The delivery waits, without using an attempt,
            // until settings or permissions are corrected. The store logs an unavailable key.
            Err(Error::KeyUnavailable(_)) => self.wait_for_secret(message, now).await,
            Err(error @ Error::Internal(_)) => {
                tracing::error!(
                    account = key.account.as_str(),
                    webhook = %key.webhook,
                    error = error_chain(&error),
                    "Could not decrypt secrets; the delivery is rescheduled"
                );
                self.wait_for_secret(message, now).await
            }
            Err(error @ Error::Unreadable(_)) => {
                let reason = PoisonReason::UnreadableSecret {
                    webhook: key.webhook,
                    source: Arc::new(error),
                };
                self.pause_until_repaired(message, &reason, now).await
            }
            Err(error) => Err(error),
        }
    }

    /// Pauses the delivery if its webhook is disabled, or if its endpoint is unreachable and is not
    /// to be probed now.
    async fn pause_if_unavailable(
        self,
        message: &RetryMessage,
        record: &WebhookRecord,
        now: Timestamp,
    ) -> Result<Availability> {
        let RetryMessage { key, attempt_count } = message;
        let leases = self.store.leases();
        if record.webhook.status == WebhookStatus::Disabled {
            leases
                .pause(key, *attempt_count, None, now, self.retention)
                .await?;
            return Ok(Availability::Paused);
        }
        if BreakerDecision::new(&record.health, now) != BreakerDecision::Wait {
            return Ok(Availability::Available);
        }
        let paused = leases
            .wait_for_endpoint(key, *attempt_count, now, self.retention)
            .await?;
        match paused {
            WriteOutcome::Applied => Ok(Availability::Paused),
            // The message is stale, or the attempt is a manual retry, which is made nevertheless.
            WriteOutcome::ConditionFailed => Ok(Availability::Available),
        }
    }

    /// Pauses a delivery whose webhook cannot be read, until an operator has repaired the webhook
    /// and redrives its poison record.
    async fn pause_until_repaired(
        self,
        message: &RetryMessage,
        reason: &PoisonReason,
        now: Timestamp,
    ) -> Result<()> {
        let key = &message.key;
        let webhook = PoisonWebhook {
            account: key.account.clone(),
            id: key.webhook,
        };
        self.poison_recorder.store_webhook(&webhook, reason).await?;
        let leases = self.store.leases();
        leases
            .pause(
                key,
                message.attempt_count,
                reason.wait_reason(),
                now,
                self.retention,
            )
            .await?;
        Ok(())
    }

    /// Leases the delivery if its endpoint has a free slot, attempts it, and records the outcome.
    async fn attempt(
        self,
        message: &RetryMessage,
        record: &WebhookRecord,
        credentials: &Credentials,
        now: Timestamp,
    ) -> Result<()> {
        let key = &message.key;
        let endpoint = EndpointKey {
            account: key.account.clone(),
            webhook: key.webhook,
        };
        let max_in_flight = record.health.max_in_flight();
        let acquired = self
            .limiter
            .try_acquire(&endpoint, max_in_flight, random::unit_f64());
        let permit = match acquired {
            Ok(permit) => permit,
            Err(NoFreeSlot { wait }) => return self.defer(message, wait, now).await,
        };
        let Some(lease) = self.claim(message, now).await? else {
            return Ok(());
        };
        if let Some(settled) = self.settle_unattempted(record, &lease.delivery).await? {
            let leases = self.store.leases();
            leases
                .complete(&lease, &settled, now, self.retention)
                .await?;
            return Ok(());
        }
        let mut delivery = lease.delivery.clone();
        match self.request_clearance(record, &delivery, now).await? {
            Clearance::Attempt => {}
            Clearance::WaitForEndpoint => {
                delivery.wait_for_endpoint();
                return self.completer.write(&lease, &delivery).await;
            }
            Clearance::WaitForSlot(slot, pace) => {
                delivery.wait_for_slot(slot, pace);
                return self.completer.write(&lease, &delivery).await;
            }
        }
        let outcome = self
            .attempter
            .attempt(record, credentials, &mut delivery)
            .await;
        self.completer.write(&lease, &delivery).await?;
        drop(permit);
        if let Some(outcome) = outcome {
            self.completer
                .update_health(record, &delivery, outcome)
                .await;
        }
        Ok(())
    }

    /// Decides whether the attempt is made now. A manual retry is: it counts as the probe of its
    /// minute, and it takes no slot.
    async fn request_clearance(
        self,
        record: &WebhookRecord,
        delivery: &Delivery,
        now: Timestamp,
    ) -> Result<Clearance> {
        let decision = BreakerDecision::new(&record.health, now);
        if decision == BreakerDecision::Probe {
            let right = self.prober.acquire(&delivery.key.account, record).await?;
            if right == ProbeRight::Granted {
                return Ok(Clearance::Attempt);
            }
        }
        if delivery.is_manual_retry() {
            return Ok(Clearance::Attempt);
        }
        match decision {
            BreakerDecision::Attempt => self.request_slot(record, delivery, now).await,
            BreakerDecision::Probe | BreakerDecision::Wait => Ok(Clearance::WaitForEndpoint),
        }
    }

    /// Reserves the slot of an attempt that has none, if deliveries of the webhook are spaced in
    /// time.
    async fn request_slot(
        self,
        record: &WebhookRecord,
        delivery: &Delivery,
        now: Timestamp,
    ) -> Result<Clearance> {
        let Some(pace) = record.webhook.pace else {
            return Ok(Clearance::Attempt);
        };
        if delivery.has_slot(pace, now) {
            return Ok(Clearance::Attempt);
        }
        let DeliveryKey {
            account, webhook, ..
        } = &delivery.key;
        let counters = self.store.pace();
        let slots = counters.reserve(account, *webhook, pace, 1, now).await?;
        let slot = slots.at(0);
        if pace::is_open(slot, now) {
            Ok(Clearance::Attempt)
        } else {
            Ok(Clearance::WaitForSlot(slot, pace))
        }
    }

    /// Leases the delivery; `None` if the message is stale or early.
    async fn claim(self, message: &RetryMessage, now: Timestamp) -> Result<Option<Lease>> {
        let leases = self.store.leases();
        match leases
            .claim(&message.key, message.attempt_count, now)
            .await?
        {
            ClaimOutcome::Acquired(lease) => Ok(Some(*lease)),
            ClaimOutcome::NotDue(due) => {
                if fits_in_queue(due, now) {
                    self.schedule(message, due, now).await;
                }
                Ok(None)
            }
            ClaimOutcome::Stale => Ok(None),
        }
    }

    /// Makes the delivery due later, without using an attempt.
    async fn defer(self, message: &RetryMessage, wait: Duration, now: Timestamp) -> Result<()> {
        let due = now + wait;
        let leases = self.store.leases();
        let outcome = leases
            .defer(&message.key, message.attempt_count, due, now)
            .await?;
        if outcome.is_applied() {
            self.schedule(message, due, now).await;
        }
        Ok(())
    }

    /// Makes the delivery due later, because its webhook's secrets cannot be decrypted. The waits
    /// grow. A message covers each of them: leaving it to the sweep would cost a second update.
    async fn wait_for_secret(self, message: &RetryMessage, now: Timestamp) -> Result<()> {
        let leases = self.store.leases();
        let deferrals = leases.count_deferrals(&message.key).await?;
        let due = now + DeferralBackoff::SECRET.wait(deferrals, random::unit_f64());
        let deferrals = deferrals.saturating_add(1);
        let outcome = leases
            .wait_for_secret(&message.key, message.attempt_count, deferrals, due, now)
            .await?;
        if outcome.is_applied() {
            self.schedule(message, due, now).await;
        }
        Ok(())
    }

    async fn schedule(self, message: &RetryMessage, due: Timestamp, now: Timestamp) {
        let message = message.clone();
        let retry = ScheduledRetry { message, due };
        self.scheduler.schedule(vec![retry], now).await;
    }

    /// The delivery without an attempt, if its replay was cancelled, or if the webhook can be read
    /// only now and does not subscribe to the event.
    async fn settle_unattempted(
        self,
        record: &WebhookRecord,
        delivery: &Delivery,
    ) -> Result<Option<Delivery>> {
        let mut settled = delivery.clone();
        if self.is_replay_cancelled(delivery).await? {
            settled.cancel_requested_retry();
            return Ok(Some(settled));
        }
        if delivery.is_subscription_unknown() && !record.webhook.accepts(delivery.event_type) {
            settled.state = DeliveryState::Cancelled;
            settled.clear_wait();
            settled.state_before_retry = None;
            settled.replay = None;
            return Ok(Some(settled));
        }
        Ok(None)
    }

    /// Whether a replay requested the attempt and was cancelled since.
    async fn is_replay_cancelled(self, delivery: &Delivery) -> Result<bool> {
        let Some(id) = delivery.replay.clone() else {
            return Ok(false);
        };
        let key = ReplayKey {
            account: delivery.key.account.clone(),
            webhook: delivery.key.webhook,
            id,
        };
        match self.store.replays().get(&key).await? {
            Some(replay) => Ok(replay.state() == ReplayState::Cancelled),
            None => Ok(false),
        }
    }
}
