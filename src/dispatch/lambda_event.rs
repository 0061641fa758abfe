//! What calls the function: the jobs stream, the retry queue, or the schedule.

use std::collections::HashSet;

use aws_lambda_events::event::sqs::{BatchItemFailure, SqsBatchResponse, SqsMessage};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{Dispatcher, stream_record::Record};
use crate::{clock::Deadline, concurrency, queue::RetryMessage};

/// How many messages of a batch are worked on at the same time; more than a batch has.
pub const CONCURRENT_MESSAGES: usize = 100;
/// The `detail-type` of an event of EventBridge's schedules.
const SCHEDULED: &str = "Scheduled Event";

/// An event as Lambda gives it.
#[derive(Debug)]
pub enum Invocation {
    /// A batch of the jobs stream. Each record is read on its own, so that one that does not parse harms no other.
    Stream(Vec<Record>),
    /// A batch of the retry queue.
    Queue(Vec<SqsMessage>),
    /// The schedule: time to sweep.
    Sweep,
}

/// The event is none that this function takes.
#[derive(Debug, thiserror::Error)]
#[error("expected an event of a DynamoDB stream, an SQS queue or a schedule: {0}")]
pub struct UnknownInvocation(String);

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(borrow, rename = "Records")]
    records: Option<Vec<&'a RawValue>>,
    #[serde(rename = "detail-type")]
    detail_type: Option<String>,
}

#[derive(Deserialize)]
struct RawRecordSource {
    #[serde(rename = "eventSource")]
    event_source: String,
}

impl Invocation {
    /// Reads an event.
    ///
    /// # Errors
    /// If it is none that this function takes.
    pub fn from_json(text: &str) -> Result<Self, UnknownInvocation> {
        let unknown = |reason: &str| UnknownInvocation(reason.to_owned());
        let event: RawEvent<'_> =
            serde_json::from_str(text).map_err(|error| unknown(&error.to_string()))?;
        let Some(records) = event.records else {
            let scheduled = event.detail_type.as_deref() == Some(SCHEDULED);
            return scheduled
                .then_some(Self::Sweep)
                .ok_or_else(|| unknown("no records and no schedule"));
        };
        let source =
            |record: &&RawValue| serde_json::from_str::<RawRecordSource>(record.get()).ok();
        // All records of an event have one source; of a stream the first may be none that can be read.
        if records
            .iter()
            .find_map(source)
            .is_some_and(|source| source.event_source == "aws:sqs")
        {
            let messages: Result<_, _> = records
                .iter()
                .map(|record| serde_json::from_str(record.get()))
                .collect();
            return messages
                .map(Self::Queue)
                .map_err(|error| unknown(&error.to_string()));
        }
        Ok(Self::Stream(
            records
                .iter()
                .map(|record| Record::from_json(record.get()))
                .collect(),
        ))
    }
}

impl Dispatcher {
    /// Does what an invocation asks for, and answers as Lambda expects of it.
    ///
    /// # Errors
    /// If a sweep fails: the next one does the same.
    pub async fn invoke(
        &self,
        invocation: Invocation,
        deadline: Deadline,
    ) -> Result<Value, crate::store::Error> {
        let answer = match invocation {
            Invocation::Stream(records) => {
                serde_json::to_value(self.handle_stream_batch(&records, deadline).await)
            }
            Invocation::Queue(messages) => {
                serde_json::to_value(self.handle_queue_batch(messages).await)
            }
            Invocation::Sweep => serde_json::to_value(self.sweep(deadline).await?),
        };
        Ok(answer.expect("answers are plain data"))
    }

    /// Works on a batch of messages, and names those that must come again.
    async fn handle_queue_batch(&self, messages: Vec<SqsMessage>) -> SqsBatchResponse {
        let retries = messages.iter().map(|message| async move {
            let Some(read) = message.body.as_deref().and_then(|body| body.parse::<RetryMessage>().ok()) else {
                // It names no delivery, so none can be lost with it.
                tracing::error!(message_id = message.message_id, "a message that is none of ours");
                return None;
            };
            let error = self.retry(&read).await.err()?;
            tracing::error!(
                account = read.key.account.as_str(), webhook = %read.key.webhook, event = %read.key.event, %error,
                "a retry will be made again"
            );
            message.message_id.clone()
        });
        let failed: HashSet<_> = concurrency::join_bounded(retries.collect(), CONCURRENT_MESSAGES)
            .await
            .into_iter()
            .flatten()
            .collect();
        self.limiter.evict_idle(self.clock.now());
        let mut response = SqsBatchResponse::default();
        response.batch_item_failures = failed
            .into_iter()
            .map(|id| {
                let mut failure = BatchItemFailure::default();
                failure.item_identifier = id;
                failure
            })
            .collect();
        response
    }
}
