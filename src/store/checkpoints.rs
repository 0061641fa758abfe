//! Checkpoints: how far a reader other than Lambda has read a stream's shard.

use super::{
    error::Result,
    item::{attr_s, text},
    key_schema,
    table_client::TableClient,
};

const SEQUENCE_NUMBER: &str = "sequence_number";

/// See [`Store::checkpoints`](super::Store::checkpoints).
#[derive(Clone, Copy, Debug)]
pub struct Checkpoints<'a> {
    table: &'a TableClient,
}

impl<'a> Checkpoints<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }
}

impl Checkpoints<'_> {
    /// The sequence number that was saved for a shard.
    pub async fn get(self, stream: &str, shard: &str) -> Result<Option<String>> {
        let item = self
            .table
            .get(key_schema::checkpoint(stream, shard))
            .await?;
        match &item {
            Some(item) => Ok(text(item, SEQUENCE_NUMBER).map(str::to_owned)),
            None => Ok(None),
        }
    }

    /// Saves the sequence number of a shard.
    pub async fn put(self, stream: &str, shard: &str, sequence_number: &str) -> Result<()> {
        let mut item = key_schema::checkpoint(stream, shard).into_item();
        item.insert(SEQUENCE_NUMBER.to_owned(), attr_s(sequence_number));
        self.table.put(item).await
    }
}
