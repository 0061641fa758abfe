//! Replays: the deliveries of a webhook in a window of time, made again. A replay goes on step by step, by whoever sweeps; each
//! delivery is made due and counted in one transaction, so that a crash neither loses nor repeats one.

use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeValue, TransactWriteItem, Update};
use serde::{Deserialize, Serialize};

use super::{
    Error, Item, Result, Store, attr_n, attr_s,
    deliveries::parse_key,
    delivery_log::DeliveryStatus,
    due_index::DueDelivery,
    from_item, into_condition_result,
    key_schema::{self, PrimaryKey},
    tables::{EXPIRES_AT, STATE_INDEX},
    to_item,
};
use crate::clock::Deadline;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{Delivery, DeliveryKey, DeliveryState, lease},
    event::EventId,
    replay::ReplayId,
    timestamp::Timestamp,
    webhook::{WebhookId, WebhookStatus},
};

/// How many deliveries a sweep's step looks at.
pub const STEP_SIZE: usize = 300;
/// How many the first step does, which the request to begin waits for.
pub const INITIAL_STEP_SIZE: usize = 60;

/// Which deliveries are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplayFilter {
    /// Those that failed.
    Failed,
    /// All that are settled.
    All,
}

/// Where a replay stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayState {
    /// Not all of its deliveries have been attempted.
    Running,
    /// All have.
    Done,
    /// It was cancelled, or its webhook deleted.
    Cancelled,
}

impl ReplayState {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A replay.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replay {
    /// Deliveries of events from this time on.
    pub since: Timestamp,
    /// And of events up to this time.
    pub until: Timestamp,
    /// Which of them.
    pub selection: ReplayFilter,
    /// How many were found so far.
    #[serde(default)]
    pub found: u64,
    /// How many of them were made due.
    #[serde(default)]
    pub sent: u64,
    /// How many of these were delivered.
    #[serde(default)]
    pub delivered: u64,
    /// How many of these failed again.
    #[serde(default)]
    pub failed: u64,
    /// The last that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    /// All of the window was looked at.
    #[serde(default)]
    scanned: bool,
    #[serde(default)]
    cancelled: bool,
}

impl Replay {
    /// One that begins.
    pub const fn new(since: Timestamp, until: Timestamp, selection: ReplayFilter) -> Self {
        Self {
            since,
            until,
            selection,
            found: 0,
            sent: 0,
            delivered: 0,
            failed: 0,
            after: None,
            scanned: false,
            cancelled: false,
        }
    }

    /// Whether deliveries that it made due may still be attempted or taken back.
    const fn is_over(&self) -> bool {
        (self.scanned || self.cancelled) && self.delivered + self.failed >= self.sent
    }

    /// Where it stands.
    pub const fn state(&self) -> ReplayState {
        if self.cancelled {
            ReplayState::Cancelled
        } else if self.is_over() {
            ReplayState::Done
        } else {
            ReplayState::Running
        }
    }
}

/// A replay that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayKey {
    /// Whose it is.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    /// The replay.
    pub id: ReplayId,
}

/// See [`Store::replays`].
#[derive(Clone, Copy, Debug)]
pub struct Replays<'a> {
    store: &'a Store,
}

impl<'a> Replays<'a> {
    pub(super) const fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl Replays<'_> {
    /// Begins a replay; `Err` names one of the same webhook that is not over: a replay has its endpoint for itself.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn create(
        self,
        of: &ReplayKey,
        replay: &Replay,
        expires_at: Timestamp,
    ) -> Result<std::result::Result<(), ReplayId>> {
        let mut item = replay_key(of).into_item();
        item.extend(to_item(replay)?);
        item.insert(EXPIRES_AT.to_owned(), attr_n(expires_at.as_unix_seconds()));
        let marker = key_schema::active_replay(&of.account, of.webhook);
        let before = self.store.item(marker.clone()).await?;
        let before = before
            .as_ref()
            .and_then(|marker| ReplayId::parse(marker.get("replay")?.as_s().ok()?));
        if let Some(before) = &before {
            let before = ReplayKey {
                id: before.clone(),
                ..of.clone()
            };
            if self
                .get(&before)
                .await?
                .is_some_and(|replay| !replay.is_over())
            {
                return Ok(Err(before.id));
            }
        }
        let put = |item: Item| {
            self.store
                .client
                .put_item()
                .table_name(&self.store.tables.webhooks)
                .set_item(Some(item))
        };
        // The replay before its marker, so that whoever finds the marker finds the replay too, until its time is over. What is
        // there already was written by an earlier try of the same requests.
        into_condition_result(
            put(item)
                .condition_expression("attribute_not_exists(PK)")
                .send()
                .await,
        )?;
        let marked = put(marker.into_item())
            .item("replay", attr_s(of.id.as_str()))
            .condition_expression("attribute_not_exists(PK) OR replay IN (:before, :this)")
            .expression_attribute_values(
                ":before",
                attr_s(before.as_ref().map_or("", ReplayId::as_str)),
            )
            .expression_attribute_values(":this", attr_s(of.id.as_str()));
        if into_condition_result(marked.send().await)? {
            return Ok(Ok(()));
        }
        // Another request has begun one at the same time. Of this one nobody knows, and TTL removes it.
        let marker = self
            .store
            .item(key_schema::active_replay(&of.account, of.webhook))
            .await?;
        let other = marker
            .as_ref()
            .and_then(|marker| ReplayId::parse(marker.get("replay")?.as_s().ok()?));
        Ok(Err(other.ok_or_else(|| {
            Error::Unavailable("another replay was begun at the same time".to_owned())
        })?))
    }

    /// A replay.
    ///
    /// # Errors
    /// If DynamoDB does not answer, or holds an item that breaks the rules.
    pub async fn get(self, of: &ReplayKey) -> Result<Option<Replay>> {
        self.store
            .item(replay_key(of))
            .await?
            .map(from_item)
            .transpose()
    }

    /// Cancels a replay, unless it is done; `false` if there is none. What it has made due is not sent any more.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn cancel(self, of: &ReplayKey) -> Result<bool> {
        let Some(replay) = self.get(of).await? else {
            return Ok(false);
        };
        if replay.state() == ReplayState::Running {
            let update = self
                .store
                .client
                .update_item()
                .table_name(&self.store.tables.webhooks)
                .set_key(Some(replay_key(of).into_item()))
                .update_expression("SET cancelled = :yes")
                .condition_expression("attribute_exists(PK)")
                .expression_attribute_values(":yes", AttributeValue::Bool(true));
            into_condition_result(update.send().await)?;
        }
        Ok(true)
    }

    /// The replays that are not over, at most so many.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn list_active(self, at_most: usize) -> Result<Vec<ReplayKey>> {
        let read = |account, webhook, item: &Item| {
            let id = ReplayId::parse(item.get("replay")?.as_s().ok()?)?;
            Some(ReplayKey {
                account,
                webhook,
                id,
            })
        };
        self.store
            .marked(key_schema::ACTIVE_REPLAYS, at_most, read)
            .await
    }

    /// Takes a step: makes a part of a replay's deliveries due, one after the other, and says which.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn run_step(
        self,
        of: &ReplayKey,
        at_most: usize,
        now: Timestamp,
        retention: Duration,
        deadline: Deadline,
    ) -> Result<Vec<DueDelivery>> {
        let subscriber = self
            .store
            .webhooks()
            .get_record(&of.account, of.webhook)
            .await?;
        if subscriber.is_none() {
            self.cancel(of).await?;
        }
        let replay = self.get(of).await?;
        let (Some(subscriber), Some(replay)) =
            (subscriber, replay.filter(|replay| !replay.is_over()))
        else {
            self.clear_active_marker(of).await?;
            return Ok(Vec::new());
        };
        // While the webhook is disabled it waits. What was made due and is cancelled is taken back when it comes up.
        if subscriber.webhook.status == WebhookStatus::Disabled
            || replay.scanned
            || replay.cancelled
        {
            return Ok(Vec::new());
        }
        let (keys, next) = self.next_page(of, &replay, at_most).await?;
        let mut due_at = now;
        let mut made_due = Vec::new();
        for key in keys {
            if deadline.remaining().is_zero() {
                return Ok(made_due);
            }
            let Some(found) = self.store.deliveries().get(&key).await? else {
                continue;
            };
            let selected = match found.state {
                DeliveryState::Failed => true,
                DeliveryState::Delivered | DeliveryState::Cancelled => {
                    replay.selection == ReplayFilter::All
                }
                // It is on its way, or waits for the webhook.
                DeliveryState::Pending(_) | DeliveryState::Paused => false,
            };
            if !selected {
                continue;
            }
            due_at = due_at + lease::PACING_INTERVAL;
            let mut delivery = found.clone();
            delivery.request_retry(due_at);
            delivery.replay = Some(of.id.clone());
            let parts = vec![
                self.store
                    .leases()
                    .transact_replacement(&found, &delivery, now, retention),
                self.count_sent(of, &key.event),
            ];
            match self.store.transact_all(parts).await? {
                Ok(()) => {
                    made_due.push(DueDelivery::new(
                        key,
                        delivery.attempt_count,
                        due_at,
                        lease::sweep_at(due_at, now),
                    ));
                }
                // It has changed since it was read.
                Err(0) => {}
                // The replay was cancelled, or another process goes on with it.
                Err(_) => return Ok(made_due),
            }
        }
        self.save_cursor(of, next).await?;
        Ok(made_due)
    }

    /// The deliveries of the window that were not looked at yet, the oldest first, and where to go on.
    async fn next_page(
        self,
        of: &ReplayKey,
        replay: &Replay,
        at_most: usize,
    ) -> Result<(Vec<DeliveryKey>, Option<EventId>)> {
        let from = replay
            .after
            .clone()
            .unwrap_or_else(|| EventId::min_at(replay.since).as_str().to_owned());
        let query = self
            .store
            .client
            .query()
            .table_name(&self.store.tables.deliveries)
            .projection_expression("PK, SK")
            .expression_attribute_values(":from", attr_s(&from))
            .expression_attribute_values(":to", attr_s(EventId::max_at(replay.until).as_str()))
            .limit(i32::try_from(at_most).unwrap_or(i32::MAX));
        let query = match replay.selection {
            ReplayFilter::Failed => {
                let partition = key_schema::state_index_key(
                    &of.account,
                    of.webhook,
                    DeliveryStatus::Failed.as_str(),
                );
                query
                    .index_name(STATE_INDEX)
                    .key_condition_expression("state_key = :partition AND SK BETWEEN :from AND :to")
                    .expression_attribute_values(":partition", attr_s(&partition))
            }
            ReplayFilter::All => query
                .consistent_read(true)
                .key_condition_expression("PK = :partition AND SK BETWEEN :from AND :to")
                .expression_attribute_values(
                    ":partition",
                    attr_s(&key_schema::deliveries(&of.account, of.webhook)),
                ),
        };
        let page = query.send().await?;
        let next = page
            .last_evaluated_key
            .as_ref()
            .map(parse_key)
            .transpose()?
            .map(|key| key.event);
        let found = page
            .items
            .unwrap_or_default()
            .iter()
            .map(parse_key)
            .collect::<Result<Vec<_>>>()?;
        // The window begins with what was looked at last.
        Ok((
            found
                .into_iter()
                .filter(|key| replay.after.as_deref() != Some(key.event.as_str()))
                .collect(),
            next,
        ))
    }

    /// One more was made due.
    fn count_sent(self, of: &ReplayKey, event: &EventId) -> TransactWriteItem {
        let update = Update::builder()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(replay_key(of).into_item()))
            .update_expression("SET #after = :event ADD #found :one, sent :one")
            .condition_expression(
                "attribute_exists(PK) AND cancelled = :no AND (attribute_not_exists(#after) OR #after < :event)",
            )
            .expression_attribute_names("#after", "after")
            .expression_attribute_names("#found", "found")
            .expression_attribute_values(":event", attr_s(event.as_str()))
            .expression_attribute_values(":no", AttributeValue::Bool(false))
            .expression_attribute_values(":one", attr_n(1));
        TransactWriteItem::builder()
            .update(update.build().expect("every required part is set"))
            .build()
    }

    /// One more was delivered, or failed again.
    pub(super) fn count_result(self, delivery: &Delivery, id: &ReplayId) -> TransactWriteItem {
        let DeliveryKey {
            account, webhook, ..
        } = &delivery.key;
        let counter = if delivery
            .attempts
            .last()
            .is_some_and(|last| last.failure.is_none())
        {
            "delivered"
        } else {
            "failed"
        };
        let update = Update::builder()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(key_schema::replay(account, *webhook, id).into_item()))
            .update_expression("ADD #counter :one")
            .condition_expression("attribute_exists(PK)")
            .expression_attribute_names("#counter", counter)
            .expression_attribute_values(":one", attr_n(1));
        TransactWriteItem::builder()
            .update(update.build().expect("every required part is set"))
            .build()
    }

    /// One that was made due was taken back before it was attempted: its webhook was disabled or deleted.
    pub(super) fn uncount_sent(self, delivery: &Delivery, id: &ReplayId) -> TransactWriteItem {
        let DeliveryKey {
            account, webhook, ..
        } = &delivery.key;
        let update = Update::builder()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(key_schema::replay(account, *webhook, id).into_item()))
            .update_expression("ADD sent :less")
            .condition_expression("attribute_exists(PK)")
            .expression_attribute_values(":less", attr_n(-1));
        TransactWriteItem::builder()
            .update(update.build().expect("every required part is set"))
            .build()
    }

    /// What was looked at and needed nothing is not looked at again.
    async fn save_cursor(self, of: &ReplayKey, next: Option<EventId>) -> Result<()> {
        let update = self
            .store
            .client
            .update_item()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(replay_key(of).into_item()));
        let update = match next {
            None => update
                .update_expression("SET scanned = :yes")
                .condition_expression("attribute_exists(PK)")
                .expression_attribute_values(":yes", AttributeValue::Bool(true)),
            Some(next) => update
                .update_expression("SET #after = :event")
                .condition_expression(
                    "attribute_exists(PK) AND (attribute_not_exists(#after) OR #after < :event)",
                )
                .expression_attribute_names("#after", "after")
                .expression_attribute_values(":event", attr_s(next.as_str())),
        };
        into_condition_result(update.send().await).map(drop)
    }

    /// A replay is over: another may begin.
    async fn clear_active_marker(self, of: &ReplayKey) -> Result<()> {
        let delete = self
            .store
            .client
            .delete_item()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(
                key_schema::active_replay(&of.account, of.webhook).into_item(),
            ))
            // A later replay of the webhook may have begun.
            .condition_expression("replay = :replay")
            .expression_attribute_values(":replay", attr_s(of.id.as_str()));
        into_condition_result(delete.send().await).map(drop)
    }
}

fn replay_key(of: &ReplayKey) -> PrimaryKey {
    key_schema::replay(&of.account, of.webhook, &of.id)
}
