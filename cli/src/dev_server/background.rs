//! The background tasks of the service: API, retry timer and stream poller.

use anyhow::anyhow;
use axum::Router;
use nano_webhooks::dispatch::{Dispatcher, late_attempts::LateAttempts};
use nano_webhooks_core::delivery::scheduled_retry::ScheduledRetry;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::{JoinError, JoinHandle},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{engine::Engine, retry_timer, shard_reader::StreamSource, stream_poller::StreamPoller};

/// Running tasks. All of them end when `shutdown` is cancelled.
pub struct BackgroundTasks {
    shutdown: CancellationToken,
    tracker: TaskTracker,
    late_attempts: LateAttempts,
    retry_timer: JoinHandle<()>,
    stream_poller: JoinHandle<anyhow::Result<()>>,
}

/// What the tasks need.
pub struct TaskInputs<'a> {
    /// Where the API listens.
    pub listener: TcpListener,
    pub router: Router,
    pub dispatcher: Dispatcher,
    pub scheduled_retries: mpsc::Receiver<ScheduledRetry>,
    /// How many retries run at the same time.
    pub concurrent_retries: usize,
    pub engine: &'a Engine,
    /// A client of the engine.
    pub client: aws_sdk_dynamodb::Client,
    pub jobs_table: String,
}

impl BackgroundTasks {
    pub fn start(inputs: TaskInputs) -> Self {
        let shutdown = CancellationToken::new();
        let tracker = TaskTracker::new();
        let late_attempts = inputs.dispatcher.late_attempts.clone();
        tracker.spawn(serve_api(inputs.listener, inputs.router, shutdown.clone()));
        let retry_timer = tracker.spawn(retry_timer::run(
            inputs.dispatcher.clone(),
            inputs.concurrent_retries,
            inputs.scheduled_retries,
            shutdown.clone(),
        ));
        let poller = StreamPoller {
            dynamodb: inputs.client,
            source: StreamSource {
                clock: inputs.dispatcher.clock.clone(),
                dispatcher: inputs.dispatcher,
                streams: inputs.engine.streams_client(),
                engine: inputs.engine.embedded.clone(),
                shutdown: shutdown.clone(),
            },
        };
        let stream_poller = tracker.spawn(poller.run(inputs.jobs_table));
        tracker.close();
        Self {
            shutdown,
            tracker,
            late_attempts,
            retry_timer,
            stream_poller,
        }
    }

    /// Waits until a task ends before shutdown, which is always an error.
    pub async fn wait_for_failure(&mut self) -> anyhow::Error {
        tokio::select! {
            result = &mut self.retry_timer => describe_retry_timer_end(result),
            result = &mut self.stream_poller => describe_stream_poller_end(result),
        }
    }

    /// Asks the tasks to end and waits until they have finished their work.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tracker.wait().await;
        self.late_attempts.drain().await;
    }
}

async fn serve_api(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let server = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
    if let Err(error) = server.await {
        tracing::error!(%error, "The HTTP API stopped");
    }
}

fn describe_retry_timer_end(result: Result<(), JoinError>) -> anyhow::Error {
    match result {
        Ok(()) => anyhow!("the retry timer stopped unexpectedly"),
        Err(error) => anyhow::Error::new(error).context("the retry timer failed"),
    }
}

fn describe_stream_poller_end(result: Result<anyhow::Result<()>, JoinError>) -> anyhow::Error {
    match result {
        Ok(Ok(())) => anyhow!("the stream poller stopped unexpectedly"),
        Ok(Err(error)) => error.context("the stream poller failed"),
        Err(error) => anyhow::Error::new(error).context("the stream poller failed"),
    }
}
