//! The first attempts of a batch's deliveries, made directly from the stream.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{
    attempt::Attempter,
    attempt_limiter::AttemptLimiter,
    fan_out::{EndpointBatch, SigningSecrets},
    stream_record::FanOutEvent,
};
use crate::{clock::Deadline, concurrency, store::webhooks::WebhookRecord};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        Delivery,
        attempt::AttemptOutcome,
        endpoint_health::{DispatchMode, is_unresponsive},
    },
};

/// How many endpoints receive events at the same time.
const CONCURRENT_ENDPOINTS: usize = 1024;
/// The most direct attempts in flight to one endpoint.
const CONCURRENT_ATTEMPTS_PER_ENDPOINT: usize = 32;

/// A delivery to record, and the index of its stream record in the batch.
pub(super) struct StartedDelivery {
    pub record: usize,
    pub delivery: Delivery,
}

/// A delivery and its attempt; `None` if the attempt is left to the queue.
struct FirstAttempt {
    started: StartedDelivery,
    outcome: Option<AttemptOutcome>,
}

impl FirstAttempt {
    fn is_success(&self) -> bool {
        match &self.outcome {
            Some(outcome) => outcome.failure.is_none(),
            None => false,
        }
    }
}

/// The first attempts of an endpoint's deliveries.
pub(super) struct EndpointResult<'a> {
    pub account: &'a AccountId,
    pub record: &'a WebhookRecord,
    pub started: Vec<StartedDelivery>,
    pub outcomes: Vec<AttemptOutcome>,
}

/// Makes the first attempts of a batch.
pub(super) struct FirstAttempts<'a> {
    attempter: Attempter<'a>,
    limiter: AttemptLimiter,
    deadline: Deadline,
}

impl<'a> FirstAttempts<'a> {
    pub(super) fn new(attempter: Attempter<'a>, deadline: Deadline) -> Self {
        Self {
            attempter,
            limiter: AttemptLimiter::new(),
            deadline,
        }
    }

    /// Makes the first attempts to all endpoints.
    pub(super) async fn deliver<'b>(
        &self,
        endpoints: Vec<EndpointBatch<'b>>,
    ) -> Vec<EndpointResult<'b>> {
        concurrency::map_concurrent(endpoints, CONCURRENT_ENDPOINTS, |endpoint| {
            self.deliver_to_endpoint(endpoint)
        })
        .await
    }

    /// Makes an endpoint's first attempts, as its health allows. After an attempt without a
    /// response, the attempts that did not start are left to the queue, so that an endpoint that
    /// hangs holds the batch up for one timeout only.
    async fn deliver_to_endpoint<'b>(&self, endpoint: EndpointBatch<'b>) -> EndpointResult<'b> {
        let mode = endpoint.record.health.dispatch_mode();
        let defer_rest = AtomicBool::new(mode == DispatchMode::Queued);
        let mut result = EndpointResult {
            account: endpoint.account,
            record: endpoint.record,
            started: Vec::with_capacity(endpoint.events.len()),
            outcomes: Vec::with_capacity(endpoint.events.len()),
        };
        let mut events = endpoint.events.iter().copied();
        if mode == DispatchMode::Probe
            && let Some(event) = events.next()
        {
            let probe = self
                .limiter
                .run(self.attempt_or_defer(&endpoint, event, &defer_rest))
                .await;
            // Until its first success, an endpoint receives one direct attempt per batch.
            defer_rest.store(!probe.is_success(), Ordering::Relaxed);
            result.push(probe);
        }
        let attempts = concurrency::map_concurrent(
            events.collect(),
            CONCURRENT_ATTEMPTS_PER_ENDPOINT,
            |event| {
                self.limiter
                    .run(self.attempt_or_defer(&endpoint, event, &defer_rest))
            },
        )
        .await;
        for attempt in attempts {
            result.push(attempt);
        }
        result
    }

    /// Makes the first attempt of a delivery, or leaves it to the queue: then it is due now.
    async fn attempt_or_defer(
        &self,
        endpoint: &EndpointBatch<'_>,
        event: &FanOutEvent,
        defer_rest: &AtomicBool,
    ) -> FirstAttempt {
        let webhook = &endpoint.record.webhook;
        let mut delivery = event.new_delivery(webhook, self.attempter.clock.now());
        let remaining = self.deadline.remaining();
        // An attempt that the end of the invocation cuts short would make the endpoint look slow.
        let has_enough_time = remaining >= self.attempter.client.timeouts().total;
        let mut outcome = None;
        if let SigningSecrets::Available(secrets) = &endpoint.secrets
            && has_enough_time
            && !defer_rest.load(Ordering::Relaxed)
        {
            let attempted = self
                .attempter
                .attempt(webhook, secrets, &mut delivery, remaining)
                .await;
            if let Some(failure) = &attempted.failure
                && is_unresponsive(failure.kind())
            {
                defer_rest.store(true, Ordering::Relaxed);
            }
            outcome = Some(attempted);
        }
        let started = StartedDelivery {
            record: event.record,
            delivery,
        };
        FirstAttempt { started, outcome }
    }
}

impl EndpointResult<'_> {
    fn push(&mut self, attempt: FirstAttempt) {
        self.started.push(attempt.started);
        self.outcomes.extend(attempt.outcome);
    }
}
