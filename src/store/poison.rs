//! Poison records: stream records that cannot be understood, with their reason, for an operator to
//! read and redrive.

use std::{fmt, str::FromStr};

use aws_sdk_dynamodb::types::Select;
use serde::Deserialize;

use super::{
    error::Result,
    item::{Item, attr_n, attr_s, from_item},
    key_schema::{self, PrimaryKey},
    table_client::{TableClient, WriteOutcome},
    tables::EXPIRES_AT,
};
use crate::error_chain::error_chain;
use nano_webhooks_core::timestamp::Timestamp;

/// The longest image that is stored, in bytes. An item may have 400 KB.
pub const MAX_IMAGE: usize = 256 * 1024;

/// The longest reason that is stored, in bytes. A reason may repeat parts of the record.
const MAX_REASON: usize = 1024;

/// A stream record that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPoisonRecord {
    /// Why it cannot be understood.
    pub reason: String,
    /// The stable name of the reason. Records that version 0.2.0 stored have none.
    pub reason_code: Option<String>,
    /// The ARN of the stream; empty if the record does not contain it.
    pub stream: String,
    /// The record's sequence number; empty if the record does not contain it.
    pub sequence_number: String,
    /// When the record was created, if it contains the time.
    pub created_at: Option<Timestamp>,
    /// The record's keys as JSON; empty if the record is malformed, and `image` is everything that
    /// was received.
    pub keys: String,
    /// The record's new image as JSON. An image longer than [`MAX_IMAGE`] is not stored: the job
    /// itself still has it.
    pub image: Option<String>,
}

/// A stored poison record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoisonRecord {
    key: PrimaryKey,
    /// The stream record.
    pub poison: NewPoisonRecord,
    /// When it was stored.
    pub stored_at: Timestamp,
}

#[derive(Deserialize)]
struct PoisonRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    reason: String,
    #[serde(default)]
    reason_code: Option<String>,
    stream: String,
    sequence_number: String,
    keys: String,
    #[serde(rename = "created_at")]
    stored_at: Timestamp,
    #[serde(default)]
    record_created_at: Option<Timestamp>,
    #[serde(default)]
    image: Option<String>,
}

/// A page of the records that were stored on a day.
#[derive(Debug)]
pub struct PoisonPage {
    /// The records, the highest sequence number first.
    pub records: Vec<PoisonRecord>,
    /// The position of the next page, if there is one.
    pub next: Option<PoisonCursor>,
}

/// The position of a page of poison records.
#[derive(Debug)]
pub struct PoisonCursor(Item);

/// How many records were stored on a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoisonCount {
    /// The number of records that were counted.
    pub records: usize,
    /// Whether all records were counted.
    pub is_complete: bool,
}

/// Identifies poison records as `<day>/<sequence number>`: the day on which they were stored, and
/// their number in the stream. Records of two streams can have the same id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoisonId {
    day: String,
    number: String,
}

/// A text is not a [`PoisonId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a day and a number as `poison list` prints them, such as 2024-12-23/100")]
pub struct ParsePoisonIdError;

impl FromStr for PoisonId {
    type Err = ParsePoisonIdError;

    fn from_str(text: &str) -> std::result::Result<Self, ParsePoisonIdError> {
        let (day, number) = text.split_once('/').ok_or(ParsePoisonIdError)?;
        if number.is_empty() {
            return Err(ParsePoisonIdError);
        }
        Ok(Self {
            day: key_schema::parse_utc_day(day).ok_or(ParsePoisonIdError)?,
            number: number.to_owned(),
        })
    }
}

impl fmt::Display for PoisonId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.day, self.number)
    }
}

impl PoisonRecord {
    /// The id.
    pub fn id(&self) -> PoisonId {
        let (day, number) = key_schema::parse_poison(&self.key);
        PoisonId {
            day: day.to_owned(),
            number: number.to_owned(),
        }
    }

    /// When the stream record was created, or else stored.
    pub fn record_created_at(&self) -> Timestamp {
        self.poison.created_at.unwrap_or(self.stored_at)
    }
}

/// See [`Store::poison`](super::Store::poison).
#[derive(Clone, Copy, Debug)]
pub struct Poison<'a> {
    table: &'a TableClient,
}

impl<'a> Poison<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }
}

impl Poison<'_> {
    /// Stores a record until `expires_at`. Storing it again on the same day changes nothing but the
    /// times.
    pub async fn put(
        self,
        poison: &NewPoisonRecord,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<()> {
        self.table
            .put(to_poison_item(poison, now, expires_at))
            .await
    }

    /// A page of the records that were stored on a day. Invalid items are skipped.
    pub async fn list_page(
        self,
        day: &str,
        cursor: Option<PoisonCursor>,
        limit: i32,
    ) -> Result<PoisonPage> {
        let page = self
            .table
            .query()
            .consistent_read(true)
            .key_condition_expression("PK = :day")
            .expression_attribute_values(":day", attr_s(&partition(day)))
            .scan_index_forward(false)
            .limit(limit)
            .set_exclusive_start_key(cursor.map(|cursor| cursor.0))
            .send()
            .await?;
        Ok(PoisonPage {
            records: parse_items(page.items.unwrap_or_default()),
            next: page.last_evaluated_key.map(PoisonCursor),
        })
    }

    /// The records with an id. Usually there is one; there is none if it was redriven or has
    /// expired.
    pub async fn find(self, id: &PoisonId) -> Result<Vec<PoisonRecord>> {
        let mut items = self
            .table
            .query()
            .consistent_read(true)
            .key_condition_expression("PK = :day AND SK BETWEEN :number AND :end")
            .expression_attribute_values(":day", attr_s(&partition(&id.day)))
            .expression_attribute_values(":number", attr_s(&id.number))
            // `$` follows `#`, which follows the number in a sort key. So longer numbers are not in
            // the range.
            .expression_attribute_values(":end", attr_s(&format!("{}$", id.number)))
            .into_paginator()
            .items()
            .send();
        let mut found = Vec::new();
        while let Some(item) = items.next().await {
            found.push(item?);
        }
        let mut records = parse_items(found);
        records.retain(|record| record.id() == *id);
        Ok(records)
    }

    /// Counts the records that were stored on a day. Stops after the page that reaches `limit`.
    pub async fn count(self, day: &str, limit: usize) -> Result<PoisonCount> {
        let mut pages = self
            .table
            .query()
            .key_condition_expression("PK = :day")
            .expression_attribute_values(":day", attr_s(&partition(day)))
            .select(Select::Count)
            .into_paginator()
            .send();
        let mut count = PoisonCount {
            records: 0,
            is_complete: true,
        };
        while let Some(page) = pages.next().await {
            let page = page?;
            count.records += usize::try_from(page.count).unwrap_or(0);
            if count.records >= limit {
                count.is_complete = page.last_evaluated_key.is_none();
                break;
            }
        }
        Ok(count)
    }

    /// The job that a record names, as the table `jobs` has it now. `None` if it does not exist or
    /// the record names none.
    pub async fn get_job(
        self,
        record: &PoisonRecord,
        jobs: &str,
    ) -> Result<Option<serde_dynamo::Item>> {
        let keys: serde_dynamo::Item =
            serde_json::from_str(&record.poison.keys).unwrap_or_default();
        if keys.is_empty() {
            return Ok(None);
        }
        let job = self.table.get_from(jobs, keys.into()).await?;
        Ok(job.map(Into::into))
    }

    /// Replaces the reason of a record that is still stored.
    pub async fn update_reason(
        self,
        record: &PoisonRecord,
        code: &str,
        reason: &str,
    ) -> Result<()> {
        let reason = truncate_reason(reason);
        let stored = &record.poison;
        if reason == stored.reason && stored.reason_code.as_deref() == Some(code) {
            return Ok(());
        }
        let response = self
            .table
            .update(record.key.clone())
            .update_expression("SET reason = :reason, reason_code = :code")
            .condition_expression("attribute_exists(PK)")
            .expression_attribute_values(":reason", attr_s(reason))
            .expression_attribute_values(":code", attr_s(code))
            .send()
            .await;
        WriteOutcome::from_response(response)?;
        Ok(())
    }

    /// Deletes a record.
    pub async fn delete(self, record: &PoisonRecord) -> Result<()> {
        self.table.delete(record.key.clone()).await
    }
}

/// The partition of the records that are stored on a day.
fn partition(day: &str) -> String {
    key_schema::poison(day, "", "").pk
}

fn truncate_reason(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(MAX_REASON)]
}

fn to_poison_item(poison: &NewPoisonRecord, now: Timestamp, expires_at: Timestamp) -> Item {
    let day = key_schema::utc_day(now);
    let key = key_schema::poison(&day, &poison.stream, &poison.sequence_number);
    let mut item = key.into_item();
    let mut set = |name: &str, value| item.insert(name.to_owned(), value);
    set("reason", attr_s(truncate_reason(&poison.reason)));
    if let Some(code) = &poison.reason_code {
        set("reason_code", attr_s(code));
    }
    set("stream", attr_s(&poison.stream));
    set("sequence_number", attr_s(&poison.sequence_number));
    set("keys", attr_s(&poison.keys));
    set("created_at", attr_n(now.as_unix_millis()));
    set(EXPIRES_AT, attr_n(expires_at.as_unix_seconds()));
    if let Some(created_at) = poison.created_at {
        set("record_created_at", attr_n(created_at.as_unix_millis()));
    }
    match &poison.image {
        Some(image) if image.len() <= MAX_IMAGE => {
            set("image", attr_s(image));
        }
        _ => {}
    }
    item
}

/// Skips items that cannot be read.
fn parse_items(items: Vec<Item>) -> Vec<PoisonRecord> {
    let mut records = Vec::with_capacity(items.len());
    for item in items {
        let sort_key = item.get(key_schema::SK).cloned();
        match from_item::<PoisonRow>(item) {
            Ok(row) => records.push(row.into()),
            Err(error) => {
                let error = error_chain(&error);
                tracing::error!(
                    ?sort_key,
                    error,
                    "Skipped a poison record: it cannot be read"
                );
            }
        }
    }
    records
}

impl From<PoisonRow> for PoisonRecord {
    fn from(row: PoisonRow) -> Self {
        Self {
            key: PrimaryKey {
                pk: row.pk,
                sk: row.sk,
            },
            poison: NewPoisonRecord {
                reason: row.reason,
                reason_code: row.reason_code,
                stream: row.stream,
                sequence_number: row.sequence_number,
                created_at: row.record_created_at,
                keys: row.keys,
                image: row.image,
            },
            stored_at: row.stored_at,
        }
    }
}
