//! Redriving poison records, after their jobs or this software were corrected.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lambda_events::event::dynamodb::{EventRecord, StreamRecord};
use serde_dynamo::Item;

use super::{
    poison_reason::PoisonReason,
    stream_record::{FanOutEvent, Record, job_outcome, parse_record},
};
use crate::{
    concurrency,
    store::{
        Error, Result, Store, WriteOutcome,
        poison::{PoisonRecord, PoisonWebhook},
    },
};
use nano_webhooks_core::{
    delivery::{Delivery, DeliveryState},
    event::JobEvent,
    timestamp::Timestamp,
};

/// How many deliveries of an event are recorded at the same time.
const CONCURRENT_WRITES: usize = 8;

/// What became of a poison record.
#[derive(Debug)]
pub enum RedriveOutcome {
    /// It is an event, and is no longer stored as poison.
    Redriven {
        /// The event.
        event: Box<JobEvent>,
        /// The number of deliveries that were recorded; the next sweeps send them.
        recorded: usize,
        /// The number of deliveries that existed already; they are unchanged.
        already_recorded: usize,
    },
    /// It is no event, and is no longer stored as poison.
    NotAnEvent,
    /// It is a webhook that can be read again, or was deleted, and is no longer stored as poison.
    /// The deliveries that waited for it are resumed.
    WebhookResumed(PoisonWebhook),
    /// It is still poison.
    StillPoison {
        /// Why.
        reason: PoisonReason,
        /// The number of deliveries that were recorded to the account's other webhooks.
        recorded: usize,
    },
}

/// Redrives a poison record.
///
/// For a stream record, parses the job as it is now in the table `jobs`, or the image that was
/// stored with the record. The event has the id that the record would have given, so redriving
/// twice records nothing twice. Its deliveries are due at `due`; a caller that redrives many
/// records spaces them, so that no endpoint is flooded.
///
/// For a webhook whose item is valid now, resumes the deliveries that wait for it. If its secret is
/// still invalid, the first attempt finds that, pauses the delivery and stores the poison record
/// again.
///
/// The poison record is deleted last, so nothing is lost if DynamoDB fails.
///
/// # Errors
/// If DynamoDB does not respond.
pub async fn redrive(
    store: &Store,
    jobs: Option<&str>,
    poison: &PoisonRecord,
    due: Timestamp,
    now: Timestamp,
    retention: Duration,
) -> Result<RedriveOutcome> {
    let outcome = match &poison.poison.webhook {
        Some(webhook) => redrive_webhook(store, webhook, now).await?,
        None => redrive_record(store, jobs, poison, due, now, retention).await?,
    };
    match &outcome {
        RedriveOutcome::StillPoison { reason, .. } => {
            let text = reason.to_string();
            store
                .poison()
                .update_reason(poison, reason.code(), &text)
                .await?;
        }
        RedriveOutcome::Redriven { .. }
        | RedriveOutcome::NotAnEvent
        | RedriveOutcome::WebhookResumed(_) => store.poison().delete(poison).await?,
    }
    Ok(outcome)
}

async fn redrive_webhook(
    store: &Store,
    webhook: &PoisonWebhook,
    now: Timestamp,
) -> Result<RedriveOutcome> {
    let webhooks = store.webhooks();
    match webhooks.get_record(&webhook.account, webhook.id).await {
        // The deliveries of a deleted webhook are cancelled when they are due.
        Ok(_) => {
            store
                .resumes()
                .start(&webhook.account, webhook.id, now)
                .await?;
            Ok(RedriveOutcome::WebhookResumed(webhook.clone()))
        }
        Err(error @ Error::Unreadable(_)) => {
            let reason = PoisonReason::UnreadableWebhook {
                webhook: webhook.id,
                source: Arc::new(error),
            };
            Ok(RedriveOutcome::StillPoison {
                reason,
                recorded: 0,
            })
        }
        Err(error) => Err(error),
    }
}

async fn redrive_record(
    store: &Store,
    jobs: Option<&str>,
    poison: &PoisonRecord,
    due: Timestamp,
    now: Timestamp,
    retention: Duration,
) -> Result<RedriveOutcome> {
    let job = match jobs {
        Some(jobs) => match store.poison().get_job(poison, jobs).await? {
            Some(job) => CurrentJob::Found(job),
            None => CurrentJob::Gone,
        },
        None => CurrentJob::NoTable,
    };
    match parse_current(poison, job) {
        Ok(Some(event)) => record_deliveries(store, event, due, now, retention).await,
        Ok(None) => Ok(RedriveOutcome::NotAnEvent),
        Err(reason) => Ok(RedriveOutcome::StillPoison {
            reason,
            recorded: 0,
        }),
    }
}

/// The job of a poison record now.
enum CurrentJob {
    Found(Item),
    Gone,
    /// The jobs table is not known.
    NoTable,
}

fn parse_current(
    poison: &PoisonRecord,
    job: CurrentJob,
) -> std::result::Result<Option<FanOutEvent>, PoisonReason> {
    let record = rebuild_record(poison, job)?;
    parse_record(0, &record)
}

/// Records a delivery for each subscribed webhook.
async fn record_deliveries(
    store: &Store,
    event: FanOutEvent,
    due: Timestamp,
    now: Timestamp,
    retention: Duration,
) -> Result<RedriveOutcome> {
    let mut writes = Vec::new();
    let mut unreadable = None;
    for record in store.webhooks().list_records(&event.event.account).await? {
        match record {
            Ok(record) if record.webhook.accepts(event.event_type()) => {
                let delivery = Delivery {
                    state: DeliveryState::Pending(due),
                    ..event.new_delivery(&record.webhook, now)
                };
                writes.push(record_delivery(store, delivery, now, retention));
            }
            Ok(_) => {}
            Err(webhook) => unreadable = Some(PoisonReason::unreadable_webhook(webhook)),
        }
    }
    let mut recorded = 0;
    let mut already_recorded = 0;
    for outcome in concurrency::join_bounded(writes, CONCURRENT_WRITES).await {
        if outcome?.is_applied() {
            recorded += 1;
        } else {
            already_recorded += 1;
        }
    }
    Ok(match unreadable {
        None => RedriveOutcome::Redriven {
            event: event.event.into(),
            recorded,
            already_recorded,
        },
        Some(reason) => RedriveOutcome::StillPoison { reason, recorded },
    })
}

async fn record_delivery(
    store: &Store,
    delivery: Delivery,
    now: Timestamp,
    retention: Duration,
) -> Result<WriteOutcome> {
    let deliveries = store.deliveries();
    deliveries.insert_for_sweep(&delivery, now, retention).await
}

/// The record to parse instead of a poison record.
fn rebuild_record(
    poison: &PoisonRecord,
    job: CurrentJob,
) -> std::result::Result<Record, PoisonReason> {
    let stored = &poison.poison;
    if stored.keys.is_empty() {
        let Some(text) = &stored.image else {
            return Err(PoisonReason::TextNotStored);
        };
        return Ok(Record::from_json(text));
    }
    let new_image = choose_image(parse_image(stored.image.as_deref()), job)?;
    let created_at = poison.record_created_at().as_unix_millis();
    let since_epoch = Duration::from_millis(u64::try_from(created_at).unwrap_or(0));
    let mut change = StreamRecord::default();
    change.approximate_creation_date_time = (SystemTime::UNIX_EPOCH + since_epoch).into();
    change.new_image = new_image;
    change.sequence_number = Some(stored.sequence_number.clone());
    let mut record = EventRecord::default();
    // A change from the same status would not have become poison. If the old image was missing,
    // the operator decides that the status is new.
    "INSERT".clone_into(&mut record.event_name);
    record.event_source_arn = Some(stored.stream.clone());
    record.change = change;
    Ok(Record::Parsed(record))
}

/// The stored image; `None` if it was too large or the record came without one.
fn parse_image(stored: Option<&str>) -> Option<Item> {
    let image: Item = serde_json::from_str(stored?).ok()?;
    if image.is_empty() {
        return None;
    }
    Some(image)
}

/// The job if it still has the outcome of the record, else the stored image.
fn choose_image(image: Option<Item>, job: CurrentJob) -> std::result::Result<Item, PoisonReason> {
    match (image, job) {
        (Some(image), CurrentJob::Found(job)) => {
            let job_outcome_now = job_outcome(&job);
            if job_outcome_now.is_some() && job_outcome_now == job_outcome(&image) {
                Ok(job)
            } else {
                Ok(image)
            }
        }
        (Some(image), CurrentJob::Gone | CurrentJob::NoTable) => Ok(image),
        (None, CurrentJob::Found(job)) if job_outcome(&job).is_some() => Ok(job),
        (None, CurrentJob::Found(_)) => Err(PoisonReason::JobInProgress),
        (None, CurrentJob::Gone) => Err(PoisonReason::JobGone),
        (None, CurrentJob::NoTable) => Err(PoisonReason::NoJobsTable),
    }
}
