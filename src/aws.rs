//! AWS clients.

use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig, timeout::TimeoutConfig};
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

use crate::telemetry::error_chain;

/// How long one try of a request to AWS may take; the SDK makes up to three.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a request may take in all.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(4);

/// The ordinary configuration: region, credentials and endpoints from where every AWS SDK takes them, with bounded waits.
pub async fn load_sdk_config() -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .timeout_config(timeouts())
        .load()
        .await
}

/// The bounds of every request to AWS.
pub fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build()
}

/// What AWS answered to a request that it refused, or why it could not be asked, in a line for the log.
pub fn format_sdk_error<E, R>(error: &SdkError<E, R>) -> String
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
    R: std::fmt::Debug + 'static,
{
    let Some(said) = error.as_service_error().map(ProvideErrorMetadata::meta) else {
        return error_chain(error);
    };
    let part = |part: Option<&str>| part.unwrap_or("(none)").to_owned();
    let (code, message) = (part(said.code()), part(said.message()));
    format!(
        "{code}: {message} (request {})",
        part(said.extra("aws_request_id"))
    )
}
