//! One DynamoDB table: the requests that the facades share.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::{
    Client,
    config::{self, retry::RetryConfig},
    error::{ProvideErrorMetadata, SdkError},
    operation::{
        put_item::builders::PutItemFluentBuilder,
        query::builders::QueryFluentBuilder,
        scan::builders::ScanFluentBuilder,
        transact_write_items::{TransactWriteItemsError, TransactWriteItemsOutput},
        update_item::builders::UpdateItemFluentBuilder,
    },
    types::{
        CancellationReason, Delete, KeysAndAttributes, Put, TransactWriteItem, Update,
        builders::{PutBuilder, UpdateBuilder},
    },
};
use serde::Deserialize;

use super::{
    error::{Error, Result, is_transient_code},
    item::{Item, from_optional_item},
    key_schema::PrimaryKey,
};
use crate::{clock::Deadline, random};

/// How long a transaction is retried while other requests change the same items. One of them
/// succeeds in each round.
pub(super) const TRANSACTION_RETRY_LIMIT: Duration = Duration::from_secs(5);
/// The most keys that BatchGetItem accepts.
pub(super) const BATCH_GET: usize = 100;
/// The wait before the first retry; it doubles with each, up to 16 times this.
const BASE_BACKOFF: Duration = Duration::from_millis(20);

/// A table, and the client that reaches it.
#[derive(Clone, Debug)]
pub(super) struct TableClient {
    client: Client,
    name: String,
}

/// Whether a read sees every write that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consistency {
    /// It does. It costs twice as much.
    Strong,
    /// It may miss writes of the last moments.
    Eventual,
}

/// Whether a conditional write was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The condition held, and the write is durable.
    Applied,
    /// The condition did not hold, and nothing was written.
    ConditionFailed,
}

impl WriteOutcome {
    /// Whether the condition held.
    pub const fn is_applied(self) -> bool {
        matches!(self, Self::Applied)
    }

    /// Reads the response to a conditional write. Errors other than a failed condition are
    /// returned.
    pub(super) fn from_response<T, E, R>(
        response: std::result::Result<T, SdkError<E, R>>,
    ) -> Result<Self>
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        let Err(error) = response else {
            return Ok(Self::Applied);
        };
        match error.as_service_error() {
            Some(service) if service.code() == Some("ConditionalCheckFailedException") => {
                Ok(Self::ConditionFailed)
            }
            _ => Err(error.into()),
        }
    }
}

/// Whether a transaction was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum TransactOutcome {
    /// All conditions held, and all writes are durable.
    Applied,
    /// A condition did not hold, and nothing was written.
    ConditionFailed {
        /// The position of the first write whose condition did not hold.
        index: usize,
    },
}

impl From<TransactOutcome> for WriteOutcome {
    fn from(outcome: TransactOutcome) -> Self {
        match outcome {
            TransactOutcome::Applied => Self::Applied,
            TransactOutcome::ConditionFailed { .. } => Self::ConditionFailed,
        }
    }
}

impl TableClient {
    pub(super) const fn new(client: Client, name: String) -> Self {
        Self { client, name }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn query(&self) -> QueryFluentBuilder {
        self.client.query().table_name(&self.name)
    }

    pub(super) fn scan(&self) -> ScanFluentBuilder {
        self.client.scan().table_name(&self.name)
    }

    pub(super) fn update(&self, key: PrimaryKey) -> UpdateItemFluentBuilder {
        self.client
            .update_item()
            .table_name(&self.name)
            .set_key(Some(key.into_item()))
    }

    /// Reads an item, strongly consistent.
    pub(super) async fn get(&self, key: PrimaryKey) -> Result<Option<Item>> {
        self.get_from(&self.name, key.into_item()).await
    }

    /// Reads an item of another table, strongly consistent.
    pub(super) async fn get_from(&self, table: &str, key: Item) -> Result<Option<Item>> {
        let response = self
            .client
            .get_item()
            .table_name(table)
            .consistent_read(true)
            .set_key(Some(key))
            .send()
            .await?;
        Ok(response.item)
    }

    /// Reads a row, strongly consistent.
    pub(super) async fn get_row<'a, T: Deserialize<'a>>(
        &self,
        key: PrimaryKey,
    ) -> Result<Option<T>> {
        from_optional_item(self.get(key).await?)
    }

    /// Reads attributes of at most [`BATCH_GET`] items. Items that do not exist are left out. What
    /// DynamoDB leaves unprocessed is read again until the deadline.
    pub(super) async fn batch_get(
        &self,
        keys: impl IntoIterator<Item = PrimaryKey>,
        projection: &str,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<Vec<Item>> {
        let keys = keys.into_iter().map(PrimaryKey::into_item).collect();
        let request = KeysAndAttributes::builder()
            .set_keys(Some(keys))
            .projection_expression(projection)
            .consistent_read(consistency == Consistency::Strong)
            .build()
            .expect("the keys are set");
        let mut unprocessed = HashMap::from([(self.name.clone(), request)]);
        let mut found = Vec::new();
        let mut retries = 0;
        loop {
            let response = self
                .client
                .batch_get_item()
                .set_request_items(Some(unprocessed))
                .send()
                .await?;
            for (_, items) in response.responses.into_iter().flatten() {
                found.extend(items);
            }
            unprocessed = response.unprocessed_keys.unwrap_or_default();
            if unprocessed.is_empty() {
                return Ok(found);
            }
            backoff_until(retries, deadline).await?;
            retries += 1;
        }
    }

    /// Writes an item, whatever is there.
    pub(super) async fn put(&self, item: Item) -> Result<()> {
        self.client
            .put_item()
            .table_name(&self.name)
            .set_item(Some(item))
            .send()
            .await?;
        Ok(())
    }

    /// Writes an item if its condition holds.
    pub(super) async fn put_if(&self, put: PutBuilder) -> Result<WriteOutcome> {
        let response = self.conditional_put(put).send().await;
        WriteOutcome::from_response(response)
    }

    /// Does the same without retries by the SDK, so that a request to a throttled partition ends at
    /// once and takes no retries from the budget that all requests of the client share. The caller
    /// writes the item again later.
    pub(super) async fn put_if_once(&self, put: PutBuilder) -> Result<WriteOutcome> {
        let request = self.conditional_put(put).customize();
        let response = request.config_override(without_retries()).send().await;
        WriteOutcome::from_response(response)
    }

    fn conditional_put(&self, put: PutBuilder) -> PutItemFluentBuilder {
        let put = self.build_put(put);
        self.client
            .put_item()
            .table_name(put.table_name)
            .set_item(Some(put.item))
            .set_condition_expression(put.condition_expression)
            .set_expression_attribute_names(put.expression_attribute_names)
            .set_expression_attribute_values(put.expression_attribute_values)
    }

    /// Writes an item unless there is one with its key.
    pub(super) async fn insert(&self, item: Item) -> Result<WriteOutcome> {
        self.put_if(insert_if_absent(item)).await
    }

    /// Deletes an item, if it exists.
    pub(super) async fn delete(&self, key: PrimaryKey) -> Result<()> {
        self.client
            .delete_item()
            .table_name(&self.name)
            .set_key(Some(key.into_item()))
            .send()
            .await?;
        Ok(())
    }

    /// Deletes an item if an attribute has this value.
    pub(super) async fn delete_if_equal(
        &self,
        key: PrimaryKey,
        attribute: &str,
        value: aws_sdk_dynamodb::types::AttributeValue,
    ) -> Result<WriteOutcome> {
        let response = self
            .client
            .delete_item()
            .table_name(&self.name)
            .set_key(Some(key.into_item()))
            .condition_expression("#attribute = :value")
            .expression_attribute_names("#attribute", attribute)
            .expression_attribute_values(":value", value)
            .send()
            .await;
        WriteOutcome::from_response(response)
    }

    /// A put in a transaction.
    pub(super) fn transact_put(&self, put: PutBuilder) -> TransactWriteItem {
        TransactWriteItem::builder()
            .put(self.build_put(put))
            .build()
    }

    /// An update in a transaction.
    pub(super) fn transact_update(
        &self,
        key: PrimaryKey,
        update: UpdateBuilder,
    ) -> TransactWriteItem {
        let update = update
            .table_name(&self.name)
            .set_key(Some(key.into_item()))
            .build()
            .expect("table, key and expression are set");
        TransactWriteItem::builder().update(update).build()
    }

    /// A deletion in a transaction, whatever is there.
    pub(super) fn transact_delete(&self, key: PrimaryKey) -> TransactWriteItem {
        self.build_transact_delete(key, None)
    }

    /// A deletion in a transaction, which fails if there is no item.
    pub(super) fn transact_delete_existing(&self, key: PrimaryKey) -> TransactWriteItem {
        self.build_transact_delete(key, Some("attribute_exists(PK)".to_owned()))
    }

    /// Applies all writes or none. Conflicts with other transactions are retried.
    pub(super) async fn transact_write(
        &self,
        writes: Vec<TransactWriteItem>,
    ) -> Result<TransactOutcome> {
        let deadline = Deadline::from_now(TRANSACTION_RETRY_LIMIT);
        let mut retries = 0;
        while !deadline.remaining().is_zero() {
            let reasons = match self.try_transact_write(writes.clone()).await {
                Ok(_) => return Ok(TransactOutcome::Applied),
                Err(error) => cancellation_reasons(error)?,
            };
            if let Some(index) = reasons.iter().position(is_condition_failure) {
                return Ok(TransactOutcome::ConditionFailed { index });
            }
            sleep_with_backoff(retries).await;
            retries += 1;
        }
        Err(too_many_conflicts())
    }

    /// Applies all writes or none, without retries of conflicts.
    pub(super) async fn try_transact_write(
        &self,
        writes: Vec<TransactWriteItem>,
    ) -> std::result::Result<TransactWriteItemsOutput, SdkError<TransactWriteItemsError>> {
        self.client
            .transact_write_items()
            .set_transact_items(Some(writes))
            .send()
            .await
    }

    fn build_put(&self, put: PutBuilder) -> Put {
        put.table_name(&self.name)
            .build()
            .expect("table and item are set")
    }

    fn build_transact_delete(
        &self,
        key: PrimaryKey,
        condition: Option<String>,
    ) -> TransactWriteItem {
        let delete = Delete::builder()
            .table_name(&self.name)
            .set_key(Some(key.into_item()))
            .set_condition_expression(condition)
            .build()
            .expect("table and key are set");
        TransactWriteItem::builder().delete(delete).build()
    }
}

/// A put that fails if there is an item with its key.
pub(super) fn insert_if_absent(item: Item) -> PutBuilder {
    Put::builder()
        .set_item(Some(item))
        .condition_expression("attribute_not_exists(PK)")
}

/// An update that fails if there is no item with its key.
pub(super) fn update_existing(expression: &str) -> UpdateBuilder {
    Update::builder()
        .update_expression(expression)
        .condition_expression("attribute_exists(PK)")
}

/// The configuration of a request that the SDK does not retry, so that a throttled partition
/// responds at once and does not use up the SDK's retries for other requests.
pub(super) fn without_retries() -> config::Builder {
    config::Config::builder().retry_config(RetryConfig::disabled())
}

/// Sleeps before a retry: a random part of 20 ms, doubled with each of the first four retries.
pub(super) async fn sleep_with_backoff(retries: u32) {
    let longest = BASE_BACKOFF * 2_u32.pow(retries.min(4));
    tokio::time::sleep(longest.mul_f64(random::unit_f64())).await;
}

/// Waits before unprocessed items are requested again. Fails once the deadline has passed.
pub async fn backoff_until(retries: u32, deadline: Deadline) -> Result<()> {
    check_deadline(deadline)?;
    sleep_with_backoff(retries).await;
    Ok(())
}

/// Fails once the deadline has passed.
pub fn check_deadline(deadline: Deadline) -> Result<()> {
    if deadline.remaining().is_zero() {
        return Err(Error::unavailable(
            "items were left unprocessed until the deadline",
        ));
    }
    Ok(())
}

pub(super) fn too_many_conflicts() -> Error {
    Error::unavailable("too many concurrent changes of the same items")
}

/// Why each write of a cancelled transaction failed. Errors other than failed conditions and
/// conflicts are returned.
pub(super) fn cancellation_reasons(
    error: SdkError<TransactWriteItemsError>,
) -> Result<Vec<CancellationReason>> {
    let Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) =
        error.as_service_error()
    else {
        return Err(error.into());
    };
    let reasons = cancelled.cancellation_reasons();
    if reasons.iter().all(is_condition_or_conflict) {
        return Ok(reasons.to_vec());
    }
    let is_transient = reasons
        .iter()
        .filter_map(CancellationReason::code)
        .any(is_transient_code);
    let cause = crate::aws::error_cause(error);
    if is_transient {
        Err(Error::unavailable(cause))
    } else {
        Err(Error::internal(cause))
    }
}

/// Writes that did not fail have the reason `None`.
fn is_condition_or_conflict(reason: &CancellationReason) -> bool {
    matches!(
        reason.code(),
        None | Some("None" | "ConditionalCheckFailed" | "TransactionConflict")
    )
}

pub(super) fn is_condition_failure(reason: &CancellationReason) -> bool {
    reason.code() == Some("ConditionalCheckFailed")
}

/// Whether another transaction changed the item at the same time.
pub(super) fn is_conflict(reason: &CancellationReason) -> bool {
    reason.code() == Some("TransactionConflict")
}
