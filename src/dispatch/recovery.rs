//! Recovery in local mode: takes over what a process that ended had queued or in flight.

use crate::{
    clock::Clock,
    concurrency,
    queue::scheduler::RetryScheduler,
    store::{Result, Store, due_index::DueDelivery},
};
use nano_webhooks_core::{
    delivery::{
        lease::{LEASE_DURATION, MAX_QUEUE_DELAY, SWEEP_GRACE},
        scheduled_retry::ScheduledRetry,
    },
    timestamp::Timestamp,
};

/// How many leases are ended at the same time.
const CONCURRENT_WRITES: usize = 32;

/// Schedules what a process that is known to be gone had queued or in flight.
#[derive(Clone, Copy)]
pub(super) struct Recovery<'a> {
    pub store: &'a Store,
    pub scheduler: RetryScheduler<'a>,
    pub clock: &'a Clock,
}

impl Recovery<'_> {
    /// Returns the number of deliveries.
    ///
    /// # Errors
    /// If DynamoDB does not respond. What could be taken over is scheduled.
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
        self.end_leases(leased, now).await?;
        Ok(recovered)
    }

    async fn end_leases(self, leased: Vec<DueDelivery>, now: Timestamp) -> Result<()> {
        let writes = leased
            .into_iter()
            .map(|due| self.reclaim(due, now))
            .collect();
        let mut reclaimed = Vec::new();
        let mut last_error = None;
        for outcome in concurrency::join_bounded(writes, CONCURRENT_WRITES).await {
            match outcome {
                Ok(due) => reclaimed.extend(due),
                Err(error) => last_error = Some(error),
            }
        }
        self.schedule(reclaimed, now).await;
        match last_error {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Ends the lease of a delivery. `None` if the delivery has changed since it was listed.
    async fn reclaim(self, due: DueDelivery, now: Timestamp) -> Result<Option<DueDelivery>> {
        let outcome = self.store.due_index().reclaim(&due, now).await?;
        if outcome.is_applied() {
            Ok(Some(due))
        } else {
            Ok(None)
        }
    }

    async fn schedule(self, due: Vec<DueDelivery>, now: Timestamp) {
        let retries = due.into_iter().map(ScheduledRetry::from).collect();
        self.scheduler.schedule(retries, now).await;
    }
}
