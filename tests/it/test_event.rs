//! `POST …/test` sends a sample event and returns its attempt.

use std::time::Duration;

use axum::{body::Body, http::StatusCode};
use nano_webhooks::store::{
    rate_limits::RateLimits,
    test_event_slots::{AcquireOutcome, HeldSlots, SLOT_LEASE, TestEventSlots},
};
use nano_webhooks_core::{
    delivery::endpoint_health::EndpointHealth, target_policy::TargetPolicy, timestamp::Timestamp,
    webhook::WebhookId,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tower::ServiceExt;

use crate::support::{
    accounts::account,
    app::{TestApp, TestResponse},
    receiver::Receiver,
    tables::TestTables,
    webhooks::put_health,
};

async fn send(app: &TestApp, body: Value) -> TestResponse {
    app.send_json("POST", "/api/v1/webhooks/1/test", &body)
        .await
}

/// A signed sample of the chosen event is sent, and the response has the attempt.
#[tokio::test]
async fn test_event_returns_attempt() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    let events = ["job.failed", "webhook.disabled"];
    app.create(
        json!({"url": receiver.url("/hook"), "events": events, "secret_key": "my-secret-key"}),
    )
    .await;
    for (nth, (body, event)) in [
        (json!({}), "job.failed"),
        (json!({"event": "job.completed"}), "job.completed"),
        (json!({"event": "webhook.disabled"}), "webhook.disabled"),
    ]
    .into_iter()
    .enumerate()
    {
        let response = send(&app, body).await;
        assert_eq!(response.status, StatusCode::OK, "{}", response.text);
        let data = &response.json["data"];
        let received = receiver.wait_for(nth + 1).await.pop().unwrap();
        assert_eq!(
            (data["event"].as_str(), received.header("x-nano-event")),
            (Some(event), event)
        );
        assert_eq!(received.json()["event"], event);
        assert_eq!(data["payload"], received.body.as_str());
        for (name, value) in data["request_headers"].as_object().unwrap() {
            assert_eq!(received.header(name), value.as_str().unwrap(), "{name}");
        }
        assert_eq!(
            (
                &data["status_code"],
                &data["failure"],
                &data["signed_content"]
            ),
            (&json!(200), &Value::Null, &Value::Null)
        );
        assert!(data["timings"]["wait_ms"].is_number(), "{data}");
        assert!(received.is_signed_by("my-secret-key"));
    }
    assert_eq!(
        app.get("/api/v1/webhooks/1/deliveries").await.json["data"],
        json!([]),
        "test events are not in the log"
    );
}

/// When the receiver refuses the event, the response shows what was signed and hides the secret.
#[tokio::test]
async fn refused_test_shows_signed_text() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    app.create(json!({
        "url": receiver.url("/status/401"),
        "events": ["job.completed"],
        "secret_key": "my-secret-key",
    }))
    .await;
    let response = send(&app, json!({})).await;
    let data = &response.json["data"];
    assert_eq!(
        (&data["status_code"], &data["failure"]),
        (&json!(401), &json!("status"))
    );
    let received = receiver.wait_for(1).await.pop().unwrap();
    let signed = format!("{}.{}", received.header("x-nano-timestamp"), received.body);
    assert_eq!(data["signed_content"], signed.as_str());
    assert!(!response.text.contains("my-secret-key"));

    let unsigned = json!({"secret_key": null});
    app.send_json("PATCH", "/api/v1/webhooks/1", &unsigned)
        .await;
    assert_eq!(
        send(&app, json!({})).await.json["data"]["signed_content"],
        Value::Null,
        "nothing was signed"
    );
}

/// A test event that the endpoint accepts ends `failing` and closes an open breaker. One that it
/// rejects changes nothing.
#[tokio::test]
async fn accepted_test_ends_failing() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    for path in ["/ok", "/status/500"] {
        app.create(json!({"url": receiver.url(path), "events": ["job.completed"]}))
            .await;
    }
    let now = app.clock.now();
    let failing = EndpointHealth {
        consecutive_failures: 7,
        failing_since: Some(now),
        failed_attempts: 7,
        ..EndpointHealth::default()
    };
    let recovered = EndpointHealth {
        has_succeeded: true,
        first_success_after_failure_at: Some(now),
        ..EndpointHealth::default()
    };
    for (id, expected) in [(1, recovered), (2, failing)] {
        let webhook = WebhookId::new(id).unwrap();
        let acme = account("acme");
        put_health(&app.tables, webhook, &failing).await;
        let path = format!("/api/v1/webhooks/{id}/test");
        app.send_json("POST", &path, &json!({})).await;
        let webhooks = app.tables.store.webhooks();
        let record = webhooks.get_record(&acme, webhook).await.unwrap().unwrap();
        assert_eq!(record.health, expected, "webhook {id}");
    }
    let resumes = app.tables.items_under("RESUME").await;
    assert_eq!(resumes.len(), 1, "what waited is resumed");
    assert_eq!(resumes[0]["SK"].as_s().unwrap(), "acme#1");
}

/// Sends a test event to an endpoint that hangs until the returned task is aborted.
async fn hold_slot(app: &TestApp, receiver: &Receiver, nth: usize) -> JoinHandle<()> {
    let request = app.request("POST", "/api/v1/webhooks/1/test");
    let request = request.body(Body::empty()).unwrap();
    let router = app.router.clone();
    let task = tokio::spawn(async move {
        router.oneshot(request).await.unwrap();
    });
    receiver.wait_for(nth).await;
    task
}

/// Two test events of an account may be in progress in all processes together. The slots of a
/// process that ended are free when their leases end.
#[tokio::test]
async fn third_test_event_is_refused() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    let events = ["job.completed"];
    app.create(json!({"url": receiver.url("/hang"), "events": events}))
        .await;
    let held = [
        hold_slot(&app, &receiver, 1).await,
        hold_slot(&app, &receiver, 2).await,
    ];
    app.clock.advance(Duration::from_secs(10));
    let refused = send(&app, json!({})).await;
    let (status, code, message) = refused.error();
    assert_eq!((status, code), (429, "rate_limited"), "{message}");
    assert_eq!(refused.header("retry-after"), "20");
    assert!(message.contains("test events"), "{message}");

    // The task is dropped as with a process that ends: nothing frees its slot.
    for task in held {
        task.abort();
    }
    let webhook = json!({"url": receiver.url("/ok")});
    app.send_json("PATCH", "/api/v1/webhooks/1", &webhook).await;
    app.clock.advance(Duration::from_millis(19_999));
    assert_eq!(send(&app, json!({})).await.status, 429);
    app.clock.advance(Duration::from_millis(1));
    for _ in 0..3 {
        let response = send(&app, json!({})).await;
        assert_eq!(response.status, StatusCode::OK, "{}", response.text);
    }
    // The later test events freed their slots. They may have taken over slots whose lease has
    // ended.
    assert!(app.tables.items_under("TEST#").await.len() <= 2);
}

/// The deployment's limit holds for all accounts together, and a refused test event holds no slot
/// of its account.
#[tokio::test]
async fn deployment_limits_test_events() {
    let tables = TestTables::new().await;
    let slots = tables.store.test_event_slots();
    let now = Timestamp::from_millis(1_734_948_000_000);
    let later = now + SLOT_LEASE;
    let first = acquire(&slots, "acme", now).await.unwrap();
    assert!(acquire(&slots, "other", now).await.is_none());
    assert!(tables.items_under("ACCOUNT#other").await.is_empty());
    slots.release(&first).await.unwrap();
    let second = acquire(&slots, "other", now).await.unwrap();
    let third = acquire(&slots, "acme", later).await.unwrap();
    // The lease of the second has ended, so its holder frees nothing of the third.
    slots.release(&second).await.unwrap();
    assert!(acquire(&slots, "other", later).await.is_none());
    slots.release(&third).await.unwrap();
    assert!(acquire(&slots, "other", later).await.is_some());
}

/// Acquires one of the account's slots, if the deployment's single slot is free.
async fn acquire(slots: &TestEventSlots<'_>, name: &str, at: Timestamp) -> Option<HeldSlots> {
    match slots.acquire(&account(name), 1, at).await.unwrap() {
        AcquireOutcome::Acquired(held) => Some(held),
        AcquireOutcome::Refused { .. } => None,
    }
}

/// An unreachable endpoint is described as in the log, and a blocked target is not called.
#[tokio::test]
async fn unreachable_endpoint_is_described() {
    let app = TestApp::new().await;
    app.create(json!({"url": "http://127.0.0.1:9/", "events": ["job.completed"]}))
        .await;
    let response = send(&app, json!({})).await;
    assert_eq!(response.json["data"]["failure"], "connect");
    assert!(
        response.json["data"]["detail"]
            .as_str()
            .unwrap()
            .starts_with("The connection failed")
    );

    let public = TestApp::with(
        TargetPolicy::Public,
        RateLimits {
            per_minute: None,
            per_day: None,
        },
        50,
    )
    .await;
    let receiver = Receiver::start().await;
    crate::support::webhooks::subscribe(&public.tables, "acme", &receiver.url("/hook"), None).await;
    let response = send(&public, json!({})).await;
    assert_eq!(
        response.json["data"]["failure"], "blocked",
        "{}",
        response.text
    );
    assert!(receiver.received().is_empty());
}

/// An invalid request returns 400 and names the field.
#[tokio::test]
async fn invalid_request_is_refused() {
    let app = TestApp::new().await;
    app.create(json!({"url": "http://127.0.0.1:9/", "events": ["job.completed"]}))
        .await;
    for (body, field) in [
        (json!({"event": "job.done"}), "event"),
        (json!({"event": 1}), "event"),
        (json!({"x": 1}), "x"),
    ] {
        let refused = send(&app, body.clone()).await;
        let (status, code, message) = refused.error();
        assert_eq!((status, code), (400, "invalid_request"), "{body}");
        assert!(message.contains(field), "{message}");
    }
}
