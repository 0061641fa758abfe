//! Poison records: stream records that cannot be understood, and webhooks that cannot be read, with
//! their reason, for an operator to read and redrive.

use std::{collections::VecDeque, fmt, str::FromStr, time::Duration};

use aws_sdk_dynamodb::types::{Put, Select};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    error::Result,
    item::{Item, attr_n, attr_s, from_item, text},
    key_schema::{self, PrimaryKey},
    table_client::{TableClient, WriteOutcome, insert_if_absent},
    tables::EXPIRES_AT,
};
use crate::{concurrency, error_chain::error_chain};
use nano_webhooks_core::{account_id::AccountId, timestamp::Timestamp, webhook::WebhookId};

/// The longest image that is stored, in bytes. An item may have 400 KB.
pub const MAX_IMAGE: usize = 256 * 1024;

/// The longest reason that is stored, in bytes. A reason may repeat parts of the record.
const MAX_REASON: usize = 1024;

/// How many partitions of a day are read at the same time.
const CONCURRENT_PARTITIONS: usize = 17;

/// How often a webhook that cannot be read is stored again. So the number of poison records does
/// not grow with the number of its events.
pub const UNREADABLE_WEBHOOK_INTERVAL: Duration = Duration::from_hours(1);

/// A stream record that cannot be understood, or a webhook that cannot be read.
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
    /// The webhook that cannot be read. Then everything about a stream record is empty.
    pub webhook: Option<PoisonWebhook>,
}

/// A webhook that cannot be read: its item or its secret is invalid. Its deliveries are paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoisonWebhook {
    /// The account.
    pub account: AccountId,
    /// The webhook.
    pub id: WebhookId,
}

impl NewPoisonRecord {
    /// The record of a webhook that cannot be read at `now`. It is the same one for all of an
    /// interval of [`UNREADABLE_WEBHOOK_INTERVAL`].
    pub fn for_webhook(
        webhook: PoisonWebhook,
        reason_code: &str,
        reason: String,
        now: Timestamp,
    ) -> Self {
        let name = key_schema::deliveries(&webhook.account, webhook.id);
        let fingerprint = hex::encode(&Sha256::digest(name)[..8]);
        let interval = now.as_unix_seconds() / UNREADABLE_WEBHOOK_INTERVAL.as_secs().cast_signed();
        Self {
            reason,
            reason_code: Some(reason_code.to_owned()),
            stream: String::new(),
            sequence_number: format!("webhook-{fingerprint}-{interval}"),
            created_at: None,
            keys: String::new(),
            image: None,
            webhook: Some(webhook),
        }
    }
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
    /// Both or neither.
    #[serde(default)]
    account: Option<String>,
    #[serde(default)]
    webhook_id: Option<u64>,
}

/// A page of the records that were stored on a day.
#[derive(Debug)]
pub struct PoisonPage {
    /// The records, the highest sequence number first.
    pub records: Vec<PoisonRecord>,
    /// The position of the next page, if there is one.
    pub next: Option<PoisonCursor>,
}

/// The position of a page of poison records: what was read of each partition of the day.
#[derive(Debug)]
pub struct PoisonCursor(Vec<PartitionReader>);

/// Reads a partition of a day, the highest name first.
#[derive(Debug)]
struct PartitionReader {
    partition: String,
    /// Items that were read and are not in a page yet.
    items: VecDeque<Item>,
    /// The position of the next item to read.
    start_key: Option<Item>,
    is_at_end: bool,
}

impl PartitionReader {
    fn for_day(day: &str) -> Vec<Self> {
        let partitions = key_schema::poison_partitions(day).into_iter();
        partitions
            .map(|partition| Self {
                partition,
                items: VecDeque::new(),
                start_key: None,
                is_at_end: false,
            })
            .collect()
    }

    /// The name of the next item that was read.
    fn next_name(&self) -> Option<String> {
        let sort_key = text(self.items.front()?, key_schema::SK)?;
        Some(sort_key.to_owned())
    }
}

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
    /// times. The SDK does not retry.
    pub async fn put_once(
        self,
        poison: &NewPoisonRecord,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<()> {
        let item = to_poison_item(poison, now, expires_at);
        let put = Put::builder().set_item(Some(item));
        self.table.put_if_once(put).await?;
        Ok(())
    }

    /// Does the same unless the record is stored already.
    pub async fn insert_once(
        self,
        poison: &NewPoisonRecord,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<WriteOutcome> {
        let item = to_poison_item(poison, now, expires_at);
        self.table.put_if_once(insert_if_absent(item)).await
    }

    /// A page of the records that were stored on a day. Invalid items are skipped.
    pub async fn list_page(
        self,
        day: &str,
        cursor: Option<PoisonCursor>,
        limit: usize,
    ) -> Result<PoisonPage> {
        let mut readers = match cursor {
            Some(cursor) => cursor.0,
            None => PartitionReader::for_day(day),
        };
        let mut records = Vec::new();
        while records.len() < limit {
            readers = self.fill(readers, limit).await?;
            let Some(item) = take_highest(&mut readers) else {
                return Ok(PoisonPage {
                    records,
                    next: None,
                });
            };
            records.extend(parse_item(item));
        }
        readers = self.fill(readers, limit).await?;
        let has_more = readers.iter().any(|reader| !reader.items.is_empty());
        Ok(PoisonPage {
            records,
            next: has_more.then_some(PoisonCursor(readers)),
        })
    }

    /// Reads the next page of each partition without unread items. Afterward the next item of each
    /// partition is known, unless the partition has ended.
    async fn fill(
        self,
        readers: Vec<PartitionReader>,
        limit: usize,
    ) -> Result<Vec<PartitionReader>> {
        let reads = concurrency::map_concurrent(readers, CONCURRENT_PARTITIONS, |reader| {
            self.read_on(reader, limit)
        });
        reads.await.into_iter().collect()
    }

    async fn read_on(self, mut reader: PartitionReader, limit: usize) -> Result<PartitionReader> {
        while reader.items.is_empty() && !reader.is_at_end {
            let page = self
                .table
                .query()
                .consistent_read(true)
                .key_condition_expression("PK = :partition")
                .expression_attribute_values(":partition", attr_s(&reader.partition))
                .scan_index_forward(false)
                .limit(i32::try_from(limit).unwrap_or(i32::MAX))
                .set_exclusive_start_key(reader.start_key)
                .send()
                .await?;
            reader.items.extend(page.items.unwrap_or_default());
            reader.is_at_end = page.last_evaluated_key.is_none();
            reader.start_key = page.last_evaluated_key;
        }
        Ok(reader)
    }

    /// The records with an id. Usually there is one; there is none if it was redriven or has
    /// expired.
    pub async fn find(self, id: &PoisonId) -> Result<Vec<PoisonRecord>> {
        let mut records = Vec::new();
        for partition in key_schema::poison_partitions_of_number(&id.day, &id.number) {
            let mut items = self
                .table
                .query()
                .consistent_read(true)
                .key_condition_expression("PK = :partition AND SK BETWEEN :number AND :end")
                .expression_attribute_values(":partition", attr_s(&partition))
                .expression_attribute_values(":number", attr_s(&id.number))
                // `$` follows `#`, which follows the number in a sort key. So longer numbers are
                // not in the range.
                .expression_attribute_values(":end", attr_s(&format!("{}$", id.number)))
                .into_paginator()
                .items()
                .send();
            while let Some(item) = items.next().await {
                records.extend(parse_item(item?));
            }
        }
        records.retain(|record| record.id() == *id);
        Ok(records)
    }

    /// Counts the records that were stored on a day. In each partition of the day, counting stops
    /// after the page that reaches `limit`.
    pub async fn count(self, day: &str, limit: usize) -> Result<PoisonCount> {
        let partitions = key_schema::poison_partitions(day);
        let counts = concurrency::map_concurrent(partitions, CONCURRENT_PARTITIONS, |partition| {
            self.count_partition(partition, limit)
        });
        let mut total = PoisonCount {
            records: 0,
            is_complete: true,
        };
        for count in counts.await {
            let count = count?;
            total.records += count.records;
            total.is_complete &= count.is_complete;
        }
        Ok(total)
    }

    async fn count_partition(self, partition: String, limit: usize) -> Result<PoisonCount> {
        let mut pages = self
            .table
            .query()
            .key_condition_expression("PK = :partition")
            .expression_attribute_values(":partition", attr_s(&partition))
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

/// Takes the item with the highest name. The next item of each partition must be known.
fn take_highest(readers: &mut [PartitionReader]) -> Option<Item> {
    let highest = readers.iter_mut().max_by_key(|reader| reader.next_name())?;
    highest.items.pop_front()
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
    if let Some(webhook) = &poison.webhook {
        set("account", attr_s(webhook.account.as_str()));
        set("webhook_id", attr_n(webhook.id.get().cast_signed()));
    }
    match &poison.image {
        Some(image) if image.len() <= MAX_IMAGE => {
            set("image", attr_s(image));
        }
        _ => {}
    }
    item
}

/// `None` if the item cannot be read.
fn parse_item(item: Item) -> Option<PoisonRecord> {
    let sort_key = item.get(key_schema::SK).cloned();
    match from_item::<PoisonRow>(item) {
        Ok(row) => Some(row.into()),
        Err(error) => {
            let error = error_chain(&error);
            tracing::error!(
                ?sort_key,
                error,
                "Skipped a poison record: it cannot be read"
            );
            None
        }
    }
}

fn parse_webhook(account: Option<&str>, id: Option<u64>) -> Option<PoisonWebhook> {
    Some(PoisonWebhook {
        account: AccountId::parse(account?).ok()?,
        id: WebhookId::new(id?)?,
    })
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
                webhook: parse_webhook(row.account.as_deref(), row.webhook_id),
            },
            stored_at: row.stored_at,
        }
    }
}
