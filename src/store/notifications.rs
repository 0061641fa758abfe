//! What an operational event leads to: deliveries to the account's other webhooks, and a notice for
//! the operator's topic. They are recorded in the transaction of the change that they report, so
//! each change is reported once.

use std::{sync::Arc, time::Duration};

use aws_sdk_dynamodb::types::{Put, TransactWriteItem};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{Delivery, DeliveryKey},
    event::EventId,
    event_type::EventType,
    operational_event::OperationalEvent,
    timestamp::Timestamp,
    webhook::Webhook,
};

use super::{
    deliveries::Deliveries,
    error::Result,
    item::{Item, attr_n, attr_s, text},
    key_schema::{self, NOTICE_SHARDS},
    table_client::TableClient,
    tables::EXPIRES_AT,
};
use crate::concurrency;

/// The most webhooks that are notified of an event: a transaction has 100 items, and up to four of
/// them are the change itself and the notice.
const MAX_NOTIFICATIONS: usize = 96;
/// How many partitions of notices are read at the same time.
const CONCURRENT_SHARDS: usize = 16;
/// The attributes of a notice.
const EVENT: &str = "event";
const PAYLOAD: &str = "body";

/// Whether operational events are recorded for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorNotices {
    /// The operator has a topic.
    Recorded,
    /// The operator has none.
    Off,
}

/// What to record for an operational event.
#[derive(Clone, Debug, Default)]
pub struct Notifications {
    /// The deliveries to the account's other webhooks. They are due at once.
    pub deliveries: Vec<Delivery>,
    notice: Option<OperatorNotice>,
}

/// An operational event that was not yet published to the operator's topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorNotice {
    /// The account.
    pub account: AccountId,
    /// The event.
    pub event: EventId,
    /// Its type, as on the wire.
    pub event_type: String,
    /// The payload, as the account's webhooks receive it.
    pub payload: String,
}

impl Notifications {
    /// The deliveries of an event to those of the account's `webhooks` that subscribe, except the
    /// one that it is about.
    pub(super) fn new(
        account: &AccountId,
        event: &OperationalEvent,
        webhooks: &[Webhook],
        notices: OperatorNotices,
        now: Timestamp,
    ) -> Self {
        let event_type = event.event_type();
        let id = event.id(account, now);
        let payload: Arc<str> = event.payload(now).into();
        let mut deliveries = Vec::new();
        for webhook in webhooks {
            if webhook.id == event.webhook || !webhook.accepts(event_type) {
                continue;
            }
            if deliveries.len() == MAX_NOTIFICATIONS {
                break;
            }
            let key = DeliveryKey {
                account: account.clone(),
                webhook: webhook.id,
                event: id.clone(),
            };
            let url = webhook.url.as_str().to_owned();
            let payload = payload.clone();
            deliveries.push(Delivery::new(key, event_type, None, url, payload, now));
        }
        let notice = match notices {
            OperatorNotices::Recorded => {
                Some(OperatorNotice::new(account, id, event_type, &payload))
            }
            OperatorNotices::Off => None,
        };
        Self { deliveries, notice }
    }

    /// Whether nothing has to be recorded.
    pub const fn is_empty(&self) -> bool {
        self.deliveries.is_empty() && self.notice.is_none()
    }

    /// Their recording in a transaction.
    pub(super) fn transact_puts(
        &self,
        webhooks_table: &TableClient,
        deliveries: Deliveries<'_>,
        now: Timestamp,
        retention: Duration,
    ) -> Vec<TransactWriteItem> {
        let mut writes = Vec::with_capacity(self.deliveries.len() + 1);
        for delivery in &self.deliveries {
            writes.push(deliveries.transact_put(delivery, now, retention));
        }
        if let Some(notice) = &self.notice {
            let put = Put::builder().set_item(Some(notice.to_item(now, retention)));
            writes.push(webhooks_table.transact_put(put));
        }
        writes
    }
}

impl OperatorNotice {
    fn new(account: &AccountId, event: EventId, event_type: EventType, payload: &str) -> Self {
        Self {
            account: account.clone(),
            event,
            event_type: event_type.as_str().to_owned(),
            payload: payload.to_owned(),
        }
    }

    fn to_item(&self, now: Timestamp, retention: Duration) -> Item {
        let expires_at = (now + retention).as_unix_seconds();
        let mut item = key_schema::operator_notice(&self.event, &self.account).into_item();
        item.insert(EVENT.to_owned(), attr_s(&self.event_type));
        item.insert(PAYLOAD.to_owned(), attr_s(&self.payload));
        item.insert(EXPIRES_AT.to_owned(), attr_n(expires_at));
        item
    }

    fn from_item(item: &Item) -> Option<Self> {
        let sort_key = text(item, key_schema::SK)?;
        let (event, account) = key_schema::parse_operator_notice(sort_key)?;
        Some(Self {
            account,
            event,
            event_type: text(item, EVENT)?.to_owned(),
            payload: text(item, PAYLOAD)?.to_owned(),
        })
    }
}

/// See [`Store::notices`](super::Store::notices).
#[derive(Clone, Copy, Debug)]
pub struct Notices<'a> {
    table: &'a TableClient,
}

impl<'a> Notices<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }
}

impl Notices<'_> {
    /// Notices that were not published, the oldest of each partition, at most `limit` of each.
    /// Invalid items are skipped.
    pub async fn list(self, limit: usize) -> Result<Vec<OperatorNotice>> {
        let shards = (0..NOTICE_SHARDS).map(|shard| self.list_shard(shard, limit));
        let mut notices = Vec::new();
        for shard in concurrency::join_bounded(shards.collect(), CONCURRENT_SHARDS).await {
            notices.extend(shard?);
        }
        Ok(notices)
    }

    async fn list_shard(self, shard: u8, limit: usize) -> Result<Vec<OperatorNotice>> {
        let response = self
            .table
            .query()
            .consistent_read(true)
            .key_condition_expression("PK = :notices")
            .expression_attribute_values(":notices", attr_s(&key_schema::notices(shard)))
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .send()
            .await?;
        let items = response.items.unwrap_or_default();
        Ok(items.iter().filter_map(OperatorNotice::from_item).collect())
    }

    /// Deletes a notice that was published.
    pub async fn delete(self, notice: &OperatorNotice) -> Result<()> {
        let key = key_schema::operator_notice(&notice.event, &notice.account);
        self.table.delete(key).await
    }
}
