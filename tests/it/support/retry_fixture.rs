//! A webhook, its endpoint and a dispatcher whose clock the test moves.

use std::time::Duration;

use nano_webhooks::{
    clock::{Clock, Deadline},
    dispatch::Dispatcher,
    store::{delivery_log::DeliveryFilter, update::WebhookUpdate},
};
use nano_webhooks_core::{
    delivery::{
        Delivery, DeliveryState,
        endpoint_health::EndpointHealth,
        scheduled_retry::{RetryMessage, ScheduledRetry},
    },
    timestamp::Timestamp,
    webhook::{WebhookId, WebhookStatus},
};

use crate::support::{
    accounts::account,
    client::client_with_timeout,
    permissions::{RETRY, run_as},
    receiver::Receiver,
    stream::{completed_jobs, dispatch_batch},
    tables::TestTables,
    webhooks::subscribe,
};

pub const START: Timestamp = Timestamp::from_millis(1_734_948_000_000);

const CLIENT_TIMEOUT: Duration = Duration::from_millis(300);

pub struct RetryFixture {
    pub tables: TestTables,
    pub receiver: Receiver,
    pub dispatcher: Dispatcher,
    pub clock: Clock,
}

impl RetryFixture {
    pub async fn new(schedule: &str) -> Self {
        let tables = TestTables::new().await;
        let receiver = Receiver::start().await;
        let clock = Clock::manual(START);
        let dispatcher = Dispatcher {
            clock: clock.clone(),
            schedule: schedule.parse().unwrap(),
            direct_client: client_with_timeout(CLIENT_TIMEOUT),
            retry_client: client_with_timeout(CLIENT_TIMEOUT),
            ..tables.dispatcher()
        };
        Self {
            tables,
            receiver,
            dispatcher,
            clock,
        }
    }

    pub async fn subscribe(&self, path: &str) -> WebhookId {
        subscribe(
            &self.tables,
            "acme",
            &self.receiver.url(path),
            Some("my-secret-key"),
        )
        .await
    }

    pub async fn subscribe_to(&self, path: &str, events: &[&str]) -> WebhookId {
        crate::support::webhooks::subscribe_to(
            &self.tables,
            "acme",
            &self.receiver.url(path),
            events,
            None,
        )
        .await
    }

    pub async fn end_jobs(&self, sequence: usize, n: usize) {
        let records = completed_jobs(sequence, n);
        assert_eq!(dispatch_batch(&self.dispatcher, &records).await, []);
    }

    pub async fn deliveries(&self, webhook: WebhookId) -> Vec<Delivery> {
        let filter = DeliveryFilter {
            status: None,
            event: None,
            after: None,
            limit: 100,
        };
        let page = self
            .tables
            .store
            .delivery_log()
            .list(&account("acme"), webhook, &filter)
            .await
            .unwrap();
        let mut deliveries = Vec::new();
        for listed in page.deliveries {
            let key = nano_webhooks_core::delivery::DeliveryKey {
                account: account("acme"),
                webhook,
                event: listed.event_id,
            };
            deliveries.push(
                self.tables
                    .store
                    .deliveries()
                    .get(&key)
                    .await
                    .unwrap()
                    .unwrap(),
            );
        }
        deliveries
    }

    pub async fn only(&self, webhook: WebhookId) -> Delivery {
        let mut deliveries = self.deliveries(webhook).await;
        assert_eq!(deliveries.len(), 1);
        deliveries.pop().unwrap()
    }

    pub async fn states(&self, webhook: WebhookId) -> Vec<DeliveryState> {
        let deliveries = self.deliveries(webhook).await;
        deliveries.iter().map(|delivery| delivery.state).collect()
    }

    pub async fn set_status(&self, webhook: WebhookId, status: WebhookStatus) {
        let change = WebhookUpdate {
            status: Some(status),
            ..WebhookUpdate::default()
        };
        let updated = self
            .tables
            .store
            .webhooks()
            .update(&account("acme"), webhook, &change, START)
            .await
            .unwrap();
        assert!(updated.is_applied());
    }

    /// The only scheduled retry.
    pub fn timer(&self) -> ScheduledRetry {
        let mut timers = self.tables.timers();
        assert_eq!(timers.len(), 1, "{timers:?}");
        timers.pop().unwrap()
    }

    pub async fn retry(&self, message: &RetryMessage) {
        run_as(RETRY, self.dispatcher.retry(message)).await.unwrap();
    }

    pub async fn sweep(&self) -> usize {
        self.dispatcher
            .sweep(Deadline::from_now(Duration::from_secs(20)))
            .await
            .unwrap()
    }

    pub async fn advance(&self) -> usize {
        self.dispatcher
            .advance(Deadline::from_now(Duration::from_secs(20)))
            .await
            .unwrap()
    }

    pub async fn health(&self, webhook: WebhookId) -> EndpointHealth {
        self.tables
            .store
            .webhooks()
            .get_record(&account("acme"), webhook)
            .await
            .unwrap()
            .unwrap()
            .health
    }

    pub fn requests(&self) -> usize {
        self.receiver.received().len()
    }
}
