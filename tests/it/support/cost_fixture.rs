//! An account whose requests are counted by a proxy.

use std::time::Duration;

use axum::http::StatusCode;
use nano_webhooks::{dispatch::Dispatcher, store::rate_limits::RateLimits};
use serde_json::{Value, json};

use crate::support::{
    app::TestApp,
    permissions::{RETRY, run_as},
    proxy::Proxy,
    receiver::Receiver,
    stream::{dispatch_batch, insert_record, job_image},
};

/// An account with webhooks, and the proxy that counts its requests.
pub struct CostFixture {
    pub app: TestApp,
    pub receiver: Receiver,
    pub proxy: Proxy,
    pub dispatcher: Dispatcher,
}

impl CostFixture {
    /// Creates webhooks at these paths of the receiver, and one successful delivery to each.
    pub async fn new(paths: &[&str]) -> Self {
        let app = TestApp::new().await;
        let receiver = Receiver::start().await;
        let proxy = Proxy::start(app.tables.endpoint.clone()).await;
        let store = app.tables.store_through(nano_webhooks_cli::local_client(
            &proxy.url,
            crate::support::tables::patient_timeouts(),
        ));
        let limits = RateLimits {
            per_minute: Some(1_000),
            per_day: Some(10_000),
        };
        let dispatcher = Dispatcher {
            store: store.clone(),
            clock: app.clock.clone(),
            schedule: "1s,1s".parse().unwrap(),
            ..app.tables.dispatcher()
        };
        let fixture = Self {
            app: app.over(store, limits),
            receiver,
            proxy,
            dispatcher,
        };
        for path in paths {
            let created = fixture.app.create(fixture.webhook_body()).await;
            assert_eq!(created.status, StatusCode::CREATED);
            fixture.end_jobs(1_000_000, 1, 0).await;
            let patched = json!({"url": fixture.receiver.url(path)});
            if *path != "/ok" {
                fixture
                    .app
                    .send_json("PATCH", created.header("location"), &patched)
                    .await;
            }
        }
        fixture.proxy.take_used();
        fixture
    }

    /// The body that creates a webhook with a secret at the path `/ok`.
    pub fn webhook_body(&self) -> Value {
        json!({
            "url": self.receiver.url("/ok"),
            "events": ["job.completed"],
            "secret_key": "my-secret-key",
        })
    }

    /// Completed jobs, each with this amount of data.
    pub async fn end_jobs(&self, first: usize, count: usize, padding: usize) {
        let mut records = Vec::with_capacity(count);
        for number in first..first + count {
            records.push(padded_record(number, padding));
        }
        assert_eq!(dispatch_batch(&self.dispatcher, &records).await, []);
    }

    pub async fn retry_all(&self) {
        self.app.clock.advance(Duration::from_secs(10));
        for timer in self.app.tables.timers() {
            run_as(RETRY, self.dispatcher.retry(&timer.message))
                .await
                .unwrap();
        }
    }
}

fn padded_record(number: usize, padding: usize) -> Value {
    let url = "https://cdn.example.com/outputs/2024/12/23/image-0123456789abcdef.png";
    let mut job = job_image(&format!("task_{number:07}"), "completed");
    job["data"] = json!({"M": {
        "url": {"S": url},
        "credits_charged": {"N": "6"},
        "padding": {"S": "x".repeat(padding)},
    }});
    insert_record(number, job)
}
