//! Deliveries: checked for by one batched read, recorded by batched writes.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes, Put, PutRequest, TransactWriteItem, WriteRequest};
use serde::{Deserialize, Serialize};

use super::{
    Error, Item, Result, Store, back_off, corrupt, from_item, held,
    keys::{self, Primary},
    to_item,
};
use crate::{
    bounded,
    clock::{Deadline, Instant},
    delivery::{
        Delivery, Key, ReplayId, State,
        attempt::{Attempt, FailureKind},
        due,
    },
    event::traceparent::Traceparent,
    webhook::EventType,
};

/// The most keys that BatchGetItem takes.
const BATCH_GET: usize = 100;
/// The most items that BatchWriteItem takes.
const BATCH_WRITE: usize = 25;
/// How many batches are on their way at the same time.
const CONCURRENT_BATCHES: usize = 8;

#[derive(Serialize, Deserialize)]
pub(super) struct Row {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    event: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    task_id: Option<String>,
    url: String,
    body: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    traceparent: Option<Traceparent>,
    status: String,
    attempt_count: u32,
    step: u32,
    attempts: Vec<Attempt>,
    created_at: Instant,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<Instant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure: Option<FailureKind>,
    /// Until when a worker has the attempt that it has claimed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    leased_until: Option<Instant>,
    /// Where it goes back to if an attempt out of turn fails: a status, and for `pending` its time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    resume_status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    resume_at: Option<Instant>,
    /// The replay that asked for the attempt that is due.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    replay: Option<ReplayId>,
    /// Keys of the due index: only what is pending has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    due_shard: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sweep_at: Option<Instant>,
    /// Key of the state index: only what is pending or failed has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<String>,
    /// Only what is settled expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
}

impl Store {
    /// Which of these deliveries exist already, from strongly consistent reads.
    ///
    /// # Errors
    /// If DynamoDB does not answer for all of them before the deadline.
    pub async fn existing(&self, keys: &[Key], deadline: Deadline) -> Result<HashSet<Key>> {
        let batches = keys.chunks(BATCH_GET).map(|batch| self.existing_batch(batch, deadline)).collect();
        let found = bounded::join(batches, CONCURRENT_BATCHES).await.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn existing_batch(&self, batch: &[Key], deadline: Deadline) -> Result<Vec<Key>> {
        let table = &self.tables.deliveries;
        let request = KeysAndAttributes::builder()
            .set_keys(Some(batch.iter().map(|key| keys::delivery(key).into_item()).collect()))
            .projection_expression("PK, SK")
            .consistent_read(true)
            .build()
            .expect("every required part is set");
        let mut open = HashMap::from([(table.clone(), request)]);
        let mut found = Vec::new();
        let mut tried = 0;
        loop {
            let mut answer = self.client.batch_get_item().set_request_items(Some(open)).send().await?;
            let items = answer.responses.as_mut().and_then(|tables| tables.remove(table)).unwrap_or_default();
            for item in items {
                found.push(key_of(&item)?);
            }
            open = answer.unprocessed_keys.unwrap_or_default();
            if open.is_empty() {
                return Ok(found);
            }
            wait_for_unprocessed(tried, deadline).await?;
            tried += 1;
        }
    }

    /// Records deliveries, and says which could not be recorded before the deadline. Settled ones expire after `retention`.
    pub async fn record(
        &self,
        deliveries: &[&Delivery],
        now: Instant,
        retention: Duration,
        deadline: Deadline,
    ) -> Unrecorded {
        let mut unrecorded = Unrecorded::default();
        let batches = deliveries
            .chunks(BATCH_WRITE)
            .map(|batch| async move { (batch, self.record_batch(batch, now, retention, deadline).await) });
        for (batch, result) in bounded::join(batches.collect(), CONCURRENT_BATCHES).await {
            if let Err(error) = result {
                // Some of the batch may be written; when its records are read again, existing() finds that.
                unrecorded.keys.extend(batch.iter().map(|delivery| delivery.key.clone()));
                unrecorded.error = Some(error);
            }
        }
        unrecorded
    }

    /// The recording of a delivery as a part of a transaction.
    pub(super) fn recording(
        &self,
        delivery: &Delivery,
        now: Instant,
        retention: Duration,
    ) -> Result<TransactWriteItem> {
        let put = Put::builder().table_name(&self.tables.deliveries);
        let put = put.set_item(Some(to_item(&Row::of(delivery, now, retention))?));
        Ok(TransactWriteItem::builder().put(put.build().expect("every required part is set")).build())
    }

    async fn record_batch(
        &self,
        batch: &[&Delivery],
        now: Instant,
        retention: Duration,
        deadline: Deadline,
    ) -> Result<()> {
        let mut requests = Vec::with_capacity(batch.len());
        for delivery in batch {
            let item = to_item(&Row::of(delivery, now, retention))?;
            let put = PutRequest::builder().set_item(Some(item)).build().expect("every required part is set");
            requests.push(WriteRequest::builder().put_request(put).build());
        }
        let mut open = HashMap::from([(self.tables.deliveries.clone(), requests)]);
        let mut tried = 0;
        loop {
            let answer = self.client.batch_write_item().set_request_items(Some(open)).send().await?;
            open = answer.unprocessed_items.unwrap_or_default();
            if open.is_empty() {
                return Ok(());
            }
            wait_for_unprocessed(tried, deadline).await?;
            tried += 1;
        }
    }

    /// Records a delivery that is due for the next sweep to find, as no message names it; `false` if it is recorded already, which
    /// stays as it is.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn record_for_sweep(&self, delivery: &Delivery, now: Instant, retention: Duration) -> Result<bool> {
        let mut row = Row::of(delivery, now, retention);
        // It has no message: the next sweep sends one that can have it.
        row.sweep_at =
            row.next_attempt_at.map(|due| if due::is_within_reach(due, now) { now } else { due::sweep_at(due, now) });
        let put = self.client.put_item().table_name(&self.tables.deliveries).set_item(Some(to_item(&row)?));
        held(put.condition_expression("attribute_not_exists(PK)").send().await)
    }

    /// One delivery, strongly consistent.
    ///
    /// # Errors
    /// If DynamoDB does not answer, or the item breaks the rules.
    pub async fn delivery(&self, key: &Key) -> Result<Option<Delivery>> {
        let get = self.client.get_item().table_name(&self.tables.deliveries).consistent_read(true);
        let item = get.set_key(Some(keys::delivery(key).into_item())).send().await?.item;
        item.map(|item| from_item::<Row>(item)?.into_delivery()).transpose()
    }
}

/// What could not be recorded, and why.
#[derive(Debug, Default)]
pub struct Unrecorded {
    /// The deliveries.
    pub keys: HashSet<Key>,
    /// One of the reasons; `None`: everything was recorded.
    pub error: Option<Error>,
}

async fn wait_for_unprocessed(tried: u32, deadline: Deadline) -> Result<()> {
    if deadline.remaining().is_zero() {
        return Err(Error::Unavailable("items were left unprocessed until the deadline".to_owned()));
    }
    back_off(tried).await;
    Ok(())
}

pub(super) fn key_of(item: &Item) -> Result<Key> {
    let part = |name| item.get(name).and_then(|value: &AttributeValue| value.as_s().ok()).cloned();
    let primary = part(keys::PK).zip(part(keys::SK)).map(|(pk, sk)| Primary { pk, sk });
    primary.and_then(|primary| keys::parse_delivery(&primary)).ok_or_else(|| corrupt("delivery key"))
}

impl Row {
    pub(super) fn of(delivery: &Delivery, now: Instant, retention: Duration) -> Self {
        let Primary { pk, sk } = keys::delivery(&delivery.key);
        let (status, next_attempt_at) = parts(delivery.state);
        let (resume_status, resume_at) = delivery.resume.map(parts).unzip();
        let listed = matches!(delivery.state, State::Pending(_) | State::Parked | State::Failed);
        Self {
            pk,
            sk,
            event: delivery.event_type.name().to_owned(),
            task_id: delivery.task_id.clone(),
            url: delivery.url.clone(),
            body: delivery.body.to_string(),
            traceparent: delivery.traceparent.clone(),
            status: status.to_owned(),
            attempt_count: delivery.attempt_count,
            step: delivery.step,
            attempts: delivery.attempts.clone(),
            created_at: delivery.created_at,
            next_attempt_at,
            last_failure: delivery.attempts.last().and_then(|attempt| attempt.failure),
            leased_until: None,
            resume_status: resume_status.map(str::to_owned),
            resume_at: resume_at.flatten(),
            replay: delivery.replay.clone(),
            due_shard: next_attempt_at.map(|_| keys::due_shard(&delivery.key.event)),
            sweep_at: next_attempt_at.map(|due| due::sweep_at(due, now)),
            state_key: listed.then(|| keys::deliveries_in_state(&delivery.key.account, delivery.key.webhook, status)),
            expires_at: next_attempt_at.is_none().then(|| (now + retention).seconds()),
        }
    }

    pub(super) fn into_delivery(self) -> Result<Delivery> {
        let primary = Primary { pk: self.pk, sk: self.sk };
        let resume = self.resume_status.map(|status| state(&status, self.resume_at)).transpose()?;
        Ok(Delivery {
            key: keys::parse_delivery(&primary).ok_or_else(|| corrupt("delivery key"))?,
            event_type: EventType::parse(&self.event).ok_or_else(|| corrupt("event type"))?,
            task_id: self.task_id,
            url: self.url,
            body: self.body.into(),
            traceparent: self.traceparent,
            state: state(&self.status, self.next_attempt_at)?,
            resume,
            replay: self.replay,
            attempt_count: self.attempt_count,
            step: self.step,
            attempts: self.attempts,
            created_at: self.created_at,
        })
    }
}

/// A state as the table has it.
const fn parts(state: State) -> (&'static str, Option<Instant>) {
    match state {
        State::Pending(at) => (state.name(), Some(at)),
        State::Parked | State::Delivered | State::Failed | State::Cancelled => (state.name(), None),
    }
}

fn state(status: &str, at: Option<Instant>) -> Result<State> {
    match (status, at) {
        ("pending", Some(at)) => Ok(State::Pending(at)),
        ("pending", None) => Ok(State::Parked),
        ("delivered", _) => Ok(State::Delivered),
        ("failed", _) => Ok(State::Failed),
        ("cancelled", _) => Ok(State::Cancelled),
        _ => Err(corrupt("delivery state")),
    }
}
