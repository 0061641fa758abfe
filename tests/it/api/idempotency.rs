//! The header `Idempotency-Key`.

use std::time::Duration;

use axum::{body::Body, http::StatusCode};
use nano_webhooks_cli::local_client;
use nano_webhooks_core::target_policy::TargetPolicy;
use serde_json::{Value, json};

use super::valid;
use crate::support::{
    app::{NO_LIMITS, TestApp, WEBHOOKS},
    proxy::{Fault, Proxy},
};

/// The same idempotency key returns the same webhook, and 409 for a different request.
#[tokio::test]
async fn idempotency_key_returns_same_webhook() {
    let app = TestApp::new().await;
    let post = async |key: &str, body: Value| {
        let request = app
            .request("POST", WEBHOOKS)
            .header("content-type", "application/json")
            .header("idempotency-key", key);
        app.send(request.body(Body::from(body.to_string())).unwrap())
            .await
    };
    let first = post("order-1", valid()).await;
    let again = post("order-1", valid()).await;
    assert_eq!(
        (again.status, &again.text),
        (StatusCode::CREATED, &first.text)
    );
    assert_eq!(again.header("location"), "/api/v1/webhooks/1");
    assert_eq!(
        app.get(WEBHOOKS).await.json["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );

    let mut other = valid();
    other["events"] = json!(["job.failed"]);
    let refused = post("order-1", other.clone()).await;
    assert_eq!(
        refused.error(),
        (
            409,
            "conflict",
            "Idempotency-Key: already used for a different request; use a new key"
        )
    );
    assert_eq!(post("order-2", other.clone()).await.json["data"]["id"], 2);

    app.delete("/api/v1/webhooks/1").await;
    assert_eq!(
        post("order-1", valid()).await.text,
        first.text,
        "the response is repeated unchanged"
    );

    app.clock.advance(Duration::from_hours(24));
    assert_eq!(
        post("order-1", other).await.json["data"]["id"],
        3,
        "after 24 hours a key is new"
    );

    for wrong in ["", &"k".repeat(256)] {
        assert_eq!(
            post(wrong, valid()).await.error().2,
            "Idempotency-Key: expected one value of 1 to 255 printable ASCII characters"
        );
    }
}

/// Requests are the same if their parsed fields are equal, whatever their white space and key
/// order. An optional field that is `null` is equal to an absent one.
#[tokio::test]
async fn equal_fields_are_same_request() {
    let app = TestApp::new().await;
    let post = async |body: &str| {
        let request = app
            .request("POST", WEBHOOKS)
            .header("content-type", "application/json")
            .header("idempotency-key", "k");
        app.send(request.body(Body::from(body.to_owned())).unwrap())
            .await
    };
    let first =
        post(r#"{"url":"https://example.com/a","events":["job.failed"],"secret_key":"12345678"}"#)
            .await;
    assert_eq!(first.json["data"]["id"], 1);
    for same in [
        r#"{"secret_key":"12345678","events":["job.failed"],"url":"https://example.com/a"}"#,
        "{ \"url\": \"https://example.com\\/a\",\n \"events\": [\"job.failed\"],
           \"description\": null, \"secret_key\": \"12345678\" }",
    ] {
        let again = post(same).await;
        assert_eq!((again.status, &again.text), (first.status, &first.text));
    }
    for other in [
        r#"{"url":"https://example.com/b","events":["job.failed"],"secret_key":"12345678"}"#,
        r#"{"url":"https://example.com/a","events":["job.completed"],"secret_key":"12345678"}"#,
        r#"{"url":"https://example.com/a","events":["job.failed"],"secret_key":"12345679"}"#,
        r#"{"url":"https://example.com/a","events":["job.failed"]}"#,
    ] {
        assert_eq!(post(other).await.status, StatusCode::CONFLICT, "{other}");
    }
}

/// Concurrent requests with one idempotency key create one webhook.
#[tokio::test]
async fn concurrent_idempotent_requests_create_one() {
    let app = TestApp::new().await;
    let request = || {
        let request = app
            .request("POST", WEBHOOKS)
            .header("content-type", "application/json")
            .header("idempotency-key", "k");
        app.send(request.body(Body::from(valid().to_string())).unwrap())
    };
    let responses = futures_util::future::join_all((0..8).map(|_| request())).await;
    for response in responses {
        assert_eq!(
            (response.status, &response.json["data"]["id"]),
            (StatusCode::CREATED, &json!(1))
        );
    }
    assert_eq!(
        app.get(WEBHOOKS).await.json["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

/// A request that created the last allowed webhook returns it again when it is repeated.
#[tokio::test]
async fn idempotent_retry_works_at_limit() {
    let app = TestApp::with(TargetPolicy::Any, NO_LIMITS, 1).await;
    let request = || {
        let request = app
            .request("POST", WEBHOOKS)
            .header("content-type", "application/json")
            .header("idempotency-key", "k");
        app.send(request.body(Body::from(valid().to_string())).unwrap())
    };
    for response in futures_util::future::join_all((0..16).map(|_| request())).await {
        assert_eq!(
            (response.status, &response.json["data"]["id"]),
            (StatusCode::CREATED, &json!(1)),
            "{}",
            response.text
        );
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
    let request = app
        .request("POST", WEBHOOKS)
        .header("content-type", "application/json")
        .header("idempotency-key", "k");
    let response = app
        .send(request.body(Body::from(valid().to_string())).unwrap())
        .await;
    assert!(!proxy.disarm());
    assert_eq!(
        (response.status, &response.json["data"]["id"]),
        (StatusCode::CREATED, &json!(1)),
        "{}",
        response.text
    );
    assert_eq!(
        app.get(WEBHOOKS).await.json["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

/// A request that is rejected can be corrected and sent again with the same key.
#[tokio::test]
async fn rejected_request_uses_no_idempotency_key() {
    let app = TestApp::new().await;
    let mut body = valid();
    body["events"] = json!([]);
    for (body, status) in [
        (body, StatusCode::BAD_REQUEST),
        (valid(), StatusCode::CREATED),
    ] {
        let request = app
            .request("POST", WEBHOOKS)
            .header("content-type", "application/json")
            .header("idempotency-key", "order-1");
        let request = request.body(Body::from(body.to_string())).unwrap();
        assert_eq!(app.send(request).await.status, status);
    }
}
