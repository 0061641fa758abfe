//! Markers: items that name the webhooks that have work left for a scheduled job.

use aws_sdk_dynamodb::{
    operation::query::builders::QueryFluentBuilder,
    types::{Put, builders::PutBuilder},
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
/// The attribute of an open breaker's marker: when the next probe is due.
pub(super) const NEXT_PROBE_AT: &str = "next_probe_at";

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

/// Marks a webhook whose paused deliveries are resumed from `now` on.
pub(super) fn put_resume(account: &AccountId, webhook: WebhookId, now: Timestamp) -> PutBuilder {
    let key = key_schema::pending_resume(account, webhook);
    Put::builder()
        .set_item(Some(key.into_item()))
        .item(STARTED_AT, attr_n(now.as_unix_millis()))
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
