//! Poison records, read again because an operator asks for it: their jobs may have been mended since, or this software.

use std::time::{Duration, SystemTime};

use aws_lambda_events::event::dynamodb::{EventRecord, StreamRecord};
use serde_dynamo::Item;

use super::{
    fan_out::{FanOutEvent, unreadable_webhook},
    parse_event,
    stream_record::{Record, job_outcome},
};
use crate::{
    concurrency,
    store::{Result, Store, poison::PoisonRecord},
};
use nano_webhooks_core::{
    delivery::{Delivery, DeliveryState},
    event::JobEvent,
    timestamp::Timestamp,
};

/// How many deliveries of an event are recorded at the same time.
const CONCURRENT_WRITES: usize = 8;

/// What became of a poison record.
#[derive(Clone, Debug, PartialEq)]
pub enum RedriveOutcome {
    /// It is this event, and is kept no longer.
    Event {
        /// The event.
        event: Box<JobEvent>,
        /// How many deliveries of it are due, for the next sweep to find.
        recorded: usize,
        /// How many there were already, which are left as they are.
        existing: usize,
    },
    /// It means nothing, and is kept no longer.
    Nothing,
    /// It stays.
    Stays {
        /// Why.
        reason: String,
        /// How many deliveries are due all the same: one webhook that cannot be read harms no other.
        recorded: usize,
    },
}

/// Makes an event of a poison record, if that can be understood now: by its job as it is now in the table `jobs`, or by the
/// image that was kept. The event has the id that the record would have given, so that redriving again sends nothing twice. Of
/// one that was kept because one webhook could not be read, the others keep what they have. Its deliveries are due at `due`: whoever
/// redrives many spaces them, so that no endpoint is flooded.
///
/// # Errors
/// If DynamoDB does not answer. Nothing is lost by that: the record is dropped when all of its deliveries are recorded.
pub async fn redrive(
    store: &Store,
    jobs: Option<&str>,
    kept: &PoisonRecord,
    due: Timestamp,
    now: Timestamp,
    retention: Duration,
) -> Result<RedriveOutcome> {
    let job = match jobs {
        Some(jobs) => store.poison().get_job(kept, jobs).await?,
        None => None,
    };
    let understood = rebuild_record(kept, job, jobs)
        .and_then(|record| parse_event(0, &record).map_err(|poison| poison.reason));
    let redriven = match understood {
        Ok(Some(occurrence)) => record_deliveries(store, occurrence, due, now, retention).await?,
        Ok(None) => RedriveOutcome::Nothing,
        Err(reason) => RedriveOutcome::Stays {
            reason,
            recorded: 0,
        },
    };
    match &redriven {
        RedriveOutcome::Stays { reason, .. } => store.poison().update_reason(kept, reason).await?,
        RedriveOutcome::Event { .. } | RedriveOutcome::Nothing => {
            store.poison().delete(kept).await?
        }
    }
    Ok(redriven)
}

/// Records that the event is due to each of its subscribers.
async fn record_deliveries(
    store: &Store,
    occurrence: FanOutEvent,
    due: Timestamp,
    now: Timestamp,
    retention: Duration,
) -> Result<RedriveOutcome> {
    let (account, event_type) = (
        &occurrence.event.account,
        occurrence.event.outcome.event_type(),
    );
    let (mut writes, mut unreadable) = (Vec::new(), None);
    for subscriber in store.webhooks().list_records(account).await? {
        match subscriber {
            Ok(subscriber) if subscriber.webhook.accepts(event_type) => {
                let delivery = Delivery {
                    state: DeliveryState::Pending(due),
                    ..occurrence.delivery(&subscriber.webhook, now)
                };
                writes.push(async move {
                    store
                        .deliveries()
                        .insert_for_sweep(&delivery, now, retention)
                        .await
                });
            }
            Ok(_) => {}
            Err(error) => unreadable = Some(unreadable_webhook(&error)),
        }
    }
    let written = concurrency::join_bounded(writes, CONCURRENT_WRITES)
        .await
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let recorded = written.iter().filter(|new| **new).count();
    let existing = written.len() - recorded;
    Ok(match unreadable {
        None => RedriveOutcome::Event {
            event: occurrence.event.into(),
            recorded,
            existing,
        },
        Some(reason) => RedriveOutcome::Stays { reason, recorded },
    })
}

/// What is to be read in the place of a kept record.
fn rebuild_record(
    kept: &PoisonRecord,
    job: Option<Item>,
    jobs: Option<&str>,
) -> std::result::Result<Record, String> {
    let image = kept.poison.image.as_deref();
    if kept.poison.keys.is_empty() {
        return image
            .map(Record::from_json)
            .ok_or_else(|| "it was no stream record, and too large to be kept".to_owned());
    }
    // A record that came without its new image is one whose image was not kept.
    let image: Option<Item> = image
        .and_then(|image| serde_json::from_str(image).ok())
        .filter(|image: &Item| !image.is_empty());
    let has_ended = |job: &Item| job_outcome(job).is_some();
    // A job that has gone on since tells of another event than this record's.
    let as_it_was = |job: &Item| {
        image
            .as_ref()
            .is_none_or(|image| job_outcome(image) == job_outcome(job))
    };
    let without = |why: &str| format!("its image was not kept, and {why}");
    let new_image = match job {
        Some(job) if has_ended(&job) && as_it_was(&job) => job,
        _ if image.is_some() => image.unwrap_or_default(),
        Some(_) => return Err(without("the job is in progress now")),
        None if jobs.is_some() => return Err(without("the job is gone")),
        None => return Err(without("JOBS_TABLE does not say where the job is")),
    };
    let mut change = StreamRecord::default();
    let since = Duration::from_millis(
        u64::try_from(kept.record_created_at().as_unix_millis()).unwrap_or(0),
    );
    change.approximate_creation_date_time = (SystemTime::UNIX_EPOCH + since).into();
    change.new_image = new_image;
    change.sequence_number = Some(kept.poison.sequence_number.clone());
    let mut record = EventRecord::default();
    // A record whose status was the same before is no poison, as far as the old image tells. Where that was missing, an operator
    // says that it is news.
    "INSERT".clone_into(&mut record.event_name);
    record.event_source_arn = Some(kept.poison.stream.clone());
    record.change = change;
    Ok(Record::Parsed(record))
}
