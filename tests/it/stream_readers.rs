//! Two processes that read the same batch of the stream at the same time.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode};
use nano_webhooks::{
    client::{
        target_guard::TargetGuard,
        webhook_client::{Timeouts, WebhookClient},
    },
    dispatch::Dispatcher,
    store::leases::ClaimOutcome,
};
use nano_webhooks_core::{
    delivery::{Delivery, DeliveryKey, DeliveryState},
    target_policy::TargetPolicy,
    webhook::WebhookId,
};
use serde_json::Value;
use tokio::{net::TcpListener, sync::Mutex};

use crate::support::{
    retry_fixture::RetryFixture,
    stream::{batch, dispatch_batch, insert_record, job_image},
    tables::TestTables,
    webhooks::subscribe,
};

const RETENTION: Duration = Duration::from_hours(24);

/// An endpoint that lets a second reader dispatch the batch before it responds to the first one.
struct Endpoint {
    second_reader: Dispatcher,
    records: Vec<Value>,
    /// The status codes of the next responses, the last one first.
    statuses: Mutex<Vec<StatusCode>>,
}

async fn respond(State(endpoint): State<Arc<Endpoint>>) -> StatusCode {
    let status = endpoint.statuses.lock().await.pop().unwrap();
    if !endpoint.statuses.lock().await.is_empty() {
        let failures = dispatch_batch(&endpoint.second_reader, &endpoint.records).await;
        assert_eq!(failures, []);
    }
    status
}

struct ReadersFixture {
    tables: TestTables,
    first_reader: Dispatcher,
    records: Vec<Value>,
    webhook: WebhookId,
}

impl ReadersFixture {
    /// The endpoint responds to the first reader with `first`, and before that to the second one
    /// with `second`.
    async fn new(first: StatusCode, second: StatusCode) -> Self {
        let tables = TestTables::new().await;
        let patient_limits = Timeouts {
            connect: Duration::from_secs(10),
            total: Duration::from_secs(10),
        };
        let guard = TargetGuard::new(TargetPolicy::Any, vec![]);
        let first_reader = Dispatcher {
            direct_client: WebhookClient::new(guard, patient_limits, None).unwrap(),
            ..tables.dispatcher()
        };
        let records = vec![insert_record(1, job_image("t", "completed"))];
        let endpoint = Endpoint {
            second_reader: tables.dispatcher(),
            records: records.clone(),
            statuses: Mutex::new(vec![second, first]),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .fallback(respond)
            .with_state(Arc::new(endpoint));
        tokio::spawn(axum::serve(listener, router).into_future());
        let webhook = subscribe(&tables, "acme", &url, None).await;
        Self {
            tables,
            first_reader,
            records,
            webhook,
        }
    }

    async fn read(&self) {
        let failures = dispatch_batch(&self.first_reader, &self.records).await;
        assert_eq!(failures, []);
    }

    async fn delivery(&self) -> Delivery {
        let event = batch(&self.records)[0].event().unwrap().unwrap();
        let key = DeliveryKey {
            account: event.account,
            webhook: self.webhook,
            event: event.id,
        };
        let deliveries = self.tables.store.deliveries();
        deliveries.get(&key).await.unwrap().unwrap()
    }
}

/// The slower reader's failure neither replaces the success nor schedules another attempt.
#[tokio::test]
async fn later_failure_keeps_success() {
    let fixture = ReadersFixture::new(StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK).await;
    fixture.read().await;
    let delivery = fixture.delivery().await;
    assert_eq!(delivery.state, DeliveryState::Delivered);
    assert_eq!(delivery.attempts[0].status_code, Some(200));
    assert_eq!(fixture.tables.timers(), []);
}

/// The slower reader's success replaces the failure, and the retry of the failure does nothing.
#[tokio::test]
async fn later_success_replaces_failure() {
    let fixture = ReadersFixture::new(StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE).await;
    fixture.read().await;
    let delivery = fixture.delivery().await;
    assert_eq!(delivery.state, DeliveryState::Delivered);
    assert_eq!(delivery.attempts[0].status_code, Some(200));
    let retry = fixture.tables.timers().pop().unwrap();
    fixture.first_reader.retry(&retry.message).await.unwrap();
    assert_eq!(fixture.delivery().await, delivery);
}

/// A worker that leased the recorded failure cannot write its result over the success.
#[tokio::test]
async fn later_success_ends_lease() {
    let fixture = RetryFixture::new("1s").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    let store = &fixture.tables.store;
    let failed = fixture.deliveries(webhook).await.pop().unwrap();
    let key = failed.key.clone();
    let DeliveryState::Pending(due_at) = failed.state else {
        panic!("{failed:?}");
    };
    let claimed = store.leases().claim(&key, 1, due_at).await.unwrap();
    let ClaimOutcome::Acquired(lease) = claimed else {
        panic!("{claimed:?}");
    };
    let mut success = failed.clone();
    success.state = DeliveryState::Delivered;
    let unprocessed = store
        .deliveries()
        .batch_write([&success].into_iter(), due_at, RETENTION)
        .await
        .unwrap();
    assert!(unprocessed.is_empty());
    let completed = store
        .leases()
        .complete(&lease, &failed, due_at, RETENTION)
        .await
        .unwrap();
    assert!(!completed.is_applied());
    let stored = store.deliveries().get(&key).await.unwrap().unwrap();
    assert_eq!(stored, success);
}
