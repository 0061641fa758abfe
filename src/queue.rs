//! The retry queue: messages that name a delivery and the time of its next attempt.
//!
//! The deliveries table has the truth. A message that is lost, late or duplicated changes nothing.

use std::time::Duration;

use aws_sdk_sqs::{Client, types::SendMessageBatchRequestEntry};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::{aws::format_sdk_error, concurrency};
use nano_webhooks_core::{
    delivery::{
        Delivery, DeliveryKey, DeliveryState,
        lease::{MAX_QUEUE_DELAY, fits_in_queue},
        scheduled_retry::{RetryMessage, ScheduledRetry},
    },
    timestamp::Timestamp,
};

/// The most messages in one SendMessageBatch request.
const MAX_BATCH_ENTRIES: usize = 10;
/// How many SendMessageBatch requests run at the same time.
const CONCURRENT_BATCHES: usize = 8;

/// Where retries are scheduled.
#[derive(Clone, Debug)]
pub enum RetryQueue {
    /// An SQS queue.
    Sqs {
        /// The client.
        client: Client,
        /// The URL of the queue.
        url: String,
    },
    /// The retry timer of this process, which receives from this channel.
    Local(mpsc::Sender<ScheduledRetry>),
}

impl RetryQueue {
    /// Sends a message for each retry. A message that cannot be sent is logged and left to the
    /// sweep, which finds the delivery in the due index.
    pub async fn schedule(&self, retries: Vec<ScheduledRetry>, now: Timestamp) {
        match self {
            Self::Local(channel) => {
                for retry in retries {
                    // The receiver is dropped only when the process ends; the next start reads the
                    // due index.
                    let _ = channel.send(retry).await;
                }
            }
            Self::Sqs { client, url } => {
                let batches = retries
                    .chunks(MAX_BATCH_ENTRIES)
                    .map(|batch| send_batch(client, url, batch, now))
                    .collect();
                concurrency::join_bounded(batches, CONCURRENT_BATCHES).await;
            }
        }
    }

    /// Schedules the next attempts of recorded deliveries. Deliveries that are due beyond the
    /// longest delay of the queue are left to the sweep.
    pub async fn schedule_pending<'a>(
        &self,
        deliveries: impl IntoIterator<Item = &'a Delivery>,
        now: Timestamp,
    ) {
        let mut retries = Vec::new();
        for delivery in deliveries {
            if let DeliveryState::Pending(due) = delivery.state
                && fits_in_queue(due, now)
            {
                let message = RetryMessage {
                    key: delivery.key.clone(),
                    attempt_count: delivery.attempt_count,
                };
                retries.push(ScheduledRetry { message, due });
            }
        }
        if !retries.is_empty() {
            self.schedule(retries, now).await;
        }
    }
}

async fn send_batch(client: &Client, url: &str, batch: &[ScheduledRetry], now: Timestamp) {
    let mut entries = Vec::with_capacity(batch.len());
    for (index, retry) in batch.iter().enumerate() {
        let entry = SendMessageBatchRequestEntry::builder()
            .id(index.to_string())
            .message_body(retry.message.to_json())
            .message_group_id(message_group_id(&retry.message.key))
            .delay_seconds(delay_seconds(retry.due.saturating_duration_since(now)));
        entries.push(entry.build().expect("id and body are set"));
    }
    let request = client.send_message_batch().queue_url(url);
    match request.set_entries(Some(entries)).send().await {
        Ok(response) if response.failed.is_empty() => {}
        Ok(response) => {
            let codes: Vec<_> = response
                .failed
                .iter()
                .map(|failed| failed.code.as_str())
                .collect();
            tracing::error!(
                ?codes,
                "SQS rejected retry messages; the sweep will send them again"
            );
        }
        Err(error) => {
            tracing::error!(
                error = format_sdk_error(&error),
                messages = batch.len(),
                "Failed to send retry messages to SQS; the sweep will send them again"
            );
        }
    }
}

/// Whole seconds, rounded up so that no message is received early, limited to the longest delay.
fn delay_seconds(wait: Duration) -> i32 {
    let seconds = wait.min(MAX_QUEUE_DELAY).as_millis().div_ceil(1000);
    i32::try_from(seconds).unwrap_or(0)
}

/// The tenant of SQS fair queues, so that the backlog of one webhook does not delay the others.
/// Hashed, because account ids may contain characters that a group id may not.
fn message_group_id(key: &DeliveryKey) -> String {
    let webhook = format!("{}#{}", key.account, key.webhook);
    hex::encode(&Sha256::digest(webhook)[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_is_rounded_up_and_limited() {
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
