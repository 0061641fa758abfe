//! The sweep: moves what falls due in the next minutes to the queue, and finds what was left behind.

use std::time::Duration;

use super::Dispatcher;
use crate::{
    clock::Deadline,
    concurrency,
    metrics::SweepStats,
    queue::ScheduledRetry,
    random,
    store::{Result, due_index::DueDelivery, replays::STEP_SIZE},
};
use nano_webhooks_core::{
    account_id::AccountId,
    delivery::lease::{LEASE_DURATION, MAX_QUEUE_DELAY, SWEEP_GRACE},
};

/// How many due deliveries are taken from each shard of the index at a time.
const DUE_PER_SHARD: usize = 100;
/// How many webhooks with parked deliveries, and how many replays, a sweep knows of.
const MAX_JOBS_PER_SWEEP: usize = 2_000;
/// How many deliveries are taken for the queue at the same time.
const ENQUEUE_CONCURRENCY: usize = 32;

impl Dispatcher {
    /// Sends a message for each delivery whose time for a look has come, until there are no more or time is up; what is left
    /// is found by the next sweep. Returns how many were sent.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn sweep(&self, deadline: Deadline) -> Result<usize> {
        let mut sent = 0;
        let mut lag = Duration::ZERO;
        while !deadline.remaining().is_zero() {
            let now = self.clock.now();
            let due = self.store.due_index().list_due(now, DUE_PER_SHARD).await?;
            lag = due
                .iter()
                .map(|due| due.waited(now))
                .fold(lag, Duration::max);
            let moved = self.enqueue(due, false).await?;
            sent += moved;
            if moved == 0 {
                break;
            }
        }
        let due = sent;
        // In another order each time: whoever has many cannot keep the others from their turn.
        let mut unparking = self.store.resumes().list(MAX_JOBS_PER_SWEEP).await?;
        unparking.sort_by_cached_key(|_| random::bytes::<8>());
        for of in unparking {
            if deadline.remaining().is_zero() {
                break;
            }
            let step = self.store.resumes().run_step(&of, self.clock.now()).await;
            sent += self.enqueue_step(&of.account, step).await;
        }
        let mut replaying = self.store.replays().list_active(MAX_JOBS_PER_SWEEP).await?;
        replaying.sort_by_cached_key(|_| random::bytes::<8>());
        for of in replaying {
            if deadline.remaining().is_zero() {
                break;
            }
            let step = self
                .store
                .replays()
                .run_step(&of, STEP_SIZE, self.clock.now(), self.retention, deadline)
                .await;
            sent += self.enqueue_step(&of.account, step).await;
        }
        if sent > 0 {
            tracing::info!(deliveries = sent, "sweep");
        }
        self.limiter.evict_idle(self.clock.now());
        // Last, since a sweep that tells nothing is one that did not come to its end.
        self.metrics.record_sweep(SweepStats { due, lag });
        Ok(sent)
    }

    /// Sets the timers of what a step has made due. A step that fails is taken again by the next sweep, and keeps no other from
    /// its turn.
    async fn enqueue_step(&self, account: &AccountId, step: Result<Vec<DueDelivery>>) -> usize {
        let due = step.unwrap_or_else(|error| {
            tracing::error!(account = account.as_str(), %error, "a step of a sweep failed; the next sweep takes it again");
            Vec::new()
        });
        let sent = due.len();
        self.queue
            .schedule(
                due.into_iter().map(ScheduledRetry::from).collect(),
                self.clock.now(),
            )
            .await;
        sent
    }

    /// Takes over what another process of the same tables left behind, which must be known to be gone: everything that was in
    /// its queue or in flight.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn recover_abandoned(&self) -> Result<usize> {
        let now = self.clock.now();
        let due = self
            .store
            .due_index()
            .list_due(now + MAX_QUEUE_DELAY + SWEEP_GRACE, usize::MAX)
            .await?;
        let taken = due.len();
        // What may be claimed must be changed in the table; of the rest it is enough to set the timer again.
        let (claimed, queued): (Vec<_>, Vec<_>) = due
            .into_iter()
            .partition(|due| due.is_sweepable_by(now + LEASE_DURATION));
        self.queue
            .schedule(queued.into_iter().map(ScheduledRetry::from).collect(), now)
            .await;
        self.enqueue(claimed, true).await?;
        Ok(taken)
    }

    async fn enqueue(&self, due: Vec<DueDelivery>, take_over: bool) -> Result<usize> {
        let now = self.clock.now();
        let enqueue = due.into_iter().map(|due| async move {
            let index = self.store.due_index();
            let taken = if take_over {
                index.reclaim(&due, now).await?
            } else {
                index.mark_enqueued(&due, now).await?
            };
            Ok(taken.then(|| ScheduledRetry::from(due)))
        });
        // The table first, the message second: a message that is lost in between is sent again by a later sweep.
        let (mut timers, mut failed) = (Vec::new(), None);
        for taken in concurrency::join_bounded(enqueue.collect(), ENQUEUE_CONCURRENCY).await {
            match taken {
                Ok(timer) => timers.extend(timer),
                Err(error) => failed = Some(error),
            }
        }
        // What was taken is sent, whatever became of the others.
        let sent = timers.len();
        self.queue.schedule(timers, now).await;
        failed.map_or(Ok(sent), Err)
    }
}
