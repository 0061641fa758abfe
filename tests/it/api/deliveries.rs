//! The routes of deliveries.

use std::time::Duration;

use axum::{body::Body, http::StatusCode};
use nano_webhooks_core::{
    delivery::endpoint_health::{EndpointHealth, FAILURE_THRESHOLD},
    webhook::WebhookId,
};
use serde_json::{Value, json};

use super::valid;
use crate::support::{
    app::{TestApp, TestResponse},
    receiver::Receiver,
    webhooks::put_health,
};

const DELIVERIES: &str = "/api/v1/webhooks/1/deliveries";

/// An app whose webhook 1 fails with status 500. One of its jobs was attempted.
struct FailingWebhook {
    app: TestApp,
    receiver: Receiver,
}

impl FailingWebhook {
    async fn with_jobs(count: usize) -> Self {
        let app = TestApp::new().await;
        let receiver = Receiver::start().await;
        app.create(json!({
            "url": receiver.url("/status/500"),
            "events": ["job.completed"],
            "secret_key": "open sesame",
        }))
        .await;
        app.end_jobs(1, count).await;
        app.tables.timers();
        Self { app, receiver }
    }

    /// The path of the delivery that was attempted.
    async fn attempted_path(&self) -> String {
        let listed = self.app.get(DELIVERIES).await;
        let rows = listed.json["data"].as_array().unwrap();
        let attempted = rows.iter().find(|row| row["attempt_count"] == 1).unwrap();
        format!("{DELIVERIES}/{}", attempted["event_id"].as_str().unwrap())
    }

    /// Why the delivery waits: in the list, in the list of pending deliveries, and by itself.
    async fn waits(&self, path: &str) -> [String; 3] {
        let listed = self.app.get(DELIVERIES).await;
        let pending = self.app.get(&format!("{DELIVERIES}?status=pending")).await;
        let shown = self.app.get(path).await;
        let rows = [
            &listed.json["data"][0],
            &pending.json["data"][0],
            &shown.json["data"],
        ];
        rows.map(|row| row["waiting_for"].as_str().unwrap().to_owned())
    }

    async fn retry(&self, path: &str) -> TestResponse {
        self.app.post_to(&format!("{path}/retry")).await
    }

    /// Claims the only retry that is scheduled, which is due now.
    async fn claim_retry(&self) {
        let now = self.app.clock.now();
        let timer = self.app.tables.timers().pop().unwrap();
        assert_eq!(timer.due, now);
        let leases = self.app.tables.store.leases();
        leases.claim(&timer.message.key, 1, now).await.unwrap();
    }
}

/// Deliveries are listed by page, and a cursor is only valid for its own list.
#[tokio::test]
async fn deliveries_are_listed_by_page() {
    let webhook = FailingWebhook::with_jobs(2).await;
    let app = &webhook.app;
    let first = app.get(&format!("{DELIVERIES}?limit=1")).await;
    assert_eq!(first.status, StatusCode::OK);
    let cursor = first.json["next_cursor"].as_str().unwrap();
    let second = app
        .get(&format!(
            "{DELIVERIES}?limit=5&cursor={cursor}&status=pending&event=job.completed"
        ))
        .await;
    assert_eq!(second.json["next_cursor"], Value::Null);
    app.create(valid()).await;
    let other_list = app
        .get(&format!("/api/v1/webhooks/2/deliveries?cursor={cursor}"))
        .await;
    assert_eq!(other_list.error().0, 400);
    let row = &first.json["data"][0];
    let names: Vec<_> = row.as_object().unwrap().keys().collect();
    let listed = [
        "event_id",
        "event",
        "task_id",
        "status",
        "attempt_count",
        "created_at",
        "next_attempt_at",
        "waiting_for",
        "last_failure",
    ];
    assert_eq!(names, listed);
    assert_ne!(row["event_id"], second.json["data"][0]["event_id"]);
}

/// Lists and details say why a pending delivery waits. A deleted webhook has no waiting deliveries.
#[tokio::test]
async fn wait_is_explained() {
    let webhook = FailingWebhook::with_jobs(1).await;
    let app = &webhook.app;
    let path = webhook.attempted_path().await;
    assert_eq!(webhook.waits(&path).await, ["schedule"; 3]);
    app.tables.set_wait_reason("secret").await;
    assert_eq!(webhook.waits(&path).await, ["secret"; 3]);
    app.tables.set_wait_reason("rate").await;
    assert_eq!(webhook.waits(&path).await, ["rate"; 3]);
    let open = EndpointHealth {
        consecutive_failures: FAILURE_THRESHOLD,
        ..EndpointHealth::default()
    };
    put_health(&app.tables, WebhookId::new(1).unwrap(), &open).await;
    assert_eq!(webhook.waits(&path).await, ["endpoint"; 3]);
    let disable = json!({ "status": "disabled" });
    app.send_json("PATCH", "/api/v1/webhooks/1", &disable).await;
    assert_eq!(webhook.waits(&path).await, ["webhook"; 3]);
    app.delete("/api/v1/webhooks/1").await;
    let cancelled = app.get(&path).await;
    assert_eq!(cancelled.json["data"]["waiting_for"], Value::Null);
}

/// A delivery shows its payload and attempts, and hides the secret.
#[tokio::test]
async fn delivery_shows_its_attempts() {
    let webhook = FailingWebhook::with_jobs(2).await;
    let shown = webhook.app.get(&webhook.attempted_path().await).await;
    let received = webhook.receiver.received().remove(0);
    let data = &shown.json["data"];
    assert_eq!(data["payload"], received.body);
    assert_eq!(
        (&data["status"], &data["last_failure"]),
        (&json!("pending"), &json!("status"))
    );
    let attempt = data["attempts"][0].as_object().unwrap();
    assert_eq!(
        attempt["detail"],
        "The endpoint returned status 500. Return a 2xx status to accept the event."
    );
    assert_eq!(
        (&attempt["status_code"], &attempt["response_excerpt"]),
        (&json!(500), &json!("as you asked"))
    );
    for (name, value) in attempt["request_headers"].as_object().unwrap() {
        assert_eq!(received.header(name), value.as_str().unwrap());
    }
    assert!(!shown.text.contains("sesame"));
}

/// A manual retry has no parameters, so a body with one is refused.
#[tokio::test]
async fn retry_with_body_is_refused() {
    let webhook = FailingWebhook::with_jobs(1).await;
    let app = &webhook.app;
    let retry = format!("{}/retry", webhook.attempted_path().await);
    for (declared, body, status) in [
        ("application/json", "{".to_owned(), 400),
        ("application/json", r#"{"now":true}"#.to_owned(), 400),
        ("text/plain", "now".to_owned(), 415),
        ("application/json", " ".repeat(64 * 1024 + 1), 413),
    ] {
        let request = app.request("POST", &retry).header("content-type", declared);
        let response = app.send(request.body(Body::from(body)).unwrap()).await;
        assert_eq!(response.error().0, status);
    }
}

/// A manual retry is due now. While its attempt is in progress, a second one returns 409.
#[tokio::test]
async fn retry_in_progress_returns_409() {
    let webhook = FailingWebhook::with_jobs(2).await;
    let path = webhook.attempted_path().await;
    let retried = webhook.retry(&path).await;
    assert_eq!(
        (retried.status, &retried.json["data"]["status"]),
        (StatusCode::ACCEPTED, &json!("pending"))
    );
    webhook.claim_retry().await;
    assert_eq!(webhook.retry(&path).await.error().1, "conflict");
}

/// Deliveries of a deleted webhook can be read and cannot be retried.
#[tokio::test]
async fn deleted_webhook_keeps_deliveries() {
    let webhook = FailingWebhook::with_jobs(2).await;
    let app = &webhook.app;
    let path = webhook.attempted_path().await;
    webhook.retry(&path).await;
    webhook.claim_retry().await;
    // The lease has expired, as after a crash of its worker.
    app.clock.advance(Duration::from_mins(1));
    app.delete("/api/v1/webhooks/1").await;
    assert_eq!(app.get(&path).await.json["data"]["status"], "cancelled");
    let listed = app.get(DELIVERIES).await;
    assert_eq!(listed.json["data"].as_array().unwrap().len(), 2);
    assert_eq!(
        webhook.retry(&path).await.error(),
        (404, "not_found", "No such webhook: 1")
    );
}

/// An invalid query parameter of a delivery list is named.
#[tokio::test]
async fn invalid_query_parameter_is_named() {
    let app = TestApp::new().await;
    app.create(valid()).await;
    for (query, message) in [
        (
            "status=done",
            "status: expected `pending`, `delivered`, `failed` or `cancelled`",
        ),
        (
            "event=job.done",
            "event: expected one of `job.completed`, `job.failed`, `webhook.disabled`, \
             `webhook.failing`, `webhook.recovered`, `delivery.exhausted`",
        ),
        ("limit=0", "limit: expected a whole number from 1 to 100"),
        ("limit=101", "limit: expected a whole number from 1 to 100"),
        (
            "cursor=abc",
            "cursor: expected the `next_cursor` of a page of this webhook's deliveries",
        ),
        (
            "page=2",
            "page: unknown field `page`, expected one of `status`, `event`, `limit`, `cursor`",
        ),
        ("limit=1&limit=2", "limit: expected at most once"),
    ] {
        let response = app.get(&format!("{DELIVERIES}?{query}")).await;
        assert_eq!(response.error(), (400, "invalid_request", message));
    }
}

/// Unknown webhooks and deliveries, and those of another account, return 404.
#[tokio::test]
async fn unknown_delivery_returns_404() {
    let app = TestApp::new().await;
    app.create(valid()).await;
    for path in [
        "/api/v1/webhooks/2/deliveries",
        "/api/v1/webhooks/x/deliveries",
    ] {
        assert_eq!(app.get(path).await.error().0, 404);
    }
    let event = "evt_01JFS8TX800000000000000000";
    let response = app.get(&format!("{DELIVERIES}/{event}")).await;
    assert_eq!(
        response.error(),
        (
            404,
            "not_found",
            format!("Webhook 1 has no delivery {event}").as_str()
        )
    );
    let malformed = app.get(&format!("{DELIVERIES}/nonsense")).await;
    assert_eq!(malformed.error().0, 404);

    let other = app.with_other_account().await;
    assert_eq!(
        other.get(DELIVERIES).await.error(),
        (404, "not_found", "No such webhook: 1")
    );
}
