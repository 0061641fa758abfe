//! The dispatcher: takes batches of the jobs stream and calls the endpoints that subscribe to what happened.

mod fan_out;
mod in_flight;
pub mod lambda_event;
pub mod redrive;
mod retry;
pub mod stream_record;
mod sweep;

use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use aws_lambda_events::event::streams::{DynamoDbBatchItemFailure, DynamoDbEventResponse};
use tokio::time::timeout;

use crate::{
    client::webhook_client::WebhookClient,
    clock::{Clock, Deadline},
    metrics::{Counter, Histogram, Metrics},
    queue::{RetryMessage, RetryQueue, ScheduledRetry},
    random,
    store::{Store, poison::NewPoisonRecord, webhooks::WebhookRecord},
};
use fan_out::FanOutEvent;
use in_flight::EndpointKey;
pub use in_flight::InFlightLimiter;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        Delivery, DeliveryKey, DeliveryState,
        attempt::{AttemptOutcome, WebhookRequest},
        endpoint_health::{EndpointHealth, is_unresponsive},
        failure::FailureKind,
        lease::fits_in_queue,
        schedule::RetrySchedule,
    },
    event::{EventId, MAX_PAYLOAD_LEN},
    event_type::EventType,
    secret::Secret,
    signing,
    timestamp::Timestamp,
    webhook::{Webhook, WebhookStatus},
};
use stream_record::Record;

/// What is left of an invocation's time for recording and answering when attempts must end: more than the longest request
/// to a table.
pub const RECORDING_RESERVE: Duration = Duration::from_secs(5);

/// How long attempts that end side by side wait for each other to write down what they say of their endpoint. What is not written
/// then the next ones say again.
const HEALTH_LOCK_TIMEOUT: Duration = Duration::from_secs(4);

/// How many of an account's other webhooks are told that one was disabled: what a transaction takes beside the disabling
/// (TransactWriteItems: 100 items).
const MAX_DISABLED_NOTIFICATIONS: usize = 99;

/// Takes what the platform's jobs table tells and calls the endpoints.
#[derive(Clone)]
pub struct Dispatcher {
    /// The tables.
    pub store: Store,
    /// Makes the attempts that are made straight from the stream.
    pub direct_client: WebhookClient,
    /// Makes the attempts that are made from the queue.
    pub retry_client: WebhookClient,
    /// Where the next attempts are put.
    pub queue: RetryQueue,
    /// What is in flight from the queue.
    pub limiter: InFlightLimiter,
    /// The time.
    pub clock: Clock,
    /// When a failed attempt is followed by another.
    pub schedule: RetrySchedule,
    /// How long a settled delivery is kept.
    pub retention: Duration,
    /// After how long of nothing but failures a webhook is disabled.
    pub disable_after: Duration,
    /// Counts what happens.
    pub metrics: Metrics,
}

impl Dispatcher {
    /// Takes a batch of the jobs stream, and names the records that must be read again. A record counts as done when each
    /// of its deliveries is recorded, or when it meant nothing, or when it is kept as poison.
    pub async fn handle_stream_batch(
        &self,
        records: &[Record],
        deadline: Deadline,
    ) -> DynamoDbEventResponse {
        let mut unfinished = HashSet::new();
        let mut occurrences = Vec::new();
        for (place, record) in records.iter().enumerate() {
            match parse_event(place, record) {
                Ok(occurrence) => occurrences.extend(occurrence),
                Err(poison) => {
                    if !self.keep(&poison).await {
                        unfinished.insert(place);
                    }
                }
            }
        }
        self.metrics
            .increment_by(Counter::Events, occurrences.len());
        let delivered = self.deliver(&occurrences, deadline).await;
        unfinished.extend(delivered.unfinished);
        for (place, reason) in delivered.poisoned {
            if !self.keep(&records[place].poison(reason)).await {
                unfinished.insert(place);
            }
        }
        let mut response = DynamoDbEventResponse::default();
        // In the order of the batch: Lambda goes on from the first of them.
        response.batch_item_failures = records
            .iter()
            .enumerate()
            .filter(|(place, _)| unfinished.contains(place))
            .map(|(_, record)| {
                let mut failure = DynamoDbBatchItemFailure::default();
                failure.item_identifier = record.sequence_number().map(str::to_owned);
                failure
            })
            .collect();
        response
    }

    /// Makes the next attempt of a delivery, and decides where it stands then.
    async fn attempt(
        &self,
        client: &WebhookClient,
        webhook: &Webhook,
        secrets: &[Secret],
        delivery: &mut Delivery,
        at_most: Duration,
    ) -> AttemptOutcome {
        let at = self.clock.now();
        let signatures = signing::sign(secrets, &delivery.key.event, at, delivery.body.as_bytes());
        let request = WebhookRequest {
            event_id: &delivery.key.event,
            event_type: delivery.event_type,
            attempt_number: delivery.attempt_count + 1,
            started_at: at,
            signatures: signatures.as_ref(),
            traceparent: delivery.traceparent.as_ref(),
            version: crate::VERSION,
        };
        let (attempt, outcome) = client
            .attempt(&webhook.url, request, &delivery.body, at_most)
            .await;
        tracing::info!(
            account = delivery.key.account.as_str(), webhook = %webhook.id, event = delivery.key.event.as_str(), attempt = attempt.number,
            status = outcome.status_code, failure = attempt.failure.map(FailureKind::as_str), duration_ms = attempt.duration_ms, "attempt"
        );
        self.metrics.increment(Counter::Attempts);
        self.metrics
            .record(Histogram::AttemptDuration, outcome.duration);
        if let Some(kind) = attempt.failure {
            self.metrics.increment(Counter::FailedAttempts(kind));
        }
        let (as_scheduled, now) = (delivery.state_before_retry.is_none(), self.clock.now());
        webhook.url.as_str().clone_into(&mut delivery.url);
        delivery.record_attempt(attempt, &outcome, &self.schedule, now, random::unit_f64);
        match delivery.state {
            DeliveryState::Delivered => {
                self.metrics.increment(Counter::Delivered);
                if as_scheduled {
                    self.metrics.record(
                        Histogram::DeliveryLatency,
                        now.saturating_duration_since(delivery.key.event.created_at()),
                    );
                }
            }
            // One that had failed before and was attempted out of turn has not failed anew.
            DeliveryState::Failed if as_scheduled => self.metrics.increment(Counter::Failed),
            DeliveryState::Failed
            | DeliveryState::Pending(_)
            | DeliveryState::Paused
            | DeliveryState::Cancelled => {}
        }
        outcome
    }

    /// Puts the next attempts of recorded deliveries into the queue, those that are within its reach; the sweep sees to the
    /// others.
    async fn set_timers<'a>(
        &self,
        recorded: impl IntoIterator<Item = &'a Delivery>,
        now: Timestamp,
    ) {
        let timer = |delivery: &Delivery| match delivery.state {
            DeliveryState::Pending(due) if fits_in_queue(due, now) => {
                let message = RetryMessage {
                    key: delivery.key.clone(),
                    attempt_count: delivery.attempt_count,
                };
                Some(ScheduledRetry { message, due })
            }
            _ => None,
        };
        let timers: Vec<_> = recorded.into_iter().filter_map(timer).collect();
        if !timers.is_empty() {
            self.queue.schedule(timers, now).await;
        }
    }

    /// Learns from attempts how healthy an endpoint is. A failure to write it down costs no delivery: the next attempts
    /// say the same.
    async fn learn(
        &self,
        account: &AccountId,
        subscriber: &WebhookRecord,
        outcomes: &[AttemptOutcome],
    ) {
        if outcomes.is_empty() {
            return;
        }
        let now = self.clock.now();
        let WebhookRecord {
            webhook,
            health: before,
            ..
        } = subscriber;
        let endpoint = EndpointKey {
            account: account.clone(),
            webhook: webhook.id,
        };
        let learned = |known: EndpointHealth| {
            outcomes.iter().fold(known, |health, outcome| {
                health.observe(outcome.observation(), now)
            })
        };
        let gone = outcomes
            .iter()
            .any(|outcome| outcome.status_code == Some(410));
        let succeeded = outcomes.iter().any(|outcome| outcome.failure.is_none());
        let answered = outcomes
            .iter()
            .any(|outcome| !outcome.observation().failure.is_some_and(is_unresponsive));
        let is_counting = self.limiter.note_results(&endpoint, succeeded);
        let supposed = learned(*before);
        let is_news = supposed.needs_write(before) || (answered && is_counting);
        if !gone && !supposed.has_failed_for(self.disable_after, now) && !is_news {
            return;
        }
        let written = async {
            let turn = self.limiter.health_lock(&endpoint);
            let Ok(_turn) = timeout(HEALTH_LOCK_TIMEOUT, turn.lock()).await else {
                tracing::warn!(account = account.as_str(), webhook = %webhook.id, "health was not learned: others took too long");
                return Ok(());
            };
            // What was known when a long attempt began may be out of date by now.
            let Some(current) = self
                .store
                .webhooks()
                .get_record(account, webhook.id)
                .await?
            else {
                return Ok(());
            };
            if current.webhook.status == WebhookStatus::Disabled
                || current.webhook.url != webhook.url
            {
                return Ok(());
            }
            let before = current.health;
            let failures = self.limiter.count_failures(
                &endpoint,
                before.consecutive_failures,
                outcomes.iter().map(AttemptOutcome::observation),
            );
            let health = EndpointHealth {
                consecutive_failures: failures,
                ..learned(before)
            };
            let reason = if gone {
                Some("The endpoint answered 410 Gone.".to_owned())
            } else if health.has_failed_for(self.disable_after, now) {
                let time = humantime::format_duration(self.disable_after);
                Some(format!("Every attempt of the last {time} failed."))
            } else {
                None
            };
            if let Some(reason) = reason {
                self.disable(account, webhook, &reason, now).await?;
            }
            let turned = health.is_open() != before.is_open();
            if health.needs_write(&before)
                && (self.limiter.try_claim_health_write(&endpoint, now) || turned)
            {
                self.store
                    .webhooks()
                    .put_health(account, webhook.id, &health)
                    .await?;
                self.limiter
                    .set_stored_failures(&endpoint, health.consecutive_failures);
                match (before.is_open(), health.is_open()) {
                    (false, true) => {
                        tracing::warn!(account = account.as_str(), webhook = %webhook.id, "circuit breaker opened");
                        self.metrics.increment(Counter::BreakersOpened);
                    }
                    (true, false) => {
                        tracing::info!(account = account.as_str(), webhook = %webhook.id, "circuit breaker closed");
                        self.metrics.increment(Counter::BreakersClosed);
                    }
                    (false, false) | (true, true) => {}
                }
            }
            Ok::<_, crate::store::Error>(())
        };
        if let Err(error) = written.await {
            tracing::warn!(account = account.as_str(), webhook = %webhook.id, %error, "health was not written");
        }
    }

    /// Disables a webhook, and tells those of the account's others that want to know: nobody is to learn of a dead endpoint from
    /// silence.
    async fn disable(
        &self,
        account: &AccountId,
        webhook: &Webhook,
        reason: &str,
        now: Timestamp,
    ) -> crate::store::Result<()> {
        let event_type = EventType::WebhookDisabled;
        let event = EventId::synthetic(now, account, &webhook.id.to_string(), event_type);
        let body: Arc<str> = nano_webhooks_core::event::webhook_disabled_payload(
            webhook.id,
            webhook.url.as_str(),
            reason,
            &now.to_rfc3339(),
        )
        .into();
        let others = self
            .store
            .webhooks()
            .list_records(account)
            .await?
            .into_iter()
            .flatten()
            .map(|other| other.webhook);
        let others = others.filter(|other| other.id != webhook.id && other.accepts(event_type));
        let tell: Vec<_> = others
            .take(MAX_DISABLED_NOTIFICATIONS)
            .map(|other| {
                let key = DeliveryKey {
                    account: account.clone(),
                    webhook: other.id,
                    event: event.clone(),
                };
                Delivery::new(
                    key,
                    event_type,
                    None,
                    other.url.as_str().to_owned(),
                    body.clone(),
                    now,
                )
            })
            .collect();
        if self
            .store
            .webhooks()
            .disable(account, webhook, reason, &tell, now, self.retention)
            .await?
        {
            tracing::warn!(account = account.as_str(), webhook = %webhook.id, reason, "webhook disabled");
            self.metrics.increment(Counter::WebhooksDisabled);
            self.set_timers(&tell, now).await;
        }
        Ok(())
    }

    /// Keeps a record that could not be understood; `false` if even that failed.
    async fn keep(&self, poison: &NewPoisonRecord) -> bool {
        let now = self.clock.now();
        tracing::error!(
            stream = poison.stream,
            sequence_number = poison.sequence_number,
            reason = poison.reason,
            "poison record"
        );
        match self
            .store
            .poison()
            .put(poison, now, now + self.retention)
            .await
        {
            Ok(()) => {
                self.metrics.increment(Counter::Poison);
                true
            }
            Err(error) => {
                tracing::error!(%error, "a poison record was not kept; it will be read again");
                false
            }
        }
    }
}

/// The event that a record tells of, with its body. A record that cannot be understood, or that makes reading it panic, is
/// poison, and so is one whose body is larger than may be sent.
fn parse_event(place: usize, record: &Record) -> Result<Option<FanOutEvent>, Box<NewPoisonRecord>> {
    let read = catch_unwind(AssertUnwindSafe(|| {
        let Some(event) = record.event()? else {
            return Ok(None);
        };
        let body = event.to_canonical_json();
        if body.len() > MAX_PAYLOAD_LEN {
            return Err(format!(
                "the body would have {} bytes, expected at most {MAX_PAYLOAD_LEN}",
                body.len()
            ));
        }
        Ok(Some(FanOutEvent {
            record: place,
            event,
            body: body.into(),
        }))
    }));
    read.unwrap_or_else(|_| Err("reading it panicked".to_owned()))
        .map_err(|reason| record.poison(reason))
}
