//! The end of an attempt under a lease: writes its result, schedules the next attempt, and updates
//! the health of the endpoint.

use std::time::Duration;

use super::endpoint_health::{EndpointHealthUpdater, ObservedAttempts};
use crate::{
    clock::Clock,
    error_chain::error_chain,
    queue::scheduler::RetryScheduler,
    store::{Result, Store, leases::Lease, notifications::Notifications, webhooks::WebhookRecord},
};
use nano_webhooks_core::{
    delivery::{Delivery, attempt::AttemptOutcome},
    operational_event::{ExhaustedDelivery, OperationalEvent, WebhookChange},
    timestamp::Timestamp,
};

/// Completes attempts that were made under a lease.
#[derive(Clone, Copy)]
pub(super) struct Completer<'a> {
    pub store: &'a Store,
    pub scheduler: RetryScheduler<'a>,
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
        let Some(report) = self.prepare_report(lease, delivery, now).await else {
            let leases = self.store.leases();
            let written = leases
                .complete(lease, delivery, now, self.retention)
                .await?;
            if written.is_applied() {
                self.scheduler.schedule_pending([delivery], now).await;
            }
            return Ok(());
        };
        let exhausted = self.store.exhausted();
        let written = exhausted
            .complete(lease, delivery, &report, now, self.retention)
            .await?;
        if written.is_applied() {
            let deliveries = &report.deliveries;
            self.scheduler.schedule_pending(deliveries, now).await;
        }
        Ok(())
    }

    /// The report of a delivery whose last attempt failed. Only job events are reported: otherwise
    /// two webhooks that receive events about each other would raise them without end. `None` if
    /// there is nothing to report, or if the account's webhooks cannot be read.
    async fn prepare_report(
        self,
        lease: &Lease,
        delivery: &Delivery,
        now: Timestamp,
    ) -> Option<Notifications> {
        if !delivery.event_type.is_job() || !delivery.has_exhausted_schedule(&lease.delivery) {
            return None;
        }
        let key = &delivery.key;
        match self.load_report(delivery, now).await {
            Ok(report) => report,
            Err(error) => {
                tracing::warn!(
                    account = key.account.as_str(), webhook = %key.webhook, event = %key.event,
                    error = error_chain(&error),
                    "Could not report a delivery that used its whole retry schedule"
                );
                None
            }
        }
    }

    async fn load_report(
        self,
        delivery: &Delivery,
        now: Timestamp,
    ) -> Result<Option<Notifications>> {
        if !self.store.exhausted().is_report_due(delivery, now).await? {
            return Ok(None);
        }
        let event = OperationalEvent {
            webhook: delivery.key.webhook,
            url: delivery.url.clone(),
            change: WebhookChange::DeliveryExhausted(ExhaustedDelivery::from(delivery)),
        };
        let webhooks = self.store.webhooks();
        let account = &delivery.key.account;
        Ok(Some(webhooks.notify(account, &event, now).await?))
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
