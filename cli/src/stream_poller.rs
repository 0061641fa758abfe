//! What Lambda's event source mapping does when deployed: reads the jobs table's stream through the real Streams API and
//! hands its batches to the dispatcher, from where it left off.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use aws_lambda_events::event::dynamodb::{EventRecord, StreamRecord, StreamViewType};
use aws_sdk_dynamodbstreams::{
    operation::{get_records::GetRecordsError, get_shard_iterator::GetShardIteratorError},
    types::{Record as SdkRecord, Shard, ShardIteratorType},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{interval, sleep},
};

use super::{args::CliError, embedded_dynamodb::EmbeddedDynamoDb};
use nano_webhooks::{
    clock::{Clock, Deadline},
    dispatch::{Dispatcher, stream_record::Record},
};

/// How many records a batch has at most: as the template sets it.
pub const BATCH_SIZE: i32 = 100;
/// How long the dispatcher may take for a batch: as the template sets the function's timeout, less its reserve.
pub const BATCH_TIME: Duration = Duration::from_secs(25);
/// How often the embedded engine is looked at for changes.
const BUSY_POLL: Duration = Duration::from_millis(2);
/// After so many looks without a change, a second or so, it is looked at more rarely.
const POLLS_BEFORE_IDLE: u32 = 500;
/// How often then.
const IDLE_POLL: Duration = Duration::from_millis(10);
/// How often another engine is asked for records; DynamoDB allows five reads a second for each shard.
const REMOTE_POLL: Duration = Duration::from_millis(250);
/// How often new shards are looked for.
const LOOK_FOR_SHARDS: Duration = Duration::from_secs(10);
/// How long to wait after a failure.
const ERROR_BACKOFF: Duration = Duration::from_secs(1);
/// How often old data is removed from the embedded engine.
const HOUSEKEEPING: Duration = Duration::from_hours(1);
/// The position that marks a shard as read to its end.
const SHARD_END: &str = "closed";

/// Reads a table's stream.
#[derive(Clone)]
pub(super) struct StreamPoller {
    /// What takes the batches.
    pub dispatcher: Dispatcher,
    /// The engine's tables, for the stream's ARN and the positions.
    pub dynamodb: aws_sdk_dynamodb::Client,
    /// The engine's streams.
    pub streams: aws_sdk_dynamodbstreams::Client,
    /// The embedded engine, if it is the one that is read.
    pub engine: Option<Arc<EmbeddedDynamoDb>>,
    /// The time.
    pub clock: Clock,
}

impl StreamPoller {
    /// Reads the stream of `jobs` until `stop` turns true; a batch that was begun is ended.
    pub(super) async fn run(
        self,
        jobs: String,
        stop: watch::Receiver<bool>,
    ) -> Result<(), CliError> {
        let table = self
            .dynamodb
            .describe_table()
            .table_name(&jobs)
            .send()
            .await?
            .table;
        let arn = table.and_then(|table| table.latest_stream_arn);
        let arn = arn.ok_or_else(|| CliError(format!("table {jobs} has no stream")))?;
        let mut readers = JoinSet::new();
        let mut begun = HashSet::new();
        let mut look_for_shards = interval(LOOK_FOR_SHARDS);
        loop {
            tokio::select! {
                () = stopped(stop.clone()) => break,
                _ = look_for_shards.tick() => {}
                Some(_) = readers.join_next() => {}
            }
            match self.open_shards(&arn).await {
                Ok(shards) => {
                    for (shard, position) in shards {
                        if begun.insert(shard.clone()) {
                            readers.spawn(self.clone().read(
                                arn.clone(),
                                shard,
                                position,
                                stop.clone(),
                            ));
                        }
                    }
                }
                Err(CliError(error)) => {
                    tracing::warn!(error, "the stream's shards were not listed")
                }
            }
        }
        while readers.join_next().await.is_some() {}
        Ok(())
    }

    /// The shards that are not read to their end and whose parents are, with the position that each was read to.
    async fn open_shards(&self, arn: &str) -> Result<Vec<(String, Option<String>)>, CliError> {
        let mut shards: Vec<Shard> = Vec::new();
        let mut after = None;
        loop {
            let request = self
                .streams
                .describe_stream()
                .stream_arn(arn)
                .set_exclusive_start_shard_id(after);
            let stream = request
                .send()
                .await?
                .stream_description
                .ok_or_else(|| CliError("the stream is not described".to_owned()))?;
            shards.extend(stream.shards.unwrap_or_default());
            after = stream.last_evaluated_shard_id;
            if after.is_none() {
                break;
            }
        }
        let mut positions = HashMap::new();
        for shard in shards.iter().filter_map(Shard::shard_id) {
            positions.insert(
                shard.to_owned(),
                self.dispatcher.store.checkpoints().get(arn, shard).await?,
            );
        }
        let closed = |shard: &str| {
            positions
                .get(shard)
                .is_some_and(|position| position.as_deref() == Some(SHARD_END))
        };
        Ok(shards
            .iter()
            .filter_map(|shard| shard.shard_id().map(|id| (id, shard.parent_shard_id())))
            .filter(|(id, parent)| {
                // A parent that is no longer listed was trimmed.
                !closed(id)
                    && parent.is_none_or(|parent| closed(parent) || !positions.contains_key(parent))
            })
            .map(|(id, _)| (id.to_owned(), positions[id].clone()))
            .collect())
    }

    /// Reads a shard to its end, or until `stop`.
    async fn read(
        self,
        arn: String,
        shard: String,
        mut position: Option<String>,
        stop: watch::Receiver<bool>,
    ) {
        let mut iterator = None;
        let mut housekeeping = interval(HOUSEKEEPING);
        while !*stop.borrow() {
            let seen = self.engine.as_ref().map(|engine| engine.version());
            let batch = match self
                .batch(&arn, &shard, position.as_deref(), iterator.take())
                .await
            {
                Ok(batch) => batch,
                Err(CliError(error)) => {
                    tracing::warn!(error, shard, "the stream was not read");
                    sleep(ERROR_BACKOFF).await;
                    continue;
                }
            };
            if batch.records.is_empty() {
                let Some(next) = batch.next else {
                    self.keep_position(&arn, &shard, SHARD_END).await;
                    return;
                };
                iterator = Some(next);
                tokio::select! {
                    () = stopped(stop.clone()) => return,
                    () = self.change(seen) => {}
                    _ = housekeeping.tick() => {
                        if let Some(engine) = self.engine.clone() {
                            let clock = self.clock.clone();
                            let _ = tokio::task::spawn_blocking(move || engine.housekeep(&clock)).await;
                        }
                    }
                }
                continue;
            }
            let records: Vec<_> = batch
                .records
                .iter()
                .map(|record| Record::Parsed(lambda_record(record, &arn)))
                .collect();
            let response = self
                .dispatcher
                .stream(&records, Deadline::after(BATCH_TIME))
                .await;
            // Everything before the first failure is done; one without a number could be any.
            let failed = response
                .batch_item_failures
                .first()
                .map(|failure| failure.item_identifier.as_deref());
            let done = records.iter().map(Record::sequence_number);
            let done = done
                .take_while(|number| {
                    failed.is_none_or(|failed| failed.is_some() && *number != failed)
                })
                .last();
            if let Some(done) = done.flatten() {
                position = Some(done.to_owned());
                self.keep_position(&arn, &shard, done).await;
            }
            if failed.is_some() {
                // From the first record that failed, as Lambda does.
                sleep(ERROR_BACKOFF).await;
            } else {
                iterator = batch.next;
            }
        }
    }

    /// The next records after `position`, from `iterator` if there is one that goes on from there.
    async fn batch(
        &self,
        arn: &str,
        shard: &str,
        position: Option<&str>,
        iterator: Option<String>,
    ) -> Result<Batch, CliError> {
        let iterator = match iterator {
            Some(iterator) => iterator,
            None => match self.iterator(arn, shard, position).await? {
                Some(iterator) => iterator,
                None => {
                    return Ok(Batch {
                        records: Vec::new(),
                        next: None,
                    });
                }
            },
        };
        match self
            .streams
            .get_records()
            .shard_iterator(iterator)
            .limit(BATCH_SIZE)
            .send()
            .await
        {
            Ok(answer) => Ok(Batch {
                records: answer.records.unwrap_or_default(),
                next: answer.next_shard_iterator,
            }),
            Err(error) => match error.as_service_error() {
                // An iterator lives for 15 minutes; the next call makes a new one.
                Some(GetRecordsError::ExpiredIteratorException(_)) => {
                    Err(CliError("the iterator expired".to_owned()))
                }
                _ => Err(error.into()),
            },
        }
    }

    async fn iterator(
        &self,
        arn: &str,
        shard: &str,
        position: Option<&str>,
    ) -> Result<Option<String>, CliError> {
        let request = self
            .streams
            .get_shard_iterator()
            .stream_arn(arn)
            .shard_id(shard);
        let oldest = request
            .clone()
            .shard_iterator_type(ShardIteratorType::TrimHorizon);
        let Some(position) = position else {
            return Ok(oldest.send().await?.shard_iterator);
        };
        let after = request
            .shard_iterator_type(ShardIteratorType::AfterSequenceNumber)
            .sequence_number(position);
        match after.send().await {
            Ok(answer) => Ok(answer.shard_iterator),
            Err(error) => match error.as_service_error() {
                Some(GetShardIteratorError::TrimmedDataAccessException(_)) => {
                    Ok(oldest.send().await?.shard_iterator)
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Returns when there may be something new to read since the engine was at version `seen`.
    async fn change(&self, seen: Option<i64>) {
        let Some(engine) = &self.engine else {
            return sleep(REMOTE_POLL).await;
        };
        let mut looks = 0;
        while Some(engine.version()) == seen {
            looks += 1;
            sleep(if looks < POLLS_BEFORE_IDLE {
                BUSY_POLL
            } else {
                IDLE_POLL
            })
            .await;
        }
    }

    /// A position that is lost makes records be read again, and what was recorded is not sent again.
    async fn keep_position(&self, arn: &str, shard: &str, position: &str) {
        if let Err(error) = self
            .dispatcher
            .store
            .checkpoints()
            .put(arn, shard, position)
            .await
        {
            tracing::warn!(%error, "the stream's position was not kept");
        }
    }
}

struct Batch {
    records: Vec<SdkRecord>,
    next: Option<String>,
}

/// Returns when `stop` turns true, or when nobody is left who could turn it.
pub(super) async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// A record of the Streams API as Lambda hands it on.
fn lambda_record(record: &SdkRecord, arn: &str) -> EventRecord {
    let change = record.dynamodb();
    let created_at = change.and_then(|change| change.approximate_creation_date_time());
    let created_at = created_at.and_then(|at| std::time::SystemTime::try_from(*at).ok());
    let mut lambda = EventRecord::default();
    record
        .event_id()
        .unwrap_or_default()
        .clone_into(&mut lambda.event_id);
    lambda.event_name = record
        .event_name()
        .map(|name| name.as_str().to_owned())
        .unwrap_or_default();
    lambda.event_source = record.event_source().map(str::to_owned);
    lambda.event_source_arn = Some(arn.to_owned());
    record
        .aws_region()
        .unwrap_or_default()
        .clone_into(&mut lambda.aws_region);
    let mut stream = StreamRecord::default();
    if let Some(created_at) = created_at {
        stream.approximate_creation_date_time = created_at.into();
    }
    stream.keys = image(change.and_then(|change| change.keys()));
    stream.new_image = image(change.and_then(|change| change.new_image()));
    stream.old_image = image(change.and_then(|change| change.old_image()));
    stream.sequence_number = change
        .and_then(|change| change.sequence_number())
        .map(str::to_owned);
    stream.stream_view_type = Some(StreamViewType::NewAndOldImages);
    lambda.change = stream;
    lambda
}

fn image(
    image: Option<&HashMap<String, aws_sdk_dynamodbstreams::types::AttributeValue>>,
) -> serde_dynamo::Item {
    image.cloned().unwrap_or_default().into()
}
