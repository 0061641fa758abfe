//! The fan-out: a batch of events to all who subscribe, sent at once, and recorded.

use std::collections::{HashMap, HashSet};

use super::Dispatcher;
use crate::{
    bounded,
    clock::Deadline,
    delivery::{Delivery, Key, State, attempt::Request, decide},
    event::JobEvent,
    random, signing,
    webhook::{Account, EventType, Webhook},
};

/// How many accounts' webhooks are loaded at the same time.
const CONCURRENT_LOADS: usize = 16;
/// How many attempts are in flight at the same time.
const CONCURRENT_ATTEMPTS: usize = 256;

/// An event, its body, and the place of its record in the batch.
#[derive(Debug)]
pub(super) struct Occurrence {
    pub record: usize,
    pub event: JobEvent,
    pub body: String,
}

/// One event and one webhook that is to hear of it.
struct Due<'a> {
    record: usize,
    occurrence: &'a Occurrence,
    webhook: &'a Webhook,
    key: Key,
}

impl Dispatcher {
    /// Delivers the events of a batch, and says which records must be read again: those of which not every delivery is
    /// recorded.
    pub(super) async fn deliver(&self, occurrences: &[Occurrence], deadline: Deadline) -> HashSet<usize> {
        let mut unfinished = HashSet::new();
        let webhooks = self.load_webhooks(occurrences).await;
        let mut due = Vec::new();
        let mut seen = HashSet::new();
        for occurrence in occurrences {
            let Some(webhooks) = &webhooks[&occurrence.event.account] else {
                unfinished.insert(occurrence.record);
                continue;
            };
            for webhook in webhooks.iter().filter(|webhook| webhook.wants(event_type(occurrence))) {
                let event = &occurrence.event;
                let key = Key { account: event.account.clone(), webhook: webhook.id, event: event.id.clone() };
                if seen.insert(key.clone()) {
                    due.push(Due { record: occurrence.record, occurrence, webhook, key });
                }
            }
        }
        self.drop_existing(&mut due, &mut unfinished, deadline).await;
        let attempts = due.iter().map(|due| self.first_attempt(due, deadline)).collect();
        let deliveries = bounded::join(attempts, CONCURRENT_ATTEMPTS).await;
        let unrecorded = self.store.record(&deliveries, self.clock.now(), self.retention, deadline).await;
        if let Some(error) = unrecorded.error {
            tracing::error!(deliveries = unrecorded.keys.len(), %error, "deliveries were not recorded; their records will be read again");
        }
        unfinished.extend(due.iter().filter(|due| unrecorded.keys.contains(&due.key)).map(|due| due.record));
        unfinished
    }

    /// Each account's webhooks, by one query; `None` where it failed.
    async fn load_webhooks(&self, occurrences: &[Occurrence]) -> HashMap<Account, Option<Vec<Webhook>>> {
        let accounts: HashSet<_> = occurrences.iter().map(|occurrence| &occurrence.event.account).collect();
        let loads = accounts.into_iter().map(|account| async move {
            let webhooks = self.store.webhooks(account).await.inspect_err(
                |error| tracing::error!(%account, %error, "webhooks were not loaded; the account's records will be read again"),
            );
            (account.clone(), webhooks.ok())
        });
        bounded::join(loads.collect(), CONCURRENT_LOADS).await.into_iter().collect()
    }

    /// Drops what an earlier reading of the same records has recorded: a batch that is read twice is not sent twice.
    async fn drop_existing(&self, due: &mut Vec<Due<'_>>, unfinished: &mut HashSet<usize>, deadline: Deadline) {
        let keys: Vec<_> = due.iter().map(|due| due.key.clone()).collect();
        match self.store.existing(&keys, deadline).await {
            Ok(existing) => due.retain(|due| !existing.contains(&due.key)),
            Err(error) => {
                tracing::error!(%error, "existing deliveries were not read; the batch will be read again");
                unfinished.extend(due.drain(..).map(|due| due.record));
            }
        }
    }

    /// Makes the first attempt, unless the invocation's time is up: then the delivery is due at once.
    async fn first_attempt(&self, due: &Due<'_>, deadline: Deadline) -> Delivery {
        let now = self.clock.now();
        let event = &due.occurrence.event;
        let mut delivery = Delivery {
            key: due.key.clone(),
            event_type: event_type(due.occurrence),
            task_id: event.task_id.clone(),
            url: due.webhook.url.as_str().to_owned(),
            body: due.occurrence.body.clone(),
            state: State::Pending(now),
            attempt_count: 0,
            attempts: Vec::new(),
            created_at: now,
        };
        let remaining = deadline.remaining();
        if remaining.is_zero() {
            return delivery;
        }
        let signatures = signing::sign(&due.webhook.secrets, &event.id, now, delivery.body.as_bytes());
        let request = Request {
            id: &event.id,
            event: delivery.event_type,
            number: 1,
            at: now,
            signatures: signatures.as_ref(),
            version: crate::VERSION,
        };
        let (attempt, outcome) = self.client.attempt(&due.webhook.url, request, &delivery.body, remaining).await;
        tracing::info!(
            account = %delivery.key.account, webhook = %delivery.key.webhook, event = %event.id, attempt = 1,
            status = outcome.status_code, failure = ?attempt.failure, duration_ms = attempt.duration_ms, "attempt"
        );
        delivery.state = decide(&self.schedule, 1, &outcome, self.clock.now(), random::unit());
        delivery.attempt_count = 1;
        delivery.attempts.push(attempt);
        delivery
    }
}

fn event_type(occurrence: &Occurrence) -> EventType {
    occurrence.event.outcome.event_type()
}
