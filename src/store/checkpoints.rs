//! How far a stream's shard was read, for a reader that is not Lambda.

use aws_sdk_dynamodb::types::AttributeValue;

use super::{Result, Store, key_schema};

const SEQUENCE_NUMBER: &str = "sequence_number";

/// See [`Store::checkpoints`].
#[derive(Clone, Copy, Debug)]
pub struct Checkpoints<'a> {
    store: &'a Store,
}

impl<'a> Checkpoints<'a> {
    pub(super) const fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl Checkpoints<'_> {
    /// The position that was kept for a shard.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn get(self, stream: &str, shard: &str) -> Result<Option<String>> {
        let item = self
            .store
            .item(key_schema::checkpoint(stream, shard))
            .await?;
        Ok(
            item.and_then(|mut item| match item.remove(SEQUENCE_NUMBER) {
                Some(AttributeValue::S(position)) => Some(position),
                _ => None,
            }),
        )
    }

    /// Keeps a shard's position.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn put(self, stream: &str, shard: &str, position: &str) -> Result<()> {
        let mut item = key_schema::checkpoint(stream, shard).into_item();
        item.insert(
            SEQUENCE_NUMBER.to_owned(),
            AttributeValue::S(position.to_owned()),
        );
        self.store
            .client
            .put_item()
            .table_name(&self.store.tables.webhooks)
            .set_item(Some(item))
            .send()
            .await?;
        Ok(())
    }
}
