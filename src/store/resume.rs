//! Parked deliveries of a webhook that was enabled again: made due step by step, so that the endpoint is not flooded, and by
//! whoever sweeps, so that nothing depends on one process.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;

use super::{
    Item, Result, Store,
    delivery_log::{DeliveryFilter, DeliveryStatus},
    due_index::DueDelivery,
    into_condition_result, key_schema,
};
use crate::concurrency;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{DeliveryKey, lease},
    event::EventId,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// How many deliveries a step makes due.
const STEP: usize = 300;
/// How many of them are changed at the same time.
const CONCURRENT: usize = 16;
/// How long after the enabling the parked deliveries are gone through again: a worker that read the webhook before may have
/// parked one since, and the index shows it a moment later.
const RESCAN_WINDOW: Duration = Duration::from_mins(2);

/// A webhook whose parked deliveries are being made due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeJob {
    /// Whose it is.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    enabled_at: Timestamp,
    after: Option<EventId>,
}

impl ResumeJob {
    /// That of a webhook that was enabled just now.
    pub const fn new(account: AccountId, webhook: WebhookId, now: Timestamp) -> Self {
        Self {
            account,
            webhook,
            enabled_at: now,
            after: None,
        }
    }
}

/// See [`Store::resumes`].
#[derive(Clone, Copy, Debug)]
pub struct Resumes<'a> {
    store: &'a Store,
}

impl<'a> Resumes<'a> {
    pub(super) const fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl Resumes<'_> {
    /// The webhooks that were enabled again and may still have parked deliveries, at most so many.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn list(self, at_most: usize) -> Result<Vec<ResumeJob>> {
        let read = |account, webhook, item: &Item| {
            let enabled_at = item.get("created_at")?.as_n().ok()?.parse().ok()?;
            let after = item
                .get("after")
                .and_then(|after| EventId::parse(after.as_s().ok()?));
            Some(ResumeJob {
                account,
                webhook,
                enabled_at: Timestamp::from_millis(enabled_at),
                after,
            })
        };
        self.store
            .marked(key_schema::PENDING_RESUMES, at_most, read)
            .await
    }

    /// Takes a step: makes a part of a webhook's parked deliveries due, one after the other, and says which.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn run_step(self, unparking: &ResumeJob, now: Timestamp) -> Result<Vec<DueDelivery>> {
        let ResumeJob {
            account,
            webhook,
            enabled_at,
            after,
        } = unparking;
        let filter = DeliveryFilter {
            status: Some(DeliveryStatus::Pending),
            event: None,
            after: after.clone(),
            limit: STEP,
        };
        let page = self
            .store
            .delivery_log()
            .list(account, *webhook, &filter)
            .await?;
        let parked = page
            .deliveries
            .into_iter()
            .filter(|listed| listed.row.next_attempt_at.is_none());
        let mut due_at = now;
        let changes = parked.map(|listed| {
            due_at = due_at + lease::PACING_INTERVAL;
            let key = DeliveryKey {
                account: account.clone(),
                webhook: *webhook,
                event: listed.event_id,
            };
            self.make_due(key, listed.row.attempt_count, due_at, now)
        });
        let due = concurrency::join_bounded(changes.collect(), CONCURRENT)
            .await
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let key = key_schema::pending_resume(account, *webhook).into_item();
        if page.next.is_none() && *enabled_at + RESCAN_WINDOW <= now {
            self.store
                .client
                .delete_item()
                .table_name(&self.store.tables.webhooks)
                .set_key(Some(key))
                .send()
                .await?;
        } else {
            let mut item = key;
            item.insert(
                "created_at".to_owned(),
                AttributeValue::N(enabled_at.as_unix_millis().to_string()),
            );
            item.extend(page.next.map(|event| {
                (
                    "after".to_owned(),
                    AttributeValue::S(event.as_str().to_owned()),
                )
            }));
            self.store
                .client
                .put_item()
                .table_name(&self.store.tables.webhooks)
                .set_item(Some(item))
                .send()
                .await?;
        }
        Ok(due.into_iter().flatten().collect())
    }

    async fn make_due(
        self,
        key: DeliveryKey,
        attempt_count: u32,
        due_at: Timestamp,
        now: Timestamp,
    ) -> Result<Option<DueDelivery>> {
        let number = |n: i64| AttributeValue::N(n.to_string());
        let update = self.store
            .client
            .update_item()
            .table_name(&self.store.tables.deliveries)
            .set_key(Some(key_schema::delivery(&key).into_item()))
            .update_expression("SET next_attempt_at = :due, sweep_at = :sweep, due_shard = :shard REMOVE expires_at")
            .condition_expression("#status = :pending AND attribute_not_exists(next_attempt_at)")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":pending", AttributeValue::S("pending".to_owned()))
            .expression_attribute_values(":due", number(due_at.as_unix_millis()))
            .expression_attribute_values(":sweep", number(lease::sweep_at(due_at, now).as_unix_millis()))
            .expression_attribute_values(":shard", AttributeValue::S(key_schema::due_shard(&key.event)));
        Ok(into_condition_result(update.send().await)?
            .then(|| DueDelivery::new(key, attempt_count, due_at, lease::sweep_at(due_at, now))))
    }
}
