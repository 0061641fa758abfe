//! The `dispatch` Lambda: takes the jobs stream and calls the endpoints.

use std::time::{Duration, SystemTime};

use lambda_runtime::{LambdaEvent, service_fn};
use nano_webhooks::{
    aws,
    clock::{Clock, Deadline},
    config::{Config, Defaults, variable},
    dispatch::{Dispatcher, RESERVE, StreamBatch},
    store::Store,
    telemetry::{self, Format},
    transport::client::Limits,
};

#[tokio::main]
async fn main() -> Result<(), lambda_runtime::Error> {
    telemetry::init(Format::Json, "info")?;
    let config = Config::read(variable, Defaults::DEPLOYED)?;
    let client = aws_sdk_dynamodb::Client::new(&aws::config().await);
    let dispatcher = Dispatcher {
        client: config.client(Limits::DIRECT)?,
        clock: Clock::system(),
        schedule: config.retry_schedule.clone(),
        retention: config.retention,
        store: Store::new(client, config.tables),
    };
    let handler = async |event: LambdaEvent<StreamBatch>| {
        let left = event.context.deadline().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Duration::from_millis(u64::try_from(dispatcher.clock.now().millis()).unwrap_or(0));
        let deadline = Deadline::after(left.saturating_sub(now + RESERVE));
        Ok::<_, lambda_runtime::Error>(dispatcher.stream(&event.payload.records(), deadline).await)
    };
    lambda_runtime::run(service_fn(handler)).await
}
