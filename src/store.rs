//! The tables: every read and write of DynamoDB, concrete over the SDK's client.

pub mod api_keys;
pub mod checkpoints;
pub mod deliveries;
pub mod delivery_log;
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
    types::AttributeValue,
};
use serde::{Deserialize, Serialize};

use crate::aws::format_sdk_error;
use secrets::DataKeyCache;

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
    Locked(String),
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
