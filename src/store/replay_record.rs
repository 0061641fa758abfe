//! Replays as they are stored, and their counters.

use aws_sdk_dynamodb::types::{AttributeValue, TransactWriteItem};
use serde::{Deserialize, Serialize};

use super::{
    error::Result,
    item::attr_n,
    key_schema::{self, PrimaryKey},
    table_client::{TableClient, WriteOutcome, update_existing},
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{Delivery, DeliveryKey},
    replay::ReplayId,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// Which deliveries a replay sends again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplayFilter {
    /// Failed deliveries.
    Failed,
    /// All deliveries that are not pending.
    All,
}

/// The state of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayState {
    /// Some of its deliveries have not been attempted.
    Running,
    /// All of its deliveries have been attempted.
    Done,
    /// It was cancelled, or its webhook was deleted.
    Cancelled,
}

impl ReplayState {
    /// The name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A replay of a webhook's deliveries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Replay {
    /// The start of the time window of the events.
    pub since: Timestamp,
    /// The end of the time window, inclusive.
    pub until: Timestamp,
    /// Which deliveries of the time window.
    pub selection: ReplayFilter,
    /// How many deliveries were selected so far.
    #[serde(default)]
    pub found: u64,
    /// How many of them were scheduled.
    #[serde(default)]
    pub sent: u64,
    /// How many of the scheduled deliveries were delivered.
    #[serde(default)]
    pub delivered: u64,
    /// How many of the scheduled deliveries failed again.
    #[serde(default)]
    pub failed: u64,
    /// The event id of the last delivery that was read.
    #[serde(default, rename = "after", skip_serializing_if = "Option::is_none")]
    pub(super) cursor: Option<String>,
    /// When the delivery is due that was scheduled last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) scheduled_until: Option<Timestamp>,
    /// Whether all deliveries of the time window were read.
    #[serde(default)]
    pub(super) scanned: bool,
    #[serde(default)]
    pub(super) cancelled: bool,
}

impl Replay {
    /// A replay that has not read any delivery.
    pub const fn new(since: Timestamp, until: Timestamp, selection: ReplayFilter) -> Self {
        Self {
            since,
            until,
            selection,
            found: 0,
            sent: 0,
            delivered: 0,
            failed: 0,
            cursor: None,
            scheduled_until: None,
            scanned: false,
            cancelled: false,
        }
    }

    /// Whether all scheduled deliveries were attempted or cancelled, and no more will be scheduled.
    pub(super) const fn is_finished(&self) -> bool {
        (self.scanned || self.cancelled) && self.delivered + self.failed >= self.sent
    }

    /// The state.
    pub const fn state(&self) -> ReplayState {
        if self.cancelled {
            ReplayState::Cancelled
        } else if self.is_finished() {
            ReplayState::Done
        } else {
            ReplayState::Running
        }
    }
}

/// Identifies a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayKey {
    /// The account.
    pub account: AccountId,
    /// The webhook.
    pub webhook: WebhookId,
    /// The replay.
    pub id: ReplayId,
}

impl ReplayKey {
    /// The replay of a delivery's webhook.
    pub fn for_delivery(delivery: &DeliveryKey, id: ReplayId) -> Self {
        Self {
            account: delivery.account.clone(),
            webhook: delivery.webhook,
            id,
        }
    }

    pub(super) fn primary_key(&self) -> PrimaryKey {
        key_schema::replay(&self.account, self.webhook, &self.id)
    }
}

/// The items of replays.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplayRecords<'a> {
    table: &'a TableClient,
}

impl<'a> ReplayRecords<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }

    pub(super) async fn get(self, key: &ReplayKey) -> Result<Option<Replay>> {
        self.table.get_row(key.primary_key()).await
    }

    /// Cancels a replay that is running. Returns whether the replay exists.
    pub(super) async fn cancel(self, key: &ReplayKey) -> Result<bool> {
        let Some(replay) = self.get(key).await? else {
            return Ok(false);
        };
        if replay.state() != ReplayState::Running {
            return Ok(true);
        }
        let response = self
            .table
            .update(key.primary_key())
            .update_expression("SET cancelled = :yes")
            .condition_expression("attribute_exists(PK)")
            .expression_attribute_values(":yes", AttributeValue::Bool(true))
            .send()
            .await;
        // The item may have expired since it was read.
        WriteOutcome::from_response(response)?;
        Ok(true)
    }

    /// Counts a scheduled delivery as delivered or failed. The condition fails if the replay no
    /// longer exists.
    pub(super) fn count_result(self, delivery: &Delivery, id: &ReplayId) -> TransactWriteItem {
        let last_attempt = delivery.attempts.last();
        let counter = match last_attempt {
            Some(attempt) if attempt.failure.is_none() => "delivered",
            _ => "failed",
        };
        let update = update_existing("ADD #counter :one")
            .expression_attribute_names("#counter", counter)
            .expression_attribute_values(":one", attr_n(1));
        self.table
            .transact_update(replay_of(&delivery.key, id), update)
    }

    /// Subtracts a scheduled delivery that will not be attempted. The condition fails if the replay
    /// no longer exists.
    pub(super) fn uncount_sent(self, delivery: &DeliveryKey, id: &ReplayId) -> TransactWriteItem {
        let update = update_existing("ADD sent :minus_one")
            .expression_attribute_values(":minus_one", attr_n(-1));
        self.table.transact_update(replay_of(delivery, id), update)
    }
}

fn replay_of(delivery: &DeliveryKey, id: &ReplayId) -> PrimaryKey {
    key_schema::replay(&delivery.account, delivery.webhook, id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_follows_from_counters() {
        let at = Timestamp::from_millis(1);
        for (scanned, cancelled, sent, delivered, failed, expected) in [
            (false, false, 0, 0, 0, ReplayState::Running),
            (false, false, 2, 1, 1, ReplayState::Running),
            (true, false, 2, 1, 0, ReplayState::Running),
            (true, false, 2, 1, 1, ReplayState::Done),
            (true, false, 0, 0, 0, ReplayState::Done),
            (false, true, 2, 0, 0, ReplayState::Cancelled),
            (true, true, 2, 1, 1, ReplayState::Cancelled),
        ] {
            let replay = Replay {
                sent,
                delivered,
                failed,
                scanned,
                cancelled,
                ..Replay::new(at, at, ReplayFilter::All)
            };
            assert_eq!(replay.state(), expected, "{replay:?}");
        }
    }
}
