//! Records that could not be understood, kept with their reason where an operator can read them, and have them read again.

use aws_sdk_dynamodb::types::Select;
use serde::Deserialize;

use super::{
    Item, Result, Store, attr_n, attr_s, from_item, into_condition_result,
    key_schema::{self, PrimaryKey},
    tables::EXPIRES_AT,
};
use nano_webhooks_core::timestamp::Timestamp;

/// How much of a record's image is kept: 256 KiB, which leaves room in an item of 400 KB.
pub const MAX_IMAGE: usize = 256 * 1024;

/// How much of the reason is kept, in bytes: it may repeat what the record holds.
const MAX_REASON: usize = 1024;

/// A record that could not be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPoisonRecord {
    /// Why.
    pub reason: String,
    /// The ARN of the stream, empty if the record does not say.
    pub stream: String,
    /// The record's number in the stream, empty if it does not say.
    pub sequence_number: String,
    /// When the record was created, if it says so.
    pub created_at: Option<Timestamp>,
    /// The record's keys, as JSON; empty if it is none, and the image is all that came.
    pub keys: String,
    /// The record's new image, as JSON. One that is longer than [`MAX_IMAGE`] is not kept: the job itself still has it.
    pub image: Option<String>,
}

/// A record that was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoisonRecord {
    key: PrimaryKey,
    /// The record.
    pub poison: NewPoisonRecord,
    /// When it was kept.
    pub kept_at: Timestamp,
}

#[derive(Deserialize)]
struct PoisonRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    reason: String,
    stream: String,
    sequence_number: String,
    keys: String,
    /// When it was kept.
    created_at: Timestamp,
    /// When the record was created.
    #[serde(default)]
    record_created_at: Option<Timestamp>,
    #[serde(default)]
    image: Option<String>,
}

/// A part of the records that were kept on a day.
#[derive(Debug)]
pub struct PoisonPage {
    /// The records, the newest first, as far as their numbers tell.
    pub kept: Vec<PoisonRecord>,
    /// Where the next part begins; `None`: there is none.
    pub next: Option<PoisonCursor>,
}

/// Where a list of kept records goes on.
#[derive(Debug)]
pub struct PoisonCursor(Item);

/// Names kept records, as they are listed: by the day on which they were kept, and by their number in the stream. Two streams
/// may have given the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoisonId {
    day: String,
    number: String,
}

impl PoisonId {
    /// Reads an id; `None` if `attr_s` cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let (day, number) = text
            .split_once('/')
            .filter(|(_, number)| !number.is_empty())?;
        Some(Self {
            day: key_schema::parse_utc_day(day)?,
            number: number.to_owned(),
        })
    }
}

impl std::fmt::Display for PoisonId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.day, self.number)
    }
}

impl PoisonRecord {
    /// What names it.
    pub fn id(&self) -> PoisonId {
        let (day, number) = key_schema::parse_poison(&self.key);
        PoisonId {
            day: day.to_owned(),
            number: number.to_owned(),
        }
    }

    /// When its record was created; of one that does not say, when it was kept.
    pub fn record_created_at(&self) -> Timestamp {
        self.poison.created_at.unwrap_or(self.kept_at)
    }
}

/// See [`Store::poison`].
#[derive(Clone, Copy, Debug)]
pub struct Poison<'a> {
    store: &'a Store,
}

impl<'a> Poison<'a> {
    pub(super) const fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl Poison<'_> {
    /// Keeps a record until `expires_at`; keeping it again changes nothing.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn put(
        self,
        poison: &NewPoisonRecord,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<()> {
        let mut item = key_schema::poison(
            &key_schema::utc_day(now),
            &poison.stream,
            &poison.sequence_number,
        )
        .into_item();
        item.extend([
            ("reason".to_owned(), attr_s(truncate_reason(&poison.reason))),
            ("stream".to_owned(), attr_s(&poison.stream)),
            (
                "sequence_number".to_owned(),
                attr_s(&poison.sequence_number),
            ),
            ("keys".to_owned(), attr_s(&poison.keys)),
            ("created_at".to_owned(), attr_n(now.as_unix_millis())),
            (EXPIRES_AT.to_owned(), attr_n(expires_at.as_unix_seconds())),
        ]);
        item.extend(
            poison
                .created_at
                .map(|at| ("record_created_at".to_owned(), attr_n(at.as_unix_millis()))),
        );
        if let Some(image) = poison
            .image
            .as_ref()
            .filter(|image| image.len() <= MAX_IMAGE)
        {
            item.insert("image".to_owned(), attr_s(image));
        }
        self.store
            .client
            .put_item()
            .table_name(&self.store.tables.webhooks)
            .set_item(Some(item))
            .send()
            .await?;
        Ok(())
    }

    /// A part of the records that were kept on a day. One that cannot be read harms no other.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn list_page(
        self,
        day: &str,
        from: Option<PoisonCursor>,
        at_most: i32,
    ) -> Result<PoisonPage> {
        let query = self
            .store
            .client
            .query()
            .table_name(&self.store.tables.webhooks)
            .consistent_read(true)
            .key_condition_expression("PK = :day")
            .expression_attribute_values(":day", attr_s(&key_schema::poison(day, "", "").pk))
            .scan_index_forward(false)
            .limit(at_most)
            .set_exclusive_start_key(from.map(|PoisonCursor(key)| key));
        let page = query.send().await?;
        Ok(PoisonPage {
            kept: parse_items(page.items.unwrap_or_default()),
            next: page.last_evaluated_key.map(PoisonCursor),
        })
    }

    /// The records that an id names: one, or none if it was taken out or has expired; of several streams, several.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn find(self, id: &PoisonId) -> Result<Vec<PoisonRecord>> {
        let query = self
            .store
            .client
            .query()
            .table_name(&self.store.tables.webhooks)
            .consistent_read(true)
            .key_condition_expression("PK = :day AND SK BETWEEN :number AND :end")
            .expression_attribute_values(":day", attr_s(&key_schema::poison(&id.day, "", "").pk))
            .expression_attribute_values(":number", attr_s(&id.number))
            // What comes right after the `#` that follows a number: longer numbers lie beyond.
            .expression_attribute_values(":end", attr_s(&format!("{}$", id.number)));
        let items = query
            .into_paginator()
            .items()
            .send()
            .collect::<std::result::Result<Vec<_>, _>>()
            .await?;
        Ok(parse_items(items)
            .into_iter()
            .filter(|kept| kept.id() == *id)
            .collect())
    }

    /// How many records were kept on a day, and whether these are all: the counting ends with the page that reaches `at_most`.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn count(self, day: &str, at_most: usize) -> Result<(usize, bool)> {
        let query = self
            .store
            .client
            .query()
            .table_name(&self.store.tables.webhooks)
            .key_condition_expression("PK = :day")
            .expression_attribute_values(":day", attr_s(&key_schema::poison(day, "", "").pk))
            .select(Select::Count);
        let mut pages = query.into_paginator().send();
        let mut count = 0;
        while let Some(page) = pages.next().await {
            let page = page?;
            count += usize::try_from(page.count).unwrap_or(0);
            if count >= at_most {
                return Ok((count, page.last_evaluated_key.is_none()));
            }
        }
        Ok((count, true))
    }

    /// The job of a kept record, as it is now in the platform's table; `None` if it is gone, or the record names none.
    ///
    /// # Errors
    /// If DynamoDB does not answer, or the table has other keys.
    pub async fn get_job(
        self,
        kept: &PoisonRecord,
        jobs: &str,
    ) -> Result<Option<serde_dynamo::Item>> {
        let keys: serde_dynamo::Item = serde_json::from_str(&kept.poison.keys).unwrap_or_default();
        if keys.is_empty() {
            return Ok(None);
        }
        let get = self
            .store
            .client
            .get_item()
            .table_name(jobs)
            .consistent_read(true)
            .set_key(Some(keys.into()));
        Ok(get.send().await?.item.map(Into::into))
    }

    /// Writes down why a kept record cannot be understood now, if it is still kept.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn update_reason(self, kept: &PoisonRecord, reason: &str) -> Result<()> {
        if truncate_reason(reason) == kept.poison.reason {
            return Ok(());
        }
        let update = self
            .store
            .client
            .update_item()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(kept.key.clone().into_item()))
            .update_expression("SET reason = :reason")
            .condition_expression("attribute_exists(PK)")
            .expression_attribute_values(":reason", attr_s(truncate_reason(reason)));
        into_condition_result(update.send().await).map(drop)
    }

    /// Keeps a record no longer.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn delete(self, kept: &PoisonRecord) -> Result<()> {
        let key = kept.key.clone().into_item();
        self.store
            .client
            .delete_item()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(key))
            .send()
            .await?;
        Ok(())
    }
}

fn truncate_reason(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(MAX_REASON)]
}

fn parse_items(items: Vec<Item>) -> Vec<PoisonRecord> {
    let read =
        |item: Item| {
            let sort_key = item.get(key_schema::SK).cloned();
            from_item::<PoisonRow>(item).map(PoisonRecord::from).inspect_err(|error| {
            tracing::error!(?sort_key, %error, "a kept record cannot be read and is left out");
        })
        };
    items
        .into_iter()
        .filter_map(|item| read(item).ok())
        .collect()
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
                stream: row.stream,
                sequence_number: row.sequence_number,
                created_at: row.record_created_at,
                keys: row.keys,
                image: row.image,
            },
            kept_at: row.created_at,
        }
    }
}
