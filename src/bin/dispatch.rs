//! The `dispatch` Lambda: handles the jobs stream, the retry queue and the schedule of the sweep.

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use lambda_runtime::{Context, LambdaEvent, service_fn};
use mimalloc::MiMalloc;
use nano_webhooks::{
    aws,
    client::webhook_client::Timeouts,
    clock::{Clock, Deadline},
    config::{Config, ConfigDefaults, env_var, retry_queue_url, stack_name},
    dispatch::{Dispatcher, InFlightLimiter, RECORDING_RESERVE, lambda_event::Invocation},
    error_chain::error_chain,
    metrics::Metrics,
    queue::RetryQueue,
    store::{Store, data_keys::DataKeyCache},
};
use nano_webhooks_core::timestamp::Timestamp;
use serde_json::value::RawValue;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    nano_webhooks::lambda::run_lambda(run).await
}

async fn run() -> Result<(), lambda_runtime::Error> {
    let config = Config::from_env(env_var, ConfigDefaults::DEPLOYED)?;
    let stack = stack_name(env_var)?;
    let aws = aws::load_sdk_config().await;
    let dispatcher = Dispatcher {
        direct_client: config.client(Timeouts::DIRECT)?,
        retry_client: config.client(Timeouts::QUEUED)?,
        queue: RetryQueue::Sqs {
            client: aws_sdk_sqs::Client::new(&aws),
            url: retry_queue_url(env_var)?,
        },
        limiter: InFlightLimiter::default(),
        clock: Clock::system(),
        schedule: config.retry_schedule,
        retention: config.retention,
        disable_after: config.disable_after,
        metrics: Metrics::embedded(),
        store: Store::new(
            aws_sdk_dynamodb::Client::new(&aws),
            config.tables,
            DataKeyCache::for_kms_key(&aws, config.secrets_kms_key_id),
        ),
    };
    let handler = async |event: LambdaEvent<Box<RawValue>>| {
        let deadline = attempt_deadline(&event.context, dispatcher.clock.now());
        let invocation = Invocation::from_json(event.payload.get())?;
        // Boxed, because the compiler limits how deep futures are nested.
        let response = Box::pin(dispatcher.invoke(invocation, deadline)).await;
        for line in dispatcher.metrics.drain_emf(&stack, dispatcher.clock.now()) {
            writeln!(std::io::stdout(), "{line}")?;
        }
        Ok::<_, lambda_runtime::Error>(response.map_err(|error| error_chain(&error))?)
    };
    lambda_runtime::run(service_fn(handler)).await
}

/// When attempts must end, so that their outcomes can be recorded before the function times out.
fn attempt_deadline(context: &Context, now: Timestamp) -> Deadline {
    let timeout = context
        .deadline()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let now = Duration::from_millis(u64::try_from(now.as_unix_millis()).unwrap_or(0));
    Deadline::from_now(timeout.saturating_sub(now + RECORDING_RESERVE))
}
