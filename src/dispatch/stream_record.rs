//! What a record of the jobs stream means: an event, nothing, or poison.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use aws_lambda_events::event::dynamodb::EventRecord;
use serde_dynamo::{AttributeValue, Item};
use sha2::{Digest, Sha256};

use super::poison_reason::PoisonReason;
use crate::store::poison::NewPoisonRecord;
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::{Delivery, DeliveryKey, DeliveryState, wait_reason::WaitReason},
    event::{
        EventId, EventOrigin, JobEvent, JobOutcome, MAX_PAYLOAD_LEN, attribute_data::AttributeData,
        decimal::Decimal, traceparent::Traceparent,
    },
    event_type::EventType,
    timestamp::{Timestamp, normalize_rfc3339},
    webhook::{Webhook, WebhookId},
};

/// A record of the jobs stream.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are parsed")]
pub enum Record {
    /// A record of the shape that Lambda documents.
    Parsed(EventRecord),
    /// JSON of another shape.
    Malformed {
        /// The JSON.
        text: String,
        /// Why it was not parsed.
        error: Arc<serde_json::Error>,
    },
}

/// An event of a batch, with its payload.
#[derive(Debug)]
pub(super) struct FanOutEvent {
    /// The index of its record in the batch.
    pub record: usize,
    pub event: JobEvent,
    pub payload: Arc<str>,
}

impl FanOutEvent {
    pub(super) const fn event_type(&self) -> EventType {
        self.event.outcome.event_type()
    }

    pub(super) fn delivery_key(&self, webhook: WebhookId) -> DeliveryKey {
        DeliveryKey {
            account: self.event.account.clone(),
            webhook,
            event: self.event.id.clone(),
        }
    }

    /// The delivery of the event to a webhook, due now.
    pub(super) fn new_delivery(&self, webhook: &Webhook, now: Timestamp) -> Delivery {
        self.build_delivery(webhook.id, webhook.url.as_str(), now)
    }

    /// The delivery of the event to a webhook that cannot be read. It waits until the webhook is
    /// repaired. `url` is empty if it is not known.
    pub(super) fn paused_delivery(
        &self,
        webhook: WebhookId,
        url: &str,
        waiting_for: Option<WaitReason>,
        now: Timestamp,
    ) -> Delivery {
        Delivery {
            state: DeliveryState::Paused,
            waiting_for,
            ..self.build_delivery(webhook, url, now)
        }
    }

    fn build_delivery(&self, webhook: WebhookId, url: &str, now: Timestamp) -> Delivery {
        let mut delivery = Delivery::new(
            self.delivery_key(webhook),
            self.event_type(),
            Some(self.event.task_id.clone()),
            url.to_owned(),
            self.payload.clone(),
            now,
        );
        delivery.traceparent.clone_from(&self.event.traceparent);
        delivery
    }
}

impl Record {
    /// Parses a record. Text that is not a record is kept, so that it can be stored as poison.
    pub fn from_json(text: &str) -> Self {
        match serde_json::from_str(text) {
            Ok(record) => Self::Parsed(record),
            Err(error) => Self::Malformed {
                text: text.to_owned(),
                error: Arc::new(error),
            },
        }
    }

    /// The record's number in the stream, by which a failure is reported.
    pub fn sequence_number(&self) -> Option<&str> {
        match self {
            Self::Parsed(record) => record.change.sequence_number.as_deref(),
            Self::Malformed { .. } => None,
        }
    }

    /// The event of the record; `None` if its job did not just finish.
    ///
    /// # Errors
    /// If the record is poison.
    pub fn event(&self) -> Result<Option<JobEvent>, PoisonReason> {
        match self {
            Self::Parsed(record) => parse_job_event(record),
            Self::Malformed { error, .. } => Err(PoisonReason::NotAStreamRecord(error.clone())),
        }
    }

    /// The poison record to store.
    pub fn to_poison(&self, reason: &PoisonReason) -> NewPoisonRecord {
        match self {
            Self::Parsed(record) => NewPoisonRecord {
                reason: reason.to_string(),
                reason_code: Some(reason.code().to_owned()),
                stream: record.event_source_arn.clone().unwrap_or_default(),
                sequence_number: record_id(record),
                created_at: Some(created_at(record)),
                keys: item_json(&record.change.keys),
                image: Some(item_json(&record.change.new_image)),
                webhook: None,
            },
            Self::Malformed { text, .. } => NewPoisonRecord {
                reason: reason.to_string(),
                reason_code: Some(reason.code().to_owned()),
                stream: String::new(),
                sequence_number: format!("unknown-{}", fingerprint(text)),
                created_at: None,
                keys: String::new(),
                image: Some(text.clone()),
                webhook: None,
            },
        }
    }
}

/// The event of the record at `index` of a batch. A record whose parsing panics is poison, and so
/// is one whose payload is too large.
pub(super) fn parse_record(
    index: usize,
    record: &Record,
) -> Result<Option<FanOutEvent>, PoisonReason> {
    let parsed = catch_unwind(AssertUnwindSafe(|| parse_event(index, record)));
    parsed.unwrap_or(Err(PoisonReason::ParserPanicked))
}

fn parse_event(index: usize, record: &Record) -> Result<Option<FanOutEvent>, PoisonReason> {
    let Some(event) = record.event()? else {
        return Ok(None);
    };
    let payload = event.to_canonical_json();
    if payload.len() > MAX_PAYLOAD_LEN {
        return Err(PoisonReason::PayloadTooLarge(payload.len()));
    }
    Ok(Some(FanOutEvent {
        record: index,
        event,
        payload: payload.into(),
    }))
}

fn item_json(item: &Item) -> String {
    serde_json::to_string(item).unwrap_or_default()
}

fn created_at(record: &EventRecord) -> Timestamp {
    let created_at = record.change.approximate_creation_date_time;
    Timestamp::from_millis(created_at.timestamp_millis())
}

/// The sequence number, else the event id, else a fingerprint of the record.
fn record_id(record: &EventRecord) -> String {
    let id = record
        .change
        .sequence_number
        .as_ref()
        .unwrap_or(&record.event_id);
    if !id.is_empty() {
        return id.clone();
    }
    let mut canonical = serde_json::to_value(record).unwrap_or_default();
    // The attributes of an image have no order. Without one, the record would get another id each
    // time that it is read.
    canonical.sort_all_objects();
    format!("unknown-{}", fingerprint(&canonical.to_string()))
}

fn fingerprint(text: &str) -> String {
    hex::encode(&Sha256::digest(text)[..8])
}

/// The event of a job whose status became terminal: with an insert, or with a change from another
/// status.
fn parse_job_event(record: &EventRecord) -> Result<Option<JobEvent>, PoisonReason> {
    let new_image = &record.change.new_image;
    let old_image = &record.change.old_image;
    match record.event_name.as_str() {
        "INSERT" | "MODIFY" => {}
        "REMOVE" => return Ok(None),
        other => return Err(PoisonReason::UnknownEventName(other.to_owned())),
    }
    if new_image.is_empty() {
        return Err(PoisonReason::NoNewImage);
    }
    let Some(outcome) = job_outcome(new_image) else {
        return Ok(None);
    };
    if record.event_name == "MODIFY" {
        if old_image.is_empty() {
            return Err(PoisonReason::NoOldImage);
        }
        if job_outcome(old_image) == Some(outcome) {
            return Ok(None);
        }
    }
    parse_finished_job(record, outcome).map(Some)
}

fn parse_finished_job(record: &EventRecord, outcome: JobOutcome) -> Result<JobEvent, PoisonReason> {
    let image = &record.change.new_image;
    let sequence_number = record
        .change
        .sequence_number
        .as_deref()
        .ok_or(PoisonReason::NoSequenceNumber)?;
    let created_at = created_at(record);
    let account = AccountId::parse(required_string(image, "account_id")?)
        .map_err(PoisonReason::InvalidAccountId)?;
    let task_id = required_string(image, "task_id")?.to_owned();
    let data = parse_data(image)?;
    let origin = EventOrigin {
        stream: record.event_source_arn.as_deref().unwrap_or_default(),
        sequence_number,
        created_at,
    };
    Ok(JobEvent {
        id: EventId::from_origin(origin, &account, &task_id, outcome.event_type()),
        task_type: required_string(image, "task_type")?.to_owned(),
        timestamp: updated_at(image).unwrap_or_else(|| created_at.to_rfc3339()),
        account,
        task_id,
        outcome,
        data,
        traceparent: traceparent(image),
    })
}

/// The outcome of a job; `None` if its status is not terminal, absent or not a string.
pub(super) fn job_outcome(image: &Item) -> Option<JobOutcome> {
    match image.get("status") {
        Some(AttributeValue::S(status)) => JobOutcome::from_status(status),
        _ => None,
    }
}

fn required_string<'a>(image: &'a Item, name: &'static str) -> Result<&'a str, PoisonReason> {
    match image.get(name) {
        Some(AttributeValue::S(text)) => Ok(text),
        Some(_) => Err(PoisonReason::NotAString(name)),
        None => Err(PoisonReason::MissingAttribute(name)),
    }
}

fn updated_at(image: &Item) -> Option<String> {
    match image.get("updated_at") {
        Some(AttributeValue::S(text)) => normalize_rfc3339(text),
        _ => None,
    }
}

/// An invalid `traceparent` is ignored, as the W3C recommendation asks.
fn traceparent(image: &Item) -> Option<Traceparent> {
    match image.get("traceparent") {
        Some(AttributeValue::S(text)) => Traceparent::parse(text),
        _ => None,
    }
}

fn parse_data(image: &Item) -> Result<AttributeData, PoisonReason> {
    match image.get("data") {
        None => Ok(AttributeData::Map(Vec::new())),
        Some(data @ AttributeValue::M(_)) => parse_value(data),
        Some(_) => Err(PoisonReason::DataNotAMap),
    }
}

fn parse_value(value: &AttributeValue) -> Result<AttributeData, PoisonReason> {
    Ok(match value {
        AttributeValue::Null(_) => AttributeData::Null,
        AttributeValue::Bool(bool) => AttributeData::Bool(*bool),
        AttributeValue::N(text) => AttributeData::Number(parse_number(text)?),
        AttributeValue::S(text) => AttributeData::String(text.clone()),
        AttributeValue::B(bytes) => AttributeData::Binary(bytes.clone()),
        AttributeValue::L(values) => {
            AttributeData::List(values.iter().map(parse_value).collect::<Result<_, _>>()?)
        }
        AttributeValue::M(entries) => {
            let mut map = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                map.push((key.clone(), parse_value(value)?));
            }
            AttributeData::Map(map)
        }
        AttributeValue::Ss(texts) => AttributeData::StringSet(texts.clone()),
        AttributeValue::Ns(texts) => AttributeData::NumberSet(
            texts
                .iter()
                .map(|text| parse_number(text))
                .collect::<Result<_, _>>()?,
        ),
        AttributeValue::Bs(blobs) => AttributeData::BinarySet(blobs.clone()),
    })
}

fn parse_number(text: &str) -> Result<Decimal, PoisonReason> {
    Decimal::parse(text).ok_or_else(|| PoisonReason::InvalidNumber(text.to_owned()))
}
