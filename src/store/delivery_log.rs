//! The delivery log: a webhook's deliveries, the newest first.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::operation::query::{QueryOutput, builders::QueryFluentBuilder};
use serde::Deserialize;

use super::{
    delivery_row::parse_key,
    error::Result,
    item::{Item, attr_s, from_item},
    key_schema::{self, PrimaryKey},
    table_client::{BATCH_GET, Consistency, TableClient},
    tables::{STATE_INDEX, STATE_KEY, SUMMARY_ATTRIBUTES},
};
use crate::clock::Deadline;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{
        DeliveryKey, failure::FailureKind, status::DeliveryStatus, wait_reason::WaitReason,
    },
    event::EventId,
    event_type::EventType,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// The most items that are read for a page, even if few of them match.
const MAX_ITEMS_READ: usize = 500;
/// How long unprocessed items of a page are read again.
const READ_TIME_LIMIT: Duration = Duration::from_secs(2);

/// Which deliveries to list.
#[derive(Clone, Debug)]
pub struct DeliveryFilter {
    /// Only deliveries with this status.
    pub status: Option<DeliveryStatus>,
    /// Only deliveries of this event type.
    pub event: Option<EventType>,
    /// Only deliveries after this one in the list, the last of the previous page.
    pub after: Option<EventId>,
    /// The most deliveries of a page.
    pub limit: usize,
}

/// A delivery in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliverySummary {
    /// The event.
    pub event_id: EventId,
    /// Everything else.
    pub row: DeliverySummaryRow,
}

/// The attributes of a delivery that a list shows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DeliverySummaryRow {
    /// The event's type.
    pub event: String,
    /// The job that the event is about, if any.
    #[serde(default)]
    pub task_id: Option<String>,
    /// The status.
    pub status: String,
    /// How many attempts were made.
    pub attempt_count: u32,
    /// When the event was received from the stream.
    pub created_at: Timestamp,
    /// When the next attempt is due.
    #[serde(default)]
    pub next_attempt_at: Option<Timestamp>,
    /// Why it waits, if its latest change stored a reason. Only
    /// [`DeliveryLog::read_wait_reasons`] reads it.
    #[serde(skip)]
    pub waiting_for: Option<WaitReason>,
    /// Why the latest attempt failed.
    #[serde(default)]
    pub last_failure: Option<FailureKind>,
}

impl DeliverySummary {
    /// Whether a reason to wait may be stored with the delivery.
    fn may_have_wait_reason(&self) -> bool {
        self.row.status == DeliveryStatus::Pending.as_str() && self.row.next_attempt_at.is_some()
    }
}

#[derive(Deserialize)]
struct WaitReasonRow {
    waiting_for: Option<WaitReason>,
}

/// A page of the log.
#[derive(Clone, Debug)]
pub struct DeliveryPage {
    /// The deliveries, the newest first. A page may have fewer than the limit although more follow.
    pub deliveries: Vec<DeliverySummary>,
    /// The last delivery of this page, if more follow.
    pub next: Option<EventId>,
}

/// The deliveries of one webhook that a filter selects.
struct LogQuery<'a> {
    account: &'a AccountId,
    webhook: WebhookId,
    /// The status to read from the state index.
    index_status: Option<DeliveryStatus>,
    /// The status to select among the items that are read.
    filter_status: Option<DeliveryStatus>,
    filter_event: Option<EventType>,
}

/// Whether the state index contains deliveries with a status.
const fn is_indexed(status: DeliveryStatus) -> bool {
    matches!(status, DeliveryStatus::Pending | DeliveryStatus::Failed)
}

impl<'a> LogQuery<'a> {
    fn new(account: &'a AccountId, webhook: WebhookId, filter: &DeliveryFilter) -> Self {
        let (index_status, filter_status) = match filter.status {
            Some(status) if is_indexed(status) => (Some(status), None),
            other => (None, other),
        };
        Self {
            account,
            webhook,
            index_status,
            filter_status,
            filter_event: filter.event,
        }
    }

    /// Whether items are read that do not match.
    const fn has_filter(&self) -> bool {
        self.filter_status.is_some() || self.filter_event.is_some()
    }
}

/// See [`Store::delivery_log`](super::Store::delivery_log).
#[derive(Clone, Copy, Debug)]
pub struct DeliveryLog<'a> {
    table: &'a TableClient,
}

impl<'a> DeliveryLog<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }
}

impl DeliveryLog<'_> {
    /// A page of a webhook's deliveries.
    pub async fn list(
        self,
        account: &AccountId,
        webhook: WebhookId,
        filter: &DeliveryFilter,
    ) -> Result<DeliveryPage> {
        let query = LogQuery::new(account, webhook, filter);
        let mut deliveries = Vec::new();
        let mut items_read = 0;
        let mut cursor = filter.after.clone();
        while items_read < MAX_ITEMS_READ {
            let limit = if query.has_filter() {
                MAX_ITEMS_READ - items_read
            } else {
                filter.limit - deliveries.len()
            };
            let page = self.query_page(&query, cursor, limit).await?;
            items_read += usize::try_from(page.scanned_count).unwrap_or(0).max(1);
            for item in page.items.unwrap_or_default() {
                let delivery = parse_summary(item)?;
                let event_id = delivery.event_id.clone();
                deliveries.push(delivery);
                if deliveries.len() == filter.limit {
                    return Ok(DeliveryPage {
                        deliveries,
                        next: Some(event_id),
                    });
                }
            }
            cursor = match page.last_evaluated_key {
                Some(key) => Some(parse_key(&key)?.event),
                None => None,
            };
            if cursor.is_none() {
                break;
            }
        }
        Ok(DeliveryPage {
            deliveries,
            next: cursor,
        })
    }

    /// Reads why due deliveries wait. The state index does not have the reason, and its projection
    /// cannot be changed.
    pub async fn read_wait_reasons(
        self,
        account: &AccountId,
        webhook: WebhookId,
        deliveries: &mut [DeliverySummary],
    ) -> Result<()> {
        let deadline = Deadline::from_now(READ_TIME_LIMIT);
        let mut waiting: Vec<_> = deliveries
            .iter_mut()
            .filter(|delivery| delivery.may_have_wait_reason())
            .collect();
        for batch in waiting.chunks_mut(BATCH_GET) {
            let keys = batch.iter().map(|delivery| {
                key_schema::delivery(&DeliveryKey {
                    account: account.clone(),
                    webhook,
                    event: delivery.event_id.clone(),
                })
            });
            let projection = "PK, SK, waiting_for";
            let items = self
                .table
                .batch_get(keys, projection, Consistency::Eventual, deadline);
            let mut reasons = HashMap::new();
            for item in items.await? {
                let event = parse_key(&item)?.event;
                let row: WaitReasonRow = from_item(item)?;
                reasons.insert(event, row.waiting_for);
            }
            for delivery in batch {
                delivery.row.waiting_for = reasons.remove(&delivery.event_id).flatten();
            }
        }
        Ok(())
    }

    async fn query_page(
        self,
        query: &LogQuery<'_>,
        cursor: Option<EventId>,
        limit: usize,
    ) -> Result<QueryOutput> {
        let request = self
            .table
            .query()
            .scan_index_forward(false)
            .limit(i32::try_from(limit).unwrap_or(i32::MAX));
        let request = project_summary(request);
        let request = select_partition(request, query, cursor);
        let request = filter_items(request, query);
        Ok(request.send().await?)
    }
}

fn parse_summary(item: Item) -> Result<DeliverySummary> {
    Ok(DeliverySummary {
        event_id: parse_key(&item)?.event,
        row: from_item(item)?,
    })
}

/// Reads only the attributes of a summary.
fn project_summary(mut request: QueryFluentBuilder) -> QueryFluentBuilder {
    let mut projection = Vec::new();
    for name in [key_schema::PK, key_schema::SK]
        .into_iter()
        .chain(SUMMARY_ATTRIBUTES)
    {
        let placeholder = format!("#{name}");
        request = request.expression_attribute_names(placeholder.clone(), name);
        projection.push(placeholder);
    }
    request.projection_expression(projection.join(", "))
}

/// Reads the webhook's partition of the table or of the state index, from the delivery after the
/// cursor on.
fn select_partition(
    request: QueryFluentBuilder,
    query: &LogQuery<'_>,
    cursor: Option<EventId>,
) -> QueryFluentBuilder {
    let partition = key_schema::deliveries(query.account, query.webhook);
    let mut start_key = cursor.map(|event| {
        let key = PrimaryKey {
            pk: partition.clone(),
            sk: event.as_str().to_owned(),
        };
        key.into_item()
    });
    let Some(status) = query.index_status else {
        return request
            .consistent_read(true)
            .key_condition_expression("#PK = :partition")
            .expression_attribute_values(":partition", attr_s(&partition))
            .set_exclusive_start_key(start_key);
    };
    let state_key = key_schema::state_index_key(query.account, query.webhook, status);
    if let Some(start_key) = &mut start_key {
        start_key.insert(STATE_KEY.to_owned(), attr_s(&state_key));
    }
    request
        .index_name(STATE_INDEX)
        .key_condition_expression("state_key = :partition")
        .expression_attribute_values(":partition", attr_s(&state_key))
        .set_exclusive_start_key(start_key)
}

fn filter_items(mut request: QueryFluentBuilder, query: &LogQuery<'_>) -> QueryFluentBuilder {
    let mut conditions = Vec::new();
    if let Some(status) = query.filter_status {
        conditions.push("#status = :status");
        request = request.expression_attribute_values(":status", attr_s(status.as_str()));
    }
    if let Some(event) = query.filter_event {
        conditions.push("#event = :event");
        request = request.expression_attribute_values(":event", attr_s(event.as_str()));
    }
    if conditions.is_empty() {
        return request;
    }
    request.filter_expression(conditions.join(" AND "))
}
