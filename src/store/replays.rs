//! Replays: sending again a webhook's deliveries of a time window.
//!
//! Sweeps run a replay in steps. Each delivery is scheduled and counted in one transaction, so a
//! crash neither loses nor repeats one.

use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem, Update};

use super::{
    deliveries::Deliveries,
    delivery_row::parse_key,
    due_index::DueDelivery,
    error::{Error, Result},
    item::{Item, attr_n, attr_s, text, to_item},
    key_schema,
    leases::replacement_put,
    markers::list_markers,
    replay_record::ReplayRecords,
    table_client::{TableClient, TransactOutcome, WriteOutcome},
    tables::{EXPIRES_AT, STATE_INDEX},
    webhooks::Webhooks,
};
use crate::clock::Deadline;
use nano_webhooks_core::{
    delivery::{DeliveryKey, DeliveryState, lease, status::DeliveryStatus},
    event::EventId,
    replay::ReplayId,
    timestamp::Timestamp,
    webhook::WebhookStatus,
};

pub use super::replay_record::{Replay, ReplayFilter, ReplayKey, ReplayState};

/// How many deliveries a sweep reads of a replay.
pub const STEP_SIZE: usize = 300;
/// How many deliveries the request that creates a replay reads.
pub const INITIAL_STEP_SIZE: usize = 60;

/// The result of a request to create a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateReplayOutcome {
    /// The replay is running.
    Created,
    /// This replay of the same webhook is running. A webhook has one at a time.
    AlreadyRunning(ReplayId),
}

/// What to do with a replay in a step.
#[derive(Debug, PartialEq, Eq)]
enum ReplayStep {
    /// Schedule its next deliveries.
    Continue,
    /// Leave it as it is.
    Wait,
    /// Delete its marker, since it is finished.
    Finish,
}

/// The result of scheduling one delivery.
enum ScheduleOutcome {
    Scheduled(DueDelivery),
    /// The delivery has changed since it was read.
    Changed,
    /// The replay was cancelled, or another process runs it.
    NotOurs,
}

/// The next deliveries of a replay.
struct ReplayPage {
    keys: Vec<DeliveryKey>,
    /// The last delivery of the page, if more follow.
    next: Option<EventId>,
}

/// See [`Store::replays`](super::Store::replays).
#[derive(Clone, Copy, Debug)]
pub struct Replays<'a> {
    webhooks_table: &'a TableClient,
    deliveries_table: &'a TableClient,
    records: ReplayRecords<'a>,
    webhooks: Webhooks<'a>,
    deliveries: Deliveries<'a>,
}

impl<'a> Replays<'a> {
    pub(super) const fn new(
        webhooks_table: &'a TableClient,
        deliveries_table: &'a TableClient,
        webhooks: Webhooks<'a>,
        deliveries: Deliveries<'a>,
    ) -> Self {
        Self {
            webhooks_table,
            deliveries_table,
            records: ReplayRecords::new(webhooks_table),
            webhooks,
            deliveries,
        }
    }
}

impl Replays<'_> {
    /// Creates a replay, unless another one of the same webhook is running. Creating it again
    /// changes nothing.
    pub async fn create(
        self,
        key: &ReplayKey,
        replay: &Replay,
        expires_at: Timestamp,
    ) -> Result<CreateReplayOutcome> {
        let previous = self.get_active_id(key).await?;
        if let Some(previous) = &previous
            && self.is_running(key, previous).await?
        {
            return Ok(CreateReplayOutcome::AlreadyRunning(previous.clone()));
        }
        let mut item = key.primary_key().into_item();
        item.extend(to_item(replay)?);
        item.insert(EXPIRES_AT.to_owned(), attr_n(expires_at.as_unix_seconds()));
        // The replay is written before its marker, so that every marker names a replay. A failed
        // condition means that an earlier try wrote the replay.
        self.webhooks_table.insert(item).await?;
        if self
            .put_active_marker(key, previous.as_ref())
            .await?
            .is_applied()
        {
            return Ok(CreateReplayOutcome::Created);
        }
        // Another request created a replay at the same time. Nothing refers to this one, and TTL
        // deletes it.
        match self.get_active_id(key).await? {
            Some(other) => Ok(CreateReplayOutcome::AlreadyRunning(other)),
            None => Err(Error::unavailable(
                "another replay of the webhook was created at the same time",
            )),
        }
    }

    /// The replay that the webhook's marker names.
    async fn get_active_id(self, key: &ReplayKey) -> Result<Option<ReplayId>> {
        let marker = key_schema::active_replay(&key.account, key.webhook);
        match self.webhooks_table.get(marker).await? {
            Some(marker) => Ok(parse_replay_id(&marker)),
            None => Ok(None),
        }
    }

    /// Whether another replay of the same webhook is running.
    async fn is_running(self, key: &ReplayKey, other: &ReplayId) -> Result<bool> {
        let other = ReplayKey {
            id: other.clone(),
            ..key.clone()
        };
        match self.records.get(&other).await? {
            Some(replay) => Ok(!replay.is_finished()),
            None => Ok(false),
        }
    }

    /// Marks a replay as the webhook's active one, unless another one than `previous` is marked.
    async fn put_active_marker(
        self,
        key: &ReplayKey,
        previous: Option<&ReplayId>,
    ) -> Result<WriteOutcome> {
        let previous = previous.map_or("", ReplayId::as_str);
        let marker = key_schema::active_replay(&key.account, key.webhook);
        let put = Put::builder()
            .set_item(Some(marker.into_item()))
            .item("replay", attr_s(key.id.as_str()))
            .condition_expression("attribute_not_exists(PK) OR replay IN (:previous, :this)")
            .expression_attribute_values(":previous", attr_s(previous))
            .expression_attribute_values(":this", attr_s(key.id.as_str()));
        self.webhooks_table.put_if(put).await
    }

    /// A replay.
    pub async fn get(self, key: &ReplayKey) -> Result<Option<Replay>> {
        self.records.get(key).await
    }

    /// Cancels a replay that is running. Its scheduled deliveries are not attempted. Returns
    /// whether the replay exists.
    pub async fn cancel(self, key: &ReplayKey) -> Result<bool> {
        self.records.cancel(key).await
    }

    /// The replays that are not finished, at most `limit`. Invalid items are skipped.
    pub async fn list_active(self, limit: usize) -> Result<Vec<ReplayKey>> {
        let markers = list_markers(self.webhooks_table, key_schema::ACTIVE_REPLAYS, limit).await?;
        let mut replays = Vec::with_capacity(markers.len());
        for marker in markers {
            if let Some(id) = parse_replay_id(&marker.item) {
                replays.push(ReplayKey {
                    account: marker.account,
                    webhook: marker.webhook,
                    id,
                });
            } else {
                tracing::error!(
                    account = marker.account.as_str(),
                    webhook = %marker.webhook,
                    "Skipped the webhook's active replay: its marker cannot be read"
                );
            }
        }
        Ok(replays)
    }

    /// Schedules the next deliveries of a replay, reading at most `limit`, and returns those that
    /// it scheduled.
    pub async fn run_step(
        self,
        key: &ReplayKey,
        limit: usize,
        now: Timestamp,
        retention: Duration,
        deadline: Deadline,
    ) -> Result<Vec<DueDelivery>> {
        let record = self.webhooks.get_record(&key.account, key.webhook).await?;
        let webhook_status = record.map(|record| record.webhook.status);
        if webhook_status.is_none() {
            self.records.cancel(key).await?;
        }
        let Some(replay) = self.records.get(key).await? else {
            self.clear_active_marker(key).await?;
            return Ok(Vec::new());
        };
        match decide_step(&replay, webhook_status) {
            ReplayStep::Continue => {
                let page = self.next_page(key, &replay, limit).await?;
                self.schedule_page(key, &replay, page, now, retention, deadline)
                    .await
            }
            ReplayStep::Wait => Ok(Vec::new()),
            ReplayStep::Finish => {
                self.clear_active_marker(key).await?;
                Ok(Vec::new())
            }
        }
    }

    async fn schedule_page(
        self,
        key: &ReplayKey,
        replay: &Replay,
        page: ReplayPage,
        now: Timestamp,
        retention: Duration,
        deadline: Deadline,
    ) -> Result<Vec<DueDelivery>> {
        let mut due_at = now;
        let mut scheduled = Vec::new();
        for delivery_key in page.keys {
            if deadline.remaining().is_zero() {
                return Ok(scheduled);
            }
            let Some(current) = self.deliveries.get(&delivery_key).await? else {
                continue;
            };
            if !is_selected(replay.selection, current.state) {
                continue;
            }
            due_at = due_at + lease::PACING_INTERVAL;
            match self
                .schedule_delivery(key, &current, due_at, now, retention)
                .await?
            {
                ScheduleOutcome::Scheduled(due) => scheduled.push(due),
                ScheduleOutcome::Changed => {}
                ScheduleOutcome::NotOurs => return Ok(scheduled),
            }
        }
        self.save_cursor(key, page.next).await?;
        Ok(scheduled)
    }

    async fn schedule_delivery(
        self,
        key: &ReplayKey,
        current: &nano_webhooks_core::delivery::Delivery,
        due_at: Timestamp,
        now: Timestamp,
        retention: Duration,
    ) -> Result<ScheduleOutcome> {
        let mut delivery = current.clone();
        delivery.request_retry(due_at);
        delivery.replay = Some(key.id.clone());
        let put = replacement_put(current, &delivery, now, retention);
        let writes = vec![
            self.deliveries_table.transact_put(put),
            self.count_sent(key, &delivery.key.event),
        ];
        match self.deliveries_table.transact_write(writes).await? {
            TransactOutcome::Applied => Ok(ScheduleOutcome::Scheduled(DueDelivery::new(
                delivery.key,
                delivery.attempt_count,
                due_at,
                now,
            ))),
            TransactOutcome::ConditionFailed { index: 0 } => Ok(ScheduleOutcome::Changed),
            TransactOutcome::ConditionFailed { .. } => Ok(ScheduleOutcome::NotOurs),
        }
    }

    /// The next deliveries of the time window, the oldest first.
    async fn next_page(self, key: &ReplayKey, replay: &Replay, limit: usize) -> Result<ReplayPage> {
        let first = match &replay.cursor {
            Some(cursor) => cursor.clone(),
            None => EventId::min_at(replay.since).as_str().to_owned(),
        };
        let last = EventId::max_at(replay.until);
        let query = self
            .deliveries_table
            .query()
            .projection_expression("PK, SK")
            .expression_attribute_values(":from", attr_s(&first))
            .expression_attribute_values(":to", attr_s(last.as_str()))
            .limit(i32::try_from(limit).unwrap_or(i32::MAX));
        let query = match replay.selection {
            ReplayFilter::Failed => {
                let status = DeliveryStatus::Failed;
                let partition = key_schema::state_index_key(&key.account, key.webhook, status);
                query
                    .index_name(STATE_INDEX)
                    .key_condition_expression("state_key = :partition AND SK BETWEEN :from AND :to")
                    .expression_attribute_values(":partition", attr_s(&partition))
            }
            ReplayFilter::All => {
                let partition = key_schema::deliveries(&key.account, key.webhook);
                query
                    .consistent_read(true)
                    .key_condition_expression("PK = :partition AND SK BETWEEN :from AND :to")
                    .expression_attribute_values(":partition", attr_s(&partition))
            }
        };
        let response = query.send().await?;
        let mut keys = Vec::new();
        for item in response.items.unwrap_or_default() {
            let delivery = parse_key(&item)?;
            // The window starts with the delivery that was read last.
            if replay.cursor.as_deref() != Some(delivery.event.as_str()) {
                keys.push(delivery);
            }
        }
        let next = match response.last_evaluated_key {
            Some(last) => Some(parse_key(&last)?.event),
            None => None,
        };
        Ok(ReplayPage { keys, next })
    }

    /// Counts a delivery as scheduled and moves the cursor to it. The condition fails if the replay
    /// was cancelled or the cursor is there already.
    fn count_sent(self, key: &ReplayKey, event: &EventId) -> TransactWriteItem {
        let update = Update::builder()
            .update_expression("SET #after = :event ADD #found :one, sent :one")
            .condition_expression(
                "attribute_exists(PK) AND cancelled = :no \
                 AND (attribute_not_exists(#after) OR #after < :event)",
            )
            .expression_attribute_names("#after", "after")
            .expression_attribute_names("#found", "found")
            .expression_attribute_values(":event", attr_s(event.as_str()))
            .expression_attribute_values(":no", AttributeValue::Bool(false))
            .expression_attribute_values(":one", attr_n(1));
        self.webhooks_table
            .transact_update(key.primary_key(), update)
    }

    /// Moves the cursor behind a page; after the last page, marks the time window as read.
    async fn save_cursor(self, key: &ReplayKey, next: Option<EventId>) -> Result<()> {
        let update = self.webhooks_table.update(key.primary_key());
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
        // The replay may have expired, and another process may have moved the cursor further.
        WriteOutcome::from_response(update.send().await)?;
        Ok(())
    }

    /// Allows another replay of the webhook. A later replay's marker stays.
    async fn clear_active_marker(self, key: &ReplayKey) -> Result<()> {
        let marker = key_schema::active_replay(&key.account, key.webhook);
        let id = attr_s(key.id.as_str());
        self.webhooks_table
            .delete_if_equal(marker, "replay", id)
            .await?;
        Ok(())
    }
}

fn parse_replay_id(marker: &Item) -> Option<ReplayId> {
    ReplayId::parse(text(marker, "replay")?)
}

/// A replay waits while its webhook is disabled, and after it has scheduled its last delivery.
fn decide_step(replay: &Replay, webhook: Option<WebhookStatus>) -> ReplayStep {
    match webhook {
        None => ReplayStep::Finish,
        Some(_) if replay.is_finished() => ReplayStep::Finish,
        Some(_) if replay.scanned || replay.cancelled => ReplayStep::Wait,
        Some(WebhookStatus::Disabled) => ReplayStep::Wait,
        Some(WebhookStatus::Active) => ReplayStep::Continue,
    }
}

/// Pending deliveries are never sent again: they will be attempted anyway.
const fn is_selected(filter: ReplayFilter, state: DeliveryState) -> bool {
    match state {
        DeliveryState::Failed => true,
        DeliveryState::Delivered | DeliveryState::Cancelled => {
            matches!(filter, ReplayFilter::All)
        }
        DeliveryState::Pending(_) | DeliveryState::Paused => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_depends_on_replay_and_webhook() {
        let at = Timestamp::from_millis(1);
        let active = Some(WebhookStatus::Active);
        let disabled = Some(WebhookStatus::Disabled);
        for (scanned, cancelled, sent, webhook, expected) in [
            (false, false, 0, active, ReplayStep::Continue),
            (false, false, 2, active, ReplayStep::Continue),
            (false, false, 2, disabled, ReplayStep::Wait),
            (false, false, 2, None, ReplayStep::Finish),
            (true, false, 2, active, ReplayStep::Wait),
            (true, false, 0, active, ReplayStep::Finish),
            (false, true, 2, active, ReplayStep::Wait),
            (false, true, 0, disabled, ReplayStep::Finish),
        ] {
            let replay = Replay {
                sent,
                scanned,
                cancelled,
                ..Replay::new(at, at, ReplayFilter::All)
            };
            assert_eq!(
                decide_step(&replay, webhook),
                expected,
                "{replay:?} {webhook:?}"
            );
        }
    }

    #[test]
    fn pending_deliveries_are_not_selected() {
        let pending = DeliveryState::Pending(Timestamp::from_millis(1));
        for (state, by_failed, by_all) in [
            (DeliveryState::Failed, true, true),
            (DeliveryState::Delivered, false, true),
            (DeliveryState::Cancelled, false, true),
            (DeliveryState::Paused, false, false),
            (pending, false, false),
        ] {
            assert_eq!(is_selected(ReplayFilter::Failed, state), by_failed);
            assert_eq!(is_selected(ReplayFilter::All, state), by_all);
        }
    }
}
