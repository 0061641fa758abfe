//! The index of pending deliveries by the time when the sweep should look at them.

use std::time::Duration;

use serde::Deserialize;

use super::{
    Item, Result, Store, attr_n, attr_s,
    deliveries::parse_key,
    from_item, into_condition_result,
    key_schema::{self, DUE_SHARDS},
    tables::DUE_INDEX,
};
use crate::concurrency;
use nano_webhooks_core::{
    delivery::{DeliveryKey, lease},
    timestamp::Timestamp,
};

/// How many items of the due index are read at a time.
const PAGE: i32 = 1_000;

/// A delivery that the due index gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueDelivery {
    /// The delivery.
    pub key: DeliveryKey,
    /// How many attempts were made.
    pub attempt_count: u32,
    /// When the next one is due.
    pub next_attempt_at: Timestamp,
    sweep_at: Timestamp,
}

#[derive(Deserialize)]
struct DueIndexRow {
    attempt_count: u32,
    next_attempt_at: Timestamp,
    sweep_at: Timestamp,
}

impl DueDelivery {
    /// Whether the sweep looks at it by `then`.
    pub fn is_sweepable_by(&self, then: Timestamp) -> bool {
        self.sweep_at <= then
    }

    /// How long it has waited for a sweep.
    pub fn waited(&self, now: Timestamp) -> Duration {
        now.saturating_duration_since(self.sweep_at)
    }

    /// A delivery that was made due.
    pub(super) const fn new(
        key: DeliveryKey,
        attempt_count: u32,
        next_attempt_at: Timestamp,
        sweep_at: Timestamp,
    ) -> Self {
        Self {
            key,
            attempt_count,
            next_attempt_at,
            sweep_at,
        }
    }
}

/// See [`Store::due_index`].
#[derive(Clone, Copy, Debug)]
pub struct DueIndex<'a> {
    store: &'a Store,
}

impl<'a> DueIndex<'a> {
    pub(super) const fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl DueIndex<'_> {
    /// Deliveries whose time for a look has come by `until`, at most so many of each shard of the index.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn list_due(
        self,
        until: Timestamp,
        of_each_shard: usize,
    ) -> Result<Vec<DueDelivery>> {
        let shards = (0..DUE_SHARDS)
            .map(|shard| self.query_due_shard(shard, until, of_each_shard))
            .collect();
        let pages = concurrency::join_bounded(shards, usize::from(DUE_SHARDS))
            .await
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        Ok(pages.into_iter().flatten().collect())
    }

    async fn query_due_shard(
        self,
        shard: u8,
        until: Timestamp,
        at_most: usize,
    ) -> Result<Vec<DueDelivery>> {
        let mut items = self
            .store
            .client
            .query()
            .table_name(&self.store.tables.deliveries)
            .index_name(DUE_INDEX)
            .key_condition_expression("due_shard = :shard AND sweep_at <= :until")
            .expression_attribute_values(":shard", attr_s(&key_schema::due_shard_name(shard)))
            .expression_attribute_values(":until", attr_n(until.as_unix_millis()))
            .limit(i32::try_from(at_most).unwrap_or(PAGE).min(PAGE))
            .into_paginator()
            .items()
            .send();
        let mut found = Vec::new();
        while found.len() < at_most
            && let Some(item) = items.next().await
        {
            match parse_due_item(item?) {
                Ok(due) => found.push(due),
                Err(error) => {
                    tracing::error!(shard, %error, "a due delivery cannot be read and is left out")
                }
            }
        }
        Ok(found)
    }

    /// Takes a due delivery for the queue: the sweep looks at it again only after its message should have been taken.
    /// `false` if it has moved on.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn mark_enqueued(self, due: &DueDelivery, now: Timestamp) -> Result<bool> {
        self.enqueue(due, now, "SET sweep_at = :sweep").await
    }

    /// The same for a delivery whose worker is known to be gone: its lease ends.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn reclaim(self, due: &DueDelivery, now: Timestamp) -> Result<bool> {
        self.enqueue(due, now, "SET sweep_at = :sweep REMOVE leased_until")
            .await
    }

    async fn enqueue(self, due: &DueDelivery, now: Timestamp, expression: &str) -> Result<bool> {
        let update = self
            .store
            .client
            .update_item()
            .table_name(&self.store.tables.deliveries)
            .set_key(Some(key_schema::delivery(&due.key).into_item()))
            .expression_attribute_names("#status", "status")
            .update_expression(expression)
            .condition_expression("#status = :pending AND sweep_at = :seen")
            .expression_attribute_values(":seen", attr_n(due.sweep_at.as_unix_millis()))
            .expression_attribute_values(
                ":sweep",
                attr_n((due.next_attempt_at.max(now) + lease::SWEEP_GRACE).as_unix_millis()),
            )
            .expression_attribute_values(":pending", attr_s("pending"));
        into_condition_result(update.send().await)
    }
}

fn parse_due_item(item: Item) -> Result<DueDelivery> {
    let key = parse_key(&item)?;
    let DueIndexRow {
        attempt_count,
        next_attempt_at,
        sweep_at,
    } = from_item(item)?;
    Ok(DueDelivery {
        key,
        attempt_count,
        next_attempt_at,
        sweep_at,
    })
}
