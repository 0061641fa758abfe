//! Reads one shard of a stream and passes its records to the dispatcher.

use std::{sync::Arc, time::Duration};

use aws_lambda_events::event::streams::DynamoDbEventResponse;
use aws_sdk_dynamodbstreams::{
    operation::{get_records::GetRecordsError, get_shard_iterator::GetShardIteratorError},
    types::{Record as StreamsRecord, ShardIteratorType},
};
use nano_webhooks::{
    clock::{Clock, Deadline},
    dispatch::{Dispatcher, stream_record::Record},
    error_chain::error_chain,
};
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

use super::lambda_record::to_lambda_record;
use crate::embedded_dynamodb::EmbeddedDynamoDb;

/// The most records of a batch, as in the template.
pub const BATCH_SIZE: i32 = 100;
/// How long the dispatcher may take for a batch: the function's timeout in the template, less its
/// reserve.
pub const BATCH_TIMEOUT: Duration = Duration::from_secs(25);
/// How often the embedded engine is checked for changes while there are some.
const BUSY_POLL: Duration = Duration::from_millis(2);
/// How many checks without a change, about one second, make the engine idle.
const POLLS_BEFORE_IDLE: u32 = 500;
/// How often an idle engine is checked.
const IDLE_POLL: Duration = Duration::from_millis(10);
/// How often another engine is asked for records. DynamoDB allows five reads per second and shard.
const REMOTE_POLL: Duration = Duration::from_millis(250);
/// The wait after an error.
const ERROR_BACKOFF: Duration = Duration::from_secs(1);
/// How often expired data is deleted from the embedded engine.
const EXPIRY_INTERVAL: Duration = Duration::from_hours(1);
/// The checkpoint of a shard that was read to its end.
pub const SHARD_END: &str = "closed";

/// What the readers of a stream share.
#[derive(Clone)]
pub struct StreamSource {
    pub dispatcher: Dispatcher,
    pub streams: aws_sdk_dynamodbstreams::Client,
    /// The engine that is read, if it is the embedded one.
    pub engine: Option<Arc<EmbeddedDynamoDb>>,
    pub clock: Clock,
    pub shutdown: CancellationToken,
}

/// Reads one shard.
pub struct ShardReader {
    pub source: StreamSource,
    pub stream_arn: String,
    pub shard_id: String,
    /// The sequence number of the last record that was processed.
    pub checkpoint: Option<String>,
    /// Where to continue. Without one, reading continues after the checkpoint.
    pub iterator: Option<String>,
}

/// What one read returned.
enum Batch {
    Records {
        records: Vec<StreamsRecord>,
        next_iterator: Option<String>,
    },
    Empty {
        next_iterator: String,
    },
    ShardEnd,
}

impl ShardReader {
    /// Reads the shard to its end, or until shutdown.
    pub async fn run(mut self) {
        let mut expiry_ticks = interval(EXPIRY_INTERVAL);
        while !self.source.shutdown.is_cancelled() {
            let version_before = self.engine_version();
            match self.read_batch().await {
                Ok(Batch::Records {
                    records,
                    next_iterator,
                }) => self.process(&records, next_iterator).await,
                Ok(Batch::Empty { next_iterator }) => {
                    self.iterator = Some(next_iterator);
                    tokio::select! {
                        () = self.source.shutdown.cancelled() => {}
                        () = self.wait_for_change(version_before) => {}
                        _ = expiry_ticks.tick() => self.expire_old_data().await,
                    }
                }
                Ok(Batch::ShardEnd) => {
                    self.save_checkpoint(SHARD_END).await;
                    return;
                }
                Err(error) => {
                    tracing::warn!(
                        shard = self.shard_id,
                        error = error_chain(error.as_ref()),
                        "Could not read the jobs stream; reading continues after the checkpoint"
                    );
                    sleep(ERROR_BACKOFF).await;
                }
            }
        }
    }

    /// Reads the records after the iterator, or else after the checkpoint. Takes the iterator.
    async fn read_batch(&mut self) -> anyhow::Result<Batch> {
        let iterator = match self.iterator.take() {
            Some(iterator) => Some(iterator),
            None => self.get_iterator().await?,
        };
        let Some(iterator) = iterator else {
            return Ok(Batch::ShardEnd);
        };
        let response = self
            .source
            .streams
            .get_records()
            .shard_iterator(iterator)
            .limit(BATCH_SIZE)
            .send()
            .await;
        let response = match response {
            Ok(response) => response,
            // An iterator expires after 15 minutes. The next read gets a new one.
            Err(error) if is_expired_iterator(error.as_service_error()) => {
                anyhow::bail!("the shard iterator expired")
            }
            Err(error) => return Err(error.into()),
        };
        let records = response.records.unwrap_or_default();
        let next_iterator = response.next_shard_iterator;
        if !records.is_empty() {
            return Ok(Batch::Records {
                records,
                next_iterator,
            });
        }
        Ok(match next_iterator {
            Some(next_iterator) => Batch::Empty { next_iterator },
            None => Batch::ShardEnd,
        })
    }

    /// Gets an iterator that starts after the checkpoint, or at the oldest record if that was
    /// trimmed or there is none.
    async fn get_iterator(&self) -> anyhow::Result<Option<String>> {
        let request = self
            .source
            .streams
            .get_shard_iterator()
            .stream_arn(&self.stream_arn)
            .shard_id(&self.shard_id);
        if let Some(checkpoint) = &self.checkpoint {
            let response = request
                .clone()
                .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
                .sequence_number(checkpoint)
                .send()
                .await;
            match response {
                Ok(response) => return Ok(response.shard_iterator),
                Err(error) if is_trimmed(error.as_service_error()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let response = request
            .shard_iterator_type(ShardIteratorType::TrimHorizon)
            .send()
            .await?;
        Ok(response.shard_iterator)
    }

    /// Passes records to the dispatcher. Like Lambda, continues with the first record that failed.
    async fn process(&mut self, records: &[StreamsRecord], next_iterator: Option<String>) {
        let records: Vec<_> = records
            .iter()
            .map(|record| Record::Parsed(to_lambda_record(record, &self.stream_arn)))
            .collect();
        let response = self
            .source
            .dispatcher
            .handle_stream_batch(&records, Deadline::from_now(BATCH_TIMEOUT))
            .await;
        let last_processed = processed_records(&records, &response).last();
        if let Some(sequence_number) = last_processed.and_then(Record::sequence_number) {
            self.save_checkpoint(sequence_number).await;
            self.checkpoint = Some(sequence_number.to_owned());
        }
        if response.batch_item_failures.is_empty() {
            self.iterator = next_iterator;
        } else {
            sleep(ERROR_BACKOFF).await;
        }
    }

    /// Stores a checkpoint. If that fails, a restarted reader repeats records, and the dispatcher
    /// finds their deliveries.
    async fn save_checkpoint(&self, checkpoint: &str) {
        let result = self
            .source
            .dispatcher
            .store
            .checkpoints()
            .put(&self.stream_arn, &self.shard_id, checkpoint)
            .await;
        if let Err(error) = result {
            tracing::warn!(
                shard = self.shard_id,
                error = error_chain(&error),
                "Could not store the checkpoint of the jobs stream"
            );
        }
    }

    fn engine_version(&self) -> Option<i64> {
        let engine = self.source.engine.as_ref()?;
        Some(engine.data_version())
    }

    /// Waits until there may be new records since the engine had this version.
    async fn wait_for_change(&self, version: Option<i64>) {
        if version.is_none() {
            return sleep(REMOTE_POLL).await;
        }
        let mut polls = 0;
        while self.engine_version() == version {
            polls += 1;
            let interval = if polls < POLLS_BEFORE_IDLE {
                BUSY_POLL
            } else {
                IDLE_POLL
            };
            sleep(interval).await;
        }
    }

    async fn expire_old_data(&self) {
        if let Some(engine) = self.source.engine.clone() {
            let now = self.source.clock.now();
            let _ = tokio::task::spawn_blocking(move || engine.expire_old_data(now)).await;
        }
    }
}

fn is_expired_iterator(error: Option<&GetRecordsError>) -> bool {
    matches!(error, Some(GetRecordsError::ExpiredIteratorException(_)))
}

fn is_trimmed(error: Option<&GetShardIteratorError>) -> bool {
    matches!(
        error,
        Some(GetShardIteratorError::TrimmedDataAccessException(_))
    )
}

/// The records before the first failure. A failure without a sequence number can be any record.
fn processed_records<'a>(records: &'a [Record], response: &DynamoDbEventResponse) -> &'a [Record] {
    let Some(failure) = response.batch_item_failures.first() else {
        return records;
    };
    let Some(failed) = failure.item_identifier.as_deref() else {
        return &[];
    };
    let index = records
        .iter()
        .position(|record| record.sequence_number() == Some(failed));
    &records[..index.unwrap_or(records.len())]
}
