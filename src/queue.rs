//! The retry queue: messages that name a delivery and the time of its next attempt.
//!
//! The deliveries table has the truth. A message that is lost, late or duplicated changes nothing.

pub mod scheduler;

use std::time::Duration;

use aws_sdk_sqs::{
    Client,
    operation::send_message_batch::SendMessageBatchOutput,
    types::{BatchResultErrorEntry, SendMessageBatchRequestEntry},
};
use sha2::{Digest, Sha256};
use tokio::{sync::mpsc, time::timeout};

use crate::{aws::format_sdk_error, clock::Deadline, concurrency};
use nano_webhooks_core::{
    delivery::{DeliveryKey, lease::MAX_QUEUE_DELAY, scheduled_retry::ScheduledRetry},
    timestamp::Timestamp,
};

/// The most messages in one SendMessageBatch request.
const MAX_BATCH_ENTRIES: usize = 10;
/// How many SendMessageBatch requests run at the same time.
const CONCURRENT_BATCHES: usize = 8;
/// The time limit of a call. Messages that are not sent by then are left to the sweep.
pub const SEND_TIME_LIMIT: Duration = Duration::from_secs(3);

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
    /// Sends a message for each retry, for at most [`SEND_TIME_LIMIT`]. A message that cannot be
    /// sent is logged. Returns the retries without a message. A sweep finds their deliveries in the
    /// due index, five minutes after they are due unless the caller requests it earlier.
    pub async fn send(&self, retries: Vec<ScheduledRetry>, now: Timestamp) -> Vec<ScheduledRetry> {
        match self {
            Self::Local(channel) => {
                for retry in retries {
                    // The receiver is dropped only when the process ends; the next start reads the
                    // due index.
                    let _ = channel.send(retry).await;
                }
                Vec::new()
            }
            Self::Sqs { client, url } => send_to_sqs(client, url, retries, now).await,
        }
    }
}

/// Sends messages to SQS and returns the retries whose messages were not sent.
async fn send_to_sqs(
    client: &Client,
    url: &str,
    retries: Vec<ScheduledRetry>,
    now: Timestamp,
) -> Vec<ScheduledRetry> {
    let deadline = Deadline::from_now(SEND_TIME_LIMIT);
    let batches = retries
        .chunks(MAX_BATCH_ENTRIES)
        .map(|batch| send_batch(client, url, batch, now, deadline))
        .collect();
    let unsent = concurrency::join_bounded(batches, CONCURRENT_BATCHES).await;
    unsent.into_iter().flatten().collect()
}

async fn send_batch(
    client: &Client,
    url: &str,
    batch: &[ScheduledRetry],
    now: Timestamp,
    deadline: Deadline,
) -> Vec<ScheduledRetry> {
    let mut entries = Vec::with_capacity(batch.len());
    for (index, retry) in batch.iter().enumerate() {
        let entry = SendMessageBatchRequestEntry::builder()
            .id(index.to_string())
            .message_body(retry.message.to_json())
            .message_group_id(message_group_id(&retry.message.key))
            .delay_seconds(delay_seconds(retry.due.saturating_duration_since(now)));
        entries.push(entry.build().expect("id and body are set"));
    }
    let request = client
        .send_message_batch()
        .queue_url(url)
        .set_entries(Some(entries));
    let error = match timeout(deadline.remaining(), request.send()).await {
        Ok(Ok(response)) => return rejected_retries(batch, &response),
        Ok(Err(error)) => format_sdk_error(&error),
        Err(_elapsed) => format!("no response within {SEND_TIME_LIMIT:?}"),
    };
    tracing::error!(
        error,
        messages = batch.len(),
        "Failed to send retry messages to SQS; the sweep will send them again"
    );
    batch.to_vec()
}

/// The retries whose messages SQS rejected.
fn rejected_retries(
    batch: &[ScheduledRetry],
    response: &SendMessageBatchOutput,
) -> Vec<ScheduledRetry> {
    if response.failed.is_empty() {
        return Vec::new();
    }
    let codes: Vec<_> = response.failed.iter().map(|failed| &failed.code).collect();
    tracing::error!(
        ?codes,
        "SQS rejected retry messages; the sweep will send them again"
    );
    let is_rejected = |index: usize| {
        response
            .failed
            .iter()
            .any(|failed| names_entry(failed, index))
    };
    let retries = batch.iter().enumerate();
    retries
        .filter(|(index, _)| is_rejected(*index))
        .map(|(_, retry)| retry.clone())
        .collect()
}

/// Whether a failure is the one of the entry at this position of the batch.
fn names_entry(failed: &BatchResultErrorEntry, index: usize) -> bool {
    failed.id.parse() == Ok(index)
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
