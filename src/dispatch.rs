//! The dispatcher: delivers job events from the jobs table's stream to subscribed endpoints.
//!
//! A stream record takes one path: [`lambda_event`] recognizes what invoked the function,
//! [`stream_record`] what a record means, `fan_out` who subscribes, `first_attempt` and `attempt`
//! send, `record` writes, `endpoint_health` updates the health, and `poison` stores records that
//! cannot be understood. Each step returns its output to [`Dispatcher`], which passes it to the
//! next.

mod advance;
mod attempt;
mod attempt_limiter;
mod completion;
mod endpoint_health;
mod fair_queue;
mod fan_out;
pub mod first_attempt;
mod hold_budget;
mod in_flight;
pub mod lambda_event;
pub mod late_attempts;
pub mod operator_topic;
mod poison;
pub mod poison_reason;
mod probe;
mod record;
mod recovery;
pub mod redrive;
mod retry;
pub mod stream_record;
mod sweep;

use std::{collections::HashSet, time::Duration};

use aws_lambda_events::event::{
    sqs::{BatchItemFailure, SqsBatchResponse, SqsMessage},
    streams::{DynamoDbBatchItemFailure, DynamoDbEventResponse},
};
use nano_webhooks_core::{delivery::schedule::RetrySchedule, timestamp::Timestamp};
use serde_json::Value;

use crate::{
    client::webhook_client::WebhookClient,
    clock::{Clock, Deadline},
    concurrency,
    error_chain::error_chain,
    metrics::{Counter, Metrics},
    queue::{RetryQueue, scheduler::RetryScheduler},
    store::{Result, Store, leases::Lease, poison::PoisonWebhook, webhooks::WebhookRecord},
};
use advance::Advancer;
use attempt::Attempter;
use attempt_limiter::AttemptLimiter;
use completion::Completer;
use endpoint_health::EndpointHealthUpdater;
use fan_out::{FanOut, UnreadableBatch};
use first_attempt::{FirstAttempts, LateDelivery, StartedDelivery};
use hold_budget::HoldBudget;
pub use in_flight::InFlightLimiter;
use lambda_event::Invocation;
use late_attempts::{LateAttempt, LateAttempts, MAX_LATE};
use nano_webhooks_core::delivery::scheduled_retry::RetryMessage;
use operator_topic::OperatorTopic;
use poison::{NewPoison, PoisonRecorder, PoisonSubject};
use probe::Prober;
use record::Recorder;
use recovery::Recovery;
use retry::RetryWorker;
use stream_record::{FanOutEvent, Record, parse_record};
use sweep::Sweeper;

/// The time of an invocation that attempts may not use, so that their outcomes can be recorded:
/// more than the longest request to a table.
pub const RECORDING_RESERVE: Duration = Duration::from_secs(5);
/// How many messages of a batch are handled at the same time: all of the largest batch.
pub const CONCURRENT_MESSAGES: usize = 100;
/// How many endpoints' health is updated at the same time.
const CONCURRENT_HEALTH_UPDATES: usize = 16;

/// Handles batches of the jobs stream and of the retry queue, and the schedules.
#[derive(Clone)]
pub struct Dispatcher {
    /// The tables.
    pub store: Store,
    /// Makes the first attempts, directly from the stream.
    pub direct_client: WebhookClient,
    /// Makes the attempts from the retry queue.
    pub retry_client: WebhookClient,
    /// The retry queue.
    pub queue: RetryQueue,
    /// How long a batch waits for one direct attempt.
    pub batch_wait: Duration,
    /// The direct attempts that end after their batch.
    pub late_attempts: LateAttempts,
    /// Limits the attempts from the retry queue.
    pub limiter: InFlightLimiter,
    /// The clock.
    pub clock: Clock,
    /// The waits between attempts.
    pub schedule: RetrySchedule,
    /// How long settled deliveries and poison records are kept.
    pub retention: Duration,
    /// After how long of nothing but failures a webhook is disabled.
    pub disable_after: Duration,
    /// Where operational events are published, if anywhere.
    pub operator_topic: Option<OperatorTopic>,
    /// The metrics.
    pub metrics: Metrics,
}

impl Dispatcher {
    /// Handles an invocation. Returns the response for Lambda.
    ///
    /// # Errors
    /// If a scheduled job fails; the next one repeats it.
    pub async fn invoke(&self, invocation: Invocation, deadline: Deadline) -> Result<Value> {
        let response = match invocation {
            Invocation::Stream(records) => {
                serde_json::to_value(self.handle_stream_batch(&records, deadline).await)
            }
            Invocation::Queue(messages) => {
                serde_json::to_value(self.handle_queue_batch(messages).await)
            }
            Invocation::Sweep => serde_json::to_value(self.sweep(deadline).await?),
            Invocation::Advance => serde_json::to_value(self.advance(deadline).await?),
        };
        Ok(response.expect("responses always serialize"))
    }

    /// Handles a batch of the jobs stream. The response names the records that must be read again.
    /// A record is done when each of its deliveries is recorded, when it is no event, or when it is
    /// stored as poison.
    pub async fn handle_stream_batch(
        &self,
        records: &[Record],
        deadline: Deadline,
    ) -> DynamoDbEventResponse {
        let (events, mut poison) = parse_records(records);
        self.metrics.increment_by(Counter::Events, events.len());
        let outcome = self.deliver(&events, deadline).await;
        poison.extend(outcome.poison);
        // Stored last, so that poison does not delay the events of the batch.
        let mut unfinished = outcome.unfinished;
        unfinished.extend(self.poison_recorder().store(poison, deadline).await);
        self.limiter.evict_idle(self.clock.now());
        stream_response(records, &unfinished)
    }

    /// Delivers the events of a batch: first attempts, then records, then the endpoints' health.
    async fn deliver(&self, events: &[FanOutEvent], deadline: Deadline) -> DeliverOutcome {
        let mut outcome = DeliverOutcome::default();
        let fan_out = FanOut {
            store: &self.store,
            clock: &self.clock,
        };
        let webhooks = fan_out.load_webhooks(events).await;
        let plan = fan_out.plan(events, &webhooks, deadline).await;
        outcome.unfinished.extend(plan.unfinished);
        let first_attempts = FirstAttempts {
            fan_out,
            attempter: self.attempter(&self.direct_client),
            batch_wait: self.batch_wait,
            late_attempts: &self.late_attempts,
            prober: self.prober(),
            holds: HoldBudget::new(&self.store, &self.clock),
            limiter: AttemptLimiter::new(),
            deadline,
        };
        let mut results = first_attempts.deliver(plan.endpoints).await;
        // Recorded after all attempts: serializing large items takes time, which would make
        // endpoints look slow.
        let mut started = Vec::new();
        let mut late = Vec::new();
        let mut unreadable = plan.unreadable;
        for result in &mut results {
            started.append(&mut result.started);
            unreadable.extend(result.unreadable.take());
            for delivery in result.late.drain(..) {
                late.push((result.record, delivery));
            }
        }
        for batch in &unreadable {
            started.extend(pause_deliveries(batch, self.clock.now()));
        }
        let (unrecorded, unrecorded_late) = tokio::join!(
            self.recorder().write_deliveries(started, deadline),
            self.hand_over_late(late),
        );
        outcome.unfinished.extend(unrecorded);
        outcome.unfinished.extend(unrecorded_late);
        let health_updater = self.health_updater();
        let updates = results
            .iter()
            .map(|result| health_updater.update(result.account, result.record, &result.observed))
            .collect();
        concurrency::join_bounded(updates, CONCURRENT_HEALTH_UPDATES).await;
        outcome
            .poison
            .extend(unreadable.into_iter().map(report_unreadable));
        outcome
    }

    /// Records deliveries whose attempt is still open, and lets the attempts end in the background.
    /// Returns the indexes of the stream records that must be read again.
    async fn hand_over_late(&self, late: Vec<(&WebhookRecord, LateDelivery)>) -> Vec<usize> {
        let outcomes = concurrency::map_concurrent(late, MAX_LATE, |(record, late)| {
            self.hand_over(record, late)
        });
        outcomes.await.into_iter().flatten().collect()
    }

    /// The index of the stream record if the delivery could not be recorded.
    async fn hand_over(&self, record: &WebhookRecord, late: LateDelivery) -> Option<usize> {
        let LateDelivery { started, attempt } = late;
        match self.recorder().write_leased(started.delivery).await {
            Ok(Some(lease)) => {
                let dispatcher = self.clone();
                let record = record.clone();
                let completion =
                    async move { dispatcher.complete_late(&record, &lease, attempt).await };
                self.late_attempts.spawn(completion);
                None
            }
            // Another reader of the same records has recorded the delivery.
            Ok(None) => None,
            Err(error) => {
                tracing::error!(
                    error = error_chain(&error),
                    "Could not record a delivery; its record will be read again"
                );
                Some(started.record)
            }
        }
    }

    /// Waits for the end of a late attempt and writes its result.
    async fn complete_late(&self, record: &WebhookRecord, lease: &Lease, mut attempt: LateAttempt) {
        let Some(outcome) = attempt.outcome().await else {
            return;
        };
        let mut delivery = lease.delivery.clone();
        let attempter = self.attempter(&self.direct_client);
        match &outcome {
            Ok(outcome) => attempter.finish(record, &attempt.sent, &mut delivery, outcome),
            Err(failure) => attempter.defer(&mut delivery, *failure),
        }
        let completer = self.completer();
        if let Err(error) = completer.write(lease, &delivery).await {
            let key = &delivery.key;
            tracing::error!(
                account = key.account.as_str(), webhook = %key.webhook, event = %key.event,
                error = error_chain(&error),
                "Could not record a late attempt; it is repeated when its lease ends"
            );
        }
        if let Ok(outcome) = outcome {
            completer.update_health(record, &delivery, outcome).await;
        }
    }

    /// Handles a batch of the retry queue. The response names the messages that must be received
    /// again.
    async fn handle_queue_batch(&self, messages: Vec<SqsMessage>) -> SqsBatchResponse {
        let retries = messages
            .iter()
            .map(|message| self.handle_message(message))
            .collect();
        let outcomes = concurrency::join_bounded(retries, CONCURRENT_MESSAGES).await;
        self.limiter.evict_idle(self.clock.now());
        let failed: HashSet<_> = outcomes.into_iter().flatten().collect();
        let mut response = SqsBatchResponse::default();
        for message_id in failed {
            let mut failure = BatchItemFailure::default();
            failure.item_identifier = message_id;
            response.batch_item_failures.push(failure);
        }
        response
    }

    /// Handles a message; its id if it must be received again.
    async fn handle_message(&self, message: &SqsMessage) -> Option<String> {
        let body = message.body.as_deref().unwrap_or_default();
        let retry = match body.parse::<RetryMessage>() {
            Ok(retry) => retry,
            // It names no delivery, so deleting it loses none.
            Err(error) => {
                tracing::error!(
                    message_id = message.message_id, %error,
                    "Deleted a message that is not a retry message"
                );
                return None;
            }
        };
        if let Err(error) = self.retry(&retry).await {
            let key = &retry.key;
            tracing::error!(
                account = key.account.as_str(), webhook = %key.webhook, event = %key.event,
                error = error_chain(&error),
                "Retry failed; its message will be received again"
            );
            return message.message_id.clone();
        }
        None
    }

    /// Makes the attempt that a message of the retry queue asks for. See [`RetryMessage`].
    ///
    /// # Errors
    /// If DynamoDB does not respond. The message must be received again.
    pub async fn retry(&self, message: &RetryMessage) -> Result<()> {
        let worker = RetryWorker {
            store: &self.store,
            scheduler: self.scheduler(),
            limiter: &self.limiter,
            clock: &self.clock,
            retention: self.retention,
            attempter: self.attempter(&self.retry_client),
            poison_recorder: self.poison_recorder(),
            completer: self.completer(),
            prober: self.prober(),
        };
        worker.retry(message).await
    }

    /// Sends messages for deliveries that are due soon. Returns the number of messages.
    ///
    /// # Errors
    /// If DynamoDB does not respond; the next sweep repeats what is left.
    pub async fn sweep(&self, deadline: Deadline) -> Result<usize> {
        self.sweeper().sweep(deadline).await
    }

    /// Advances each resume and replay by a minute's deliveries, and publishes operational events
    /// to the operator's topic. Returns the number of deliveries that became due.
    ///
    /// # Errors
    /// If DynamoDB does not respond; the next call repeats what is left.
    pub async fn advance(&self, deadline: Deadline) -> Result<usize> {
        let (scheduled, ()) = tokio::join!(
            self.advancer().advance(deadline),
            self.publish_notices(deadline)
        );
        scheduled
    }

    async fn publish_notices(&self, deadline: Deadline) {
        if let Some(topic) = &self.operator_topic {
            topic.publish_notices(&self.store, deadline).await;
        }
    }

    /// Schedules everything that an earlier process of these tables had queued or in flight. That
    /// process must have ended. Returns the number of deliveries.
    ///
    /// # Errors
    /// If DynamoDB does not respond.
    pub async fn recover_abandoned(&self) -> Result<usize> {
        let recovery = Recovery {
            store: &self.store,
            scheduler: self.scheduler(),
            clock: &self.clock,
        };
        recovery.recover_abandoned().await
    }

    const fn scheduler(&self) -> RetryScheduler<'_> {
        RetryScheduler {
            store: &self.store,
            queue: &self.queue,
        }
    }

    const fn attempter<'a>(&'a self, client: &'a WebhookClient) -> Attempter<'a> {
        Attempter {
            client,
            clock: &self.clock,
            schedule: &self.schedule,
            metrics: &self.metrics,
        }
    }

    const fn prober(&self) -> Prober<'_> {
        Prober {
            store: &self.store,
            clock: &self.clock,
            metrics: &self.metrics,
        }
    }

    const fn recorder(&self) -> Recorder<'_> {
        Recorder {
            store: &self.store,
            scheduler: self.scheduler(),
            clock: &self.clock,
            retention: self.retention,
        }
    }

    const fn poison_recorder(&self) -> PoisonRecorder<'_> {
        PoisonRecorder {
            store: &self.store,
            clock: &self.clock,
            retention: self.retention,
            metrics: &self.metrics,
        }
    }

    const fn completer(&self) -> Completer<'_> {
        Completer {
            store: &self.store,
            scheduler: self.scheduler(),
            clock: &self.clock,
            retention: self.retention,
            health_updater: self.health_updater(),
        }
    }

    const fn health_updater(&self) -> EndpointHealthUpdater<'_> {
        EndpointHealthUpdater {
            store: &self.store,
            scheduler: self.scheduler(),
            limiter: &self.limiter,
            clock: &self.clock,
            retention: self.retention,
            disable_after: self.disable_after,
            metrics: &self.metrics,
        }
    }

    const fn sweeper(&self) -> Sweeper<'_> {
        Sweeper {
            store: &self.store,
            scheduler: self.scheduler(),
            limiter: &self.limiter,
            clock: &self.clock,
            metrics: &self.metrics,
        }
    }

    const fn advancer(&self) -> Advancer<'_> {
        Advancer {
            store: &self.store,
            scheduler: self.scheduler(),
            clock: &self.clock,
        }
    }
}

/// What became of the events of a batch.
#[derive(Default)]
struct DeliverOutcome {
    /// Indexes of the records whose deliveries are not all recorded.
    unfinished: HashSet<usize>,
    /// The webhooks that cannot be read.
    poison: Vec<NewPoison<'static>>,
}

/// The deliveries of events that wait until their webhook is repaired.
fn pause_deliveries(batch: &UnreadableBatch<'_>, now: Timestamp) -> Vec<StartedDelivery> {
    let waiting_for = batch.reason.wait_reason();
    let mut paused = Vec::with_capacity(batch.events.len());
    for event in &batch.events {
        paused.push(StartedDelivery {
            record: event.record,
            delivery: event.paused_delivery(batch.webhook, batch.url, waiting_for, now),
        });
    }
    paused
}

fn report_unreadable(batch: UnreadableBatch<'_>) -> NewPoison<'static> {
    let webhook = PoisonWebhook {
        account: batch.account.clone(),
        id: batch.webhook,
    };
    NewPoison {
        subject: PoisonSubject::Webhook(webhook),
        reason: batch.reason,
        records: batch.events.iter().map(|event| event.record).collect(),
    }
}

/// The events of a batch, and the records that cannot be understood.
fn parse_records(records: &[Record]) -> (Vec<FanOutEvent>, Vec<NewPoison<'_>>) {
    let mut events = Vec::new();
    let mut poison = Vec::new();
    for (index, record) in records.iter().enumerate() {
        match parse_record(index, record) {
            Ok(event) => events.extend(event),
            Err(reason) => poison.push(NewPoison {
                subject: PoisonSubject::Record(record),
                reason,
                records: vec![index],
            }),
        }
    }
    (events, poison)
}

/// Names the unfinished records in the order of the batch, because Lambda continues from the first.
fn stream_response(records: &[Record], unfinished: &HashSet<usize>) -> DynamoDbEventResponse {
    let mut response = DynamoDbEventResponse::default();
    for (index, record) in records.iter().enumerate() {
        if unfinished.contains(&index) {
            let mut failure = DynamoDbBatchItemFailure::default();
            failure.item_identifier = record.sequence_number().map(str::to_owned);
            response.batch_item_failures.push(failure);
        }
    }
    response
}
