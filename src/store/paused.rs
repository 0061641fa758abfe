//! Paused deliveries: they are pending, and not due.

use super::{
    due_index::DueDelivery,
    error::Result,
    item::{attr_n, attr_s},
    key_schema,
    table_client::{TableClient, WriteOutcome},
};
use nano_webhooks_core::{
    delivery::{DeliveryKey, lease, status::DeliveryStatus},
    timestamp::Timestamp,
};

/// A paused delivery.
pub(super) struct PausedDelivery {
    pub(super) key: DeliveryKey,
    pub(super) attempt_count: u32,
}

/// Makes a paused delivery due at `due_at`, and returns it. `None` if it is no longer paused.
pub(super) async fn schedule(
    table: &TableClient,
    delivery: PausedDelivery,
    due_at: Timestamp,
    now: Timestamp,
) -> Result<Option<DueDelivery>> {
    let PausedDelivery { key, attempt_count } = delivery;
    let sweep_at = lease::sweep_at(due_at, now);
    let response = table
        .update(key_schema::delivery(&key))
        .update_expression(
            "SET next_attempt_at = :due, sweep_at = :sweep, due_shard = :shard \
             REMOVE expires_at, waiting_for",
        )
        .condition_expression("#status = :pending AND attribute_not_exists(next_attempt_at)")
        .expression_attribute_names("#status", "status")
        .expression_attribute_values(":pending", attr_s(DeliveryStatus::Pending.as_str()))
        .expression_attribute_values(":due", attr_n(due_at.as_unix_millis()))
        .expression_attribute_values(":sweep", attr_n(sweep_at.as_unix_millis()))
        .expression_attribute_values(":shard", attr_s(&key_schema::due_shard(&key.event)))
        .send()
        .await;
    match WriteOutcome::from_response(response)? {
        WriteOutcome::Applied => Ok(Some(DueDelivery::new(key, attempt_count, due_at, now))),
        WriteOutcome::ConditionFailed => Ok(None),
    }
}
