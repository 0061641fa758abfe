//! Schedules attempts: sends their messages, and leaves those that fail to the next sweep.

use std::time::Duration;

use tokio::time::timeout;

use super::RetryQueue;
use crate::{
    clock::Deadline,
    concurrency,
    error_chain::error_chain,
    store::{self, Store},
};
use nano_webhooks_core::{
    delivery::{
        Delivery, DeliveryState,
        lease::fits_in_queue,
        scheduled_retry::{RetryMessage, ScheduledRetry},
    },
    timestamp::Timestamp,
};

/// How many deliveries without a message are left to the next sweep at the same time, in one call.
const CONCURRENT_SWEEP_REQUESTS: usize = 16;
/// How long deliveries are left to the next sweep after messages were not sent. An invocation may
/// be at the end of its time.
pub const SWEEP_REQUEST_TIME_LIMIT: Duration = Duration::from_secs(2);

/// Schedules attempts of deliveries that are recorded as pending.
#[derive(Clone, Copy, Debug)]
pub struct RetryScheduler<'a> {
    /// The tables.
    pub store: &'a Store,
    /// The retry queue.
    pub queue: &'a RetryQueue,
}

/// Whether all messages were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOutcome {
    /// The queue has every message.
    AllSent,
    /// Some deliveries have no message. They were left to the next sweep.
    SomeUnsent,
}

/// Why a delivery could not be left to the next sweep.
#[derive(Debug, thiserror::Error)]
enum SweepRequestError {
    #[error("no time was left for the write")]
    DeadlineReached,
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl RetryScheduler<'_> {
    /// Sends a message for each retry. The deliveries without a message are left to the next sweep.
    pub async fn schedule(self, retries: Vec<ScheduledRetry>, now: Timestamp) -> SendOutcome {
        let unsent = self.queue.send(retries, now).await;
        if unsent.is_empty() {
            return SendOutcome::AllSent;
        }
        let deadline = Deadline::from_now(SWEEP_REQUEST_TIME_LIMIT);
        self.request_sweep(&unsent, now, deadline).await;
        SendOutcome::SomeUnsent
    }

    /// Schedules the next attempts of recorded deliveries. Deliveries that are due beyond the
    /// longest delay of the queue are found by a sweep before they are due.
    pub async fn schedule_pending<'a>(
        self,
        deliveries: impl IntoIterator<Item = &'a Delivery>,
        now: Timestamp,
    ) {
        let mut retries = Vec::new();
        for delivery in deliveries {
            if let DeliveryState::Pending(due) = delivery.state
                && fits_in_queue(due, now)
            {
                let message = RetryMessage {
                    key: delivery.key.clone(),
                    attempt_count: delivery.attempt_count,
                };
                retries.push(ScheduledRetry { message, due });
            }
        }
        if !retries.is_empty() {
            self.schedule(retries, now).await;
        }
    }

    /// Leaves deliveries without a message to the next sweep, until the deadline. Where that fails,
    /// a sweep finds them five minutes after they are due.
    pub async fn request_sweep(
        self,
        unsent: &[ScheduledRetry],
        now: Timestamp,
        deadline: Deadline,
    ) {
        let requests = unsent
            .iter()
            .map(|retry| self.request_sweep_of(retry, now, deadline))
            .collect();
        let mut failed = 0;
        let mut last_error = None;
        for outcome in concurrency::join_bounded(requests, CONCURRENT_SWEEP_REQUESTS).await {
            if let Err(error) = outcome {
                failed += 1;
                last_error = Some(error);
            }
        }
        if let Some(error) = last_error {
            tracing::warn!(
                deliveries = failed,
                error = error_chain(&error),
                "Could not leave deliveries without a message to the next sweep; \
                 a sweep finds them five minutes after they are due"
            );
        }
    }

    async fn request_sweep_of(
        self,
        retry: &ScheduledRetry,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<(), SweepRequestError> {
        let remaining = deadline.remaining();
        if remaining.is_zero() {
            return Err(SweepRequestError::DeadlineReached);
        }
        let request = self.store.due_index().request_sweep(retry, now);
        match timeout(remaining, request).await {
            // A failed condition means that the delivery has changed, or that the next sweep looks
            // at it anyway.
            Ok(outcome) => {
                outcome?;
                Ok(())
            }
            Err(_elapsed) => Err(SweepRequestError::DeadlineReached),
        }
    }
}
