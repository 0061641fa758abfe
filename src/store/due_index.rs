//! The index of pending deliveries by the time when the sweep looks at them.

use std::time::Duration;

use serde::Deserialize;

use super::{
    delivery_row::parse_key,
    error::Result,
    item::{Item, attr_n, attr_s, from_item},
    key_schema::{self, DUE_SHARDS},
    table_client::{TableClient, WriteOutcome},
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

/// How many items of a shard are read per request.
const PAGE: i32 = 1_000;

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
    pub(super) fn new(
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

impl DueIndex<'_> {
    /// The deliveries that the sweep looks at by `until`, at most `limit_per_shard` of each shard.
    /// Invalid items are skipped.
    pub async fn list_due(
        self,
        until: Timestamp,
        limit_per_shard: usize,
    ) -> Result<Vec<DueDelivery>> {
        let shards = (0..DUE_SHARDS)
            .map(|shard| self.query_due_shard(shard, until, limit_per_shard))
            .collect();
        let mut due = Vec::new();
        for shard in concurrency::join_bounded(shards, usize::from(DUE_SHARDS)).await {
            due.extend(shard?);
        }
        Ok(due)
    }

    async fn query_due_shard(
        self,
        shard: u8,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<DueDelivery>> {
        let mut items = self
            .table
            .query()
            .index_name(DUE_INDEX)
            .key_condition_expression("due_shard = :shard AND sweep_at <= :until")
            .expression_attribute_values(":shard", attr_s(&key_schema::shard_name(shard)))
            .expression_attribute_values(":until", attr_n(until.as_unix_millis()))
            .limit(i32::try_from(limit).unwrap_or(PAGE).min(PAGE))
            .into_paginator()
            .items()
            .send();
        let mut due = Vec::new();
        while due.len() < limit
            && let Some(item) = items.next().await
        {
            match parse_due_item(item?) {
                Ok(delivery) => due.push(delivery),
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::error!(shard, error, "Skipped a due delivery: it cannot be read");
                }
            }
        }
        Ok(due)
    }

    /// Postpones the next look of the sweep until after the delivery's message should have been
    /// received. The condition fails if the delivery has changed.
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
