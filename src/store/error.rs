//! The errors of the store.

use std::{error::Error as StdError, fmt, sync::Arc};

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

use crate::aws::error_cause;

/// Why a request to the store failed. The causes are for logs, never for API callers.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// DynamoDB throttled the request, was unreachable or failed. The same request may succeed
    /// later.
    #[error("DynamoDB is throttled or unavailable")]
    Unavailable(#[source] Cause),
    /// DynamoDB rejected the request. The same request would fail again.
    #[error("internal store error")]
    Internal(#[source] Cause),
    /// An item is invalid. The same request fails until the item is repaired.
    #[error("a stored item is invalid")]
    Unreadable(#[source] Cause),
    /// A data key cannot be unwrapped: KMS refused or did not respond, or another key wrapped it.
    /// The same request may succeed once that is fixed.
    #[error("the data key is unavailable")]
    KeyUnavailable(#[source] Cause),
}

/// Shorthand for what the store returns.
pub type Result<T> = std::result::Result<T, Error>;

/// The cause of an [`Error`]. It is shared, since several requests may fail for the same reason.
#[derive(Clone)]
pub struct Cause(Arc<dyn StdError + Send + Sync>);

impl Cause {
    fn new(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl Error {
    pub(super) fn unavailable(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Unavailable(Cause::new(cause))
    }

    pub(super) fn internal(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Internal(Cause::new(cause))
    }

    pub(super) fn key_unavailable(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::KeyUnavailable(Cause::new(cause))
    }

    pub(super) fn unreadable(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Unreadable(Cause::new(cause))
    }

    /// An item breaks a rule that every writer keeps.
    pub(super) fn corrupt_item(field: &'static str) -> Self {
        Self::unreadable(CorruptItem { field })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("an item has an invalid {field}")]
struct CorruptItem {
    field: &'static str,
}

impl<E, R> From<SdkError<E, R>> for Error
where
    E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
    R: fmt::Debug + Send + Sync + 'static,
{
    fn from(error: SdkError<E, R>) -> Self {
        let is_transient = match &error {
            SdkError::TimeoutError(_)
            | SdkError::DispatchFailure(_)
            | SdkError::ResponseError(_) => true,
            SdkError::ServiceError(service) => service.err().code().is_some_and(is_transient_code),
            _ => false,
        };
        let cause = error_cause(error);
        if is_transient {
            Self::unavailable(cause)
        } else {
            Self::internal(cause)
        }
    }
}

/// Whether the same request may succeed later. Source of the codes: DynamoDB developer guide,
/// "Error handling".
pub(super) fn is_transient_code(code: &str) -> bool {
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
