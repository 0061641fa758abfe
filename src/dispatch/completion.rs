//! The end of an attempt under a lease: writes its result, schedules the next attempt, and updates
//! the health of the endpoint.

use std::time::Duration;

use super::endpoint_health::{EndpointHealthUpdater, ObservedAttempts};
use crate::{
    clock::Clock,
    queue::RetryQueue,
    store::{Result, Store, leases::Lease, webhooks::WebhookRecord},
};
use nano_webhooks_core::delivery::{Delivery, attempt::AttemptOutcome};

/// Completes attempts that were made under a lease.
#[derive(Clone, Copy)]
pub(super) struct Completer<'a> {
    pub store: &'a Store,
    pub queue: &'a RetryQueue,
    pub clock: &'a Clock,
    pub retention: Duration,
    pub health_updater: EndpointHealthUpdater<'a>,
}

impl Completer<'_> {
    /// Writes the result of an attempt. `delivery` is the leased delivery after the attempt.
    ///
    /// # Errors
    /// If DynamoDB does not respond. The sweep repeats the attempt when the lease ends.
    pub(super) async fn write(self, lease: &Lease, delivery: &Delivery) -> Result<()> {
        let now = self.clock.now();
        let leases = self.store.leases();
        let written = leases
            .complete(lease, delivery, now, self.retention)
            .await?;
        if written.is_applied() {
            self.queue.schedule_pending([delivery], now).await;
        }
        Ok(())
    }

    /// Updates the health of the endpoint. A failure affects no delivery.
    pub(super) async fn update_health(
        self,
        record: &WebhookRecord,
        delivery: &Delivery,
        outcome: AttemptOutcome,
    ) {
        let observed = ObservedAttempts {
            outcomes: vec![outcome],
            any_late: false,
        };
        let account = &delivery.key.account;
        self.health_updater.update(account, record, &observed).await;
    }
}
