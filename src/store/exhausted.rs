//! Deliveries whose last attempt failed. The result and the event that reports it are written in
//! one transaction. A webhook has one such event an hour, so an endpoint that rejects everything
//! does not flood the account's other webhooks.

use std::time::Duration;

use aws_sdk_dynamodb::types::{Put, builders::PutBuilder};
use nano_webhooks_core::{delivery::Delivery, timestamp::Timestamp};

use super::{
    deliveries::Deliveries,
    error::{Error, Result},
    item::{Item, attr_n},
    key_schema,
    leases::{Lease, completion_put},
    notifications::Notifications,
    table_client::{TableClient, TransactOutcome, WriteOutcome},
    tables::EXPIRES_AT,
};

/// The shortest time between two reports about a webhook.
pub const REPORT_INTERVAL: Duration = Duration::from_hours(1);
/// The attribute of the latest report: its time.
const REPORTED_AT: &str = "reported_at";

/// See [`Store::exhausted`](super::Store::exhausted).
#[derive(Clone, Copy, Debug)]
pub struct ExhaustedDeliveries<'a> {
    webhooks_table: &'a TableClient,
    deliveries_table: &'a TableClient,
    deliveries: Deliveries<'a>,
}

impl<'a> ExhaustedDeliveries<'a> {
    pub(super) const fn new(
        webhooks_table: &'a TableClient,
        deliveries_table: &'a TableClient,
        deliveries: Deliveries<'a>,
    ) -> Self {
        Self {
            webhooks_table,
            deliveries_table,
            deliveries,
        }
    }
}

impl ExhaustedDeliveries<'_> {
    /// Whether a report about the webhook of a delivery may be due.
    pub async fn is_report_due(self, delivery: &Delivery, now: Timestamp) -> Result<bool> {
        let key = key_schema::exhausted_report(&delivery.key.account, delivery.key.webhook);
        let report = self.webhooks_table.get(key).await?;
        match report.as_ref().and_then(parse_reported_at) {
            Some(reported_at) => Ok(reported_at + REPORT_INTERVAL <= now),
            None => Ok(true),
        }
    }

    /// Writes the result of the last attempt and ends the lease, as
    /// [`Leases::complete`](super::leases::Leases::complete) does, together with the report. If
    /// another process has reported a delivery of the webhook within the hour, or if the report
    /// cannot be written, only the result is written: it does not wait for other partitions.
    pub async fn complete(
        self,
        lease: &Lease,
        delivery: &Delivery,
        report: &Notifications,
        now: Timestamp,
        retention: Duration,
    ) -> Result<WriteOutcome> {
        let put = completion_put(lease, delivery, now, retention);
        let mut writes = vec![
            self.deliveries_table.transact_put(put.clone()),
            self.webhooks_table.transact_put(put_report(delivery, now)),
        ];
        let puts = report.transact_puts(self.webhooks_table, self.deliveries, now, retention);
        writes.extend(puts);
        match self.deliveries_table.transact_write(writes).await {
            Ok(TransactOutcome::Applied) => Ok(WriteOutcome::Applied),
            Ok(TransactOutcome::ConditionFailed { index: 1 }) | Err(Error::Unavailable(_)) => {
                self.deliveries_table.put_if(put).await
            }
            Ok(TransactOutcome::ConditionFailed { .. }) => Ok(WriteOutcome::ConditionFailed),
            Err(error) => Err(error),
        }
    }
}

/// Fails if a delivery of the webhook was reported within the interval.
fn put_report(delivery: &Delivery, now: Timestamp) -> PutBuilder {
    let key = key_schema::exhausted_report(&delivery.key.account, delivery.key.webhook);
    let latest = now - REPORT_INTERVAL;
    let expires_at = (now + REPORT_INTERVAL).as_unix_seconds();
    Put::builder()
        .set_item(Some(key.into_item()))
        .item(REPORTED_AT, attr_n(now.as_unix_millis()))
        .item(EXPIRES_AT, attr_n(expires_at))
        .condition_expression("attribute_not_exists(#reported) OR #reported <= :latest")
        .expression_attribute_names("#reported", REPORTED_AT)
        .expression_attribute_values(":latest", attr_n(latest.as_unix_millis()))
}

fn parse_reported_at(report: &Item) -> Option<Timestamp> {
    let millis = report.get(REPORTED_AT)?.as_n().ok()?.parse().ok()?;
    Some(Timestamp::from_millis(millis))
}
