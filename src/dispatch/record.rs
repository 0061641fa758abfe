//! Recording: writes the deliveries of a batch, and schedules their next attempts.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::first_attempt::StartedDelivery;
use crate::{
    clock::{Clock, Deadline},
    concurrency,
    error_chain::error_chain,
    queue::scheduler::RetryScheduler,
    store::{
        Error, Result, Store, WriteOutcome, backoff_until, check_deadline, deliveries::BATCH_WRITE,
        leases::Lease,
    },
};
use nano_webhooks_core::{
    delivery::{Delivery, DeliveryState},
    timestamp::Timestamp,
};

/// How many requests that record deliveries are in flight at the same time: batches of successful
/// deliveries while they are small, or single deliveries.
const CONCURRENT_WRITES: usize = 32;
/// How long deliveries are written at least, even if the deadline has passed. A request that starts
/// within this time ends within the reserve of the invocation.
const FIRST_ROUND: Duration = Duration::from_millis(500);
/// The payload bytes that one write permit covers. A larger batch takes several permits, because a
/// request holds its payloads in memory again, and a function has 1 GB.
const PERMIT_BYTES: usize = 1024 * 1024;

/// Records what became of a batch.
#[derive(Clone, Copy)]
pub(super) struct Recorder<'a> {
    pub store: &'a Store,
    pub scheduler: RetryScheduler<'a>,
    pub clock: &'a Clock,
    pub retention: Duration,
}

/// Deliveries that were not recorded.
#[derive(Default)]
struct Unrecorded {
    /// Indexes of the stream records.
    records: Vec<usize>,
    last_error: Option<Error>,
}

impl Unrecorded {
    fn add(&mut self, deliveries: &[StartedDelivery], error: Error) {
        self.records
            .extend(deliveries.iter().map(|started| started.record));
        self.last_error = Some(error);
    }
}

impl Recorder<'_> {
    /// Records deliveries and schedules their next attempts. Returns the indexes of the stream
    /// records that must be read again.
    ///
    /// Another reader of the stream may record the same deliveries at the same time. A success
    /// replaces what it recorded; any other state is recorded only if it has recorded nothing. So
    /// a recorded success is final.
    ///
    /// Deliveries that DynamoDB leaves unprocessed or throttles, such as those of a hot partition,
    /// are written again after all others, until the deadline.
    pub(super) async fn write_deliveries(
        self,
        started: Vec<StartedDelivery>,
        deadline: Deadline,
    ) -> Vec<usize> {
        let (mut delivered, mut others): (Vec<_>, Vec<_>) = started
            .into_iter()
            .partition(|started| started.delivery.state == DeliveryState::Delivered);
        // Deliveries that need no attempt are recorded although the time for attempts is over: that
        // is what the reserve of the invocation is for.
        let deadline = deadline.max(Deadline::from_now(FIRST_ROUND));
        let mut unrecorded = Unrecorded::default();
        for round in 0.. {
            delivered = self.write_delivered(delivered, &mut unrecorded).await;
            others = self
                .insert_others(others, round, deadline, &mut unrecorded)
                .await;
            if delivered.is_empty() && others.is_empty() {
                break;
            }
            if let Err(error) = backoff_until(round, deadline).await {
                unrecorded.add(&delivered, error.clone());
                unrecorded.add(&others, error);
                break;
            }
        }
        if let Some(error) = unrecorded.last_error {
            tracing::error!(
                deliveries = unrecorded.records.len(),
                error = error_chain(&error),
                "Could not record deliveries; their records will be read again"
            );
        }
        unrecorded.records
    }

    /// Records successful deliveries, many in one request. Returns those that DynamoDB did not
    /// process.
    async fn write_delivered(
        self,
        delivered: Vec<StartedDelivery>,
        unrecorded: &mut Unrecorded,
    ) -> Vec<StartedDelivery> {
        let write_limiter = Semaphore::new(CONCURRENT_WRITES);
        let mut delivered = delivered.into_iter();
        let mut writes = Vec::new();
        while delivered.len() > 0 {
            let batch = delivered.by_ref().take(BATCH_WRITE).collect();
            writes.push(self.write_batch(batch, &write_limiter));
        }
        let mut unprocessed = Vec::new();
        for (batch, outcome) in join_all(writes).await {
            match outcome {
                Ok(()) => unprocessed.extend(batch),
                Err(error) => unrecorded.add(&batch, error),
            }
        }
        unprocessed
    }

    /// Writes a batch. Returns what DynamoDB did not process.
    async fn write_batch(
        self,
        mut batch: Vec<StartedDelivery>,
        write_limiter: &Semaphore,
    ) -> (Vec<StartedDelivery>, Result<()>) {
        let payload_bytes = batch
            .iter()
            .map(|started| started.delivery.payload.len())
            .sum();
        let _permit = write_limiter
            .acquire_many(write_permits(payload_bytes))
            .await;
        let deliveries = batch.iter().map(|started| &started.delivery);
        let written = self
            .store
            .deliveries()
            .batch_write(deliveries, self.clock.now(), self.retention)
            .await;
        match written {
            Ok(unprocessed) => {
                batch.retain(|started| unprocessed.contains(&started.delivery.key));
                (batch, Ok(()))
            }
            Err(error) => (batch, Err(error)),
        }
    }

    /// Records deliveries unless they exist, each with a request of its own, and schedules the next
    /// attempts of what it recorded. Returns those that DynamoDB throttled or did not process.
    async fn insert_others(
        self,
        others: Vec<StartedDelivery>,
        round: u32,
        deadline: Deadline,
        unrecorded: &mut Unrecorded,
    ) -> Vec<StartedDelivery> {
        let now = self.clock.now();
        let inserts = concurrency::map_concurrent(others, CONCURRENT_WRITES, |started| {
            self.insert(started, now, deadline)
        });
        let mut recorded = Vec::new();
        let mut unprocessed = Vec::new();
        for (started, outcome) in inserts.await {
            match outcome {
                Ok(WriteOutcome::Applied) => recorded.push(started.delivery),
                // The response to an earlier round may have been lost. If instead another reader
                // recorded the delivery, the message changes nothing.
                Ok(WriteOutcome::ConditionFailed) if round > 0 => recorded.push(started.delivery),
                Ok(WriteOutcome::ConditionFailed) => {}
                Err(Error::Unavailable(_)) => unprocessed.push(started),
                Err(error) => unrecorded.add(&[started], error),
            }
        }
        self.scheduler.schedule_pending(&recorded, now).await;
        unprocessed
    }

    async fn insert(
        self,
        started: StartedDelivery,
        now: Timestamp,
        deadline: Deadline,
    ) -> (StartedDelivery, Result<WriteOutcome>) {
        let outcome = match check_deadline(deadline) {
            Ok(()) => {
                let deliveries = self.store.deliveries();
                deliveries
                    .insert_once(&started.delivery, now, self.retention)
                    .await
            }
            Err(error) => Err(error),
        };
        (started, outcome)
    }

    /// Records a delivery whose first attempt is still open. `None` if it is recorded already.
    pub(super) async fn write_leased(self, delivery: Delivery) -> Result<Option<Lease>> {
        let now = self.clock.now();
        let leases = self.store.leases();
        leases.insert_leased(delivery, now, self.retention).await
    }
}

/// The number of permits of [`CONCURRENT_WRITES`] for a batch with this many payload bytes.
fn write_permits(payload_bytes: usize) -> u32 {
    let permits = payload_bytes
        .div_ceil(PERMIT_BYTES)
        .clamp(1, CONCURRENT_WRITES);
    u32::try_from(permits).expect("CONCURRENT_WRITES fits in u32")
}

#[cfg(test)]
mod tests {
    use nano_webhooks_core::event::MAX_PAYLOAD_LEN;

    use super::*;

    #[test]
    fn write_permits_grow_with_payload_up_to_limit() {
        for (payload_bytes, expected) in [
            (0, 1),
            (BATCH_WRITE * 1_000, 1),
            (PERMIT_BYTES, 1),
            (PERMIT_BYTES + 1, 2),
            (BATCH_WRITE * MAX_PAYLOAD_LEN, 7),
            (usize::MAX, 32),
        ] {
            assert_eq!(write_permits(payload_bytes), expected, "{payload_bytes}");
        }
    }
}
