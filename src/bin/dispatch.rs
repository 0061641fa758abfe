//! The `dispatch` Lambda: handles the jobs stream, the retry queue and the schedule of the sweep.
//!
//! An internal extension keeps the environment running after the response until the late attempts
//! have ended (Lambda developer guide, "Extensions API": the environment is frozen when the runtime
//! and each extension have asked for the next event).

use std::{
    io::Write,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use lambda_runtime::{Context, Error, LambdaEvent, service_fn};
use mimalloc::MiMalloc;
use nano_webhooks::{
    aws,
    client::webhook_client::Timeouts,
    clock::{Clock, Deadline},
    config::{Config, ConfigDefaults, env_var, late_attempts_enabled, retry_queue_url, stack_name},
    dispatch::{
        Dispatcher, InFlightLimiter, RECORDING_RESERVE,
        first_attempt::BATCH_WAIT,
        lambda_event::Invocation,
        late_attempts::{LateAttempts, MAX_LATE},
        operator_topic::OperatorTopic,
    },
    error_chain::error_chain,
    extension::Extension,
    lambda::InvocationSignal,
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

async fn run() -> Result<(), Error> {
    let config = Config::from_env(env_var, ConfigDefaults::DEPLOYED)?;
    let output = MetricsOutput {
        metrics: Metrics::embedded(),
        stack: stack_name(env_var)?,
        clock: Clock::system(),
    };
    if !late_attempts_enabled(env_var)? {
        let invocations = InvocationSignal::default();
        return run_function(config, LateAttempts::disabled(), output, invocations).await;
    }
    let late_attempts = LateAttempts::enabled(MAX_LATE);
    let invocations = InvocationSignal::default();
    let end_of_invocation = AfterInvocation {
        invocations: invocations.clone(),
        late_attempts: late_attempts.clone(),
        output: output.clone(),
    };
    // Registered before the function starts, because that ends the phase in which Lambda accepts
    // extensions.
    let api = env_var("AWS_LAMBDA_RUNTIME_API")?.unwrap_or_default();
    match Extension::register(&api, "late-attempts").await {
        Ok(extension) => {
            let function = run_function(config, late_attempts, output, invocations);
            tokio::try_join!(function, run_extension(extension, end_of_invocation))?;
            Ok(())
        }
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(error, "Lambda refused the extension; late attempts are cut");
            run_function(config, LateAttempts::disabled(), output, invocations).await
        }
    }
}

/// Runs the extension. An error ends the process.
async fn run_extension(extension: Extension, after: AfterInvocation) -> Result<(), Error> {
    loop {
        extension.next_invocation().await?;
        after.run().await?;
    }
}

/// Writes the metrics of this process to the log.
#[derive(Clone)]
struct MetricsOutput {
    metrics: Metrics,
    stack: String,
    clock: Clock,
}

impl MetricsOutput {
    fn write(&self) -> std::io::Result<()> {
        for line in self.metrics.drain_emf(&self.stack, self.clock.now()) {
            writeln!(std::io::stdout(), "{line}")?;
        }
        Ok(())
    }
}

/// What the extension does in each invocation.
struct AfterInvocation {
    invocations: InvocationSignal,
    late_attempts: LateAttempts,
    output: MetricsOutput,
}

impl AfterInvocation {
    /// Waits until the function has responded and its late attempts have ended.
    async fn run(&self) -> Result<(), Error> {
        self.invocations.wait_for_end().await;
        self.late_attempts.drain().await;
        self.output.write()?;
        Ok(())
    }
}

/// Handles invocations until Lambda ends the process.
async fn run_function(
    config: Config,
    late_attempts: LateAttempts,
    output: MetricsOutput,
    invocations: InvocationSignal,
) -> Result<(), Error> {
    let aws = aws::load_sdk_config().await;
    let operator_notices = config.operator_notices();
    let operator_topic = config.notify_topic_arn.clone().map(|arn| OperatorTopic {
        client: aws_sdk_sns::Client::new(&aws),
        arn,
    });
    let dispatcher = Dispatcher {
        direct_client: config.client(Timeouts::DIRECT)?,
        retry_client: config.client(Timeouts::QUEUED)?,
        queue: RetryQueue::Sqs {
            client: aws_sdk_sqs::Client::new(&aws),
            url: retry_queue_url(env_var)?,
        },
        batch_wait: BATCH_WAIT,
        late_attempts,
        limiter: InFlightLimiter::default(),
        clock: output.clock.clone(),
        schedule: config.retry_schedule,
        retention: config.retention,
        disable_after: config.disable_after,
        operator_topic,
        metrics: output.metrics.clone(),
        store: Store::new(
            aws_sdk_dynamodb::Client::new(&aws),
            config.tables,
            DataKeyCache::for_kms_key(&aws, config.secrets_kms_key_id),
        )
        .with_operator_notices(operator_notices),
    };
    let handler = async |event: LambdaEvent<Box<RawValue>>| {
        let _running = invocations.start();
        let deadline = attempt_deadline(&event.context, dispatcher.clock.now());
        let invocation = Invocation::from_json(event.payload.get())?;
        // Boxed, because the compiler limits how deep futures are nested.
        let response = Box::pin(dispatcher.invoke(invocation, deadline)).await;
        output.write()?;
        Ok::<_, Error>(response.map_err(|error| error_chain(&error))?)
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
