//! The sweep: sends messages for deliveries that are due soon or were left behind.

use std::time::Duration;

use super::in_flight::InFlightLimiter;
use crate::{
    clock::{Clock, Deadline},
    concurrency,
    metrics::{Metrics, SweepStats},
    queue::RetryQueue,
    store::{Result, Store, due_index::DueDelivery},
};
use nano_webhooks_core::delivery::scheduled_retry::ScheduledRetry;
use nano_webhooks_core::{
    delivery::lease::{LEASE_DURATION, MAX_QUEUE_DELAY, SWEEP_GRACE},
    timestamp::Timestamp,
};

/// How many due deliveries are read from each shard of the due index at a time.
const DUE_PER_SHARD: usize = 100;
/// How many due deliveries are marked as enqueued at the same time.
const ENQUEUE_CONCURRENCY: usize = 32;

/// Sweeps the due index.
#[derive(Clone, Copy)]
pub(super) struct Sweeper<'a> {
    pub store: &'a Store,
    pub queue: &'a RetryQueue,
    pub limiter: &'a InFlightLimiter,
    pub clock: &'a Clock,
    pub metrics: &'a Metrics,
}

/// How a due delivery is taken for the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EnqueueMode {
    /// A lease stays valid.
    KeepLease,
    /// The worker that leased the delivery is known to be gone.
    EndLease,
}

impl Sweeper<'_> {
    /// Sends a message for each delivery that is due soon, until none is left or the deadline has
    /// passed; the next sweep continues. Returns the number of messages.
    ///
    /// # Errors
    /// If DynamoDB does not respond.
    pub(super) async fn sweep(self, deadline: Deadline) -> Result<usize> {
        let stats = self.sweep_due_index(deadline).await?;
        if stats.due > 0 {
            tracing::info!(deliveries = stats.due, "Sweep completed");
        }
        self.limiter.evict_idle(self.clock.now());
        // Recorded last, so that a missing metric means an unfinished sweep.
        self.metrics.record_sweep(stats);
        Ok(stats.due)
    }

    async fn sweep_due_index(self, deadline: Deadline) -> Result<SweepStats> {
        let mut stats = SweepStats {
            due: 0,
            lag: Duration::ZERO,
        };
        while !deadline.remaining().is_zero() {
            let now = self.clock.now();
            let due = self.store.due_index().list_due(now, DUE_PER_SHARD).await?;
            for delivery in &due {
                stats.lag = stats.lag.max(delivery.sweep_lag(now));
            }
            let enqueued = self.enqueue(due, EnqueueMode::KeepLease).await?;
            stats.due += enqueued;
            if enqueued == 0 {
                break;
            }
        }
        Ok(stats)
    }

    /// Schedules everything that a process which is known to be gone had queued or in flight.
    /// Returns the number of deliveries.
    ///
    /// # Errors
    /// If DynamoDB does not respond.
    pub(super) async fn recover_abandoned(self) -> Result<usize> {
        let now = self.clock.now();
        let until = now + MAX_QUEUE_DELAY + SWEEP_GRACE;
        let due = self.store.due_index().list_due(until, usize::MAX).await?;
        let recovered = due.len();
        // A delivery that may be leased must be changed in the table. For the others, a new message
        // is enough.
        let (leased, queued): (Vec<_>, Vec<_>) = due
            .into_iter()
            .partition(|due| due.is_sweepable_by(now + LEASE_DURATION));
        self.schedule(queued, now).await;
        self.enqueue(leased, EnqueueMode::EndLease).await?;
        Ok(recovered)
    }

    /// Marks deliveries as enqueued and sends their messages. The table is written first: the next
    /// sweep replaces a message that is lost.
    async fn enqueue(self, due: Vec<DueDelivery>, mode: EnqueueMode) -> Result<usize> {
        let now = self.clock.now();
        let marks = due
            .into_iter()
            .map(|due| self.mark_enqueued(due, mode, now))
            .collect();
        let mut retries = Vec::new();
        let mut last_error = None;
        for marked in concurrency::join_bounded(marks, ENQUEUE_CONCURRENCY).await {
            match marked {
                Ok(retry) => retries.extend(retry),
                Err(error) => last_error = Some(error),
            }
        }
        // What was marked is sent, even if others failed.
        let sent = retries.len();
        self.queue.schedule(retries, now).await;
        match last_error {
            Some(error) => Err(error),
            None => Ok(sent),
        }
    }

    /// The retry to schedule; `None` if the delivery has changed since it was listed.
    async fn mark_enqueued(
        self,
        due: DueDelivery,
        mode: EnqueueMode,
        now: Timestamp,
    ) -> Result<Option<ScheduledRetry>> {
        let index = self.store.due_index();
        let outcome = match mode {
            EnqueueMode::KeepLease => index.mark_enqueued(&due, now).await?,
            EnqueueMode::EndLease => index.reclaim(&due, now).await?,
        };
        if outcome.is_applied() {
            Ok(Some(ScheduledRetry::from(due)))
        } else {
            Ok(None)
        }
    }

    async fn schedule(self, due: Vec<DueDelivery>, now: Timestamp) {
        let retries = due.into_iter().map(ScheduledRetry::from).collect();
        self.queue.schedule(retries, now).await;
    }
}
