//! Recording: writes the deliveries of a batch, schedules their next attempts, and stores poison
//! records.

use std::{mem, time::Duration};

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::{first_attempt::StartedDelivery, poison_reason::PoisonReason, stream_record::Record};
use crate::{
    clock::{Clock, Deadline},
    error_chain::error_chain,
    metrics::{Counter, Metrics},
    queue::RetryQueue,
    store::{
        Error, Result, Store,
        deliveries::{BATCH_WRITE, backoff_until},
    },
};

/// How many batches of deliveries are written at the same time, while they are small.
const CONCURRENT_WRITES: usize = 32;
/// The payload bytes that one write permit covers. A larger batch takes several permits, because a
/// request holds its payloads in memory again, and a function has 1 GB.
const PERMIT_BYTES: usize = 1024 * 1024;

/// Records what became of a batch.
#[derive(Clone, Copy)]
pub(super) struct Recorder<'a> {
    pub store: &'a Store,
    pub queue: &'a RetryQueue,
    pub clock: &'a Clock,
    pub retention: Duration,
    pub metrics: &'a Metrics,
}

/// Deliveries that were not recorded.
struct UnrecordedBatch {
    /// Indexes of their stream records.
    records: Vec<usize>,
    error: Error,
}

impl UnrecordedBatch {
    fn new(batch: &[StartedDelivery], error: Error) -> Self {
        Self {
            records: batch.iter().map(|started| started.record).collect(),
            error,
        }
    }
}

impl Recorder<'_> {
    /// Records deliveries and schedules their next attempts. Returns the indexes of the stream
    /// records that must be read again.
    pub(super) async fn write_deliveries(
        self,
        started: Vec<StartedDelivery>,
        deadline: Deadline,
    ) -> Vec<usize> {
        let write_limiter = Semaphore::new(CONCURRENT_WRITES);
        let mut started = started.into_iter();
        let mut writes = Vec::new();
        while started.len() > 0 {
            let batch = started.by_ref().take(BATCH_WRITE).collect();
            writes.push(self.write_batch(batch, &write_limiter, deadline));
        }
        let mut unfinished = Vec::new();
        let mut last_error = None;
        for written in join_all(writes).await {
            if let Err(unrecorded) = written {
                unfinished.extend(unrecorded.records);
                last_error = Some(unrecorded.error);
            }
        }
        if let Some(error) = last_error {
            tracing::error!(
                deliveries = unfinished.len(),
                error = error_chain(&error),
                "Could not record deliveries; their records will be read again"
            );
        }
        unfinished
    }

    /// Records a batch. Deliveries that DynamoDB leaves unprocessed, such as those of a hot
    /// partition, are written again until the deadline. They hold no write permits while they wait.
    async fn write_batch(
        self,
        mut batch: Vec<StartedDelivery>,
        write_limiter: &Semaphore,
        deadline: Deadline,
    ) -> std::result::Result<(), UnrecordedBatch> {
        for attempt in 0.. {
            if let Err(error) = self.write_once(&mut batch, write_limiter).await {
                return Err(UnrecordedBatch::new(&batch, error));
            }
            if batch.is_empty() {
                break;
            }
            if let Err(error) = backoff_until(attempt, deadline).await {
                return Err(UnrecordedBatch::new(&batch, error));
            }
        }
        Ok(())
    }

    /// Writes a batch and schedules the next attempts of what was written. Leaves in `batch` what
    /// DynamoDB did not process.
    async fn write_once(
        self,
        batch: &mut Vec<StartedDelivery>,
        write_limiter: &Semaphore,
    ) -> Result<()> {
        let payload_bytes = batch
            .iter()
            .map(|started| started.delivery.body.len())
            .sum();
        let permit = write_limiter
            .acquire_many(write_permits(payload_bytes))
            .await;
        let now = self.clock.now();
        let deliveries = batch.iter().map(|started| &started.delivery);
        let unprocessed = self
            .store
            .deliveries()
            .batch_write(deliveries, now, self.retention)
            .await?;
        drop(permit);
        let (remaining, recorded): (Vec<_>, Vec<_>) = mem::take(batch)
            .into_iter()
            .partition(|started| unprocessed.contains(&started.delivery.key));
        *batch = remaining;
        let recorded = recorded.iter().map(|started| &started.delivery);
        self.queue.schedule_pending(recorded, now).await;
        Ok(())
    }

    /// Stores a record as poison, for an operator to inspect and redrive.
    pub(super) async fn store_poison(self, record: &Record, reason: &PoisonReason) -> Result<()> {
        let now = self.clock.now();
        let poison = record.to_poison(reason);
        tracing::error!(
            stream = poison.stream,
            sequence_number = poison.sequence_number,
            code = reason.code(),
            reason = poison.reason,
            "Found a poison record"
        );
        let expires_at = now + self.retention;
        self.store.poison().put(&poison, now, expires_at).await?;
        self.metrics.increment(Counter::Poison);
        Ok(())
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
