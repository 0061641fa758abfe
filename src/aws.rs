//! The configuration of AWS clients.

use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig, timeout::TimeoutConfig};
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};

use crate::error_chain::error_chain;

/// The timeout of one attempt of a request. The SDK makes up to three.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// The timeout of a request, retries included.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(4);

/// Loads region, credentials and endpoints from where every AWS SDK takes them, with
/// [`timeouts`].
pub async fn load_sdk_config() -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .timeout_config(timeouts())
        .load()
        .await
}

/// The timeouts of every request to AWS.
pub fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build()
}

/// Formats the code, message and request id of an AWS error in one line, or the reason why there
/// was no response.
pub fn format_sdk_error<E, R>(error: &SdkError<E, R>) -> String
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
    R: std::fmt::Debug + 'static,
{
    let Some(service_error) = error.as_service_error() else {
        return error_chain(error);
    };
    let metadata = service_error.meta();
    let code = or_none(metadata.code());
    let message = or_none(metadata.message());
    let request_id = or_none(metadata.extra("aws_request_id"));
    format!("{code}: {message} (request {request_id})")
}

fn or_none(text: Option<&str>) -> &str {
    text.unwrap_or("(none)")
}

/// What an AWS service reported about a request that it rejected.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message} (request {request_id})")]
struct ServiceError {
    code: String,
    message: String,
    request_id: String,
}

/// The cause of a failed request: what the service reported, or why there was no response.
pub fn error_cause<E, R>(error: SdkError<E, R>) -> Box<dyn std::error::Error + Send + Sync>
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    let Some(service_error) = error.as_service_error() else {
        return Box::new(error);
    };
    let metadata = service_error.meta();
    Box::new(ServiceError {
        code: or_none(metadata.code()).to_owned(),
        message: or_none(metadata.message()).to_owned(),
        request_id: or_none(metadata.extra("aws_request_id")).to_owned(),
    })
}
