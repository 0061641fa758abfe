//! Markers: items that name the webhooks that have work left for a sweep.

use super::{
    error::Result,
    item::{Item, attr_s, text},
    key_schema,
    table_client::TableClient,
};
use nano_webhooks_core::{account_id::AccountId, webhook::WebhookId};

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
    let mut items = table
        .query()
        .consistent_read(true)
        .key_condition_expression("PK = :partition")
        .expression_attribute_values(":partition", attr_s(partition))
        .into_paginator()
        .items()
        .send();
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
