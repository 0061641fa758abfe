//! Clients of a DynamoDB engine on this machine. They ignore the environment: AWS settings as well
//! as proxies.

use aws_sdk_dynamodb::config::{
    BehaviorVersion, Credentials, Region, SharedHttpClient, timeout::TimeoutConfig,
};

use crate::limited_http_client::LimitedHttpClient;

/// Local engines accept any region and any credentials.
const REGION: Region = Region::from_static("us-east-1");

/// Creates a client of the engine at `endpoint`.
///
/// The service uses the timeouts of [`nano_webhooks::aws::timeouts`]. Tests that are not about
/// timeouts pass longer ones.
pub fn local_client(endpoint: &str, timeouts: TimeoutConfig) -> aws_sdk_dynamodb::Client {
    let config = local_config(endpoint, timeouts).http_client(http_client());
    aws_sdk_dynamodb::Client::from_conf(config.build())
}

/// Creates a client that sends at most `max_requests` at the same time.
pub fn limited_local_client(
    endpoint: &str,
    timeouts: TimeoutConfig,
    max_requests: usize,
) -> aws_sdk_dynamodb::Client {
    let http_client = LimitedHttpClient::new(http_client(), max_requests);
    let config = local_config(endpoint, timeouts).http_client(http_client);
    aws_sdk_dynamodb::Client::from_conf(config.build())
}

fn local_config(endpoint: &str, timeouts: TimeoutConfig) -> aws_sdk_dynamodb::config::Builder {
    aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .timeout_config(timeouts)
        .region(REGION)
        .credentials_provider(credentials())
        .endpoint_url(endpoint)
}

/// Creates a client of the streams of the engine at `endpoint`.
pub fn local_streams_client(
    endpoint: &str,
    timeouts: TimeoutConfig,
) -> aws_sdk_dynamodbstreams::Client {
    let config = aws_sdk_dynamodbstreams::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .timeout_config(timeouts)
        .region(REGION)
        .credentials_provider(credentials())
        .http_client(http_client())
        .endpoint_url(endpoint)
        .build();
    aws_sdk_dynamodbstreams::Client::from_conf(config)
}

/// Plain HTTP without a proxy.
fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().build_http()
}

fn credentials() -> Credentials {
    Credentials::new("local", "local", None, None, "local mode")
}
