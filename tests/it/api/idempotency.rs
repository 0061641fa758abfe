//! The header `Idempotency-Key`.

use std::time::Duration;

use axum::http::StatusCode;
use nano_webhooks_cli::local_client;
use nano_webhooks_core::target_policy::TargetPolicy;
use serde_json::json;

use super::{valid, valid_with};
use crate::support::{
    app::{NO_LIMITS, TestApp, TestResponse},
    proxy::{Fault, Proxy},
};

/// The same idempotency key returns the same webhook, and 409 for a different request.
#[tokio::test]
async fn idempotency_key_returns_same_webhook() {
    let app = TestApp::new().await;
    let first = app.post_idempotent("order-1", &valid()).await;
    let again = app.post_idempotent("order-1", &valid()).await;
    assert_eq!(
        (again.status, &again.text),
        (StatusCode::CREATED, &first.text)
    );
    assert_eq!(again.header("location"), "/api/v1/webhooks/1");
    assert_eq!(app.count_webhooks().await, 1);

    let other = valid_with("events", json!(["job.failed"]));
    let refused = app.post_idempotent("order-1", &other).await;
    assert_eq!(
        refused.error(),
        (
            409,
            "conflict",
            "Idempotency-Key: already used for a different request; use a new key"
        )
    );
    let second = app.post_idempotent("order-2", &other).await;
    assert_eq!(second.json["data"]["id"], 2);

    app.delete("/api/v1/webhooks/1").await;
    assert_eq!(
        app.post_idempotent("order-1", &valid()).await.text,
        first.text,
        "the response is repeated unchanged"
    );

    app.clock.advance(Duration::from_hours(24));
    assert_eq!(
        app.post_idempotent("order-1", &other).await.json["data"]["id"],
        3,
        "after 24 hours a key is new"
    );

    for wrong in ["", &"k".repeat(256)] {
        assert_eq!(
            app.post_idempotent(wrong, &valid()).await.error().2,
            "Idempotency-Key: expected one value of 1 to 255 printable ASCII characters"
        );
    }
}

/// Requests are the same if their parsed fields are equal, whatever their white space and key
/// order. An optional field that is `null` is equal to an absent one.
#[tokio::test]
async fn equal_fields_are_same_request() {
    let app = TestApp::new().await;
    let body = r#"{"url":"https://example.com/a","events":["job.failed"],"secret_key":"12345678"}"#;
    let first = app.post_idempotent("k", body).await;
    assert_eq!(first.json["data"]["id"], 1);
    for same in [
        r#"{"secret_key":"12345678","events":["job.failed"],"url":"https://example.com/a"}"#,
        "{ \"url\": \"https://example.com\\/a\",\n \"events\": [\"job.failed\"],
           \"description\": null, \"secret_key\": \"12345678\" }",
    ] {
        let again = app.post_idempotent("k", same).await;
        assert_eq!((again.status, &again.text), (first.status, &first.text));
    }
    for other in [
        r#"{"url":"https://example.com/b","events":["job.failed"],"secret_key":"12345678"}"#,
        r#"{"url":"https://example.com/a","events":["job.completed"],"secret_key":"12345678"}"#,
        r#"{"url":"https://example.com/a","events":["job.failed"],"secret_key":"12345679"}"#,
        r#"{"url":"https://example.com/a","events":["job.failed"]}"#,
    ] {
        let refused = app.post_idempotent("k", other).await;
        assert_eq!(refused.status, StatusCode::CONFLICT, "{other}");
    }
}

/// Concurrent requests with one idempotency key create one webhook.
#[tokio::test]
async fn concurrent_idempotent_requests_create_one() {
    let app = TestApp::new().await;
    let body = valid();
    let requests = (0..8).map(|_| app.post_idempotent("k", &body));
    for response in futures_util::future::join_all(requests).await {
        assert_created_first(&response);
    }
    assert_eq!(app.count_webhooks().await, 1);
}

/// A request that created the last allowed webhook returns it again when it is repeated.
#[tokio::test]
async fn idempotent_retry_works_at_limit() {
    let app = TestApp::with(TargetPolicy::Any, NO_LIMITS, 1).await;
    let body = valid();
    let requests = (0..16).map(|_| app.post_idempotent("k", &body));
    for response in futures_util::future::join_all(requests).await {
        assert_created_first(&response);
    }
}

/// A repeated request waits for the result of the first one, which is still running.
#[tokio::test]
async fn idempotent_retry_waits_for_first() {
    let app = TestApp::new().await;
    let proxy = Proxy::start(app.tables.endpoint.clone()).await;
    let store = app.tables.store_through(local_client(
        &proxy.url,
        crate::support::tables::patient_timeouts(),
    ));
    let app = app.over(store, NO_LIMITS);
    proxy.arm("TransactWriteItems", 0, Fault::ConcurrentCreate);
    let response = app.post_idempotent("k", &valid()).await;
    assert!(!proxy.disarm());
    assert_created_first(&response);
    assert_eq!(app.count_webhooks().await, 1);
}

/// A request that is rejected can be corrected and sent again with the same key.
#[tokio::test]
async fn rejected_request_uses_no_idempotency_key() {
    let app = TestApp::new().await;
    let rejected = app
        .post_idempotent("order-1", &valid_with("events", json!([])))
        .await;
    assert_eq!(rejected.status, StatusCode::BAD_REQUEST);
    let corrected = app.post_idempotent("order-1", &valid()).await;
    assert_eq!(corrected.status, StatusCode::CREATED);
}

fn assert_created_first(response: &TestResponse) {
    assert_eq!(
        (response.status, &response.json["data"]["id"]),
        (StatusCode::CREATED, &json!(1)),
        "{}",
        response.text
    );
}
