//! Markers: items that name the webhooks that have work left for a scheduled job.

use aws_sdk_dynamodb::{
    operation::query::builders::QueryFluentBuilder,
    types::{TransactWriteItem, Update},
};

use super::{
    error::Result,
    item::{Item, attr_n, attr_s, text},
    key_schema,
    table_client::TableClient,
};
use nano_webhooks_core::{account_id::AccountId, timestamp::Timestamp, webhook::WebhookId};

/// The attribute of a resume's marker: when the resume started.
pub(super) const STARTED_AT: &str = "created_at";
/// The attribute of a resume's marker and of an open breaker's: the delivery that was read last.
pub(super) const CURSOR: &str = "after";
/// The attribute of a resume's marker with a cursor: when the present pass over the paused
/// deliveries started.
pub(super) const PASS_STARTED_AT: &str = "pass_started_at";
/// The attribute of an open breaker's marker: when the next probe is due.
pub(super) const NEXT_PROBE_AT: &str = "next_probe_at";

const START_RESUME: &str = "SET #started = :now REMOVE #after, #pass";

/// A marker of a webhook.
pub(super) struct Marker {
    pub(super) account: AccountId,
    pub(super) webhook: WebhookId,
    pub(super) item: Item,
}

/// The markers of a partition, at most `limit`, strongly consistent. Invalid keys are skipped.
pub(super) async fn list_markers(
    table: &TableClient,
    partition: &str,
    limit: usize,
) -> Result<Vec<Marker>> {
    collect_markers(query_partition(table, partition), partition, limit).await
}

/// The markers of a partition whose time has come by `now`, at most `limit`, strongly consistent.
/// Invalid keys are skipped.
pub(super) async fn list_due_markers(
    table: &TableClient,
    partition: &str,
    time_attribute: &str,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<Marker>> {
    let query = query_partition(table, partition)
        .filter_expression("#time <= :now")
        .expression_attribute_names("#time", time_attribute)
        .expression_attribute_values(":now", attr_n(now.as_unix_millis()));
    collect_markers(query, partition, limit).await
}

/// Starts the resume of a webhook's paused deliveries at `now`, or starts it again. A resume that
/// runs keeps its pace: what follows comes after what it has scheduled.
pub(super) async fn start_resume(
    table: &TableClient,
    account: &AccountId,
    webhook: WebhookId,
    now: Timestamp,
) -> Result<()> {
    table
        .update(key_schema::pending_resume(account, webhook))
        .update_expression(START_RESUME)
        .expression_attribute_names("#started", STARTED_AT)
        .expression_attribute_names("#after", CURSOR)
        .expression_attribute_names("#pass", PASS_STARTED_AT)
        .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
        .send()
        .await?;
    Ok(())
}

/// Does the same in a transaction.
pub(super) fn transact_start_resume(
    table: &TableClient,
    account: &AccountId,
    webhook: WebhookId,
    now: Timestamp,
) -> TransactWriteItem {
    let update = Update::builder()
        .update_expression(START_RESUME)
        .expression_attribute_names("#started", STARTED_AT)
        .expression_attribute_names("#after", CURSOR)
        .expression_attribute_names("#pass", PASS_STARTED_AT)
        .expression_attribute_values(":now", attr_n(now.as_unix_millis()));
    table.transact_update(key_schema::pending_resume(account, webhook), update)
}

/// Marks an endpoint whose breaker is open, unless it is marked. Its next probe is due at `now`.
pub(super) async fn mark_open_breaker(
    table: &TableClient,
    account: &AccountId,
    webhook: WebhookId,
    now: Timestamp,
) -> Result<()> {
    table
        .update(key_schema::open_breaker(account, webhook))
        .update_expression("SET #next = if_not_exists(#next, :now)")
        .expression_attribute_names("#next", NEXT_PROBE_AT)
        .expression_attribute_values(":now", attr_n(now.as_unix_millis()))
        .send()
        .await?;
    Ok(())
}

fn query_partition(table: &TableClient, partition: &str) -> QueryFluentBuilder {
    table
        .query()
        .consistent_read(true)
        .key_condition_expression("PK = :partition")
        .expression_attribute_values(":partition", attr_s(partition))
}

async fn collect_markers(
    query: QueryFluentBuilder,
    partition: &str,
    limit: usize,
) -> Result<Vec<Marker>> {
    let mut items = query.into_paginator().items().send();
    let mut markers = Vec::new();
    while markers.len() < limit
        && let Some(item) = items.next().await
    {
        let item = item?;
        let sort_key = text(&item, key_schema::SK);
        match sort_key.and_then(key_schema::parse_deliveries) {
            Some((account, webhook)) => markers.push(Marker {
                account,
                webhook,
                item,
            }),
            None => {
                tracing::error!(
                    partition,
                    sort_key,
                    "Skipped a marker: its key cannot be read"
                );
            }
        }
    }
    Ok(markers)
}
