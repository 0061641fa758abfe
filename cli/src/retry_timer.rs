//! What SQS and EventBridge do when deployed: holds the retry timers of this process, and sweeps every minute. What it holds
//! is in the table too, from where it is rebuilt at the start.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::time::DelayQueue;

use super::stream_poller::stopped;
use nano_webhooks::{
    clock::Deadline,
    dispatch::Dispatcher,
    queue::{RetryMessage, ScheduledRetry},
};
use nano_webhooks_core::delivery::DeliveryKey;

/// How many timers wait to be taken up.
pub const CHANNEL_CAPACITY: usize = 10_000;
/// How many timers run; those beyond are left to the sweep.
const MAX_TIMERS: usize = 200_000;
/// How many of them are worked on at the same time; how many attempts that may be, the gates say.
const CONCURRENT_RETRIES: usize = 4_096;
/// The time between two sweeps, as in the template.
pub const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// Makes attempts when their timers say so, until `stop` turns true; attempts that were begun are ended.
pub async fn run(
    dispatcher: Dispatcher,
    mut timers: mpsc::Receiver<ScheduledRetry>,
    stop: watch::Receiver<bool>,
) {
    let mut waiting: DelayQueue<RetryMessage> = DelayQueue::new();
    let mut retries = JoinSet::new();
    // On its own: it may take long, and what it finds comes through the same channel.
    let sweeper = tokio::spawn(sweep(dispatcher.clone()));
    loop {
        tokio::select! {
            () = stopped(stop.clone()) => break,
            Some(timer) = timers.recv() => {
                if waiting.len() < MAX_TIMERS {
                    waiting.insert(timer.message, timer.due.saturating_duration_since(dispatcher.clock.now()));
                }
            }
            Some(due) = waiting.next(), if retries.len() < CONCURRENT_RETRIES => {
                let dispatcher = dispatcher.clone();
                retries.spawn(async move {
                    let message = due.into_inner();
                    if let Err(error) = dispatcher.retry(&message).await {
                        let DeliveryKey { account, webhook, event } = &message.key;
                        tracing::error!(account = account.as_str(), %webhook, %event, %error, "a retry failed; the sweep will find the delivery");
                    }
                });
            }
            Some(_) = retries.join_next() => {}
        }
    }
    sweeper.abort();
    while retries.join_next().await.is_some() {}
}

async fn sweep(dispatcher: Dispatcher) {
    // Whoever worked on these tables before is gone, and what it held in memory with it.
    if let Err(error) = dispatcher.take_over().await {
        tracing::error!(%error, "what was in flight before the start was not taken over; the sweep will find it");
    }
    let mut sweeps = interval(SWEEP_INTERVAL);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        sweeps.tick().await;
        if let Err(error) = dispatcher.sweep(Deadline::after(SWEEP_INTERVAL)).await {
            tracing::error!(%error, "the sweep failed; the next one does the same");
        }
    }
}
