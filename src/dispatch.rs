//! The dispatcher: takes batches of the jobs stream and calls the endpoints that subscribe to what happened.

mod deliver;
pub mod stream;

use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use aws_lambda_events::event::streams::{DynamoDbBatchItemFailure, DynamoDbEventResponse};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    clock::{Clock, Deadline},
    delivery::schedule::Schedule,
    event::MAX_BODY,
    store::{Store, poison::Poison},
    transport::Client,
};
use deliver::Occurrence;
use stream::Record;

/// What is left of an invocation's time for recording and answering when attempts must end.
pub const RESERVE: Duration = Duration::from_secs(3);

/// Takes what the platform's jobs table tells and calls the endpoints.
#[derive(Clone)]
pub struct Dispatcher {
    /// The tables.
    pub store: Store,
    /// Makes the attempts that are made straight from the stream.
    pub client: Client,
    /// The time.
    pub clock: Clock,
    /// When a failed attempt is followed by another.
    pub schedule: Schedule,
    /// How long a settled delivery is kept.
    pub retention: Duration,
}

/// A batch of stream records as Lambda gives it. Each record is read on its own, so that one that does not parse harms
/// no other.
#[derive(Debug, Deserialize)]
pub struct StreamBatch {
    #[serde(rename = "Records")]
    records: Vec<Box<RawValue>>,
}

impl StreamBatch {
    /// Its records.
    pub fn records(&self) -> Vec<Record> {
        self.records.iter().map(|record| Record::from_json(record.get())).collect()
    }
}

impl Dispatcher {
    /// Takes a batch of the jobs stream, and names the records that must be read again. A record counts as done when each
    /// of its deliveries is recorded, or when it meant nothing, or when it is kept as poison.
    pub async fn stream(&self, records: &[Record], deadline: Deadline) -> DynamoDbEventResponse {
        let mut unfinished = HashSet::new();
        let mut occurrences = Vec::new();
        for (place, record) in records.iter().enumerate() {
            match read(place, record) {
                Ok(occurrence) => occurrences.extend(occurrence),
                Err(poison) => {
                    if !self.keep(&poison).await {
                        unfinished.insert(place);
                    }
                }
            }
        }
        unfinished.extend(self.deliver(&occurrences, deadline).await);
        let mut response = DynamoDbEventResponse::default();
        // In the order of the batch: Lambda goes on from the first of them.
        response.batch_item_failures = records
            .iter()
            .enumerate()
            .filter(|(place, _)| unfinished.contains(place))
            .map(|(_, record)| {
                let mut failure = DynamoDbBatchItemFailure::default();
                failure.item_identifier = record.sequence_number().map(str::to_owned);
                failure
            })
            .collect();
        response
    }

    /// Keeps a record that could not be understood; `false` if even that failed.
    async fn keep(&self, poison: &Poison) -> bool {
        let now = self.clock.now();
        tracing::error!(
            stream = poison.stream,
            sequence_number = poison.sequence_number,
            reason = poison.reason,
            "poison record"
        );
        match self.store.keep_poison(poison, now, now + self.retention).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "a poison record was not kept; it will be read again");
                false
            }
        }
    }
}

/// The event that a record tells of, with its body. A record that cannot be understood, or that makes reading it panic, is
/// poison, and so is one whose body is larger than may be sent.
fn read(place: usize, record: &Record) -> Result<Option<Occurrence>, Box<Poison>> {
    let read = catch_unwind(AssertUnwindSafe(|| {
        let Some(event) = record.event()? else { return Ok(None) };
        let body = event.body();
        if body.len() > MAX_BODY {
            return Err(format!("the body would have {} bytes, expected at most {MAX_BODY}", body.len()));
        }
        Ok(Some(Occurrence { record: place, event, body }))
    }));
    read.unwrap_or_else(|_| Err("reading it panicked".to_owned())).map_err(|reason| record.poison(reason))
}
