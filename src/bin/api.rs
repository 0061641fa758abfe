//! The `api` Lambda: the HTTP API behind API Gateway.

use std::process::ExitCode;

use nano_webhooks::{
    api::{self, AppState},
    aws,
    client::webhook_client::Timeouts,
    clock::Clock,
    config::{Config, ConfigDefaults, env_var, retry_queue_url},
    lambda::encode_query,
    queue::RetryQueue,
    store::{Store, data_keys::DataKeyCache},
};
use tower::ServiceExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    nano_webhooks::lambda::run_lambda(run).await
}

async fn run() -> Result<(), lambda_http::Error> {
    let config = Config::from_env(env_var, ConfigDefaults::DEPLOYED)?;
    let aws = aws::load_sdk_config().await;
    let operator_notices = config.operator_notices();
    let client = aws_sdk_dynamodb::Client::new(&aws);
    let router = api::router(AppState {
        account_claim: config.account_claim.clone(),
        guard: config.guard(),
        client: config.client(Timeouts::QUEUED)?,
        clock: Clock::system(),
        queue: RetryQueue::Sqs {
            client: aws_sdk_sqs::Client::new(&aws),
            url: retry_queue_url(env_var)?,
        },
        retention: config.retention,
        webhooks_per_account: config.webhooks_per_account,
        max_test_events: config.max_test_events(),
        rate_limits: config.rate_limits,
        store: Store::new(
            client,
            config.tables,
            DataKeyCache::for_kms_key(&aws, config.secrets_kms_key_id),
        )
        .with_operator_notices(operator_notices),
    });
    let adapter = lambda_http::Adapter::from(router);
    lambda_runtime::run(adapter.map_request(encode_query)).await
}
