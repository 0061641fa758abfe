//! Deliveries by key: which of them exist, one batched read; recording, batched writes.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use aws_sdk_dynamodb::types::{Put, TransactWriteItem};
use http::header::CONTENT_LENGTH;
use hyper::body::Bytes;
use serde::Serialize;

use super::{
    delivery_row::{DeliveryRow, parse_key, to_delivery_item, write_delivery},
    error::Result,
    item::attr_n,
    item_writer::BorrowedItem,
    key_schema,
    table_client::{BATCH_GET, Consistency, TableClient, WriteOutcome, insert_if_absent},
    tables::SWEEP_AT,
};
use crate::{clock::Deadline, concurrency};
use nano_webhooks_core::{
    delivery::{Delivery, DeliveryKey, DeliveryState, lease},
    timestamp::Timestamp,
};

/// The most items that BatchWriteItem accepts.
pub const BATCH_WRITE: usize = 25;
/// How many BatchGetItem requests are in flight at the same time.
const CONCURRENT_BATCHES: usize = 8;

/// The body of BatchWriteItem.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct BatchWriteJson<'a> {
    request_items: HashMap<&'a str, Vec<WriteRequestJson<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct WriteRequestJson<'a> {
    put_request: PutRequestJson<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PutRequestJson<'a> {
    item: BorrowedItem<'a>,
}

/// See [`Store::deliveries`](super::Store::deliveries).
#[derive(Clone, Copy, Debug)]
pub struct Deliveries<'a> {
    table: &'a TableClient,
}

impl<'a> Deliveries<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }
}

impl Deliveries<'_> {
    /// A delivery, strongly consistent.
    pub async fn get(self, key: &DeliveryKey) -> Result<Option<Delivery>> {
        let row: Option<DeliveryRow> = self.table.get_row(key_schema::delivery(key)).await?;
        match row {
            Some(row) => Ok(Some(row.into_delivery()?)),
            None => Ok(None),
        }
    }

    /// Which of these deliveries exist, strongly consistent.
    pub async fn find_existing(
        self,
        keys: &[DeliveryKey],
        deadline: Deadline,
    ) -> Result<HashSet<DeliveryKey>> {
        let batches = keys
            .chunks(BATCH_GET)
            .map(|batch| self.find_existing_batch(batch, deadline))
            .collect();
        let mut existing = HashSet::new();
        for batch in concurrency::join_bounded(batches, CONCURRENT_BATCHES).await {
            existing.extend(batch?);
        }
        Ok(existing)
    }

    async fn find_existing_batch(
        self,
        batch: &[DeliveryKey],
        deadline: Deadline,
    ) -> Result<Vec<DeliveryKey>> {
        let keys = batch.iter().map(key_schema::delivery);
        let items = self
            .table
            .batch_get(keys, "PK, SK", Consistency::Strong, deadline)
            .await?;
        items.iter().map(parse_key).collect()
    }

    /// The recording of a delivery in a transaction.
    pub(super) fn transact_put(
        self,
        delivery: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> TransactWriteItem {
        let item = to_delivery_item(delivery, now, retention);
        self.table.transact_put(Put::builder().set_item(Some(item)))
    }

    /// Records a delivery unless it exists. The SDK does not retry: a request to a throttled
    /// partition must end at once, so that the caller can write other deliveries meanwhile.
    pub async fn insert_once(
        self,
        delivery: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> Result<WriteOutcome> {
        let item = to_delivery_item(delivery, now, retention);
        self.table.put_if_once(insert_if_absent(item)).await
    }

    /// Records at most [`BATCH_WRITE`] deliveries in one request, whatever is stored. Returns those
    /// that DynamoDB did not process. Only successful deliveries may be recorded this way, because
    /// another reader of the stream may have recorded the success of the same delivery.
    pub async fn batch_write(
        self,
        batch: impl Iterator<Item = &Delivery>,
        now: Timestamp,
        retention: Duration,
    ) -> Result<HashSet<DeliveryKey>> {
        let body = self.batch_write_body(batch, now, retention);
        // The SDK would build a map of owned strings for each delivery. So it gets an empty list,
        // and signs, sends and retries this body instead of its own.
        let request = self
            .table
            .client()
            .batch_write_item()
            .request_items(self.table.name(), Vec::new())
            .customize()
            .mutate_request(move |request| {
                let length = body.len().to_string();
                request
                    .headers_mut()
                    .insert(CONTENT_LENGTH.as_str(), length);
                *request.body_mut() = body.clone().into();
            });
        let response = request.send().await?;
        let writes = response.unprocessed_items.into_iter().flatten();
        let mut unprocessed = HashSet::new();
        for write in writes.flat_map(|(_, writes)| writes) {
            if let Some(put) = write.put_request {
                unprocessed.insert(parse_key(&put.item)?);
            }
        }
        Ok(unprocessed)
    }

    fn batch_write_body<'d>(
        self,
        batch: impl Iterator<Item = &'d Delivery>,
        now: Timestamp,
        retention: Duration,
    ) -> Bytes {
        let requests = batch
            .map(|delivery| WriteRequestJson {
                put_request: PutRequestJson {
                    item: write_delivery(delivery, now, retention),
                },
            })
            .collect();
        let body = BatchWriteJson {
            request_items: HashMap::from([(self.table.name(), requests)]),
        };
        Bytes::from(serde_json::to_vec(&body).expect("all names are text"))
    }

    /// Records a delivery unless it exists. No message is sent for it: the next sweep does that.
    pub async fn insert_for_sweep(
        self,
        delivery: &Delivery,
        now: Timestamp,
        retention: Duration,
    ) -> Result<WriteOutcome> {
        let mut item = to_delivery_item(delivery, now, retention);
        if let DeliveryState::Pending(due_at) = delivery.state
            && lease::fits_in_queue(due_at, now)
        {
            item.insert(SWEEP_AT.to_owned(), attr_n(now.as_unix_millis()));
        }
        self.table.insert(item).await
    }
}
