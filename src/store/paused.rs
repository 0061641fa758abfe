//! Paused deliveries: they are pending, and not due.

use super::{
    delivery_log::{DeliveryFilter, DeliveryLog},
    due_index::DueDelivery,
    error::Result,
    item::{attr_n, attr_s},
    key_schema,
    table_client::{TableClient, WriteOutcome},
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{DeliveryKey, lease, status::DeliveryStatus, wait_reason::WaitReason},
    event::EventId,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// A paused delivery.
pub(super) struct PausedDelivery {
    pub(super) key: DeliveryKey,
    pub(super) attempt_count: u32,
}

/// The paused deliveries among a page of pending ones, the newest first.
pub(super) struct PausedPage {
    pub(super) deliveries: Vec<PausedDelivery>,
    /// The last delivery of the page, if more follow.
    pub(super) next: Option<EventId>,
}

/// Reads paused deliveries and makes them due.
#[derive(Clone, Copy, Debug)]
pub(super) struct PausedDeliveries<'a> {
    table: &'a TableClient,
    log: DeliveryLog<'a>,
}

impl<'a> PausedDeliveries<'a> {
    pub(super) const fn new(table: &'a TableClient, log: DeliveryLog<'a>) -> Self {
        Self { table, log }
    }
}

impl PausedDeliveries<'_> {
    /// Reads `limit` pending deliveries of a webhook, from the one after `after` on.
    pub(super) async fn list(
        self,
        account: &AccountId,
        webhook: WebhookId,
        after: Option<EventId>,
        limit: usize,
    ) -> Result<PausedPage> {
        let filter = DeliveryFilter {
            status: Some(DeliveryStatus::Pending),
            event: None,
            after,
            limit,
        };
        let page = self.log.list(account, webhook, &filter).await?;
        let mut deliveries = Vec::new();
        for summary in page.deliveries {
            if summary.row.next_attempt_at.is_none() {
                let key = DeliveryKey {
                    account: account.clone(),
                    webhook,
                    event: summary.event_id,
                };
                let attempt_count = summary.row.attempt_count;
                deliveries.push(PausedDelivery { key, attempt_count });
            }
        }
        Ok(PausedPage {
            deliveries,
            next: page.next,
        })
    }

    /// Makes a paused delivery due at `due_at`, and returns it. `None` if it is no longer paused.
    pub(super) async fn schedule(
        self,
        delivery: PausedDelivery,
        due_at: Timestamp,
        now: Timestamp,
    ) -> Result<Option<DueDelivery>> {
        let PausedDelivery { key, attempt_count } = delivery;
        let sweep_at = lease::sweep_at(due_at, now);
        let response = self
            .table
            .update(key_schema::delivery(&key))
            .update_expression(
                "SET next_attempt_at = :due, sweep_at = :sweep, due_shard = :shard, \
                 waiting_for = :rate REMOVE expires_at, paced_since",
            )
            .expression_attribute_values(":rate", attr_s(WaitReason::Rate.as_str()))
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
}
