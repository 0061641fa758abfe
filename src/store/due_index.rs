//! The index of pending deliveries by the time when the sweep looks at them.

use std::time::Duration;

use serde::Deserialize;

use super::{
    delivery_row::parse_key,
    error::Result,
    item::{Item, attr_n, attr_s, from_item},
    key_schema::{self, DUE_SHARDS},
    table_client::{TableClient, WriteOutcome, without_retries},
    tables::DUE_INDEX,
};
use crate::{concurrency, error_chain::error_chain};
use nano_webhooks_core::{
    delivery::{
        DeliveryKey, lease,
        scheduled_retry::{RetryMessage, ScheduledRetry},
        status::DeliveryStatus,
    },
    timestamp::Timestamp,
};

/// How many deliveries of a shard are read per request for a list of all.
const LIST_PAGE_SIZE: usize = 1_000;

/// A pending delivery, as the due index lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueDelivery {
    /// The delivery.
    pub key: DeliveryKey,
    /// How many attempts were made.
    pub attempt_count: u32,
    /// When the next attempt is due.
    pub next_attempt_at: Timestamp,
    sweep_at: Timestamp,
}

impl From<DueDelivery> for ScheduledRetry {
    fn from(due: DueDelivery) -> Self {
        let message = RetryMessage {
            key: due.key,
            attempt_count: due.attempt_count,
        };
        Self {
            message,
            due: due.next_attempt_at,
        }
    }
}

#[derive(Deserialize)]
struct DueIndexRow {
    attempt_count: u32,
    next_attempt_at: Timestamp,
    sweep_at: Timestamp,
}

impl DueDelivery {
    /// A delivery that was scheduled at `now`.
    pub(crate) fn new(
        key: DeliveryKey,
        attempt_count: u32,
        next_attempt_at: Timestamp,
        now: Timestamp,
    ) -> Self {
        Self {
            key,
            attempt_count,
            next_attempt_at,
            sweep_at: lease::sweep_at(next_attempt_at, now),
        }
    }

    /// Whether a sweep at `now` lists it.
    pub fn is_sweepable_by(&self, now: Timestamp) -> bool {
        self.sweep_at <= now
    }

    /// How long it has waited for a sweep.
    pub fn sweep_lag(&self, now: Timestamp) -> Duration {
        now.saturating_duration_since(self.sweep_at)
    }
}

/// Where the next page of a shard starts.
#[derive(Clone, Debug)]
pub struct DueCursor(Item);

/// A page of a shard.
#[derive(Debug)]
pub struct DuePage {
    /// The deliveries.
    pub due: Vec<DueDelivery>,
    /// The next page, if there is one.
    pub next: Option<DueCursor>,
}

/// See [`Store::due_index`](super::Store::due_index).
#[derive(Clone, Copy, Debug)]
pub struct DueIndex<'a> {
    table: &'a TableClient,
}

impl<'a> DueIndex<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }
}

impl<'a> DueIndex<'a> {
    /// A page of the deliveries of a shard that the sweep looks at by `until`, the longest waiting
    /// first. Invalid items are skipped.
    pub async fn query_page(
        self,
        shard: u8,
        until: Timestamp,
        cursor: Option<DueCursor>,
        page_size: usize,
    ) -> Result<DuePage> {
        let response = self
            .table
            .query()
            .index_name(DUE_INDEX)
            .key_condition_expression("due_shard = :shard AND sweep_at <= :until")
            .expression_attribute_values(":shard", attr_s(&key_schema::shard_name(shard)))
            .expression_attribute_values(":until", attr_n(until.as_unix_millis()))
            .limit(i32::try_from(page_size).unwrap_or(i32::MAX))
            .set_exclusive_start_key(cursor.map(|cursor| cursor.0))
            .send()
            .await?;
        let mut due = Vec::new();
        for item in response.items.unwrap_or_default() {
            match parse_due_item(item) {
                Ok(delivery) => due.push(delivery),
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::error!(shard, error, "Skipped a due delivery: it cannot be read");
                }
            }
        }
        Ok(DuePage {
            due,
            next: response.last_evaluated_key.map(DueCursor),
        })
    }

    /// The deliveries that the sweep looks at by `until`, at most `limit_per_shard` of each shard.
    pub async fn list_due(
        self,
        until: Timestamp,
        limit_per_shard: usize,
    ) -> Result<Vec<DueDelivery>> {
        let shards = (0..DUE_SHARDS)
            .map(|shard| self.list_due_shard(shard, until, limit_per_shard))
            .collect();
        let mut due = Vec::new();
        for shard in concurrency::join_bounded(shards, usize::from(DUE_SHARDS)).await {
            due.extend(shard?);
        }
        Ok(due)
    }

    async fn list_due_shard(
        self,
        shard: u8,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<DueDelivery>> {
        let mut due = Vec::new();
        let mut cursor = None;
        while due.len() < limit {
            let page_size = (limit - due.len()).min(LIST_PAGE_SIZE);
            let mut page = self.query_page(shard, until, cursor, page_size).await?;
            due.append(&mut page.due);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        Ok(due)
    }

    /// The name of the table that has the deliveries.
    pub fn table_name(self) -> &'a str {
        self.table.name()
    }

    /// Postpones the next look of the sweep until after the delivery's message should have been
    /// received. The condition fails if the delivery has changed. A refused request is not
    /// repeated.
    pub async fn mark_enqueued(self, due: &DueDelivery, now: Timestamp) -> Result<WriteOutcome> {
        self.postpone_sweep(due, now, "SET sweep_at = :sweep").await
    }

    /// Does the same and ends the delivery's lease. Only for a delivery whose worker no longer
    /// exists.
    pub async fn reclaim(self, due: &DueDelivery, now: Timestamp) -> Result<WriteOutcome> {
        self.postpone_sweep(due, now, "SET sweep_at = :sweep REMOVE leased_until")
            .await
    }

    async fn postpone_sweep(
        self,
        due: &DueDelivery,
        now: Timestamp,
        expression: &str,
    ) -> Result<WriteOutcome> {
        let sweep_at = due.next_attempt_at.max(now) + lease::SWEEP_GRACE;
        let response = self
            .table
            .update(key_schema::delivery(&due.key))
            .update_expression(expression)
            .condition_expression("#status = :pending AND sweep_at = :seen")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":seen", attr_n(due.sweep_at.as_unix_millis()))
            .expression_attribute_values(":sweep", attr_n(sweep_at.as_unix_millis()))
            .expression_attribute_values(":pending", attr_s(DeliveryStatus::Pending.as_str()))
            .customize()
            .config_override(without_retries())
            .send()
            .await;
        WriteOutcome::from_response(response)
    }

    /// Makes the next sweep look at a delivery whose message was not sent. The condition fails if
    /// the delivery has changed or the sweep looks at it already. A refused request is not
    /// repeated.
    pub async fn request_sweep(
        self,
        retry: &ScheduledRetry,
        now: Timestamp,
    ) -> Result<WriteOutcome> {
        let message = &retry.message;
        let response = self
            .table
            .update(key_schema::delivery(&message.key))
            .update_expression("SET sweep_at = :now")
            .condition_expression(
                "#status = :pending AND attempt_count = :count AND next_attempt_at = :due \
                 AND sweep_at > :now \
                 AND (attribute_not_exists(leased_until) OR leased_until <= :now)",
            )
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
            .expression_attribute_values(":count", attr_n(message.attempt_count.into()))
            .expression_attribute_values(":due", attr_n(retry.due.as_unix_millis()))
            .expression_attribute_values(":pending", attr_s(DeliveryStatus::Pending.as_str()))
            .customize()
            .config_override(without_retries())
            .send()
            .await;
        WriteOutcome::from_response(response)
    }
}

fn parse_due_item(item: Item) -> Result<DueDelivery> {
    let key = parse_key(&item)?;
    let row: DueIndexRow = from_item(item)?;
    Ok(DueDelivery {
        key,
        attempt_count: row.attempt_count,
        next_attempt_at: row.next_attempt_at,
        sweep_at: row.sweep_at,
    })
}
