//! Local mode: the whole service on a developer's machine, over an embedded DynamoDB.

pub mod args;
mod commands;
mod demo;
pub mod embedded_dynamodb;
mod http;
mod listen;
mod retry_timer;
mod serve;
mod stream_poller;
mod verify;

pub use retry_timer::SWEEP_INTERVAL;
pub use stream_poller::{BATCH_SIZE, BATCH_TIME};

use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region, SharedHttpClient};

/// The region and the credentials that an engine on this machine is called with; it looks at neither.
const REGION: &str = "us-east-1";

/// A client of an engine at `endpoint`, without a look at the environment: neither at AWS settings nor at proxies.
pub fn dynamodb(endpoint: &str) -> aws_sdk_dynamodb::Client {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .timeout_config(nano_webhooks::aws::timeouts())
        .region(Region::from_static(REGION))
        .credentials_provider(credentials())
        .http_client(http_client())
        .endpoint_url(endpoint);
    aws_sdk_dynamodb::Client::from_conf(config.build())
}

/// The same for the engine's streams.
fn streams(endpoint: &str) -> aws_sdk_dynamodbstreams::Client {
    let config = aws_sdk_dynamodbstreams::Config::builder()
        .behavior_version(aws_sdk_dynamodbstreams::config::BehaviorVersion::latest())
        .timeout_config(nano_webhooks::aws::timeouts())
        .region(Region::from_static(REGION))
        .credentials_provider(credentials())
        .http_client(http_client())
        .endpoint_url(endpoint);
    aws_sdk_dynamodbstreams::Client::from_conf(config.build())
}

/// Plain HTTP, and no proxy.
fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().build_http()
}

fn credentials() -> Credentials {
    Credentials::new("local", "local", None, None, "local mode")
}
