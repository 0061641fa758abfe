//! Local mode: the whole service on a developer's machine, over an embedded DynamoDB.

pub mod cli;
mod demo;
pub mod engine;
mod http;
mod listen;
mod operate;
mod pump;
mod serve;
mod verify;

use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};

/// The region and the credentials that an engine on this machine is called with; it looks at neither.
const REGION: &str = "us-east-1";

/// A client of an engine at `endpoint`, without a look at the environment's AWS settings.
pub fn dynamodb(endpoint: &str) -> aws_sdk_dynamodb::Client {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .timeout_config(crate::aws::timeouts())
        .region(Region::from_static(REGION))
        .credentials_provider(credentials())
        .endpoint_url(endpoint);
    aws_sdk_dynamodb::Client::from_conf(config.build())
}

/// The same for the engine's streams.
fn streams(endpoint: &str) -> aws_sdk_dynamodbstreams::Client {
    let config = aws_sdk_dynamodbstreams::Config::builder()
        .behavior_version(aws_sdk_dynamodbstreams::config::BehaviorVersion::latest())
        .timeout_config(crate::aws::timeouts())
        .region(Region::from_static(REGION))
        .credentials_provider(credentials())
        .endpoint_url(endpoint);
    aws_sdk_dynamodbstreams::Client::from_conf(config.build())
}

fn credentials() -> Credentials {
    Credentials::new("local", "local", None, None, "local mode")
}
