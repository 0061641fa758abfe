//! A message from the retry queue: the next attempt of a delivery.

use std::time::Duration;

use super::Dispatcher;
use crate::{
    client::webhook_client::Timeouts,
    queue::{RetryMessage, ScheduledRetry},
    random,
    store::{
        Error, Result,
        leases::ClaimOutcome,
        replays::{ReplayKey, ReplayState},
    },
};
use nano_webhooks_core::{
    delivery::{Delivery, lease::fits_in_queue},
    timestamp::Timestamp,
    webhook::WebhookStatus,
};

/// When a delivery whose secret cannot be opened is tried again.
const KEY_UNAVAILABLE_DELAY: Duration = Duration::from_mins(1);

impl Dispatcher {
    /// Does what a message asks for, if it is still to be done. The message may go once this has succeeded: by then the
    /// delivery is settled, or due later with a message or the sweep to see to it.
    ///
    /// # Errors
    /// If DynamoDB does not answer: then the message must come again.
    pub async fn retry(&self, message: &RetryMessage) -> Result<()> {
        let RetryMessage { key, attempt_count } = message;
        let now = self.clock.now();
        // Read before each attempt: the webhook may have been changed, disabled or deleted since.
        let Some(subscriber) = self
            .store
            .webhooks()
            .get_record(&key.account, key.webhook)
            .await?
        else {
            self.store.leases().cancel(key, now, self.retention).await?;
            return Ok(());
        };
        if subscriber.webhook.status == WebhookStatus::Disabled {
            self.store
                .leases()
                .pause(key, *attempt_count, now, self.retention)
                .await?;
            return Ok(());
        }
        let secrets = match self
            .store
            .secrets()
            .decrypt_active(&key.account, key.webhook, &subscriber.secrets, now)
            .await
        {
            Ok(secrets) => secrets,
            // Nothing goes out unsigned. It waits without using an attempt, until settings and permissions are right again.
            Err(error @ (Error::KeyUnavailable(_) | Error::Internal(_))) => {
                tracing::error!(account = key.account.as_str(), webhook = %key.webhook, %error, "secrets were not opened");
                return self.put_off(message, KEY_UNAVAILABLE_DELAY, now).await;
            }
            Err(error) => return Err(error),
        };
        let endpoint = super::in_flight::EndpointKey {
            account: key.account.clone(),
            webhook: key.webhook,
        };
        let place = self.limiter.try_acquire(
            &endpoint,
            subscriber.health.max_in_flight(),
            random::unit_f64(),
        );
        let place = match place {
            Ok(place) => place,
            Err(full) => return self.put_off(message, full.wait, now).await,
        };
        let claim = match self.store.leases().claim(key, *attempt_count, now).await? {
            ClaimOutcome::Acquired(claim) => claim,
            ClaimOutcome::NotDue(due) if fits_in_queue(due, now) => {
                self.queue
                    .schedule(
                        vec![ScheduledRetry {
                            message: message.clone(),
                            due,
                        }],
                        now,
                    )
                    .await;
                return Ok(());
            }
            ClaimOutcome::NotDue(_) | ClaimOutcome::Stale => return Ok(()),
        };
        let mut delivery = claim.delivery.clone();
        if self.is_called_off(&delivery).await? {
            delivery.cancel_requested_retry();
            self.store
                .leases()
                .complete(&claim, &delivery, now, self.retention)
                .await?;
            return Ok(());
        }
        let outcome = self
            .attempt(
                &self.retry_client,
                &subscriber.webhook,
                &secrets,
                &mut delivery,
                Timeouts::QUEUED.total,
            )
            .await;
        let now = self.clock.now();
        if self
            .store
            .leases()
            .complete(&claim, &delivery, now, self.retention)
            .await?
        {
            self.set_timers([&delivery], now).await;
        }
        drop(place);
        self.learn(&key.account, &subscriber, &[outcome]).await;
        Ok(())
    }

    /// Makes the delivery due again later, without using an attempt.
    async fn put_off(&self, message: &RetryMessage, wait: Duration, now: Timestamp) -> Result<()> {
        let (RetryMessage { key, attempt_count }, due) = (message, now + wait);
        if self
            .store
            .leases()
            .defer(key, *attempt_count, due, now)
            .await?
        {
            self.queue
                .schedule(
                    vec![ScheduledRetry {
                        message: message.clone(),
                        due,
                    }],
                    now,
                )
                .await;
        }
        Ok(())
    }

    /// Whether the attempt was asked for by a replay that has been cancelled since.
    async fn is_called_off(&self, delivery: &Delivery) -> Result<bool> {
        let Some(id) = delivery.replay.clone() else {
            return Ok(false);
        };
        let of = ReplayKey {
            account: delivery.key.account.clone(),
            webhook: delivery.key.webhook,
            id,
        };
        let replay = self.store.replays().get(&of).await?;
        Ok(replay.is_some_and(|replay| replay.state() == ReplayState::Cancelled))
    }
}
