//! The fan-out: a batch of events to all who subscribe, sent at once, and recorded.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{sync::Semaphore, time::timeout};

use super::Dispatcher;
use crate::{
    clock::Deadline,
    concurrency,
    store::{
        Error,
        deliveries::{BATCH_WRITE, backoff_until},
        webhooks::WebhookRecord,
    },
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        Delivery, DeliveryKey,
        attempt::AttemptOutcome,
        endpoint_health::{DispatchMode, is_unresponsive},
    },
    event::JobEvent,
    event_type::EventType,
    secret::Secret,
    timestamp::Timestamp,
    webhook::Webhook,
};

/// How many accounts' webhooks are loaded at the same time.
const CONCURRENT_LOADS: usize = 16;
/// How many endpoints are served at the same time; those beyond wait for one that is done.
const CONCURRENT_ENDPOINTS: usize = 1024;
/// How many attempts are in flight at the same time, to all endpoints.
const CONCURRENT_ATTEMPTS: usize = 256;
/// How many of them are new. What is answered at once then takes few connections, whose memory stays in the processor's caches; what is
/// not grows old, and the next one begins beside it.
const CONCURRENT_NEW_ATTEMPTS: usize = 64;
/// How long an attempt is new.
const BURST_WINDOW: Duration = Duration::from_millis(5);
/// How many are to one endpoint.
const CONCURRENT_ATTEMPTS_PER_ENDPOINT: usize = 32;
/// How many batches of deliveries are being recorded at the same time, while they are small.
const CONCURRENT_WRITES: usize = 32;
/// How many bytes of bodies a small batch may have. A larger one takes the places of several: what is being recorded is in memory
/// once more, as the request, and a function has 1 GB.
const PERMIT_BYTES: usize = 1024 * 1024;

/// An event, its body, and the place of its record in the batch.
#[derive(Debug)]
pub(super) struct FanOutEvent {
    pub record: usize,
    pub event: JobEvent,
    pub body: Arc<str>,
}

impl FanOutEvent {
    /// What names the delivery of the event to a webhook.
    fn key(&self, webhook: &Webhook) -> DeliveryKey {
        DeliveryKey {
            account: self.event.account.clone(),
            webhook: webhook.id,
            event: self.event.id.clone(),
        }
    }

    /// The delivery of the event to a webhook, due at once.
    pub(super) fn delivery(&self, webhook: &Webhook, now: Timestamp) -> Delivery {
        let (task_id, url) = (
            Some(self.event.task_id.clone()),
            webhook.url.as_str().to_owned(),
        );
        let mut delivery = Delivery::new(
            self.key(webhook),
            event_type(self),
            task_id,
            url,
            self.body.clone(),
            now,
        );
        delivery.traceparent.clone_from(&self.event.traceparent);
        delivery
    }
}

/// An endpoint's part of a batch.
struct EndpointBatch<'a> {
    account: &'a AccountId,
    subscriber: &'a WebhookRecord,
    secrets: SigningSecrets,
    due: Vec<&'a FanOutEvent>,
}

impl<'a> EndpointBatch<'a> {
    const fn webhook(&self) -> &'a Webhook {
        &self.subscriber.webhook
    }
}

/// What an endpoint's requests are signed with.
enum SigningSecrets {
    /// These; none: nothing.
    Opened(Vec<Secret>),
    /// They cannot be opened for now: nothing is sent, and the queue tries again.
    Locked,
}

/// An account's webhooks.
struct AccountWebhooks {
    subscribers: Vec<WebhookRecord>,
    /// Why one of them cannot be read: it harms no other, and what it misses is kept as poison.
    unreadable: Option<String>,
}

/// Where a batch's attempts find their places.
struct AttemptLimiter {
    in_all: Semaphore,
    new: Semaphore,
    new_for: Duration,
}

impl AttemptLimiter {
    fn new() -> Self {
        Self {
            in_all: Semaphore::new(CONCURRENT_ATTEMPTS),
            new: Semaphore::new(CONCURRENT_NEW_ATTEMPTS),
            new_for: BURST_WINDOW,
        }
    }

    /// Makes an attempt once there is a place for it, which it holds among the new ones only while it is new.
    async fn hold<F: Future>(&self, attempt: F) -> F::Output {
        let _place = self.in_all.acquire().await;
        let new = self.new.acquire().await;
        let mut attempt = pin!(attempt);
        if let Ok(output) = timeout(self.new_for, &mut attempt).await {
            return output;
        }
        drop(new);
        attempt.await
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct FanOutResult {
    /// The records that must be read again.
    pub unfinished: HashSet<usize>,
    /// The records that a webhook missed, and why.
    pub poisoned: Vec<(usize, String)>,
}

/// A delivery that was begun, and the place of its record in the batch.
type StartedDelivery = (usize, Delivery);

impl Dispatcher {
    /// Delivers the events of a batch, and says which records must be read again: those of which not every delivery is
    /// recorded.
    pub(super) async fn deliver(
        &self,
        occurrences: &[FanOutEvent],
        deadline: Deadline,
    ) -> FanOutResult {
        let mut delivered = FanOutResult::default();
        let unfinished = &mut delivered.unfinished;
        let accounts = self.load(occurrences).await;
        let mut parts: HashMap<_, EndpointBatch<'_>> = HashMap::new();
        let mut seen = HashSet::new();
        // The same record may be in a batch twice.
        for occurrence in occurrences
            .iter()
            .filter(|occurrence| seen.insert(&occurrence.event.id))
        {
            let Some((account, Some(loaded))) = accounts.get_key_value(&occurrence.event.account)
            else {
                unfinished.insert(occurrence.record);
                continue;
            };
            if let Some(reason) = &loaded.unreadable {
                delivered.poisoned.push((occurrence.record, reason.clone()));
            }
            let subscribers = &loaded.subscribers;
            for subscriber in subscribers
                .iter()
                .filter(|subscriber| subscriber.webhook.accepts(event_type(occurrence)))
            {
                let new = || EndpointBatch {
                    account,
                    subscriber,
                    secrets: SigningSecrets::Opened(Vec::new()),
                    due: Vec::new(),
                };
                parts
                    .entry((account, subscriber.webhook.id))
                    .or_insert_with(new)
                    .due
                    .push(occurrence);
            }
        }
        let keys: Vec<_> = parts
            .values()
            .flat_map(|part| part.due.iter().map(|due| due.key(part.webhook())))
            .collect();
        match self.store.deliveries().find_existing(&keys, deadline).await {
            Ok(existing) if existing.is_empty() => {}
            // What an earlier reading of the same records has recorded is not sent again.
            Ok(existing) => parts.values_mut().for_each(|part| {
                let webhook = part.webhook();
                part.due.retain(|due| !existing.contains(&due.key(webhook)));
            }),
            Err(error) => {
                tracing::error!(%error, "existing deliveries were not read; the batch will be read again");
                unfinished.extend(
                    parts
                        .values()
                        .flat_map(|part| &part.due)
                        .map(|due| due.record),
                );
                return delivered;
            }
        }
        self.open_secrets(&mut parts, &mut delivered).await;
        let places = AttemptLimiter::new();
        let serve = |part| self.serve(part, &places, deadline);
        let served =
            concurrency::map_concurrent(parts.values().collect(), CONCURRENT_ENDPOINTS, serve)
                .await;
        // Not before all are sent: putting large items together takes time, and an endpoint would seem to be the slow one.
        let (mut begun, mut learn) = (Vec::new(), Vec::new());
        for (part, of_part) in served {
            let (of_part, outcomes): (Vec<_>, Vec<_>) = of_part.into_iter().unzip();
            begun.extend(of_part);
            learn.push((part, outcomes.into_iter().flatten().collect::<Vec<_>>()));
        }
        delivered
            .unfinished
            .extend(self.record(begun, deadline).await);
        let learn = learn
            .iter()
            .map(|(part, outcomes)| self.learn(part.account, part.subscriber, outcomes));
        concurrency::join_bounded(learn.collect(), CONCURRENT_LOADS).await;
        delivered
    }

    /// Records deliveries, and says which records must be read again.
    async fn record(&self, begun: Vec<StartedDelivery>, deadline: Deadline) -> Vec<usize> {
        let writing = Semaphore::new(CONCURRENT_WRITES);
        let mut begun = begun.into_iter();
        let mut batches = Vec::new();
        while begun.len() > 0 {
            batches.push(begun.by_ref().take(BATCH_WRITE).collect());
        }
        let written = batches
            .into_iter()
            .map(|batch| self.record_batch(batch, &writing, deadline));
        let (mut unfinished, mut failed) = (Vec::new(), None);
        for batch in join_all(written).await {
            if let Err((records, error)) = batch {
                unfinished.extend(records);
                failed = Some(error);
            }
        }
        if let Some(error) = failed {
            tracing::error!(deliveries = unfinished.len(), %error, "deliveries were not recorded; their records will be read again");
        }
        unfinished
    }

    /// Records so many, and sets the timers of those that are to be attempted again. What a hot partition leaves undone is written
    /// again until the deadline; meanwhile it takes no places of `writing`.
    async fn record_batch(
        &self,
        mut batch: Vec<StartedDelivery>,
        writing: &Semaphore,
        deadline: Deadline,
    ) -> Result<(), (Vec<usize>, Error)> {
        for tried in 0.. {
            let bodies = batch.iter().map(|(_, delivery)| delivery.body.len()).sum();
            let place = writing.acquire_many(write_permits(bodies)).await;
            let now = self.clock.now();
            let written = self
                .store
                .deliveries()
                .batch_write(
                    batch.iter().map(|(_, delivery)| delivery),
                    now,
                    self.retention,
                )
                .await;
            drop(place);
            let written = match written {
                Ok(undone) => {
                    let recorded: Vec<_>;
                    (batch, recorded) = batch
                        .into_iter()
                        .partition(|(_, delivery)| undone.contains(&delivery.key));
                    self.set_timers(recorded.iter().map(|(_, delivery)| delivery), now)
                        .await;
                    if batch.is_empty() {
                        break;
                    }
                    backoff_until(tried, deadline).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                return Err((batch.into_iter().map(|(record, _)| record).collect(), error));
            }
        }
        Ok(())
    }

    /// Opens the secrets of those that are due to be called. Where that is not possible for now, the queue is to try again, so that
    /// they hold up nobody else; where it never will be, the records are poison.
    async fn open_secrets<K>(
        &self,
        parts: &mut HashMap<K, EndpointBatch<'_>>,
        delivered: &mut FanOutResult,
    ) {
        for part in parts.values_mut().filter(|part| !part.due.is_empty()) {
            match self
                .store
                .secrets()
                .decrypt_active(
                    part.account,
                    part.webhook().id,
                    &part.subscriber.secrets,
                    self.clock.now(),
                )
                .await
            {
                Ok(secrets) => part.secrets = SigningSecrets::Opened(secrets),
                Err(Error::Internal(error)) => {
                    let reason = format!(
                        "the secret of webhook {} cannot be read: {error}",
                        part.subscriber.webhook.id
                    );
                    let records = part.due.drain(..).map(|due| due.record);
                    delivered
                        .poisoned
                        .extend(records.map(|record| (record, reason.clone())));
                }
                Err(error) => {
                    tracing::error!(account = part.account.as_str(), %error, "secrets were not opened; the queue tries again");
                    part.secrets = SigningSecrets::Locked;
                }
            }
        }
    }

    /// Each account's webhooks, by one query; `None` where it failed.
    async fn load(
        &self,
        occurrences: &[FanOutEvent],
    ) -> HashMap<AccountId, Option<AccountWebhooks>> {
        let accounts: HashSet<_> = occurrences
            .iter()
            .map(|occurrence| &occurrence.event.account)
            .collect();
        let loads = accounts.into_iter().map(|account| async move {
            let subscribers = self.store.webhooks().list_records(account).await.inspect_err(
                |error| tracing::error!(account = account.as_str(), %error, "webhooks were not loaded; the account's records will be read again"),
            );
            let loaded = subscribers.ok().map(|subscribers| {
                let (mut readable, mut unreadable) = (Vec::new(), None);
                for subscriber in subscribers {
                    match subscriber {
                        Ok(subscriber) => readable.push(subscriber),
                        Err(error) => unreadable = Some(unreadable_webhook(&error)),
                    }
                }
                AccountWebhooks { subscribers: readable, unreadable }
            });
            (account.clone(), loaded)
        });
        concurrency::join_bounded(loads.collect(), CONCURRENT_LOADS)
            .await
            .into_iter()
            .collect()
    }

    /// Makes an endpoint's first attempts, as its health allows. Once one gets no answer, those that have not begun are left
    /// to the queue: an endpoint that hangs holds up the batch for one deadline, not for one each.
    async fn serve<'a>(
        &self,
        part: &'a EndpointBatch<'_>,
        places: &AttemptLimiter,
        deadline: Deadline,
    ) -> (
        &'a EndpointBatch<'a>,
        Vec<(StartedDelivery, Option<AttemptOutcome>)>,
    ) {
        let path = part.subscriber.health.dispatch_mode();
        let leave_to_queue = AtomicBool::new(path == DispatchMode::Queued);
        let begin = |due| places.hold(self.begin(part, due, &leave_to_queue, deadline));
        let mut due = part.due.iter().copied();
        let mut begun = Vec::with_capacity(due.len());
        if path == DispatchMode::Probe
            && let Some(first) = due.next()
        {
            let first = begin(first).await;
            // Until its first success an endpoint has one direct attempt.
            let succeeded = first
                .1
                .as_ref()
                .is_some_and(|outcome| outcome.failure.is_none());
            leave_to_queue.store(!succeeded, Ordering::Relaxed);
            begun.push(first);
        }
        begun.extend(
            concurrency::map_concurrent(due.collect(), CONCURRENT_ATTEMPTS_PER_ENDPOINT, begin)
                .await,
        );
        (part, begun)
    }

    /// Begins a delivery, with an attempt unless that is left to the queue: then it is due at once.
    async fn begin(
        &self,
        part: &EndpointBatch<'_>,
        due: &FanOutEvent,
        leave_to_queue: &AtomicBool,
        deadline: Deadline,
    ) -> (StartedDelivery, Option<AttemptOutcome>) {
        let mut delivery = due.delivery(part.webhook(), self.clock.now());
        let remaining = deadline.remaining();
        // What is cut short by the end of the invocation would look like a slow endpoint.
        let in_time = remaining >= self.direct_client.timeouts().total;
        let mut outcome = None;
        if let SigningSecrets::Opened(secrets) = &part.secrets
            && in_time
            && !leave_to_queue.load(Ordering::Relaxed)
        {
            let attempted = self
                .attempt(
                    &self.direct_client,
                    part.webhook(),
                    secrets,
                    &mut delivery,
                    remaining,
                )
                .await;
            if attempted
                .failure
                .as_ref()
                .is_some_and(|failure| is_unresponsive(failure.kind()))
            {
                leave_to_queue.store(true, Ordering::Relaxed);
            }
            outcome = Some(attempted);
        }
        ((due.record, delivery), outcome)
    }
}

/// Why an event is poison although it was understood.
pub(super) fn unreadable_webhook(error: &Error) -> String {
    format!("a webhook of the account cannot be read: {error}")
}

/// How many places of `CONCURRENT_WRITES` a batch takes whose bodies have so many bytes.
fn write_permits(bodies: usize) -> u32 {
    u32::try_from(bodies.div_ceil(PERMIT_BYTES).clamp(1, CONCURRENT_WRITES))
        .expect("it is not more than there are")
}

fn event_type(occurrence: &FanOutEvent) -> EventType {
    occurrence.event.outcome.event_type()
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn},
        sync::atomic::AtomicUsize,
        task::Poll,
    };

    use tokio::task::unconstrained;

    use super::*;
    use nano_webhooks_core::event::MAX_PAYLOAD_LEN;

    /// Has attempts begun that never end, until so many have: how many have then.
    async fn begun(places: AttemptLimiter, at_least: usize) -> usize {
        let begun = AtomicUsize::new(0);
        let attempt = |_| {
            places.hold(async {
                begun.fetch_add(1, Ordering::Relaxed);
                pending::<()>().await;
            })
        };
        let mut attempts = pin!(join_all((0..2 * CONCURRENT_ATTEMPTS).map(attempt)));
        let enough = poll_fn(|context| {
            assert!(attempts.as_mut().poll(context).is_pending());
            let begun = begun.load(Ordering::Relaxed);
            if begun < at_least {
                Poll::Pending
            } else {
                Poll::Ready(begun)
            }
        });
        // Without tokio's own bound on what a task does at once.
        timeout(Duration::from_secs(20), unconstrained(enough))
            .await
            .expect("so many begin")
    }

    #[tokio::test]
    async fn so_many_attempts_begin_and_more_when_those_are_old() {
        let always_new = AttemptLimiter {
            new_for: Duration::from_hours(1),
            ..AttemptLimiter::new()
        };
        assert_eq!(begun(always_new, 1).await, CONCURRENT_NEW_ATTEMPTS);
        let room_for_new = AttemptLimiter {
            new: Semaphore::new(2 * CONCURRENT_ATTEMPTS),
            ..AttemptLimiter::new()
        };
        assert_eq!(begun(room_for_new, 1).await, CONCURRENT_ATTEMPTS);
        assert_eq!(
            begun(AttemptLimiter::new(), CONCURRENT_ATTEMPTS).await,
            CONCURRENT_ATTEMPTS
        );
    }

    #[tokio::test]
    async fn an_attempt_that_ends_leaves_its_places() {
        let places = AttemptLimiter::new();
        let left = || {
            (
                places.in_all.available_permits(),
                places.new.available_permits(),
            )
        };
        let meanwhile = places.hold(async { left() }).await;
        assert_eq!(
            meanwhile,
            (CONCURRENT_ATTEMPTS - 1, CONCURRENT_NEW_ATTEMPTS - 1)
        );
        assert_eq!(left(), (CONCURRENT_ATTEMPTS, CONCURRENT_NEW_ATTEMPTS));
    }

    #[test]
    fn a_batch_takes_the_places_of_its_bodies_and_never_more_than_there_are() {
        for (bodies, expected) in [
            (0, 1),
            (BATCH_WRITE * 1_000, 1),
            (PERMIT_BYTES, 1),
            (PERMIT_BYTES + 1, 2),
            (BATCH_WRITE * MAX_PAYLOAD_LEN, 7),
            (usize::MAX, 32),
        ] {
            assert_eq!(write_permits(bodies), expected, "{bodies}");
        }
    }
}
