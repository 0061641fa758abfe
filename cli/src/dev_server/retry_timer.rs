//! Retries in local mode. In AWS, SQS delays retry messages and EventBridge starts the scheduled
//! jobs.
//!
//! All timers are also in the deliveries table, so a restarted process rebuilds them from there.

use std::time::Duration;

use futures_util::StreamExt;
use nano_webhooks::{clock::Deadline, dispatch::Dispatcher, error_chain::error_chain};
use nano_webhooks_core::delivery::DeliveryKey;
use nano_webhooks_core::delivery::scheduled_retry::{RetryMessage, ScheduledRetry};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, time::DelayQueue};

/// How many scheduled retries can wait for [`run`] to accept them.
pub const CHANNEL_CAPACITY: usize = 10_000;
/// How many timers run. The sweep finds the deliveries of timers that were not accepted.
const MAX_TIMERS: usize = 200_000;
/// The most retries that run at the same time. The dispatcher's limiter bounds how many of them send
/// a request.
pub const MAX_CONCURRENT_RETRIES: usize = 4_096;
/// The time between two runs of each scheduled job, as in the template.
pub const SCHEDULE_INTERVAL: Duration = Duration::from_mins(1);

/// Runs retries when they are due, at most `concurrency` at the same time, and the scheduled jobs
/// every minute. Finishes running retries after `shutdown` is cancelled.
pub async fn run(
    dispatcher: Dispatcher,
    concurrency: usize,
    mut scheduled_retries: mpsc::Receiver<ScheduledRetry>,
    shutdown: CancellationToken,
) {
    let mut timers: DelayQueue<RetryMessage> = DelayQueue::new();
    let mut running_retries = JoinSet::new();
    // Separate tasks, because the jobs may take long and send what they find through the same
    // channel.
    let sweeper = tokio::spawn(sweep_periodically(dispatcher.clone()));
    let advancer = tokio::spawn(advance_periodically(dispatcher.clone()));
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(retry) = scheduled_retries.recv() => {
                if timers.len() < MAX_TIMERS {
                    let delay = retry.due.saturating_duration_since(dispatcher.clock.now());
                    timers.insert(retry.message, delay);
                }
            }
            Some(expired) = timers.next(), if running_retries.len() < concurrency => {
                running_retries.spawn(run_retry(dispatcher.clone(), expired.into_inner()));
            }
            Some(_) = running_retries.join_next() => {}
        }
    }
    sweeper.abort();
    advancer.abort();
    while running_retries.join_next().await.is_some() {}
}

async fn run_retry(dispatcher: Dispatcher, message: RetryMessage) {
    if let Err(error) = dispatcher.retry(&message).await {
        let DeliveryKey {
            account,
            webhook,
            event,
        } = &message.key;
        tracing::error!(
            account = account.as_str(),
            %webhook,
            %event,
            error = error_chain(&error),
            "Retry failed; a later sweep retries the delivery"
        );
    }
}

async fn sweep_periodically(dispatcher: Dispatcher) {
    // The data directory has one owner, so deliveries that look leased or queued were left by a
    // process that ended.
    if let Err(error) = dispatcher.recover_abandoned().await {
        tracing::error!(
            error = error_chain(&error),
            "Could not recover the deliveries of the previous process; later sweeps retry them"
        );
    }
    let mut ticks = schedule_ticks();
    loop {
        ticks.tick().await;
        if let Err(error) = dispatcher
            .sweep(Deadline::from_now(SCHEDULE_INTERVAL))
            .await
        {
            tracing::error!(
                error = error_chain(&error),
                "Sweep failed; the next sweep repeats it"
            );
        }
    }
}

async fn advance_periodically(dispatcher: Dispatcher) {
    let mut ticks = schedule_ticks();
    loop {
        ticks.tick().await;
        let deadline = Deadline::from_now(SCHEDULE_INTERVAL);
        if let Err(error) = dispatcher.advance(deadline).await {
            tracing::error!(
                error = error_chain(&error),
                "Could not advance resumes and replays; the next run continues them"
            );
        }
    }
}

fn schedule_ticks() -> Interval {
    let mut ticks = interval(SCHEDULE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
