//! The delivery log: a webhook's deliveries, the newest first.

use aws_sdk_dynamodb::types::AttributeValue;
use serde::Deserialize;

use super::{
    Item, Result, Store,
    deliveries::parse_key,
    from_item, key_schema,
    tables::{STATE_INDEX, STATE_KEY, SUMMARY_ATTRIBUTES},
};
use nano_webhooks_core::{
    account_id::AccountId, delivery::failure::FailureKind, event::EventId, event_type::EventType,
    timestamp::Timestamp, webhook::WebhookId,
};

/// How many items a page of the log reads at most, however few of them are asked for.
const MAX_ITEMS_READ: usize = 500;

/// What is asked of the log.
#[derive(Clone, Debug)]
pub struct DeliveryFilter {
    /// Deliveries with this status alone.
    pub status: Option<DeliveryStatus>,
    /// Deliveries of this event type alone.
    pub event: Option<EventType>,
    /// Those before this one, which a page ended with.
    pub after: Option<EventId>,
    /// How many.
    pub limit: usize,
}

/// A status to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryStatus {
    /// Another attempt is to be made.
    Pending,
    /// A 2xx was read.
    Delivered,
    /// The schedule is exhausted.
    Failed,
    /// The webhook was deleted.
    Cancelled,
}

impl DeliveryStatus {
    /// Every status.
    pub const ALL: [Self; 4] = [
        Self::Pending,
        Self::Delivered,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the state index holds deliveries with this status.
    const fn is_indexed(self) -> bool {
        matches!(self, Self::Pending | Self::Failed)
    }
}

/// A delivery as the log lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliverySummary {
    /// The event.
    pub event_id: EventId,
    /// The rest.
    pub row: DeliverySummaryRow,
}

/// What the log lists of a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DeliverySummaryRow {
    /// The event's type.
    pub event: String,
    /// The job, if the event is of one.
    #[serde(default)]
    pub task_id: Option<String>,
    /// Where the delivery stands.
    pub status: String,
    /// How many attempts were made.
    pub attempt_count: u32,
    /// When the event was taken from the stream.
    pub created_at: Timestamp,
    /// When the next attempt is due.
    #[serde(default)]
    pub next_attempt_at: Option<Timestamp>,
    /// Why the latest attempt failed.
    #[serde(default)]
    pub last_failure: Option<FailureKind>,
}

/// A part of the log.
#[derive(Clone, Debug)]
pub struct DeliveryPage {
    /// The deliveries, the newest first; it may be fewer than were asked for although there are more.
    pub deliveries: Vec<DeliverySummary>,
    /// Where the next page begins; `None`: there is none.
    pub next: Option<EventId>,
}

/// See [`Store::delivery_log`].
#[derive(Clone, Copy, Debug)]
pub struct DeliveryLog<'a> {
    store: &'a Store,
}

impl<'a> DeliveryLog<'a> {
    pub(super) const fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl DeliveryLog<'_> {
    /// A page of a webhook's deliveries.
    ///
    /// # Errors
    /// If DynamoDB does not answer, or holds an item that breaks the rules.
    pub async fn list(
        self,
        account: &AccountId,
        webhook: WebhookId,
        filter: &DeliveryFilter,
    ) -> Result<DeliveryPage> {
        let indexed = filter.status.filter(|status| status.is_indexed());
        let filtered = filter.event.is_some() || (filter.status.is_some() && indexed.is_none());
        let mut after = filter.after.clone();
        let (mut deliveries, mut read) = (Vec::new(), 0);
        while read < MAX_ITEMS_READ {
            let at_most = if filtered {
                MAX_ITEMS_READ - read
            } else {
                filter.limit - deliveries.len()
            };
            let (items, scanned, next) = self
                .query_page(account, webhook, filter, indexed, after.take(), at_most)
                .await?;
            read += scanned.max(1);
            for item in items {
                let event_id = parse_key(&item)?.event;
                deliveries.push(DeliverySummary {
                    event_id: event_id.clone(),
                    row: from_item(item)?,
                });
                if deliveries.len() == filter.limit {
                    return Ok(DeliveryPage {
                        deliveries,
                        next: Some(event_id),
                    });
                }
            }
            after = next;
            if after.is_none() {
                break;
            }
        }
        Ok(DeliveryPage {
            deliveries,
            next: after,
        })
    }

    async fn query_page(
        self,
        account: &AccountId,
        webhook: WebhookId,
        filter: &DeliveryFilter,
        indexed: Option<DeliveryStatus>,
        after: Option<EventId>,
        at_most: usize,
    ) -> Result<(Vec<Item>, usize, Option<EventId>)> {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let partition = key_schema::deliveries(account, webhook);
        let mut start = after.map(|event| {
            let key = key_schema::PrimaryKey {
                pk: partition.clone(),
                sk: event.as_str().to_owned(),
            };
            key.into_item()
        });
        let names: Vec<_> = [key_schema::PK, key_schema::SK]
            .iter()
            .chain(&SUMMARY_ATTRIBUTES)
            .map(|name| format!("#{name}"))
            .collect();
        let mut query = self
            .store
            .client
            .query()
            .table_name(&self.store.tables.deliveries)
            .scan_index_forward(false)
            .limit(i32::try_from(at_most).unwrap_or(i32::MAX))
            .projection_expression(names.join(", "));
        for name in [key_schema::PK, key_schema::SK]
            .iter()
            .chain(&SUMMARY_ATTRIBUTES)
        {
            query = query.expression_attribute_names(format!("#{name}"), *name);
        }
        if let Some(status) = indexed {
            let state_key = key_schema::state_index_key(account, webhook, status.as_str());
            if let Some(start) = &mut start {
                start.insert(STATE_KEY.to_owned(), text(&state_key));
            }
            query = query
                .index_name(STATE_INDEX)
                .key_condition_expression("state_key = :partition")
                .expression_attribute_values(":partition", text(&state_key));
        } else {
            query = query
                .consistent_read(true)
                .key_condition_expression("#PK = :partition")
                .expression_attribute_values(":partition", text(&partition));
        }
        let mut conditions = Vec::new();
        if let Some(status) = filter.status.filter(|_| indexed.is_none()) {
            conditions.push("#status = :status");
            query = query.expression_attribute_values(":status", text(status.as_str()));
        }
        if let Some(event) = filter.event {
            conditions.push("#event = :event");
            query = query.expression_attribute_values(":event", text(event.as_str()));
        }
        if !conditions.is_empty() {
            query = query.filter_expression(conditions.join(" AND "));
        }
        let page = query.set_exclusive_start_key(start).send().await?;
        let next = page
            .last_evaluated_key
            .as_ref()
            .map(parse_key)
            .transpose()?
            .map(|key| key.event);
        Ok((
            page.items.unwrap_or_default(),
            usize::try_from(page.scanned_count).unwrap_or(0),
            next,
        ))
    }
}
