//! A step of a replay: schedules the next deliveries of its time window.
//!
//! A transaction schedules a chunk of deliveries, counts them, and moves the cursor behind them.
//! So a crash neither loses nor repeats a delivery, the counts are right after each transaction,
//! and of two processes that run the same step, one schedules each chunk.

use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeValue, TransactWriteItem, Update};
use serde::Deserialize;

use super::{
    delivery_row::parse_key,
    due_index::DueDelivery,
    error::{Error, Result},
    item::{Item, attr_n, attr_s, from_item},
    key_schema::{self, PK, SK},
    replay_record::{Replay, ReplayFilter, ReplayKey},
    table_client::{TableClient, TransactOutcome, WriteOutcome},
    tables::{STATE_INDEX, STATE_KEY},
};
use crate::clock::Deadline;
use nano_webhooks_core::{
    delivery::{DeliveryKey, lease, status::DeliveryStatus, wait_reason::WaitReason},
    event::EventId,
    timestamp::Timestamp,
};

/// How many deliveries a transaction schedules. DynamoDB allows 4 MB in a transaction, and a
/// delivery has up to 300 KB.
const CHUNK_SIZE: usize = 12;

/// Runs a step of a replay.
#[derive(Clone, Copy)]
pub(super) struct ReplayStepper<'a> {
    pub(super) webhooks_table: &'a TableClient,
    pub(super) deliveries_table: &'a TableClient,
    pub(super) key: &'a ReplayKey,
    pub(super) replay: &'a Replay,
    /// The time between two of its deliveries.
    pub(super) interval: Duration,
    pub(super) now: Timestamp,
}

/// A settled delivery that the replay sends again.
struct Candidate {
    key: DeliveryKey,
    status: DeliveryStatus,
    attempt_count: u32,
}

/// The attributes that decide whether a delivery is sent again.
#[derive(Deserialize)]
struct CandidateRow {
    status: String,
    attempt_count: u32,
}

/// The next deliveries of the time window.
struct ReplayPage {
    candidates: Vec<Candidate>,
    /// How many deliveries were read.
    read_count: usize,
    /// The delivery that was read last, if more follow.
    next: Option<EventId>,
}

/// Whether the step may continue after a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkOutcome {
    Done,
    /// The replay was cancelled, or another process has moved the cursor.
    NotOurs,
}

/// Whether a replay can go on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayProgress {
    /// The step has read as many deliveries as it may, and more follow.
    MoreFollow,
    /// The replay waits or is finished, or another process runs it.
    Settled,
}

impl ReplayStepper<'_> {
    /// Schedules the next deliveries, reading at most `limit`, until the deadline. Adds to
    /// `scheduled` what is due, also if the step fails later.
    pub(super) async fn run(
        self,
        limit: usize,
        deadline: Deadline,
        scheduled: &mut Vec<DueDelivery>,
    ) -> Result<ReplayProgress> {
        let mut cursor = self.replay.cursor.clone();
        let mut scheduled_until = match self.replay.scheduled_until {
            Some(until) => self.now.max(until),
            None => self.now,
        };
        let mut remaining = limit;
        while remaining > 0 {
            let page = self.next_page(cursor.as_deref(), remaining).await?;
            for chunk in page.candidates.chunks(CHUNK_SIZE) {
                if deadline.remaining().is_zero() {
                    return Ok(ReplayProgress::Settled);
                }
                let before = scheduled.len();
                let outcome = self
                    .schedule_chunk(chunk, scheduled_until, scheduled)
                    .await?;
                if outcome == ChunkOutcome::NotOurs {
                    return Ok(ReplayProgress::Settled);
                }
                if let Some(last) = scheduled[before..].last() {
                    scheduled_until = last.next_attempt_at;
                }
            }
            self.save_cursor(page.next.as_ref()).await?;
            let Some(next) = page.next else {
                return Ok(ReplayProgress::Settled);
            };
            cursor = Some(next.as_str().to_owned());
            remaining = remaining.saturating_sub(page.read_count.max(1));
        }
        Ok(ReplayProgress::MoreFollow)
    }

    /// Schedules deliveries that have not changed since they were read, paced from `from` on.
    async fn schedule_chunk(
        self,
        chunk: &[Candidate],
        from: Timestamp,
        scheduled: &mut Vec<DueDelivery>,
    ) -> Result<ChunkOutcome> {
        let mut candidates: Vec<_> = chunk.iter().collect();
        while let Some(last) = chunk.last()
            && !candidates.is_empty()
        {
            let due = self.pace(&candidates, from);
            let mut writes = vec![self.count_sent(&last.key.event, &due)];
            for (candidate, due) in candidates.iter().zip(&due) {
                writes.push(self.schedule(candidate, due));
            }
            match self.deliveries_table.transact_write(writes).await? {
                TransactOutcome::Applied => {
                    scheduled.extend(due);
                    return Ok(ChunkOutcome::Done);
                }
                TransactOutcome::ConditionFailed { index: 0 } => return Ok(ChunkOutcome::NotOurs),
                TransactOutcome::ConditionFailed { index } => {
                    candidates.remove(index - 1);
                }
            }
        }
        Ok(ChunkOutcome::Done)
    }

    fn pace(self, candidates: &[&Candidate], from: Timestamp) -> Vec<DueDelivery> {
        let mut due_at = from;
        let mut due = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            due_at = due_at + self.interval;
            let key = candidate.key.clone();
            due.push(DueDelivery::new(
                key,
                candidate.attempt_count,
                due_at,
                self.now,
            ));
        }
        due
    }

    /// Makes a settled delivery due, as a manual retry of this replay. The condition fails if the
    /// delivery has changed.
    fn schedule(self, candidate: &Candidate, due: &DueDelivery) -> TransactWriteItem {
        let Candidate {
            key,
            status,
            attempt_count,
        } = candidate;
        let pending = DeliveryStatus::Pending;
        let state_key = key_schema::state_index_key(&key.account, key.webhook, pending);
        let sweep_at = lease::sweep_at(due.next_attempt_at, self.now);
        let update = Update::builder()
            .update_expression(
                "SET #status = :pending, next_attempt_at = :due, sweep_at = :sweep, \
                 due_shard = :shard, state_key = :state_key, resume_status = :status, \
                 replay = :replay, waiting_for = :rate \
                 REMOVE expires_at, leased_until, paced_since",
            )
            .condition_expression(
                "#status = :status AND attempt_count = :count \
                 AND attribute_not_exists(next_attempt_at) \
                 AND (attribute_not_exists(leased_until) OR leased_until <= :now)",
            )
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":pending", attr_s(pending.as_str()))
            .expression_attribute_values(":due", attr_n(due.next_attempt_at.as_unix_millis()))
            .expression_attribute_values(":sweep", attr_n(sweep_at.as_unix_millis()))
            .expression_attribute_values(":shard", attr_s(&key_schema::due_shard(&key.event)))
            .expression_attribute_values(":state_key", attr_s(&state_key))
            .expression_attribute_values(":status", attr_s(status.as_str()))
            .expression_attribute_values(":replay", attr_s(self.key.id.as_str()))
            .expression_attribute_values(":rate", attr_s(WaitReason::Rate.as_str()))
            .expression_attribute_values(":count", attr_n((*attempt_count).into()))
            .expression_attribute_values(":now", attr_n(self.now.as_unix_millis()));
        self.deliveries_table
            .transact_update(key_schema::delivery(key), update)
    }

    /// Counts deliveries as scheduled and moves the cursor to `last`. The condition fails if the
    /// replay was cancelled or the cursor is there already.
    fn count_sent(self, last: &EventId, due: &[DueDelivery]) -> TransactWriteItem {
        let until = due.last().map_or(self.now, |due| due.next_attempt_at);
        let count = i64::try_from(due.len()).unwrap_or(i64::MAX);
        let update = Update::builder()
            .update_expression(
                "SET #after = :last, scheduled_until = :until ADD #found :count, sent :count",
            )
            .condition_expression(
                "attribute_exists(PK) AND cancelled = :no \
                 AND (attribute_not_exists(#after) OR #after < :last)",
            )
            .expression_attribute_names("#after", "after")
            .expression_attribute_names("#found", "found")
            .expression_attribute_values(":last", attr_s(last.as_str()))
            .expression_attribute_values(":until", attr_n(until.as_unix_millis()))
            .expression_attribute_values(":no", AttributeValue::Bool(false))
            .expression_attribute_values(":count", attr_n(count));
        self.webhooks_table
            .transact_update(self.key.primary_key(), update)
    }

    /// The next deliveries of the time window, the oldest first, behind the delivery `cursor`.
    async fn next_page(self, cursor: Option<&str>, limit: usize) -> Result<ReplayPage> {
        let first = EventId::min_at(self.replay.since);
        let last = EventId::max_at(self.replay.until);
        let query = self
            .deliveries_table
            .query()
            .projection_expression("PK, SK, #status, attempt_count")
            .expression_attribute_names("#status", "status")
            .expression_attribute_values(":from", attr_s(first.as_str()))
            .expression_attribute_values(":to", attr_s(last.as_str()))
            .set_exclusive_start_key(cursor.map(|cursor| self.start_key(cursor)))
            .limit(i32::try_from(limit).unwrap_or(i32::MAX));
        let query = match self.replay.selection {
            ReplayFilter::Failed => query
                .index_name(STATE_INDEX)
                .key_condition_expression("state_key = :partition AND SK BETWEEN :from AND :to")
                .expression_attribute_values(":partition", attr_s(&self.failed_partition())),
            ReplayFilter::All => query
                .consistent_read(true)
                .key_condition_expression("PK = :partition AND SK BETWEEN :from AND :to")
                .expression_attribute_values(":partition", attr_s(&self.partition())),
        };
        let response = query.send().await?;
        let items = response.items.unwrap_or_default();
        let next = match response.last_evaluated_key {
            Some(last) => Some(parse_key(&last)?.event),
            None => None,
        };
        Ok(ReplayPage {
            read_count: items.len(),
            candidates: self.select(items)?,
            next,
        })
    }

    /// Where a query continues behind the delivery `cursor`.
    fn start_key(self, cursor: &str) -> Item {
        let mut key = Item::from([
            (PK.to_owned(), attr_s(&self.partition())),
            (SK.to_owned(), attr_s(cursor)),
        ]);
        if self.replay.selection == ReplayFilter::Failed {
            key.insert(STATE_KEY.to_owned(), attr_s(&self.failed_partition()));
        }
        key
    }

    fn partition(self) -> String {
        key_schema::deliveries(&self.key.account, self.key.webhook)
    }

    /// The partition of the state index with the failed deliveries.
    fn failed_partition(self) -> String {
        let status = DeliveryStatus::Failed;
        key_schema::state_index_key(&self.key.account, self.key.webhook, status)
    }

    /// The deliveries that are sent again.
    fn select(self, items: Vec<Item>) -> Result<Vec<Candidate>> {
        let mut candidates = Vec::with_capacity(items.len());
        for item in items {
            let key = parse_key(&item)?;
            let row: CandidateRow = from_item(item)?;
            let Ok(status) = row.status.parse() else {
                return Err(Error::corrupt_item("delivery status"));
            };
            if is_selected(self.replay.selection, status) {
                candidates.push(Candidate {
                    key,
                    status,
                    attempt_count: row.attempt_count,
                });
            }
        }
        Ok(candidates)
    }

    /// Moves the cursor behind a page; after the last page, marks the time window as read.
    async fn save_cursor(self, next: Option<&EventId>) -> Result<()> {
        let update = self.webhooks_table.update(self.key.primary_key());
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
}

/// Pending deliveries are never sent again: they will be attempted anyway.
const fn is_selected(filter: ReplayFilter, status: DeliveryStatus) -> bool {
    match status {
        DeliveryStatus::Failed => true,
        DeliveryStatus::Delivered | DeliveryStatus::Cancelled => {
            matches!(filter, ReplayFilter::All)
        }
        DeliveryStatus::Pending => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_deliveries_are_not_selected() {
        for (status, by_failed, by_all) in [
            (DeliveryStatus::Failed, true, true),
            (DeliveryStatus::Delivered, false, true),
            (DeliveryStatus::Cancelled, false, true),
            (DeliveryStatus::Pending, false, false),
        ] {
            assert_eq!(is_selected(ReplayFilter::Failed, status), by_failed);
            assert_eq!(is_selected(ReplayFilter::All, status), by_all);
        }
    }
}
