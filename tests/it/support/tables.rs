//! Tables in a real DynamoDB engine.

use std::{sync::Mutex, time::Duration};

use aws_sdk_dynamodb::{
    config::timeout::TimeoutConfig,
    types::{AttributeValue, TimeToLiveSpecification},
};
use nano_webhooks::{
    client::{
        target_guard::TargetGuard,
        webhook_client::{Timeouts, WebhookClient},
    },
    clock::Clock,
    dispatch::{Dispatcher, InFlightLimiter, late_attempts::LateAttempts},
    metrics::Metrics,
    queue::RetryQueue,
    random,
    store::{
        Item, Store, TableNames,
        data_keys::{DataKeyCache, KeyProvider},
        tables,
    },
};
use nano_webhooks_cli::{embedded_dynamodb::EmbeddedDynamoDb, local_client};
use nano_webhooks_core::{
    data_key::KeyMaterial,
    delivery::{schedule::RetrySchedule, scheduled_retry::ScheduledRetry},
    target_policy::TargetPolicy,
    webhook::WebhookId,
};
use tokio::{net::TcpListener, sync::mpsc};

use super::{engine::other_engine, logs, permissions};
use crate::support::{client::client, receiver::TEST_TIMEOUT};

/// Timeouts that no request reaches on a busy machine. Tests of timeouts and lost responses use
/// those of production.
pub fn patient_timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .operation_attempt_timeout(Duration::from_mins(1))
        .operation_timeout(Duration::from_mins(2))
        .build()
}

/// New tables in the embedded engine, or in the engine at `TEST_DYNAMODB_ENDPOINT`.
pub struct TestTables {
    pub client: aws_sdk_dynamodb::Client,
    pub endpoint: String,
    pub names: TableNames,
    /// The jobs table.
    pub jobs: String,
    pub store: Store,
    pub vault: DataKeyCache,
    pub queue: RetryQueue,
    timers: Mutex<mpsc::Receiver<ScheduledRetry>>,
    _engine: Option<EmbeddedDynamoDb>,
}

impl TestTables {
    pub async fn new() -> Self {
        logs::install();
        let (engine, endpoint) = if let Some(endpoint) = other_engine() {
            (None, endpoint)
        } else {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let engine = EmbeddedDynamoDb::start(listener, None)
                .unwrap_or_else(|failed| panic!("{failed:?}"));
            (Some(engine), endpoint)
        };
        let unique = random::request_id();
        let tables = TableNames {
            webhooks: format!("webhooks-{unique}"),
            deliveries: format!("deliveries-{unique}"),
        };
        let jobs = format!("jobs-{unique}");
        let client = local_client(&endpoint, patient_timeouts());
        tables::create_if_missing(&client, &tables, &jobs)
            .await
            .unwrap();
        // The clocks of the tests are in the past, so the engine would delete their items as
        // expired.
        for table in [&tables.webhooks, &tables.deliveries] {
            let never = TimeToLiveSpecification::builder()
                .attribute_name(tables::EXPIRES_AT)
                .enabled(false)
                .build()
                .unwrap();
            client
                .update_time_to_live()
                .table_name(table)
                .time_to_live_specification(never)
                .send()
                .await
                .unwrap();
        }
        let vault = DataKeyCache::new(KeyProvider::Local(
            KeyMaterial::from_random(random::bytes()),
        ));
        let store = Store::new(client.clone(), tables.clone(), vault.clone());
        let (sender, timers) = mpsc::channel(10_000);
        Self {
            client,
            endpoint,
            names: tables,
            jobs,
            store,
            vault,
            queue: RetryQueue::Local(sender),
            timers: Mutex::new(timers),
            _engine: engine,
        }
    }

    /// A dispatcher with the system clock and the target policy that allows every target.
    pub fn dispatcher(&self) -> Dispatcher {
        Dispatcher {
            store: self.store_as(permissions::DISPATCH),
            direct_client: WebhookClient::new(
                TargetGuard::new(TargetPolicy::Any, vec![]),
                Timeouts {
                    connect: Duration::from_secs(1),
                    total: Duration::from_secs(1),
                },
                None,
            )
            .unwrap(),
            retry_client: client(),
            queue: self.queue.clone(),
            batch_wait: TEST_TIMEOUT,
            late_attempts: LateAttempts::disabled(),
            limiter: InFlightLimiter::default(),
            clock: Clock::system(),
            schedule: RetrySchedule::default(),
            retention: Duration::from_hours(24),
            disable_after: Duration::from_hours(120),
            operator_topic: None,
            metrics: Metrics::embedded(),
        }
    }

    /// A store with the permissions of a role.
    pub fn store_as(&self, role: &'static str) -> Store {
        self.store_with_role(&self.client, role)
    }

    /// The same tables through another client, with the permissions of a role.
    pub fn store_with_role(&self, client: &aws_sdk_dynamodb::Client, role: &'static str) -> Store {
        let enforce = permissions::Enforce::new(role, self.names.clone());
        let config = client.config().to_builder().interceptor(enforce);
        self.store_through(aws_sdk_dynamodb::Client::from_conf(config.build()))
    }

    /// The same tables through another client.
    pub fn store_through(&self, client: aws_sdk_dynamodb::Client) -> Store {
        Store::new(client, self.names.clone(), self.vault.clone())
    }

    /// The retries that were scheduled since the last call.
    pub fn timers(&self) -> Vec<ScheduledRetry> {
        let mut timers = self.timers.lock().unwrap();
        std::iter::from_fn(|| timers.try_recv().ok()).collect()
    }

    /// Stores the reason to wait with the only delivery.
    pub async fn set_wait_reason(&self, reason: &str) {
        let [delivery] = &self.items(&self.names.deliveries).await[..] else {
            panic!("expected one delivery");
        };
        let mut delivery = delivery.clone();
        let reason = AttributeValue::S(reason.to_owned());
        delivery.insert("waiting_for".to_owned(), reason);
        self.client
            .put_item()
            .table_name(&self.names.deliveries)
            .set_item(Some(delivery))
            .send()
            .await
            .unwrap();
    }

    /// Writes an item of the webhooks table.
    pub async fn put_webhooks_item(&self, item: Item) {
        let put = self.client.put_item().table_name(&self.names.webhooks);
        put.set_item(Some(item)).send().await.unwrap();
    }

    /// The stored item of a webhook.
    pub async fn webhook_item(&self, account: &str, webhook: WebhookId) -> Item {
        let sort_key = format!("WEBHOOK#{:010}", webhook.get());
        let mut items = self.items_under(&format!("ACCOUNT#{account}")).await;
        items.retain(|item| item["SK"].as_s().unwrap() == &sort_key);
        items.pop().unwrap()
    }

    /// Makes a webhook's item invalid. Returns the valid one.
    pub async fn break_webhook(&self, account: &str, webhook: WebhookId) -> Item {
        let whole = self.webhook_item(account, webhook).await;
        let mut broken = whole.clone();
        let url = AttributeValue::S("nonsense".to_owned());
        broken.insert("url".to_owned(), url);
        self.put_webhooks_item(broken).await;
        whole
    }

    /// Every item of a table.
    pub async fn items(&self, table: &str) -> Vec<Item> {
        let scan = self.client.scan().table_name(table).consistent_read(true);
        scan.into_paginator()
            .items()
            .send()
            .collect::<Result<Vec<_>, _>>()
            .await
            .unwrap()
    }

    /// The items of the webhooks table whose partition key starts with `prefix`.
    pub async fn items_under(&self, prefix: &str) -> Vec<Item> {
        let mut items = self.items(&self.names.webhooks).await;
        items.retain(|item| item["PK"].as_s().unwrap().starts_with(prefix));
        items
    }
}
