//! A webhook with failed deliveries, and the API that replays them.

use std::time::Duration;

use axum::http::StatusCode;
use nano_webhooks::{clock::Deadline, dispatch::Dispatcher};
use nano_webhooks_core::{
    delivery::{Delivery, DeliveryKey, scheduled_retry::ScheduledRetry},
    event::EventId,
    webhook::WebhookId,
};
use serde_json::{Value, json};

use crate::support::{
    accounts::account,
    app::{TestApp, TestResponse},
    permissions::{RETRY, run_as},
    receiver::{Received, Receiver},
    stream::{dispatch_batch, insert_record, job_image},
};

pub const WEBHOOK: &str = "/api/v1/webhooks/1";

/// A time before all events of these tests.
pub const SINCE: &str = "2024-12-23T09:00:00Z";

/// A webhook whose endpoint has recovered, and its failed deliveries.
pub struct ReplayFixture {
    pub app: TestApp,
    pub receiver: Receiver,
    pub dispatcher: Dispatcher,
}

impl ReplayFixture {
    pub async fn new(failed: usize) -> Self {
        let app = TestApp::new().await;
        let receiver = Receiver::start().await;
        let created = json!({"url": receiver.url("/status/500"), "events": ["job.completed"]});
        assert_eq!(app.create(created).await.status, StatusCode::CREATED);
        let dispatcher = Dispatcher {
            clock: app.clock.clone(),
            schedule: "1s".parse().unwrap(),
            ..app.tables.dispatcher()
        };
        let fixture = Self {
            app,
            receiver,
            dispatcher,
        };
        let records: Vec<_> = (0..failed)
            .map(|n| insert_record(n, job_image(&format!("t{n}"), "completed")))
            .collect();
        assert_eq!(dispatch_batch(&fixture.dispatcher, &records).await, []);
        // Each delivery fails twice, which exhausts the schedule. Without a free slot it is
        // deferred.
        while !fixture.retry_all().await.is_empty() {}
        let listed = fixture
            .app
            .get(&format!("{WEBHOOK}/deliveries?status=pending"))
            .await;
        assert_eq!(listed.json["data"], json!([]));
        fixture
    }

    pub async fn fix_endpoint(&self) {
        let fixed = json!({"url": self.receiver.url("/ok")});
        assert_eq!(
            self.app.send_json("PATCH", WEBHOOK, &fixed).await.status,
            StatusCode::OK
        );
    }

    /// Makes all scheduled attempts when they are due, and returns their timers.
    pub async fn retry_all(&self) -> Vec<ScheduledRetry> {
        let timers = self.app.tables.timers();
        self.app.clock.advance(Duration::from_mins(10));
        for timer in &timers {
            self.retry(timer).await;
        }
        timers
    }

    pub async fn retry(&self, timer: &ScheduledRetry) {
        run_as(RETRY, self.dispatcher.retry(&timer.message))
            .await
            .unwrap();
    }

    pub async fn replay(&self, body: Value) -> TestResponse {
        self.app
            .send_json("POST", &format!("{WEBHOOK}/replay"), &body)
            .await
    }

    pub async fn start_replay(&self, body: Value) -> String {
        let response = self.replay(body).await;
        assert_eq!(response.status, StatusCode::ACCEPTED, "{}", response.text);
        response.header("location").to_owned()
    }

    /// The state and the counts `found`, `sent`, `delivered` and `failed`.
    pub async fn progress(&self, replay: &str) -> (String, [u64; 4]) {
        let response = self.app.get(replay).await;
        assert_eq!(response.status, StatusCode::OK, "{}", response.text);
        let data = &response.json["data"];
        let counts =
            ["found", "sent", "delivered", "failed"].map(|name| data[name].as_u64().unwrap());
        (data["state"].as_str().unwrap().to_owned(), counts)
    }

    pub async fn advance(&self) -> usize {
        self.dispatcher
            .advance(Deadline::from_now(Duration::from_mins(1)))
            .await
            .unwrap()
    }

    pub async fn sweep(&self) -> usize {
        self.dispatcher
            .sweep(Deadline::from_now(Duration::from_mins(1)))
            .await
            .unwrap()
    }

    pub async fn delivery(&self, event: &str) -> Delivery {
        let key = DeliveryKey {
            account: account("acme"),
            webhook: WebhookId::new(1).unwrap(),
            event: EventId::parse(event).unwrap(),
        };
        let deliveries = self.app.tables.store.deliveries();
        deliveries.get(&key).await.unwrap().unwrap()
    }

    pub fn received_at(&self, path: &str) -> Vec<Received> {
        self.receiver
            .received()
            .into_iter()
            .filter(|received| received.path == path)
            .collect()
    }
}
