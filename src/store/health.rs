//! Writes of endpoint health.
//!
//! Several processes observe attempts to the same endpoint. A write has the condition that the
//! health was not written since it was read, so no observation overwrites another one.

use std::time::Duration;

use aws_sdk_dynamodb::types::{Put, TransactWriteItem, builders::PutBuilder};

use super::{
    deliveries::Deliveries,
    error::Result,
    item::{attr_n, to_item},
    key_schema,
    markers::{self, NEXT_PROBE_AT},
    notifications::Notifications,
    table_client::{TableClient, WriteOutcome},
    tables::REVISION,
    webhooks::WebhookRecord,
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        breaker::{BreakerChange, probe_interval},
        endpoint_health::EndpointHealth,
    },
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// See [`Store::health`](super::Store::health).
#[derive(Clone, Copy, Debug)]
pub struct HealthItems<'a> {
    table: &'a TableClient,
    deliveries: Deliveries<'a>,
}

impl<'a> HealthItems<'a> {
    pub(super) const fn new(table: &'a TableClient, deliveries: Deliveries<'a>) -> Self {
        Self { table, deliveries }
    }
}

impl HealthItems<'_> {
    /// Replaces the health that was read with `read`, if it was not written since. When the breaker
    /// opens, the endpoint is marked for probes in the same transaction. When it closes, the resume
    /// of what waits is started. `notifications` report the change, and are recorded with it.
    pub async fn write(
        self,
        account: &AccountId,
        read: &WebhookRecord,
        health: &EndpointHealth,
        notifications: &Notifications,
        now: Timestamp,
        retention: Duration,
    ) -> Result<WriteOutcome> {
        let change = BreakerChange::between(&read.health, health);
        if change.is_none() && notifications.is_empty() {
            return self.table.put_if(health_put(account, read, health)?).await;
        }
        let health = match change {
            Some(change) => change.reset_probes(*health, now),
            None => *health,
        };
        let mut writes = vec![self.table.transact_put(health_put(account, read, &health)?)];
        if let Some(change) = change {
            writes.extend(self.mark_change(account, read.webhook.id, change, now));
        }
        writes.extend(notifications.transact_puts(self.table, self.deliveries, now, retention));
        Ok(self.table.transact_write(writes).await?.into())
    }

    /// The markers that follow from a change of the breaker.
    fn mark_change(
        self,
        account: &AccountId,
        webhook: WebhookId,
        change: BreakerChange,
        now: Timestamp,
    ) -> [TransactWriteItem; 2] {
        match change {
            BreakerChange::Opened => {
                let first_probe_at = now + probe_interval(0);
                let marker = put_open_breaker(account, webhook, first_probe_at);
                let resume = key_schema::pending_resume(account, webhook);
                [
                    self.table.transact_put(marker),
                    // What it made due would be paused again.
                    self.table.transact_delete(resume),
                ]
            }
            BreakerChange::Closed => {
                let open_breaker = key_schema::open_breaker(account, webhook);
                [
                    markers::transact_start_resume(self.table, account, webhook, now),
                    self.table.transact_delete(open_breaker),
                ]
            }
        }
    }
}

fn health_put(
    account: &AccountId,
    read: &WebhookRecord,
    health: &EndpointHealth,
) -> Result<PutBuilder> {
    let mut item = key_schema::health(account, read.webhook.id).into_item();
    item.extend(to_item(health)?);
    let revision = i64::try_from(read.health_revision).unwrap_or(i64::MAX);
    item.insert(REVISION.to_owned(), attr_n(revision.saturating_add(1)));
    let put = Put::builder().set_item(Some(item));
    if revision == 0 {
        return Ok(put.condition_expression("attribute_not_exists(revision)"));
    }
    Ok(put
        .condition_expression("revision = :revision")
        .expression_attribute_values(":revision", attr_n(revision)))
}

fn put_open_breaker(
    account: &AccountId,
    webhook: WebhookId,
    next_probe_at: Timestamp,
) -> PutBuilder {
    let key = key_schema::open_breaker(account, webhook);
    Put::builder()
        .set_item(Some(key.into_item()))
        .item(NEXT_PROBE_AT, attr_n(next_probe_at.as_unix_millis()))
}
