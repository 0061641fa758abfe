//! One attempt of a delivery: sign, send, and decide the delivery's next state.

use nano_webhooks_core::{
    delivery::{
        Delivery, DeliveryState,
        attempt::{Attempt, AttemptOutcome, WebhookRequest},
        breaker::AfterFailure,
        failure::FailureKind,
        schedule::RetrySchedule,
    },
    signing::{self, Signatures},
    static_headers::StaticHeaders,
    timestamp::Timestamp,
    webhook::Webhook,
};

use crate::{
    client::{
        local_failure::LocalFailure,
        webhook_client::{OpenExchange, WebhookClient},
    },
    clock::Clock,
    error_chain::error_chain,
    metrics::{Counter, Histogram, Metrics},
    random,
    store::{secrets::Credentials, webhooks::WebhookRecord},
};

/// Makes attempts.
#[derive(Clone, Copy)]
pub(super) struct Attempter<'a> {
    pub client: &'a WebhookClient,
    pub clock: &'a Clock,
    pub schedule: &'a RetrySchedule,
    pub metrics: &'a Metrics,
}

/// Whether an attempt follows the retry schedule.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AttemptOrigin {
    Schedule,
    /// A manual retry or a replay.
    Request,
}

/// The sent request, for the record of the attempt.
pub(super) struct SentRequest {
    started_at: Timestamp,
    signatures: Option<Signatures>,
    static_headers: StaticHeaders,
}

impl SentRequest {
    fn as_webhook_request<'a>(&'a self, delivery: &'a Delivery) -> WebhookRequest<'a> {
        WebhookRequest {
            event_id: &delivery.key.event,
            event_type: delivery.event_type,
            attempt_number: delivery.attempt_count + 1,
            started_at: self.started_at,
            signatures: self.signatures.as_ref(),
            traceparent: delivery.traceparent.as_ref(),
            static_headers: &self.static_headers,
            version: crate::VERSION,
        }
    }
}

impl Attempter<'_> {
    /// Makes the next attempt of a delivery and updates the delivery. `None` if this process could
    /// not make it: then it is deferred.
    pub(super) async fn attempt(
        &self,
        record: &WebhookRecord,
        credentials: &Credentials,
        delivery: &mut Delivery,
    ) -> Option<AttemptOutcome> {
        let (sent, exchange) = self.start(&record.webhook, credentials, delivery);
        match exchange.await {
            Ok(outcome) => {
                self.finish(record, &sent, delivery, &outcome);
                Some(outcome)
            }
            Err(failure) => {
                self.defer(delivery, failure);
                None
            }
        }
    }

    /// Starts the next attempt of a delivery. [`Self::finish`] or [`Self::defer`] must follow once
    /// the exchange has ended.
    pub(super) fn start(
        &self,
        webhook: &Webhook,
        credentials: &Credentials,
        delivery: &Delivery,
    ) -> (SentRequest, OpenExchange) {
        let started_at = self.clock.now();
        let payload = delivery.payload.as_bytes();
        let secrets = &credentials.secrets;
        let sent = SentRequest {
            started_at,
            signatures: signing::sign(secrets, &delivery.key.event, started_at, payload),
            static_headers: credentials.headers.clone(),
        };
        let request = sent.as_webhook_request(delivery);
        let account = &delivery.key.account;
        let exchange = self
            .client
            .start(account, &webhook.url, &request, &delivery.payload);
        (sent, exchange)
    }

    /// Defers the next attempt of a delivery, because this process could not make it. The endpoint
    /// has no part in that.
    pub(super) fn defer(&self, delivery: &mut Delivery, failure: LocalFailure) {
        tracing::warn!(
            account = delivery.key.account.as_str(),
            webhook = %delivery.key.webhook,
            event = delivery.key.event.as_str(),
            error = error_chain(&failure),
            "Could not make an attempt; it is deferred"
        );
        self.metrics.increment(Counter::DeferredAttempts);
        delivery.defer_attempt(self.clock.now(), random::unit_f64());
    }

    /// Adds an attempt to its delivery and decides what is next.
    pub(super) fn finish(
        &self,
        record: &WebhookRecord,
        sent: &SentRequest,
        delivery: &mut Delivery,
        outcome: &AttemptOutcome,
    ) {
        let attempt = Attempt::new(&sent.as_webhook_request(delivery), outcome);
        log_attempt(delivery, &attempt);
        self.count_attempt(&attempt, outcome);
        let origin = match delivery.state_before_retry {
            None => AttemptOrigin::Schedule,
            Some(_) => AttemptOrigin::Request,
        };
        let now = self.clock.now();
        record.webhook.url.as_str().clone_into(&mut delivery.url);
        let after_failure = AfterFailure::new(&record.health);
        delivery.record_attempt(
            attempt,
            outcome,
            after_failure,
            self.schedule,
            now,
            random::unit_f64,
        );
        self.count_ended_delivery(delivery, origin, now);
    }

    fn count_attempt(&self, attempt: &Attempt, outcome: &AttemptOutcome) {
        self.metrics.increment(Counter::Attempts);
        self.metrics
            .record(Histogram::AttemptDuration, outcome.duration);
        if let Some(kind) = attempt.failure {
            self.metrics.increment(Counter::FailedAttempts(kind));
        }
    }

    /// A delivery that had failed before a manual retry or a replay does not count as failed again.
    fn count_ended_delivery(&self, delivery: &Delivery, origin: AttemptOrigin, now: Timestamp) {
        match (delivery.state, origin) {
            (DeliveryState::Delivered, AttemptOrigin::Schedule) => {
                let created_at = delivery.key.event.created_at();
                let latency = now.saturating_duration_since(created_at);
                self.metrics.increment(Counter::Delivered);
                self.metrics.record(Histogram::DeliveryLatency, latency);
            }
            (DeliveryState::Delivered, AttemptOrigin::Request) => {
                self.metrics.increment(Counter::Delivered);
            }
            (DeliveryState::Failed, AttemptOrigin::Schedule) => {
                self.metrics.increment(Counter::Failed);
            }
            (DeliveryState::Failed, AttemptOrigin::Request)
            | (DeliveryState::Pending(_) | DeliveryState::Paused | DeliveryState::Cancelled, _) => {
            }
        }
    }
}

/// The fields are not in a span: the JSON format would nest them, and the queries of the template
/// and the runbook filter by them.
fn log_attempt(delivery: &Delivery, attempt: &Attempt) {
    tracing::info!(
        account = delivery.key.account.as_str(),
        webhook = %delivery.key.webhook,
        event = delivery.key.event.as_str(),
        attempt = attempt.number,
        status = attempt.status_code,
        failure = attempt.failure.map(FailureKind::as_str),
        duration_ms = attempt.duration_ms,
        "Attempt completed"
    );
}
