//! Replays: sending again a webhook's deliveries of a time window.
//!
//! A scheduled job runs a replay in steps, one a minute.

use std::time::Duration;

use aws_sdk_dynamodb::types::Put;

use super::{
    due_index::DueDelivery,
    error::{Error, Result},
    item::{Item, attr_n, attr_s, text, to_item},
    key_schema,
    markers::list_markers,
    replay_record::ReplayRecords,
    replay_step::ReplayStepper,
    table_client::{TableClient, WriteOutcome},
    tables::EXPIRES_AT,
    webhooks::{WebhookRecord, Webhooks},
};
use crate::clock::Deadline;
use nano_webhooks_core::{
    delivery::pace::pacing_interval, replay::ReplayId, timestamp::Timestamp, webhook::WebhookStatus,
};

pub use super::{
    replay_record::{Replay, ReplayFilter, ReplayKey, ReplayState},
    replay_step::ReplayProgress,
};

/// How many deliveries of a replay are read in a minute.
pub const READS_PER_MINUTE: usize = 300;
/// How many deliveries the request that creates a replay reads.
pub const INITIAL_STEP_SIZE: usize = 60;
/// How far ahead a replay schedules deliveries. A step waits until fewer are scheduled, so that
/// repeated steps keep the pace.
const MAX_SCHEDULED_AHEAD: Duration = Duration::from_mins(2);

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

/// See [`Store::replays`](super::Store::replays).
#[derive(Clone, Copy, Debug)]
pub struct Replays<'a> {
    webhooks_table: &'a TableClient,
    deliveries_table: &'a TableClient,
    records: ReplayRecords<'a>,
    webhooks: Webhooks<'a>,
}

impl<'a> Replays<'a> {
    pub(super) const fn new(
        webhooks_table: &'a TableClient,
        deliveries_table: &'a TableClient,
        webhooks: Webhooks<'a>,
    ) -> Self {
        Self {
            webhooks_table,
            deliveries_table,
            records: ReplayRecords::new(webhooks_table),
            webhooks,
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

    /// Schedules the next deliveries of a replay, reading at most `limit`. Adds to `scheduled` what
    /// is due, also if the step fails later.
    pub async fn run_step(
        self,
        key: &ReplayKey,
        limit: usize,
        now: Timestamp,
        deadline: Deadline,
        scheduled: &mut Vec<DueDelivery>,
    ) -> Result<ReplayProgress> {
        let record = self.webhooks.get_record(&key.account, key.webhook).await?;
        if record.is_none() {
            self.records.cancel(key).await?;
        }
        let Some(replay) = self.records.get(key).await? else {
            self.clear_active_marker(key).await?;
            return Ok(ReplayProgress::Settled);
        };
        let target = record.as_ref().map(ReplayTarget::from);
        let pace = record.and_then(|record| record.webhook.pace);
        let stepper = ReplayStepper {
            webhooks_table: self.webhooks_table,
            deliveries_table: self.deliveries_table,
            key,
            replay: &replay,
            interval: pacing_interval(pace),
            now,
        };
        match decide_step(&replay, target, now) {
            ReplayStep::Continue => stepper.run(limit, deadline, scheduled).await,
            ReplayStep::Wait => Ok(ReplayProgress::Settled),
            ReplayStep::Finish => {
                self.clear_active_marker(key).await?;
                Ok(ReplayProgress::Settled)
            }
        }
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

/// Whether the webhook of a replay takes deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReplayTarget {
    Ready,
    /// The webhook is disabled, or the endpoint is unreachable.
    Waiting,
}

impl From<&WebhookRecord> for ReplayTarget {
    fn from(record: &WebhookRecord) -> Self {
        match record.webhook.status {
            WebhookStatus::Active if !record.health.is_open() => Self::Ready,
            WebhookStatus::Active | WebhookStatus::Disabled => Self::Waiting,
        }
    }
}

/// A replay waits with its webhook, while it is ahead of its pace, and after it has scheduled its
/// last delivery. `target` is `None` if the webhook was deleted.
fn decide_step(replay: &Replay, target: Option<ReplayTarget>, now: Timestamp) -> ReplayStep {
    match target {
        None => ReplayStep::Finish,
        Some(_) if replay.is_finished() => ReplayStep::Finish,
        Some(_) if replay.scanned || replay.cancelled => ReplayStep::Wait,
        Some(_) if replay.scheduled_until > Some(now + MAX_SCHEDULED_AHEAD) => ReplayStep::Wait,
        Some(ReplayTarget::Waiting) => ReplayStep::Wait,
        Some(ReplayTarget::Ready) => ReplayStep::Continue,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_depends_on_replay_and_webhook() {
        let at = Timestamp::from_millis(1);
        let ready = Some(ReplayTarget::Ready);
        let waiting = Some(ReplayTarget::Waiting);
        for (scanned, cancelled, sent, target, expected) in [
            (false, false, 0, ready, ReplayStep::Continue),
            (false, false, 2, ready, ReplayStep::Continue),
            (false, false, 2, waiting, ReplayStep::Wait),
            (false, false, 2, None, ReplayStep::Finish),
            (true, false, 2, ready, ReplayStep::Wait),
            (true, false, 0, ready, ReplayStep::Finish),
            (false, true, 2, ready, ReplayStep::Wait),
            (false, true, 0, waiting, ReplayStep::Finish),
        ] {
            let replay = Replay {
                sent,
                scanned,
                cancelled,
                ..Replay::new(at, at, ReplayFilter::All)
            };
            assert_eq!(
                decide_step(&replay, target, at),
                expected,
                "{replay:?} {target:?}"
            );
        }
    }

    #[test]
    fn replay_ahead_of_its_pace_waits() {
        let at = Timestamp::from_millis(1);
        let ready = Some(ReplayTarget::Ready);
        let replay = Replay {
            scheduled_until: Some(at + MAX_SCHEDULED_AHEAD),
            ..Replay::new(at, at, ReplayFilter::All)
        };
        assert_eq!(decide_step(&replay, ready, at), ReplayStep::Continue);
        let earlier = Timestamp::from_millis(0);
        assert_eq!(decide_step(&replay, ready, earlier), ReplayStep::Wait);
    }
}
