//! A stream record, read: an event, nothing, or poison.

use aws_lambda_events::event::dynamodb::EventRecord;
use serde_dynamo::{AttributeValue, Item};

use crate::store::poison::NewPoisonRecord;
use nano_webhooks_core::{
    account_id::AccountId,
    event::{
        EventId, EventOrigin, JobEvent, JobOutcome, attribute_data::AttributeData,
        decimal::Decimal, traceparent::Traceparent,
    },
    timestamp::{Timestamp, normalize_rfc3339},
};

/// A record of the jobs stream as the handler takes it: parsed, or the text that did not parse and why.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are records")]
pub enum Record {
    /// A record of the shape that Lambda documents.
    Parsed(EventRecord),
    /// Something else.
    Garbage {
        /// The JSON text.
        text: String,
        /// Why it is no record.
        reason: String,
    },
}

impl Record {
    /// Reads the JSON of one record.
    pub fn from_json(text: &str) -> Self {
        match serde_json::from_str(text) {
            Ok(record) => Self::Parsed(record),
            Err(error) => Self::Garbage {
                text: text.to_owned(),
                reason: format!("not a stream record: {error}"),
            },
        }
    }

    /// Its number in the stream: what a failure is reported by.
    pub fn sequence_number(&self) -> Option<&str> {
        match self {
            Self::Parsed(record) => record.change.sequence_number.as_deref(),
            Self::Garbage { .. } => None,
        }
    }

    /// What the record means: an event, or nothing.
    ///
    /// # Errors
    /// Why it cannot be understood.
    pub fn event(&self) -> Result<Option<JobEvent>, String> {
        match self {
            Self::Parsed(record) => parse_job_event(record),
            Self::Garbage { reason, .. } => Err(reason.clone()),
        }
    }

    /// The record as poison, for this reason.
    pub fn poison(&self, reason: String) -> Box<NewPoisonRecord> {
        let json = |item: &Item| serde_json::to_string(item).unwrap_or_default();
        Box::new(match self {
            Self::Parsed(record) => NewPoisonRecord {
                reason,
                stream: record.event_source_arn.clone().unwrap_or_default(),
                sequence_number: record_id(record),
                created_at: Some(created_at(record)),
                keys: json(&record.change.keys),
                image: Some(json(&record.change.new_image)),
            },
            Self::Garbage { text, .. } => NewPoisonRecord {
                reason,
                stream: String::new(),
                sequence_number: format!("unknown-{}", fingerprint(text)),
                created_at: None,
                keys: String::new(),
                image: Some(text.clone()),
            },
        })
    }
}

fn created_at(record: &EventRecord) -> Timestamp {
    Timestamp::from_millis(
        record
            .change
            .approximate_creation_date_time
            .timestamp_millis(),
    )
}

/// What names a record among others: its number in the stream, else its id, else what it says.
fn record_id(record: &EventRecord) -> String {
    let named = record
        .change
        .sequence_number
        .clone()
        .unwrap_or_else(|| record.event_id.clone());
    if !named.is_empty() {
        return named;
    }
    let mut said = serde_json::to_value(record).unwrap_or_default();
    // Images come in any order; read again, it is the same record.
    said.sort_all_objects();
    format!("unknown-{}", fingerprint(&said.to_string()))
}

/// Names a text among others.
fn fingerprint(text: &str) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(&Sha256::digest(text)[..8])
}

/// An event arises when a job's status becomes terminal: by an insert that is, or by a change from another status.
fn parse_job_event(record: &EventRecord) -> Result<Option<JobEvent>, String> {
    let (new, old) = (&record.change.new_image, &record.change.old_image);
    match record.event_name.as_str() {
        "INSERT" | "MODIFY" => {}
        "REMOVE" => return Ok(None),
        other => {
            return Err(format!(
                "unknown event name `{other}`, expected INSERT, MODIFY or REMOVE"
            ));
        }
    }
    if new.is_empty() {
        return Err("no new image: the stream's view type must be NEW_AND_OLD_IMAGES".to_owned());
    }
    let Some(outcome) = job_outcome(new) else {
        return Ok(None);
    };
    if record.event_name == "MODIFY" {
        if old.is_empty() {
            return Err(
                "a change without its old image: the stream's view type must be NEW_AND_OLD_IMAGES"
                    .to_owned(),
            );
        }
        if job_outcome(old) == Some(outcome) {
            return Ok(None);
        }
    }
    let stream = record.event_source_arn.as_deref().unwrap_or_default();
    let sequence_number = record
        .change
        .sequence_number
        .as_deref()
        .ok_or("no sequence number")?;
    let created_at = created_at(record);
    let account = AccountId::parse(text(new, "account_id")?)
        .map_err(|reason| format!("`account_id`: {reason}"))?;
    let task_id = text(new, "task_id")?.to_owned();
    let data = match new.get("data") {
        None => AttributeData::Map(Vec::new()),
        Some(AttributeValue::M(_)) => {
            value(&new["data"]).map_err(|reason| format!("`data`: {reason}"))?
        }
        Some(_) => return Err("`data`: expected a map (M)".to_owned()),
    };
    let timestamp = match new.get("updated_at") {
        Some(AttributeValue::S(text)) => normalize_rfc3339(text),
        _ => None,
    };
    let traceparent = match new.get("traceparent") {
        // One that breaks the rules is ignored, as its standard asks.
        Some(AttributeValue::S(text)) => Traceparent::parse(text),
        _ => None,
    };
    let origin = EventOrigin {
        stream,
        sequence_number,
        created_at,
    };
    Ok(Some(JobEvent {
        id: EventId::from_origin(origin, &account, &task_id, outcome.event_type()),
        task_type: text(new, "task_type")?.to_owned(),
        timestamp: timestamp.unwrap_or_else(|| created_at.to_rfc3339()),
        account,
        task_id,
        outcome,
        data,
        traceparent,
    }))
}

/// The outcome that an image's status names. A status that is absent or no string is in progress.
pub(super) fn job_outcome(image: &Item) -> Option<JobOutcome> {
    match image.get("status") {
        Some(AttributeValue::S(status)) => JobOutcome::from_status(status),
        _ => None,
    }
}

fn text<'a>(image: &'a Item, name: &str) -> Result<&'a str, String> {
    match image.get(name) {
        Some(AttributeValue::S(text)) => Ok(text),
        Some(_) => Err(format!("`{name}`: expected a string (S)")),
        None => Err(format!("`{name}`: missing, expected a string (S)")),
    }
}

fn value(from: &AttributeValue) -> Result<AttributeData, String> {
    let number =
        |text: &String| Decimal::parse(text).ok_or_else(|| "a number (N) that is none".to_owned());
    Ok(match from {
        AttributeValue::Null(_) => AttributeData::Null,
        AttributeValue::Bool(bool) => AttributeData::Bool(*bool),
        AttributeValue::N(text) => AttributeData::Number(number(text)?),
        AttributeValue::S(text) => AttributeData::String(text.clone()),
        AttributeValue::B(bytes) => AttributeData::Binary(bytes.clone()),
        AttributeValue::L(items) => {
            AttributeData::List(items.iter().map(value).collect::<Result<_, _>>()?)
        }
        AttributeValue::M(entries) => AttributeData::Map(
            entries
                .iter()
                .map(|(key, item)| Ok((key.clone(), value(item)?)))
                .collect::<Result<_, String>>()?,
        ),
        AttributeValue::Ss(texts) => AttributeData::StringSet(texts.clone()),
        AttributeValue::Ns(texts) => {
            AttributeData::NumberSet(texts.iter().map(number).collect::<Result<_, _>>()?)
        }
        AttributeValue::Bs(blobs) => AttributeData::BinarySet(blobs.clone()),
    })
}
