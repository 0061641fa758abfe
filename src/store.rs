//! The tables: every read and write of DynamoDB, concrete over the SDK's client.

pub mod api_keys;
pub mod checkpoints;
pub mod deliveries;
pub mod delivery_log;
pub mod due_index;
mod item_writer;
pub mod key_schema;
pub mod leases;
pub mod poison;
pub mod rate_limit;
pub mod replays;
pub mod resume;
pub mod rotation;
pub mod secrets;
pub mod tables;
pub mod update;
pub mod webhooks;

use std::{collections::HashMap, error::Error as StdError, time::Duration};

use aws_sdk_dynamodb::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::{AttributeValue, TransactWriteItem},
};
use serde::{Deserialize, Serialize};

use crate::{aws::format_sdk_error, clock::Deadline};
use key_schema::PrimaryKey;
use nano_webhooks_core::{account_id::AccountId, webhook::WebhookId};
use secrets::DataKeyCache;
use webhooks::{TRANSACTION_RETRY_LIMIT, cancellation_reasons, is_condition_failure};

/// An item as DynamoDB has it.
pub type Item = HashMap<String, AttributeValue>;

/// The names of the tables.
#[derive(Clone, Debug)]
pub struct TableNames {
    /// Accounts, keys, webhooks, limits, poison.
    pub webhooks: String,
    /// The delivery log and the due index.
    pub deliveries: String,
}

/// The tables, and the client that reaches them.
#[derive(Clone, Debug)]
pub struct Store {
    client: Client,
    tables: TableNames,
    vault: DataKeyCache,
}

impl Store {
    /// A store over these tables, whose secrets the vault seals.
    pub const fn new(client: Client, tables: TableNames, vault: DataKeyCache) -> Self {
        Self {
            client,
            tables,
            vault,
        }
    }

    /// Webhooks, the health of their endpoints, and the numbers that an account counts.
    pub const fn webhooks(&self) -> webhooks::Webhooks<'_> {
        webhooks::Webhooks::new(self)
    }

    /// Secrets of webhooks, and the data keys that encrypt them.
    pub const fn secrets(&self) -> secrets::Secrets<'_> {
        secrets::Secrets::new(self)
    }

    /// API keys.
    pub const fn api_keys(&self) -> api_keys::ApiKeys<'_> {
        api_keys::ApiKeys::new(self)
    }

    /// Counters of API requests.
    pub const fn rate_limits(&self) -> rate_limit::RateLimiter<'_> {
        rate_limit::RateLimiter::new(self)
    }

    /// Checkpoints of a stream reader other than Lambda.
    pub const fn checkpoints(&self) -> checkpoints::Checkpoints<'_> {
        checkpoints::Checkpoints::new(self)
    }

    /// Poison records.
    pub const fn poison(&self) -> poison::Poison<'_> {
        poison::Poison::new(self)
    }

    /// Deliveries, by their keys.
    pub const fn deliveries(&self) -> deliveries::Deliveries<'_> {
        deliveries::Deliveries::new(self)
    }

    /// Changes of pending deliveries, under a lease or a condition.
    pub const fn leases(&self) -> leases::Leases<'_> {
        leases::Leases::new(self)
    }

    /// The index of pending deliveries by time.
    pub const fn due_index(&self) -> due_index::DueIndex<'_> {
        due_index::DueIndex::new(self)
    }

    /// Deliveries of one webhook, the newest first.
    pub const fn delivery_log(&self) -> delivery_log::DeliveryLog<'_> {
        delivery_log::DeliveryLog::new(self)
    }

    /// Replays.
    pub const fn replays(&self) -> replays::Replays<'_> {
        replays::Replays::new(self)
    }

    /// Webhooks that were enabled again and whose paused deliveries are being sent.
    pub const fn resumes(&self) -> resume::Resumes<'_> {
        resume::Resumes::new(self)
    }

    /// Writes all parts or none, again while others change the same items; `false` if a part's condition does not hold.
    async fn transact(&self, parts: Vec<TransactWriteItem>) -> Result<bool> {
        Ok(self.transact_all(parts).await?.is_ok())
    }

    /// The same; `Err` names the first part whose condition does not hold.
    async fn transact_all(
        &self,
        parts: Vec<TransactWriteItem>,
    ) -> Result<std::result::Result<(), usize>> {
        let deadline = Deadline::from_now(TRANSACTION_RETRY_LIMIT);
        for tried in 0.. {
            if deadline.remaining().is_zero() {
                break;
            }
            let request = self
                .client
                .transact_write_items()
                .set_transact_items(Some(parts.clone()));
            let reasons = match request.send().await {
                Ok(_) => return Ok(Ok(())),
                Err(error) => cancellation_reasons(error)?,
            };
            if let Some(refused) = reasons.iter().position(is_condition_failure) {
                return Ok(Err(refused));
            }
            sleep_with_backoff(tried).await;
        }
        Err(Error::Unavailable(
            "too many changes of one account at the same time".to_owned(),
        ))
    }

    /// The webhooks that are marked in a partition for what sweeps go on with, at most so many. A mark that cannot be read harms
    /// no other.
    async fn marked<T>(
        &self,
        partition: &str,
        at_most: usize,
        read: impl Fn(AccountId, WebhookId, &Item) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut items = self
            .client
            .query()
            .table_name(&self.tables.webhooks)
            .consistent_read(true)
            .key_condition_expression("PK = :partition")
            .expression_attribute_values(":partition", attr_s(partition))
            .into_paginator()
            .items()
            .send();
        let mut found = Vec::new();
        while found.len() < at_most
            && let Some(item) = items.next().await
        {
            let item = item?;
            let of = item
                .get(key_schema::SK)
                .and_then(|sk| key_schema::parse_deliveries(sk.as_s().ok()?));
            let mark = of.and_then(|(account, webhook)| read(account, webhook, &item));
            if mark.is_none() {
                tracing::error!(partition, sort_key = ?item.get(key_schema::SK), "a mark cannot be read and is left out");
            }
            found.extend(mark);
        }
        Ok(found)
    }

    /// One item, strongly consistent.
    async fn item(&self, key: PrimaryKey) -> Result<Option<Item>> {
        let get = self
            .client
            .get_item()
            .table_name(&self.tables.webhooks)
            .consistent_read(true);
        Ok(get.set_key(Some(key.into_item())).send().await?.item)
    }
}

/// DynamoDB did not do what was asked. What it said is for the log, never for a caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Throttled, out of reach, or at fault: the same request may succeed later.
    #[error("DynamoDB is throttled or out of reach: {0}")]
    Unavailable(String),
    /// Refused, or an item that cannot be understood: the same request would fail again.
    #[error("DynamoDB request failed: {0}")]
    Internal(String),
    /// A data key cannot be unwrapped: KMS does not answer or refuses, or the settings are others than those it was wrapped
    /// with. The same request may succeed when that is mended.
    #[error("secrets cannot be opened: {0}")]
    KeyUnavailable(String),
}

/// Shorthand for what the store returns.
pub type Result<T> = std::result::Result<T, Error>;

impl<E, R> From<SdkError<E, R>> for Error
where
    E: StdError + ProvideErrorMetadata + 'static,
    R: std::fmt::Debug + 'static,
{
    fn from(error: SdkError<E, R>) -> Self {
        let transient = match &error {
            SdkError::TimeoutError(_)
            | SdkError::DispatchFailure(_)
            | SdkError::ResponseError(_) => true,
            SdkError::ServiceError(service) => service.err().code().is_some_and(is_transient),
            _ => false,
        };
        let text = format_sdk_error(&error);
        if transient {
            Self::Unavailable(text)
        } else {
            Self::Internal(text)
        }
    }
}

/// Error codes that say "later", from the DynamoDB developer guide, "Error handling".
fn is_transient(code: &str) -> bool {
    matches!(
        code,
        "ProvisionedThroughputExceededException"
            | "ThrottlingException"
            | "ThrottlingError"
            | "ProvisionedThroughputExceeded"
            | "RequestLimitExceeded"
            | "TransactionConflictException"
            | "TransactionInProgressException"
            | "InternalServerError"
            | "InternalServerErrorException"
            | "ServiceUnavailable"
            | "ServiceUnavailableException"
    )
}

/// Whether the condition of a write held; any other error is passed on.
fn into_condition_result<T, E, R>(sent: std::result::Result<T, SdkError<E, R>>) -> Result<bool>
where
    E: StdError + ProvideErrorMetadata + 'static,
    R: std::fmt::Debug + 'static,
{
    match sent {
        Ok(_) => Ok(true),
        Err(error) => match error
            .as_service_error()
            .and_then(ProvideErrorMetadata::code)
        {
            Some("ConditionalCheckFailedException") => Ok(false),
            _ => Err(error.into()),
        },
    }
}

/// Waits between tries of what DynamoDB left undone (unprocessed items, transaction conflicts): 20 ms doubling up to
/// 320 ms, with full jitter.
async fn sleep_with_backoff(tried: u32) {
    let ceiling = Duration::from_millis(20) * 2_u32.pow(tried.min(4));
    tokio::time::sleep(ceiling.mul_f64(crate::random::unit_f64())).await;
}

/// A stored shape as an item.
fn to_item(row: &impl Serialize) -> Result<Item> {
    serde_dynamo::to_item(row).map_err(serialize_error)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature that `map_err` asks for"
)]
fn serialize_error(error: serde_dynamo::Error) -> Error {
    Error::Internal(format!("a row could not be written: {error}"))
}

/// An item as a stored shape.
fn from_item<'a, T: Deserialize<'a>>(item: Item) -> Result<T> {
    serde_dynamo::from_item(item)
        .map_err(|error| Error::Internal(format!("an item could not be read: {error}")))
}

/// An item that breaks a rule which every writer keeps.
fn corrupt_item(what: &str) -> Error {
    Error::Internal(format!("an item holds an invalid {what}"))
}

/// A number as DynamoDB has it.
fn attr_n(n: i64) -> AttributeValue {
    AttributeValue::N(n.to_string())
}

/// A text as DynamoDB has it.
fn attr_s(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}
