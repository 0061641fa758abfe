//! The retry queue: timers that name a delivery. What is true of it is in the table; a message that is lost, late or comes
//! twice does no harm.

use std::time::Duration;

use aws_sdk_sqs::{Client, types::SendMessageBatchRequestEntry};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::{aws::format_sdk_error, concurrency, store::due_index::DueDelivery};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{DeliveryKey, lease::MAX_QUEUE_DELAY},
    event::EventId,
    timestamp::Timestamp,
    webhook::WebhookId,
};

/// The most messages that SendMessageBatch takes.
const MAX_BATCH_ENTRIES: usize = 10;
/// How many batches are on their way at the same time.
const CONCURRENT_BATCHES: usize = 8;

/// A timer: this delivery is due for the attempt after `attempt_count` others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryMessage {
    /// The delivery.
    pub key: DeliveryKey,
    /// How many attempts were made when the message was sent; if there are more by now, the message is stale.
    pub attempt_count: u32,
}

/// A message as it is in the queue.
#[derive(Serialize, Deserialize)]
struct MessageJson {
    account: String,
    webhook_id: u64,
    event_id: String,
    attempt: u32,
}

impl RetryMessage {
    /// The message as the text that the queue holds.
    pub fn to_json(&self) -> String {
        let wire = MessageJson {
            account: self.key.account.to_string(),
            webhook_id: self.key.webhook.get(),
            event_id: self.key.event.to_string(),
            attempt: self.attempt_count,
        };
        serde_json::to_string(&wire).expect("four plain fields can be written")
    }

    /// Reads a message; `None` if the text is none of ours.
    pub fn from_json(text: &str) -> Option<Self> {
        let wire: MessageJson = serde_json::from_str(text).ok()?;
        let key = DeliveryKey {
            account: AccountId::parse(&wire.account).ok()?,
            webhook: WebhookId::new(wire.webhook_id)?,
            event: EventId::parse(&wire.event_id)?,
        };
        Some(Self {
            key,
            attempt_count: wire.attempt,
        })
    }

    /// The tenant of SQS's fair queues: one webhook's backlog does not delay the others. Hashed, because an account's name
    /// may hold what a group id may not.
    fn group(&self) -> String {
        hex::encode(&Sha256::digest(format!("{}#{}", self.key.account, self.key.webhook))[..16])
    }
}

/// A message, and when it is to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledRetry {
    /// The message.
    pub message: RetryMessage,
    /// When the delivery is due.
    pub due: Timestamp,
}

impl From<DueDelivery> for ScheduledRetry {
    fn from(due: DueDelivery) -> Self {
        let message = RetryMessage {
            key: due.key,
            attempt_count: due.attempt_count,
        };
        Self {
            message,
            due: due.next_attempt_at,
        }
    }
}

/// Where timers are set.
#[derive(Clone, Debug)]
pub enum RetryQueue {
    /// An SQS queue.
    Sqs {
        /// The client that reaches it.
        client: Client,
        /// Its URL.
        url: String,
    },
    /// The timer of this process, which takes them from the other end of this channel.
    Local(mpsc::Sender<ScheduledRetry>),
}

impl RetryQueue {
    /// Sets timers. One that cannot be set is logged and left to the sweep, which finds the delivery in the table.
    pub async fn set(&self, timers: Vec<ScheduledRetry>, now: Timestamp) {
        match self {
            Self::Local(channel) => {
                for timer in timers {
                    // The other end takes them up at once, and is gone only when the process ends.
                    let _ = channel.send(timer).await;
                }
            }
            Self::Sqs { client, url } => {
                let batches = timers
                    .chunks(MAX_BATCH_ENTRIES)
                    .map(|batch| send(client, url, batch, now))
                    .collect();
                concurrency::join_bounded(batches, CONCURRENT_BATCHES).await;
            }
        }
    }
}

async fn send(client: &Client, url: &str, batch: &[ScheduledRetry], now: Timestamp) {
    let entries = batch.iter().enumerate().map(|(place, timer)| {
        SendMessageBatchRequestEntry::builder()
            .id(place.to_string())
            .message_body(timer.message.to_json())
            .message_group_id(timer.message.group())
            .delay_seconds(delay_seconds(timer.due.saturating_duration_since(now)))
            .build()
            .expect("every required part is set")
    });
    match client
        .send_message_batch()
        .queue_url(url)
        .set_entries(Some(entries.collect()))
        .send()
        .await
    {
        Ok(answer) if answer.failed.is_empty() => {}
        Ok(answer) => {
            let reasons: Vec<_> = answer
                .failed
                .iter()
                .map(|failed| failed.code.as_str())
                .collect();
            tracing::error!(
                ?reasons,
                "messages were not queued; the sweep will find their deliveries"
            );
        }
        Err(error) => {
            tracing::error!(
                error = format_sdk_error(&error),
                messages = batch.len(),
                "messages were not queued; the sweep will find their deliveries"
            );
        }
    }
}

/// Whole seconds, rounded up so that no message comes early, up to what SQS allows.
fn delay_seconds(wait: Duration) -> i32 {
    let seconds = wait.min(MAX_QUEUE_DELAY).as_millis().div_ceil(1000);
    i32::try_from(seconds).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_back_and_other_text_is_not_one() {
        let message = RetryMessage {
            key: DeliveryKey {
                account: AccountId::parse("a#b \"c\"").unwrap(),
                webhook: WebhookId::new(7).unwrap(),
                event: EventId::parse("evt_01JFS8TX800000000000000000").unwrap(),
            },
            attempt_count: 3,
        };
        let text = message.to_json();
        assert_eq!(
            text,
            r#"{"account":"a#b \"c\"","webhook_id":7,"event_id":"evt_01JFS8TX800000000000000000","attempt":3}"#
        );
        assert_eq!(RetryMessage::from_json(&text), Some(message));
        for other in [
            "",
            "{}",
            r#"{"account":"","webhook_id":7,"event_id":"evt_01JFS8TX800000000000000000","attempt":3}"#,
        ] {
            assert_eq!(RetryMessage::from_json(other), None);
        }
    }

    #[test]
    fn a_delay_is_rounded_up_and_held_to_what_sqs_allows() {
        for (millis, seconds) in [
            (0, 0),
            (1, 1),
            (1000, 1),
            (1001, 2),
            (899_999, 900),
            (10_000_000, 900),
        ] {
            assert_eq!(delay_seconds(Duration::from_millis(millis)), seconds);
        }
    }
}
