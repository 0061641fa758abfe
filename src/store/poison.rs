//! Records that could not be understood, kept with their reason where an operator can read them.

use aws_sdk_dynamodb::types::AttributeValue;

use super::{Result, Store, keys, tables::EXPIRES_AT};
use crate::clock::Instant;

/// How much of a record's image is kept: 256 KiB, which leaves room in an item of 400 KB.
pub const MAX_IMAGE: usize = 256 * 1024;

/// How much of the reason is kept, in bytes: it may repeat what the record holds.
const MAX_REASON: usize = 1024;

/// A record that could not be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poison {
    /// Why.
    pub reason: String,
    /// The ARN of the stream, empty if the record does not say.
    pub stream: String,
    /// The record's number in the stream, empty if it does not say.
    pub sequence_number: String,
    /// The record's keys, as JSON.
    pub keys: String,
    /// The record, as JSON. One that is longer than [`MAX_IMAGE`] is left out: the job itself still has it.
    pub image: String,
}

impl Store {
    /// Keeps a record until `expires_at`; keeping it again changes nothing.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn keep_poison(&self, poison: &Poison, now: Instant, expires_at: Instant) -> Result<()> {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let mut item = keys::poison(&keys::day(now), &poison.stream, &poison.sequence_number).into_item();
        item.extend([
            ("reason".to_owned(), text(&poison.reason[..poison.reason.floor_char_boundary(MAX_REASON)])),
            ("stream".to_owned(), text(&poison.stream)),
            ("sequence_number".to_owned(), text(&poison.sequence_number)),
            ("keys".to_owned(), text(&poison.keys)),
            ("created_at".to_owned(), AttributeValue::N(now.millis().to_string())),
            (EXPIRES_AT.to_owned(), AttributeValue::N(expires_at.seconds().to_string())),
        ]);
        if poison.image.len() <= MAX_IMAGE {
            item.insert("image".to_owned(), text(&poison.image));
        }
        self.client.put_item().table_name(&self.tables.webhooks).set_item(Some(item)).send().await?;
        Ok(())
    }
}
