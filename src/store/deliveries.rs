//! Deliveries: checked for by one batched read, recorded by batched writes.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes, Put, TransactWriteItem};
use http::header::CONTENT_LENGTH;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Error, Item, Result, Store, attr_n, corrupt_item, from_item, into_condition_result,
    item_writer::BorrowedItem,
    key_schema::{self, PrimaryKey},
    sleep_with_backoff,
    tables::{DUE_SHARD, EXPIRES_AT, STATE_KEY, SWEEP_AT},
};
use crate::{clock::Deadline, concurrency};
use nano_webhooks_core::{
    delivery::{Delivery, DeliveryKey, DeliveryState, attempt::Attempt, lease},
    event::traceparent::Traceparent,
    event_type::EventType,
    replay::ReplayId,
    timestamp::Timestamp,
};

/// The most keys that BatchGetItem takes.
const BATCH_GET: usize = 100;
/// The most items that BatchWriteItem takes.
pub const BATCH_WRITE: usize = 25;
/// How many reads of them are on their way at the same time.
const CONCURRENT_BATCHES: usize = 8;

/// A delivery as it is read; [`to_delivery_item`] writes it.
#[derive(Deserialize)]
pub(super) struct DeliveryRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    event: String,
    task_id: Option<String>,
    url: String,
    body: String,
    traceparent: Option<Traceparent>,
    status: String,
    attempt_count: u32,
    step: u32,
    /// JSON, a list of [`Attempt`].
    attempts: String,
    created_at: Timestamp,
    next_attempt_at: Option<Timestamp>,
    /// Where it goes back to if an attempt out of turn fails: a status, and for `pending` its time.
    resume_status: Option<String>,
    resume_at: Option<Timestamp>,
    /// The replay that asked for the attempt that is due.
    replay: Option<ReplayId>,
}

/// The body of BatchWriteItem.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct BatchWriteJson<'a> {
    request_items: HashMap<&'a str, Vec<WriteRequestJson<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct WriteRequestJson<'a> {
    put_request: PutRequest<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PutRequest<'a> {
    item: BorrowedItem<'a>,
}

/// See [`Store::deliveries`].
#[derive(Clone, Copy, Debug)]
pub struct Deliveries<'a> {
    store: &'a Store,
}

impl<'a> Deliveries<'a> {
    pub(super) const fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl Deliveries<'_> {
    /// Which of these deliveries exist already, from strongly consistent reads.
    ///
    /// # Errors
    /// If DynamoDB does not answer for all of them before the deadline.
    pub async fn find_existing(
        self,
        keys: &[DeliveryKey],
        deadline: Deadline,
    ) -> Result<HashSet<DeliveryKey>> {
        let batches = keys
            .chunks(BATCH_GET)
            .map(|batch| self.find_existing_batch(batch, deadline))
            .collect();
        let found = concurrency::join_bounded(batches, CONCURRENT_BATCHES)
            .await
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn find_existing_batch(
        self,
        batch: &[DeliveryKey],
        deadline: Deadline,
    ) -> Result<Vec<DeliveryKey>> {
        let table = &self.store.tables.deliveries;
        let request = KeysAndAttributes::builder()
            .set_keys(Some(
                batch
                    .iter()
                    .map(|key| key_schema::delivery(key).into_item())
                    .collect(),
            ))
            .projection_expression("PK, SK")
            .consistent_read(true)
            .build()
            .expect("every required part is set");
        let mut open = HashMap::from([(table.clone(), request)]);
        let mut found = Vec::new();
        let mut tried = 0;
        loop {
            let mut answer = self
                .store
                .client
                .batch_get_item()
                .set_request_items(Some(open))
                .send()
                .await?;
            let items = answer
                .responses
                .as_mut()
                .and_then(|tables| tables.remove(table))
                .unwrap_or_default();
            for item in items {
                found.push(parse_key(&item)?);
            }
            open = answer.unprocessed_keys.unwrap_or_default();
            if open.is_empty() {
                return Ok(found);
            }
            backoff_until(tried, deadline).await?;
            tried += 1;
        }
    }

    /// The recording of a delivery as a part of a transaction.
    pub(super) fn transact_put(
        self,
        delivery: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> TransactWriteItem {
        let put = Put::builder().table_name(&self.store.tables.deliveries);
        let put = put.set_item(Some(to_delivery_item(delivery, now, retention)));
        TransactWriteItem::builder()
            .put(put.build().expect("every required part is set"))
            .build()
    }

    /// Records at most [`BATCH_WRITE`] deliveries, by one request; says which DynamoDB left undone. Settled ones expire after
    /// `retention`.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn batch_write(
        self,
        batch: impl Iterator<Item = &Delivery>,
        now: Timestamp,
        retention: Duration,
    ) -> Result<HashSet<DeliveryKey>> {
        let put = |delivery| WriteRequestJson {
            put_request: PutRequest {
                item: write_attributes(delivery, now, retention),
            },
        };
        let body = BatchWriteJson {
            request_items: HashMap::from([(
                &*self.store.tables.deliveries,
                batch.map(put).collect(),
            )]),
        };
        let body = Bytes::from(serde_json::to_vec(&body).expect("all names are text"));
        // A dispatcher does hardly anything as often. So the SDK is given the table alone, and what it signs, sends and tries again
        // is this body in the place of its own.
        let request = self
            .store
            .client
            .batch_write_item()
            .request_items(&self.store.tables.deliveries, Vec::new());
        let request = request.customize().mutate_request(move |request| {
            request
                .headers_mut()
                .insert(CONTENT_LENGTH.as_str(), body.len().to_string());
            *request.body_mut() = body.clone().into();
        });
        let undone = request
            .send()
            .await?
            .unprocessed_items
            .into_iter()
            .flat_map(HashMap::into_values)
            .flatten();
        undone
            .filter_map(|write| write.put_request)
            .map(|put| parse_key(&put.item))
            .collect()
    }

    /// Records a delivery that is due for the next sweep to find, as no message names it; `false` if it is recorded already, which
    /// stays as it is.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn insert_for_sweep(
        self,
        delivery: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> Result<bool> {
        let mut item = to_delivery_item(delivery, now, retention);
        if let DeliveryState::Pending(due) = delivery.state {
            // It has no message: the next sweep sends one that can have it.
            let sweep_at = if lease::fits_in_queue(due, now) {
                now
            } else {
                lease::sweep_at(due, now)
            };
            item.insert(SWEEP_AT.to_owned(), attr_n(sweep_at.as_unix_millis()));
        }
        let put = self
            .store
            .client
            .put_item()
            .table_name(&self.store.tables.deliveries)
            .set_item(Some(item));
        into_condition_result(
            put.condition_expression("attribute_not_exists(PK)")
                .send()
                .await,
        )
    }

    /// One delivery, strongly consistent.
    ///
    /// # Errors
    /// If DynamoDB does not answer, or the item breaks the rules.
    pub async fn get(self, key: &DeliveryKey) -> Result<Option<Delivery>> {
        let get = self
            .store
            .client
            .get_item()
            .table_name(&self.store.tables.deliveries)
            .consistent_read(true);
        let item = get
            .set_key(Some(key_schema::delivery(key).into_item()))
            .send()
            .await?
            .item;
        item.map(|item| from_item::<DeliveryRow>(item)?.into_delivery())
            .transpose()
    }
}

/// Waits before what DynamoDB left undone is asked for again.
///
/// # Errors
/// If the deadline has come.
pub async fn backoff_until(tried: u32, deadline: Deadline) -> Result<()> {
    if deadline.remaining().is_zero() {
        return Err(Error::Unavailable(
            "items were left unprocessed until the deadline".to_owned(),
        ));
    }
    sleep_with_backoff(tried).await;
    Ok(())
}

pub(super) fn parse_key(item: &Item) -> Result<DeliveryKey> {
    let part = |name| {
        item.get(name)
            .and_then(|value: &AttributeValue| value.as_s().ok())
            .cloned()
    };
    let primary = part(key_schema::PK)
        .zip(part(key_schema::SK))
        .map(|(pk, sk)| PrimaryKey { pk, sk });
    primary
        .and_then(|primary| key_schema::parse_delivery(&primary))
        .ok_or_else(|| corrupt_item("delivery key"))
}

/// A delivery as it is written, for the SDK.
pub(super) fn to_delivery_item(delivery: &Delivery, now: Timestamp, retention: Duration) -> Item {
    write_attributes(delivery, now, retention).into()
}

/// A delivery as it is written. Room is made for all that there may be.
fn write_attributes(delivery: &Delivery, now: Timestamp, retention: Duration) -> BorrowedItem<'_> {
    let PrimaryKey { pk, sk } = key_schema::delivery(&delivery.key);
    let (status, next_attempt_at) = state_columns(delivery.state);
    let mut item = BorrowedItem::with_capacity(20);
    item.text(key_schema::PK, pk);
    item.text(key_schema::SK, sk);
    item.text("event", delivery.event_type.as_str());
    item.text("url", &*delivery.url);
    item.text("body", &*delivery.body);
    item.text("status", status);
    item.number("attempt_count", delivery.attempt_count);
    item.number("step", delivery.schedule_step);
    item.text(
        "attempts",
        serde_json::to_string(&delivery.attempts).expect("attempts are plain data"),
    );
    item.number("created_at", delivery.created_at.as_unix_millis());
    if let Some(task_id) = &delivery.task_id {
        item.text("task_id", task_id);
    }
    if let Some(traceparent) = &delivery.traceparent {
        item.text("traceparent", traceparent.as_str());
    }
    if let Some(failure) = delivery.attempts.last().and_then(|attempt| attempt.failure) {
        item.text("last_failure", failure.as_str());
    }
    if let Some(replay) = &delivery.replay {
        item.text("replay", replay.as_str());
    }
    if let Some((status, at)) = delivery.state_before_retry.map(state_columns) {
        item.text("resume_status", status);
        if let Some(at) = at {
            item.number("resume_at", at.as_unix_millis());
        }
    }
    // Only what is pending is in the due index, and only what is settled expires.
    if let Some(due) = next_attempt_at {
        item.number("next_attempt_at", due.as_unix_millis());
        item.text(DUE_SHARD, key_schema::due_shard(&delivery.key.event));
        item.number(SWEEP_AT, lease::sweep_at(due, now).as_unix_millis());
    } else {
        item.number(EXPIRES_AT, (now + retention).as_unix_seconds());
    }
    // Only what is pending or failed is in the state index.
    if matches!(
        delivery.state,
        DeliveryState::Pending(_) | DeliveryState::Paused | DeliveryState::Failed
    ) {
        let of_webhook =
            key_schema::state_index_key(&delivery.key.account, delivery.key.webhook, status);
        item.text(STATE_KEY, of_webhook);
    }
    item
}

impl DeliveryRow {
    pub(super) fn into_delivery(self) -> Result<Delivery> {
        let primary = PrimaryKey {
            pk: self.pk,
            sk: self.sk,
        };
        let resume = self
            .resume_status
            .map(|status| parse_state(&status, self.resume_at))
            .transpose()?;
        Ok(Delivery {
            key: key_schema::parse_delivery(&primary)
                .ok_or_else(|| corrupt_item("delivery key"))?,
            event_type: EventType::parse(&self.event).ok_or_else(|| corrupt_item("event type"))?,
            task_id: self.task_id,
            url: self.url,
            body: self.body.into(),
            traceparent: self.traceparent,
            state: parse_state(&self.status, self.next_attempt_at)?,
            state_before_retry: resume,
            replay: self.replay,
            attempt_count: self.attempt_count,
            schedule_step: self.step,
            attempts: serde_json::from_str::<Vec<Attempt>>(&self.attempts)
                .map_err(|_| corrupt_item("attempts"))?,
            created_at: self.created_at,
        })
    }
}

/// A state as the table has it.
const fn state_columns(state: DeliveryState) -> (&'static str, Option<Timestamp>) {
    match state {
        DeliveryState::Pending(at) => (state.as_str(), Some(at)),
        DeliveryState::Paused
        | DeliveryState::Delivered
        | DeliveryState::Failed
        | DeliveryState::Cancelled => (state.as_str(), None),
    }
}

fn parse_state(status: &str, at: Option<Timestamp>) -> Result<DeliveryState> {
    match (status, at) {
        ("pending", Some(at)) => Ok(DeliveryState::Pending(at)),
        ("pending", None) => Ok(DeliveryState::Paused),
        ("delivered", _) => Ok(DeliveryState::Delivered),
        ("failed", _) => Ok(DeliveryState::Failed),
        ("cancelled", _) => Ok(DeliveryState::Cancelled),
        _ => Err(corrupt_item("delivery state")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::response_body::MAX_BODY_KEPT,
        store::{from_item, rotation::MAX_ACTIVE_SECRETS},
    };
    use nano_webhooks_core::{
        account_id::AccountId,
        delivery::{
            failure::{Failure, FailureKind},
            schedule::RetrySchedule,
            timings::PhaseTimings,
        },
        endpoint_url::EndpointUrl,
        event::{EventId, MAX_PAYLOAD_LEN},
        signing::Signatures,
        webhook::WebhookId,
    };

    #[test]
    fn what_is_written_is_read_again_whole() {
        let at = Timestamp::from_millis;
        let attempt = Attempt {
            number: 1,
            started_at: at(5),
            duration_ms: u64::MAX,
            timings: PhaseTimings {
                wait: Some(7),
                ..PhaseTimings::default()
            },
            status_code: Some(503),
            failure: Some(FailureKind::Status),
            detail: Some("The answer was status 503.".to_owned()),
            response_excerpt: Some(String::new()),
            signatures: Some(Signatures {
                nano: "v1=00".to_owned(),
                standard: "v1,AA==".to_owned(),
            }),
            version: "1.2.3".to_owned(),
        };
        let bare = Attempt {
            status_code: None,
            failure: None,
            detail: None,
            response_excerpt: None,
            signatures: None,
            ..attempt.clone()
        };
        let traceparent =
            Traceparent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        assert!(traceparent.is_some());
        let key = DeliveryKey {
            account: AccountId::parse("acme").unwrap(),
            webhook: WebhookId::new(1).unwrap(),
            event: EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
        };
        let new = || {
            Delivery::new(
                key.clone(),
                EventType::JobFailed,
                None,
                "https://example.com".into(),
                "{}".into(),
                at(1),
            )
        };
        let full = |state, resume| Delivery {
            task_id: Some("task".to_owned()),
            traceparent: traceparent.clone(),
            state,
            state_before_retry: resume,
            replay: Some(ReplayId::from_random([7; 8])),
            attempt_count: 22,
            schedule_step: 2,
            attempts: vec![bare.clone(), attempt.clone()],
            created_at: at(3),
            ..new()
        };
        for delivery in [
            new(),
            full(DeliveryState::Pending(at(9)), Some(DeliveryState::Failed)),
            full(
                DeliveryState::Pending(at(9)),
                Some(DeliveryState::Pending(at(10))),
            ),
            full(DeliveryState::Paused, None),
            full(DeliveryState::Delivered, None),
            full(DeliveryState::Failed, None),
            full(DeliveryState::Cancelled, None),
        ] {
            let item = to_delivery_item(&delivery, at(100), Duration::from_mins(1));
            assert_eq!(
                from_item::<DeliveryRow>(item)
                    .unwrap()
                    .into_delivery()
                    .unwrap(),
                delivery
            );
        }

        let attributes = |delivery: &Delivery| {
            let item = to_delivery_item(delivery, at(100), Duration::from_mins(1));
            let text = |name: &str| {
                item.get(name)
                    .and_then(|value| value.as_s().or(value.as_n()).ok())
                    .cloned()
            };
            ["last_failure", DUE_SHARD, SWEEP_AT, STATE_KEY, EXPIRES_AT].map(text)
        };
        let some = |text: &str| Some(text.to_owned());
        let (shard, sweep) = (
            key_schema::due_shard(&key.event),
            lease::sweep_at(at(9), at(100)).as_unix_millis().to_string(),
        );
        let failed_before = full(DeliveryState::Pending(at(9)), None);
        let expected = [
            some("status"),
            Some(shard),
            Some(sweep),
            some("acme#1#pending"),
            None,
        ];
        assert_eq!(attributes(&failed_before), expected);
        let expected = [
            some("status"),
            None,
            None,
            some("acme#1#failed"),
            some("60"),
        ];
        assert_eq!(attributes(&full(DeliveryState::Failed, None)), expected);
        let delivered = Delivery {
            attempts: vec![bare.clone()],
            ..full(DeliveryState::Delivered, None)
        };
        assert_eq!(attributes(&delivered), [None, None, None, None, some("60")]);
    }

    #[test]
    fn the_largest_delivery_is_an_item_that_dynamodb_takes() {
        let at = Timestamp::from_millis;
        let key = DeliveryKey {
            account: AccountId::parse(&"a".repeat(AccountId::MAX)).unwrap(),
            webhook: WebhookId::new(1).unwrap(),
            event: EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
        };
        let failure = Failure::Connect;
        let attempt = Attempt {
            number: u32::MAX,
            started_at: at(i64::MAX),
            duration_ms: u64::MAX,
            timings: PhaseTimings {
                dns: Some(u64::MAX),
                ..PhaseTimings::default()
            },
            status_code: Some(503),
            failure: Some(failure.kind()),
            detail: Some(failure.to_string()),
            // Of what JSON writes with six characters as much as is kept.
            response_excerpt: Some("\u{1}".repeat(MAX_BODY_KEPT)),
            signatures: Some(Signatures {
                nano: "v".repeat(67),
                standard: "v".repeat(MAX_ACTIVE_SECRETS * 48),
            }),
            version: "100.100.100".to_owned(),
        };
        let url = format!(
            "https://example.com/{}",
            "\u{10348}".repeat(EndpointUrl::MAX)
        );
        let delivery = Delivery {
            attempts: vec![attempt; RetrySchedule::MAX_ATTEMPTS],
            ..Delivery::new(
                key,
                EventType::JobFailed,
                Some("t".repeat(2_048)),
                url,
                "b".repeat(MAX_PAYLOAD_LEN).into(),
                at(1),
            )
        };
        let item = to_delivery_item(&delivery, at(100), Duration::from_mins(1));
        let size = |value: &AttributeValue| {
            value
                .as_s()
                .or(value.as_n())
                .map_or(usize::MAX, String::len)
        };
        let bytes: usize = item
            .iter()
            .map(|(name, value)| name.len() + size(value))
            .sum();
        assert!(bytes <= 400 * 1024, "{bytes}");
    }
}
