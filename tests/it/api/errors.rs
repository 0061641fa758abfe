//! Errors that do not depend on a route: no route, no tables, a corrupt item.

use axum::{body::Body, http::StatusCode};
use nano_webhooks::aws;
use nano_webhooks_cli::local_client;
use serde_json::json;

use super::valid;
use crate::support::app::{NO_LIMITS, TestApp, WEBHOOKS};

/// Unknown routes and methods return the documented envelope.
#[tokio::test]
async fn unknown_route_has_envelope() {
    let app = TestApp::new().await;
    for path in [
        "/",
        "/api",
        "/api/v1",
        "/api/v1/webhook",
        "/api/v1/webhooks/",
        "/api/v1/webhooks/1/x",
        "/api/v2/webhooks",
    ] {
        let response = app.get(path).await;
        assert_eq!(
            response.error(),
            (
                404,
                "not_found",
                format!("No such route: GET {path}").as_str()
            )
        );
    }
    for (method, path, allow) in [
        ("PUT", WEBHOOKS, "GET,HEAD,POST"),
        ("DELETE", WEBHOOKS, "GET,HEAD,POST"),
        ("POST", "/api/v1/webhooks/1", "GET,HEAD,PATCH,DELETE"),
        ("BREW", "/api/v1/webhooks/1", "GET,HEAD,PATCH,DELETE"),
    ] {
        let response = app
            .send(app.request(method, path).body(Body::empty()).unwrap())
            .await;
        assert_eq!(
            response.error(),
            (
                405,
                "method_not_allowed",
                format!("{path} does not support {method}").as_str()
            )
        );
        assert_eq!(response.header("allow"), allow);
    }
    let healthy = app.get("/healthz").await;
    assert_eq!(
        (healthy.status, healthy.json),
        (
            StatusCode::OK,
            json!({"success":true,"data":{"status":"ok"}})
        )
    );
}

/// Without DynamoDB the API returns 503 and hides the cause.
#[tokio::test]
async fn unreachable_dynamodb_returns_503() {
    let app = TestApp::new().await;
    let unreachable = app
        .tables
        .store_through(local_client("http://127.0.0.1:9", aws::timeouts()));
    let app = app.over(unreachable, NO_LIMITS);
    let response = app.get(WEBHOOKS).await;
    assert_eq!(
        response.error(),
        (
            503,
            "unavailable",
            "Temporarily unavailable; try again later"
        )
    );
    assert_eq!(response.header("retry-after"), "1");
}

/// A corrupt item returns 500 and hides the cause.
#[tokio::test]
async fn corrupt_item_returns_500() {
    let app = TestApp::new().await;
    app.create(valid()).await;
    let webhook = app
        .tables
        .items_under("ACCOUNT#acme")
        .await
        .into_iter()
        .find(|item| item.contains_key("url"))
        .unwrap();
    let mut broken = webhook;
    broken.insert(
        "url".into(),
        aws_sdk_dynamodb::types::AttributeValue::S("nonsense".into()),
    );
    let put = app
        .tables
        .client
        .put_item()
        .table_name(&app.tables.names.webhooks)
        .set_item(Some(broken));
    put.send().await.unwrap();
    assert_eq!(
        app.get(WEBHOOKS).await.error(),
        (500, "internal_error", "Internal error")
    );
}
