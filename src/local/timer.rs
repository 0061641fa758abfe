//! What SQS and EventBridge do when deployed: holds the retry timers of this process, and sweeps every minute. What it holds
//! is in the table too, from where it is rebuilt at the start.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::time::DelayQueue;

use super::pump::stopped;
use crate::{
    clock::Deadline,
    dispatch::Dispatcher,
    queue::{Message, Timer},
};

/// How many timers wait to be taken up; those beyond are left to the sweep.
pub const CHANNEL: usize = 10_000;
/// How many timers run; while there are as many, others wait in the channel, and then in the table.
const WAITING: usize = 100_000;
/// How many attempts are made at the same time.
const CONCURRENT_RETRIES: usize = 512;
/// The time between two sweeps, as in the template.
const SWEEP: Duration = Duration::from_mins(1);

/// Makes attempts when their timers say so, until `stop` turns true; attempts that were begun are ended.
pub async fn run(dispatcher: Dispatcher, mut timers: mpsc::Receiver<Timer>, stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONCURRENT_RETRIES));
    let mut waiting: DelayQueue<Message> = DelayQueue::new();
    let mut retries = JoinSet::new();
    let mut sweeps = interval(SWEEP);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Whoever worked on these tables before is gone, and what it held in memory with it.
    if let Err(error) = dispatcher.take_over().await {
        tracing::error!(%error, "what was in flight before the start was not taken over; the sweep will find it");
    }
    loop {
        tokio::select! {
            () = stopped(stop.clone()) => break,
            Some(timer) = timers.recv(), if waiting.len() < WAITING => {
                waiting.insert(timer.message, timer.due.since(dispatcher.clock.now()));
            }
            Some(due) = waiting.next() => {
                let (dispatcher, places) = (dispatcher.clone(), places.clone());
                retries.spawn(async move {
                    let _place = places.acquire().await;
                    let message = due.into_inner();
                    if let Err(error) = dispatcher.retry(&message).await {
                        tracing::error!(event = %message.key.event, %error, "a retry failed; the sweep will find the delivery");
                    }
                });
            }
            Some(_) = retries.join_next() => {}
            _ = sweeps.tick() => {
                if let Err(error) = dispatcher.sweep(Deadline::after(SWEEP)).await {
                    tracing::error!(%error, "the sweep failed; the next one does the same");
                }
            }
        }
    }
    while retries.join_next().await.is_some() {}
}
