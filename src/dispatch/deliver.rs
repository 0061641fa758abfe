//! The fan-out: a batch of events to all who subscribe, sent at once, and recorded.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Semaphore;

use super::Dispatcher;
use crate::{
    bounded,
    clock::{Deadline, Instant},
    delivery::{
        Delivery, Key, State,
        attempt::Outcome,
        health::{Path, fails_to_answer},
    },
    event::JobEvent,
    store::{Error, webhooks::Subscriber},
    webhook::{Account, EventType, Secret, Webhook},
};

/// How many accounts' webhooks are loaded at the same time.
const CONCURRENT_LOADS: usize = 16;
/// How many endpoints are served at the same time; those beyond wait for one that is done.
const CONCURRENT_ENDPOINTS: usize = 1024;
/// How many attempts are in flight at the same time, to all endpoints.
const CONCURRENT_ATTEMPTS: usize = 256;
/// How many are to one endpoint.
const CONCURRENT_ATTEMPTS_PER_ENDPOINT: usize = 32;

/// An event, its body, and the place of its record in the batch.
#[derive(Debug)]
pub(super) struct Occurrence {
    pub record: usize,
    pub event: JobEvent,
    pub body: Arc<str>,
}

impl Occurrence {
    /// What names the delivery of the event to a webhook.
    fn key(&self, webhook: &Webhook) -> Key {
        Key { account: self.event.account.clone(), webhook: webhook.id, event: self.event.id.clone() }
    }

    /// The delivery of the event to a webhook, due at once.
    pub(super) fn delivery(&self, webhook: &Webhook, now: Instant) -> Delivery {
        let (task_id, url) = (Some(self.event.task_id.clone()), webhook.url.as_str().to_owned());
        let mut delivery = Delivery::new(self.key(webhook), event_type(self), task_id, url, self.body.clone(), now);
        delivery.traceparent.clone_from(&self.event.traceparent);
        delivery
    }
}

/// An endpoint's part of a batch.
struct Part<'a> {
    account: &'a Account,
    subscriber: &'a Subscriber,
    secrets: Secrets,
    due: Vec<&'a Occurrence>,
}

impl<'a> Part<'a> {
    const fn webhook(&self) -> &'a Webhook {
        &self.subscriber.webhook
    }
}

/// What an endpoint's requests are signed with.
enum Secrets {
    /// These; none: nothing.
    Opened(Vec<Secret>),
    /// They cannot be opened for now: nothing is sent, and the queue tries again.
    Locked,
}

/// An account's webhooks.
struct Loaded {
    subscribers: Vec<Subscriber>,
    /// Why one of them cannot be read: it harms no other, and what it misses is kept as poison.
    unreadable: Option<String>,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    /// The records that must be read again.
    pub unfinished: HashSet<usize>,
    /// The records that a webhook missed, and why.
    pub poisoned: Vec<(usize, String)>,
}

/// A delivery that was begun.
struct Begun {
    /// The place of its record in the batch.
    record: usize,
    delivery: Delivery,
    /// How its first attempt went, if one was made.
    outcome: Option<Outcome>,
}

impl Dispatcher {
    /// Delivers the events of a batch, and says which records must be read again: those of which not every delivery is
    /// recorded.
    pub(super) async fn deliver(&self, occurrences: &[Occurrence], deadline: Deadline) -> Delivered {
        let mut delivered = Delivered::default();
        let unfinished = &mut delivered.unfinished;
        let accounts = self.load(occurrences).await;
        let mut parts: HashMap<_, Part<'_>> = HashMap::new();
        let mut seen = HashSet::new();
        // The same record may be in a batch twice.
        for occurrence in occurrences.iter().filter(|occurrence| seen.insert(&occurrence.event.id)) {
            let Some((account, Some(loaded))) = accounts.get_key_value(&occurrence.event.account) else {
                unfinished.insert(occurrence.record);
                continue;
            };
            if let Some(reason) = &loaded.unreadable {
                delivered.poisoned.push((occurrence.record, reason.clone()));
            }
            let subscribers = &loaded.subscribers;
            for subscriber in subscribers.iter().filter(|subscriber| subscriber.webhook.wants(event_type(occurrence))) {
                let new = || Part { account, subscriber, secrets: Secrets::Opened(Vec::new()), due: Vec::new() };
                parts.entry((account, subscriber.webhook.id)).or_insert_with(new).due.push(occurrence);
            }
        }
        let keys: Vec<_> = parts.values().flat_map(|part| part.due.iter().map(|due| due.key(part.webhook()))).collect();
        match self.store.existing(&keys, deadline).await {
            Ok(existing) if existing.is_empty() => {}
            // What an earlier reading of the same records has recorded is not sent again.
            Ok(existing) => parts.values_mut().for_each(|part| {
                let webhook = part.webhook();
                part.due.retain(|due| !existing.contains(&due.key(webhook)));
            }),
            Err(error) => {
                tracing::error!(%error, "existing deliveries were not read; the batch will be read again");
                unfinished.extend(parts.values().flat_map(|part| &part.due).map(|due| due.record));
                return delivered;
            }
        }
        self.open_secrets(&mut parts, &mut delivered).await;
        let in_all = Semaphore::new(CONCURRENT_ATTEMPTS);
        let serve = |part| self.serve(part, &in_all, deadline);
        let served = bounded::each(parts.values().collect(), CONCURRENT_ENDPOINTS, serve).await;

        let now = self.clock.now();
        let begun = || served.iter().flat_map(|(_, begun)| begun);
        let deliveries: Vec<_> = begun().map(|begun| &begun.delivery).collect();
        let unrecorded = self.store.record(&deliveries, now, self.retention, deadline).await;
        if let Some(error) = unrecorded.error {
            tracing::error!(deliveries = unrecorded.keys.len(), %error, "deliveries were not recorded; their records will be read again");
        }
        let is_recorded = |begun: &&Begun| !unrecorded.keys.contains(&begun.delivery.key);
        delivered.unfinished.extend(begun().filter(|begun| !is_recorded(begun)).map(|begun| begun.record));
        self.set_timers(begun().filter(is_recorded).map(|begun| &begun.delivery), now).await;
        let learn = served.iter().map(|(part, begun)| {
            let outcomes = begun.iter().filter_map(|begun| begun.outcome.as_ref()).collect();
            self.learn(part.account, part.subscriber, outcomes)
        });
        bounded::join(learn.collect(), CONCURRENT_LOADS).await;
        delivered
    }

    /// Opens the secrets of those that are due to be called. Where that is not possible for now, the queue is to try again, so that
    /// they hold up nobody else; where it never will be, the records are poison.
    async fn open_secrets<K>(&self, parts: &mut HashMap<K, Part<'_>>, delivered: &mut Delivered) {
        for part in parts.values_mut().filter(|part| !part.due.is_empty()) {
            match self.store.secrets_of(part.account, part.subscriber, self.clock.now()).await {
                Ok(secrets) => part.secrets = Secrets::Opened(secrets),
                Err(Error::Internal(error)) => {
                    let reason =
                        format!("the secret of webhook {} cannot be read: {error}", part.subscriber.webhook.id);
                    let records = part.due.drain(..).map(|due| due.record);
                    delivered.poisoned.extend(records.map(|record| (record, reason.clone())));
                }
                Err(error) => {
                    tracing::error!(account = part.account.as_str(), %error, "secrets were not opened; the queue tries again");
                    part.secrets = Secrets::Locked;
                }
            }
        }
    }

    /// Each account's webhooks, by one query; `None` where it failed.
    async fn load(&self, occurrences: &[Occurrence]) -> HashMap<Account, Option<Loaded>> {
        let accounts: HashSet<_> = occurrences.iter().map(|occurrence| &occurrence.event.account).collect();
        let loads = accounts.into_iter().map(|account| async move {
            let subscribers = self.store.subscribers(account).await.inspect_err(
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
                Loaded { subscribers: readable, unreadable }
            });
            (account.clone(), loaded)
        });
        bounded::join(loads.collect(), CONCURRENT_LOADS).await.into_iter().collect()
    }

    /// Makes an endpoint's first attempts, as its health allows. Once one gets no answer, those that have not begun are left
    /// to the queue: an endpoint that hangs holds up the batch for one deadline, not for one each.
    async fn serve<'a>(
        &self,
        part: &'a Part<'_>,
        in_all: &Semaphore,
        deadline: Deadline,
    ) -> (&'a Part<'a>, Vec<Begun>) {
        let path = part.subscriber.health.path();
        let leave_to_queue = AtomicBool::new(path == Path::Queue);
        let begin = |due| self.begin(part, due, &leave_to_queue, in_all, deadline);
        let mut due = part.due.iter().copied();
        let mut begun = Vec::with_capacity(due.len());
        if path == Path::Trial
            && let Some(first) = due.next()
        {
            let first = begin(first).await;
            // Until its first success an endpoint has one direct attempt.
            leave_to_queue.store(first.delivery.state != State::Delivered, Ordering::Relaxed);
            begun.push(first);
        }
        begun.extend(bounded::each(due.collect(), CONCURRENT_ATTEMPTS_PER_ENDPOINT, begin).await);
        (part, begun)
    }

    /// Begins a delivery, with an attempt unless that is left to the queue: then it is due at once.
    async fn begin(
        &self,
        part: &Part<'_>,
        due: &Occurrence,
        leave_to_queue: &AtomicBool,
        in_all: &Semaphore,
        deadline: Deadline,
    ) -> Begun {
        let _place = in_all.acquire().await;
        let webhook = part.webhook();
        let mut begun = Begun { record: due.record, delivery: due.delivery(webhook, self.clock.now()), outcome: None };
        let remaining = deadline.remaining();
        let Secrets::Opened(secrets) = &part.secrets else { return begun };
        // What is cut short by the end of the invocation would look like a slow endpoint.
        if leave_to_queue.load(Ordering::Relaxed) || remaining < self.direct.limits().total {
            return begun;
        }
        let outcome = self.attempt(&self.direct, webhook, secrets, &mut begun.delivery, remaining).await;
        if outcome.failure.as_ref().is_some_and(|failure| fails_to_answer(failure.kind())) {
            leave_to_queue.store(true, Ordering::Relaxed);
        }
        begun.outcome = Some(outcome);
        begun
    }
}

/// Why an event is poison although it was understood.
pub(super) fn unreadable_webhook(error: &Error) -> String {
    format!("a webhook of the account cannot be read: {error}")
}

fn event_type(occurrence: &Occurrence) -> EventType {
    occurrence.event.outcome.event_type()
}
