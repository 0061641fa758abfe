//! What invoked the function: the jobs stream, the retry queue or a schedule.

use aws_lambda_events::event::sqs::SqsMessage;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::stream_record::Record;

/// The `eventSource` of SQS messages.
const SQS_SOURCE: &str = "aws:sqs";

/// An event that Lambda passes to the function.
#[derive(Debug)]
pub enum Invocation {
    /// A batch of the jobs stream. Each record is parsed on its own, so that a malformed one does
    /// not affect the others.
    Stream(Vec<Record>),
    /// A batch of the retry queue.
    Queue(Vec<SqsMessage>),
    /// A schedule: move due deliveries to the retry queue.
    Sweep,
    /// A schedule: advance the jobs that markers name.
    Advance,
}

/// The job that a schedule's event names.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ScheduledJob {
    Sweep,
    Advance,
}

impl From<ScheduledJob> for Invocation {
    fn from(job: ScheduledJob) -> Self {
        match job {
            ScheduledJob::Sweep => Self::Sweep,
            ScheduledJob::Advance => Self::Advance,
        }
    }
}

/// The function does not handle this event.
#[derive(Debug, thiserror::Error)]
pub enum UnknownInvocation {
    /// It is not JSON of the expected shape.
    #[error("expected an event of a DynamoDB stream, an SQS queue or a schedule: {0}")]
    Json(#[from] serde_json::Error),
    /// It comes from another source.
    #[error("expected an event of a DynamoDB stream, an SQS queue or a schedule")]
    Source,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(borrow, rename = "Records")]
    records: Option<Vec<&'a RawValue>>,
    job: Option<ScheduledJob>,
}

#[derive(Deserialize)]
struct RawRecordSource {
    #[serde(rename = "eventSource")]
    event_source: String,
}

impl Invocation {
    /// Parses an event.
    ///
    /// # Errors
    /// If the function does not handle it.
    pub fn from_json(text: &str) -> Result<Self, UnknownInvocation> {
        let event: RawEvent<'_> = serde_json::from_str(text)?;
        let Some(records) = event.records else {
            return event.job.map(Self::from).ok_or(UnknownInvocation::Source);
        };
        if is_queue_batch(&records) {
            let mut messages = Vec::with_capacity(records.len());
            for record in records {
                messages.push(serde_json::from_str(record.get())?);
            }
            return Ok(Self::Queue(messages));
        }
        let records = records
            .iter()
            .map(|record| Record::from_json(record.get()))
            .collect();
        Ok(Self::Stream(records))
    }
}

/// All records of an event have the same source. The first record with a source decides, because
/// stream records may be malformed.
fn is_queue_batch(records: &[&RawValue]) -> bool {
    for record in records {
        if let Ok(source) = serde_json::from_str::<RawRecordSource>(record.get()) {
            return source.event_source == SQS_SOURCE;
        }
    }
    false
}
