//! The first attempts of a batch's deliveries, made directly from the stream.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::time::timeout;

use super::{
    attempt::Attempter,
    attempt_limiter::AttemptLimiter,
    endpoint_health::ObservedAttempts,
    fan_out::{EndpointBatch, EndpointCredentials, FanOut, UnreadableBatch},
    hold_budget::HoldBudget,
    in_flight::EndpointKey,
    late_attempts::{LateAttempt, LateAttempts, LatePermit},
    probe::{ProbeRight, Prober},
    stream_record::FanOutEvent,
};
use crate::{
    clock::Deadline,
    concurrency,
    error_chain::error_chain,
    random,
    store::{Result, secrets::Credentials, webhooks::WebhookRecord},
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        Delivery,
        attempt::AttemptOutcome,
        breaker::BreakerDecision,
        endpoint_health::{DispatchMode, is_unresponsive},
        pace::{self, Pace, Slots},
    },
    timestamp::Timestamp,
};

/// How long a deployed batch waits for one attempt. An attempt that is still open ends late, or is
/// cut.
pub const BATCH_WAIT: Duration = Duration::from_secs(1);
/// How many endpoints receive events at the same time.
const CONCURRENT_ENDPOINTS: usize = 1024;
/// The most direct attempts in flight to one endpoint.
const CONCURRENT_ATTEMPTS_PER_ENDPOINT: usize = 32;

/// A delivery to record, and the index of its stream record in the batch.
pub(super) struct StartedDelivery {
    pub record: usize,
    pub delivery: Delivery,
}

/// A delivery whose attempt is still open. It is recorded before the attempt ends.
pub(super) struct LateDelivery {
    pub started: StartedDelivery,
    pub attempt: LateAttempt,
}

/// What became of a delivery while its batch waited.
enum FirstAttempt {
    Ended(StartedDelivery, AttemptOutcome),
    /// The attempt is still open.
    Late(LateDelivery),
    /// No attempt was started.
    Unattempted(StartedDelivery),
}

/// The first attempts of an endpoint's deliveries.
pub(super) struct EndpointResult<'a> {
    pub account: &'a AccountId,
    pub record: &'a WebhookRecord,
    pub started: Vec<StartedDelivery>,
    pub observed: ObservedAttempts,
    pub late: Vec<LateDelivery>,
    /// The endpoint's events, if its secret is invalid.
    pub unreadable: Option<UnreadableBatch<'a>>,
}

/// How an endpoint's first attempts are made.
#[derive(Clone, Copy)]
struct AttemptPlan {
    mode: DispatchMode,
    unattempted: Unattempted,
}

/// An event, and the slot of its first attempt if deliveries of the webhook are spaced in time.
#[derive(Clone, Copy)]
struct PlannedEvent<'a> {
    event: &'a FanOutEvent,
    slot: Option<(Timestamp, Pace)>,
}

/// What becomes of a delivery without a first attempt.
#[derive(Clone, Copy)]
enum Unattempted {
    /// It is due now, and the queue makes the attempt.
    Queue,
    /// It waits until the endpoint responds again.
    WaitForEndpoint,
}

/// Makes the first attempts of a batch.
pub(super) struct FirstAttempts<'a> {
    pub fan_out: FanOut<'a>,
    pub attempter: Attempter<'a>,
    pub prober: Prober<'a>,
    /// How long the batch waits for one attempt.
    pub batch_wait: Duration,
    pub late_attempts: &'a LateAttempts,
    pub holds: HoldBudget<'a>,
    pub limiter: AttemptLimiter,
    pub deadline: Deadline,
}

impl FirstAttempts<'_> {
    /// Makes the first attempts to all endpoints.
    pub(super) async fn deliver<'b>(
        &self,
        endpoints: Vec<EndpointBatch<'b>>,
    ) -> Vec<EndpointResult<'b>> {
        concurrency::map_concurrent(endpoints, CONCURRENT_ENDPOINTS, |endpoint| {
            self.decrypt_and_deliver(endpoint)
        })
        .await
    }

    /// Decrypts what the requests to an endpoint need, and makes its first attempts. Each endpoint waits for
    /// its own data key only.
    async fn decrypt_and_deliver<'b>(&self, mut endpoint: EndpointBatch<'b>) -> EndpointResult<'b> {
        let unreadable = self.fan_out.decrypt_credentials(&mut endpoint).await;
        EndpointResult {
            unreadable,
            ..self.deliver_to_endpoint(endpoint).await
        }
    }

    /// Makes an endpoint's first attempts, as its health allows. After an attempt without a
    /// response, no further one is started, so that an endpoint that hangs holds the batch up for
    /// one timeout only.
    async fn deliver_to_endpoint<'b>(&self, endpoint: EndpointBatch<'b>) -> EndpointResult<'b> {
        let mut plan = self.plan(&endpoint).await;
        let planned = self.assign_slots(&endpoint, &mut plan).await;
        let defer_rest = AtomicBool::new(plan.mode == DispatchMode::Queued);
        let mut result = EndpointResult {
            account: endpoint.account,
            record: endpoint.record,
            started: Vec::with_capacity(endpoint.events.len()),
            observed: ObservedAttempts::default(),
            late: Vec::new(),
            unreadable: None,
        };
        let mut events = planned.into_iter();
        if plan.mode == DispatchMode::Probe
            && let Some(event) = events.next()
        {
            let probe = self
                .limiter
                .run(self.attempt_or_defer(&endpoint, plan, event, &defer_rest))
                .await;
            // Until its first success, an endpoint receives one direct attempt per batch. Until its
            // breaker is closed, it receives no other than the probe.
            let is_success =
                matches!(&probe, FirstAttempt::Ended(_, outcome) if outcome.is_success());
            defer_rest.store(!is_success, Ordering::Relaxed);
            result.push(probe);
        }
        let attempts = concurrency::map_concurrent(
            events.collect(),
            CONCURRENT_ATTEMPTS_PER_ENDPOINT,
            |event| {
                self.limiter
                    .run(self.attempt_or_defer(&endpoint, plan, event, &defer_rest))
            },
        )
        .await;
        for attempt in attempts {
            result.push(attempt);
        }
        result
    }

    /// Reserves a slot for each event, if deliveries of the webhook are spaced in time. If that is
    /// not possible, the events are left to the queue, which reserves their slots.
    async fn assign_slots<'b>(
        &self,
        endpoint: &EndpointBatch<'b>,
        plan: &mut AttemptPlan,
    ) -> Vec<PlannedEvent<'b>> {
        // The batch waits for the slots as long as for an attempt.
        let slots = match timeout(BATCH_WAIT, self.reserve_slots(endpoint, *plan)).await {
            Ok(Ok(slots)) => slots,
            Ok(Err(error)) => {
                plan.mode = DispatchMode::Queued;
                log_unreserved_slots(endpoint, &error);
                None
            }
            Err(elapsed) => {
                plan.mode = DispatchMode::Queued;
                log_unreserved_slots(endpoint, &elapsed);
                None
            }
        };
        let mut planned = Vec::with_capacity(endpoint.events.len());
        for (index, event) in endpoint.events.iter().copied().enumerate() {
            let slot = slots.map(|(slots, pace)| (slots.at(index), pace));
            planned.push(PlannedEvent { event, slot });
        }
        planned
    }

    /// What waits for its endpoint or its secret has no slot.
    async fn reserve_slots(
        &self,
        endpoint: &EndpointBatch<'_>,
        plan: AttemptPlan,
    ) -> Result<Option<(Slots, Pace)>> {
        let webhook = &endpoint.record.webhook;
        match (webhook.pace, plan.unattempted, &endpoint.credentials) {
            (Some(pace), Unattempted::Queue, EndpointCredentials::Available(_))
                if !endpoint.events.is_empty() =>
            {
                let count = endpoint.events.len();
                let now = self.attempter.clock.now();
                let counters = self.fan_out.store.pace();
                let slots = counters.reserve(endpoint.account, webhook.id, pace, count, now);
                Ok(Some((slots.await?, pace)))
            }
            _ => Ok(None),
        }
    }

    /// Decides how an endpoint's first attempts are made. If its breaker is open, one event may be
    /// the probe.
    async fn plan(&self, endpoint: &EndpointBatch<'_>) -> AttemptPlan {
        let wait = AttemptPlan {
            mode: DispatchMode::Queued,
            unattempted: Unattempted::WaitForEndpoint,
        };
        let leave_to_queue = AttemptPlan {
            mode: DispatchMode::Queued,
            unattempted: Unattempted::Queue,
        };
        let EndpointBatch {
            account, record, ..
        } = endpoint;
        let now = self.attempter.clock.now();
        match BreakerDecision::new(&record.health, now) {
            BreakerDecision::Attempt => AttemptPlan {
                mode: record.health.dispatch_mode(now),
                unattempted: Unattempted::Queue,
            },
            BreakerDecision::Wait => wait,
            // Without a marker, which an earlier version did not write, nothing else would be the
            // probe.
            BreakerDecision::Probe if !self.can_attempt(endpoint) => {
                match record.health.probed_at {
                    Some(_) => wait,
                    None => leave_to_queue,
                }
            }
            BreakerDecision::Probe => match self.prober.acquire(account, record).await {
                Ok(ProbeRight::Granted) => AttemptPlan {
                    mode: DispatchMode::Probe,
                    unattempted: Unattempted::WaitForEndpoint,
                },
                Ok(ProbeRight::Refused) => wait,
                Err(error) => {
                    tracing::warn!(
                        account = account.as_str(),
                        webhook = %record.webhook.id,
                        error = error_chain(&error),
                        "Could not acquire the right to probe an endpoint; its events are queued"
                    );
                    leave_to_queue
                }
            },
        }
    }

    /// Whether an attempt to the endpoint can be made.
    fn can_attempt(&self, endpoint: &EndpointBatch<'_>) -> bool {
        let has_credentials = matches!(endpoint.credentials, EndpointCredentials::Available(_));
        has_credentials && !endpoint.events.is_empty() && self.has_time_for_attempt()
    }

    /// An attempt that the end of the invocation cuts short would make the endpoint look slow.
    fn has_time_for_attempt(&self) -> bool {
        self.deadline.remaining() >= self.attempter.client.timeouts().total
    }

    /// Makes the first attempt of a delivery, or leaves it without one: then it waits for the
    /// endpoint, or it is due now, or later if the secrets cannot be decrypted.
    async fn attempt_or_defer(
        &self,
        endpoint: &EndpointBatch<'_>,
        plan: AttemptPlan,
        planned: PlannedEvent<'_>,
        defer_rest: &AtomicBool,
    ) -> FirstAttempt {
        let PlannedEvent { event, slot } = planned;
        let webhook = &endpoint.record.webhook;
        let now = self.attempter.clock.now();
        let mut started = StartedDelivery {
            record: event.record,
            delivery: event.new_delivery(webhook, now),
        };
        if let EndpointCredentials::Available(credentials) = &endpoint.credentials
            && self.has_time_for_attempt()
            && !defer_rest.load(Ordering::Relaxed)
            && slot.is_none_or(|(slot, _)| pace::is_open(slot, now))
        {
            return self
                .attempt(endpoint, plan, credentials, started, defer_rest)
                .await;
        }
        match (plan.unattempted, &endpoint.credentials, slot) {
            (Unattempted::WaitForEndpoint, _, _) => started.delivery.wait_for_endpoint(),
            (Unattempted::Queue, EndpointCredentials::Unavailable, _) => {
                started.delivery.wait_for_secret(now, random::unit_f64());
            }
            (Unattempted::Queue, EndpointCredentials::Available(_), Some((slot, pace))) => {
                started.delivery.wait_for_slot(slot, pace);
            }
            // The delivery is due now.
            (Unattempted::Queue, EndpointCredentials::Available(_), None) => {}
        }
        FirstAttempt::Unattempted(started)
    }

    /// Makes an attempt and waits for it, but not longer than the batch waits.
    async fn attempt(
        &self,
        endpoint: &EndpointBatch<'_>,
        plan: AttemptPlan,
        credentials: &Credentials,
        mut started: StartedDelivery,
        defer_rest: &AtomicBool,
    ) -> FirstAttempt {
        let webhook = &endpoint.record.webhook;
        let (sent, mut exchange) = self
            .attempter
            .start(webhook, credentials, &started.delivery);
        let result = if let Ok(result) = timeout(self.batch_wait, &mut exchange).await {
            result
        } else {
            defer_rest.store(true, Ordering::Relaxed);
            if let Some(permit) = self.admit_late(endpoint).await {
                let attempt = LateAttempt::new(sent, exchange, permit);
                return FirstAttempt::Late(LateDelivery { started, attempt });
            }
            exchange.cut().await
        };
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(failure) => {
                defer_rest.store(true, Ordering::Relaxed);
                self.attempter.defer(&mut started.delivery, failure);
                if let Unattempted::WaitForEndpoint = plan.unattempted {
                    started.delivery.wait_for_endpoint();
                }
                return FirstAttempt::Unattempted(started);
            }
        };
        self.attempter
            .finish(endpoint.record, &sent, &mut started.delivery, &outcome);
        if let Some(failure) = &outcome.failure
            && is_unresponsive(failure.kind())
        {
            defer_rest.store(true, Ordering::Relaxed);
        }
        FirstAttempt::Ended(started, outcome)
    }

    /// Allows an attempt to end late, within the limits of the process and of the deployment.
    async fn admit_late(&self, endpoint: &EndpointBatch<'_>) -> Option<LatePermit> {
        let key = EndpointKey {
            account: endpoint.account.clone(),
            webhook: endpoint.record.webhook.id,
        };
        let permit = self.late_attempts.try_admit(&key)?;
        if self.holds.try_hold().await {
            Some(permit)
        } else {
            None
        }
    }
}

fn log_unreserved_slots(endpoint: &EndpointBatch<'_>, error: &dyn std::error::Error) {
    tracing::warn!(
        account = endpoint.account.as_str(),
        webhook = %endpoint.record.webhook.id,
        error = error_chain(error),
        "Could not reserve slots for the attempts of a webhook; its events are queued"
    );
}

impl EndpointResult<'_> {
    fn push(&mut self, attempt: FirstAttempt) {
        match attempt {
            FirstAttempt::Ended(started, outcome) => {
                self.started.push(started);
                self.observed.outcomes.push(outcome);
            }
            FirstAttempt::Late(late) => {
                self.observed.any_late = true;
                self.late.push(late);
            }
            FirstAttempt::Unattempted(started) => self.started.push(started),
        }
    }
}
