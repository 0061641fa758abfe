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
    /// The delivery of the event to a webhook, due at once.
    pub(super) fn delivery(&self, webhook: &Webhook, now: Instant) -> Delivery {
        let event = &self.event;
        let key = Key { account: event.account.clone(), webhook: webhook.id, event: event.id.clone() };
        let (task_id, url) = (Some(event.task_id.clone()), webhook.url.as_str().to_owned());
        let mut delivery = Delivery::new(key, event_type(self), task_id, url, self.body.clone(), now);
        delivery.traceparent.clone_from(&event.traceparent);
        delivery
    }
}

/// An endpoint's part of a batch.
struct Part<'a> {
    account: &'a Account,
    subscriber: &'a Subscriber,
    secrets: Secrets,
    due: Vec<Due<'a>>,
}

/// What an endpoint's requests are signed with.
enum Secrets {
    /// These; none: nothing.
    Opened(Vec<Secret>),
    /// They cannot be opened for now: nothing is sent, and the queue tries again.
    Locked,
}

/// One event that an endpoint is to hear of.
struct Due<'a> {
    occurrence: &'a Occurrence,
    key: Key,
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

/// A delivery that was begun, and how its first attempt went if one was made.
type Begun = (Delivery, Option<Outcome>);

impl Dispatcher {
    /// Delivers the events of a batch, and says which records must be read again: those of which not every delivery is
    /// recorded.
    pub(super) async fn deliver(&self, occurrences: &[Occurrence], deadline: Deadline) -> Delivered {
        let mut delivered = Delivered::default();
        let unfinished = &mut delivered.unfinished;
        let accounts = self.load(occurrences).await;
        let mut parts: HashMap<_, Part<'_>> = HashMap::new();
        let mut records = HashMap::new();
        for occurrence in occurrences {
            let event = &occurrence.event;
            let Some((account, Some(loaded))) = accounts.get_key_value(&event.account) else {
                unfinished.insert(occurrence.record);
                continue;
            };
            if let Some(reason) = &loaded.unreadable {
                delivered.poisoned.push((occurrence.record, reason.clone()));
            }
            let subscribers = &loaded.subscribers;
            for subscriber in subscribers.iter().filter(|subscriber| subscriber.webhook.wants(event_type(occurrence))) {
                let id = subscriber.webhook.id;
                let key = Key { account: account.clone(), webhook: id, event: event.id.clone() };
                // The same record may be in a batch twice.
                if records.insert(key.clone(), occurrence.record).is_none() {
                    let new = || Part { account, subscriber, secrets: Secrets::Opened(Vec::new()), due: Vec::new() };
                    parts.entry((account, id)).or_insert_with(new).due.push(Due { occurrence, key });
                }
            }
        }
        let keys: Vec<_> = records.keys().cloned().collect();
        match self.store.existing(&keys, deadline).await {
            // What an earlier reading of the same records has recorded is not sent again.
            Ok(existing) => parts.values_mut().for_each(|part| part.due.retain(|due| !existing.contains(&due.key))),
            Err(error) => {
                tracing::error!(%error, "existing deliveries were not read; the batch will be read again");
                unfinished.extend(records.values());
                return delivered;
            }
        }
        self.open_secrets(&mut parts, &mut delivered).await;
        let in_all = Semaphore::new(CONCURRENT_ATTEMPTS);
        let serves = parts.values().map(|part| self.serve(part, &in_all, deadline)).collect();
        let served = bounded::join(serves, CONCURRENT_ENDPOINTS).await;

        let now = self.clock.now();
        let unfinished = &mut delivered.unfinished;
        let deliveries: Vec<_> = served.iter().flat_map(|(_, begun)| begun).map(|(delivery, _)| delivery).collect();
        let unrecorded = self.store.record(&deliveries, now, self.retention, deadline).await;
        if let Some(error) = unrecorded.error {
            tracing::error!(deliveries = unrecorded.keys.len(), %error, "deliveries were not recorded; their records will be read again");
        }
        unfinished.extend(unrecorded.keys.iter().filter_map(|key| records.get(key)));
        let recorded = deliveries.into_iter().filter(|delivery| !unrecorded.keys.contains(&delivery.key));
        self.set_timers(recorded, now).await;
        let learn = served.iter().map(|(part, begun)| {
            let outcomes = begun.iter().filter_map(|(_, outcome)| outcome.as_ref()).collect();
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
                    let records = part.due.drain(..).map(|due| due.occurrence.record);
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
        let mut due = part.due.iter();
        let mut begun = Vec::with_capacity(due.len());
        if path == Path::Trial
            && let Some(first) = due.next()
        {
            let (delivery, outcome) = begin(first).await;
            // Until its first success an endpoint has one direct attempt.
            leave_to_queue.store(delivery.state != State::Delivered, Ordering::Relaxed);
            begun.push((delivery, outcome));
        }
        begun.extend(bounded::join(due.map(begin).collect(), CONCURRENT_ATTEMPTS_PER_ENDPOINT).await);
        (part, begun)
    }

    /// Begins a delivery, with an attempt unless that is left to the queue: then it is due at once.
    async fn begin(
        &self,
        part: &Part<'_>,
        due: &Due<'_>,
        leave_to_queue: &AtomicBool,
        in_all: &Semaphore,
        deadline: Deadline,
    ) -> Begun {
        let _place = in_all.acquire().await;
        let webhook = &part.subscriber.webhook;
        let mut delivery = due.occurrence.delivery(webhook, self.clock.now());
        let remaining = deadline.remaining();
        let Secrets::Opened(secrets) = &part.secrets else { return (delivery, None) };
        // What is cut short by the end of the invocation would look like a slow endpoint.
        if leave_to_queue.load(Ordering::Relaxed) || remaining < self.direct.limits().total {
            return (delivery, None);
        }
        let outcome = self.attempt(&self.direct, webhook, secrets, &mut delivery, remaining).await;
        if outcome.failure.as_ref().is_some_and(|failure| fails_to_answer(failure.kind())) {
            leave_to_queue.store(true, Ordering::Relaxed);
        }
        (delivery, Some(outcome))
    }
}

/// Why an event is poison although it was understood.
pub(super) fn unreadable_webhook(error: &Error) -> String {
    format!("a webhook of the account cannot be read: {error}")
}

fn event_type(occurrence: &Occurrence) -> EventType {
    occurrence.event.outcome.event_type()
}
