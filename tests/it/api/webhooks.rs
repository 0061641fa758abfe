//! The routes of webhooks.

use std::time::Duration;

use axum::http::StatusCode;
use nano_webhooks_core::target_policy::{NOT_ALLOWED, NOT_HTTPS, TargetPolicy};
use serde_json::{Value, json};

use super::{valid, valid_with};
use crate::support::app::{NO_LIMITS, TestApp, TestResponse, WEBHOOKS};

/// The path of an account's first webhook.
const FIRST: &str = "/api/v1/webhooks/1";

/// A webhook is created, listed and deleted as documented.
#[tokio::test]
async fn webhook_routes_match_documentation() {
    let app = TestApp::new().await;
    let listed = app.get(WEBHOOKS).await;
    assert_eq!(
        (listed.status, listed.text.as_str()),
        (StatusCode::OK, r#"{"success":true,"data":[]}"#)
    );

    let created = app
        .create(json!({
            "url": "https://example.com/hooks",
            "events": ["job.failed", "job.completed"],
            "secret_key": "open sesame",
        }))
        .await;
    let webhook = concat!(
        r#"{"id":1,"url":"https://example.com/hooks","events":["job.failed","job.completed"],"#,
        r#""status":"active"}"#,
    );
    assert_eq!(created.status, StatusCode::CREATED);
    assert_eq!(
        created.text,
        format!(r#"{{"success":true,"data":{webhook}}}"#)
    );
    assert_eq!(created.header("location"), "/api/v1/webhooks/1");

    let listed = app.get(WEBHOOKS).await;
    assert_eq!(
        listed.text,
        format!(r#"{{"success":true,"data":[{webhook}]}}"#)
    );

    let deleted = app.delete("/api/v1/webhooks/1").await;
    assert_eq!(
        (deleted.status, deleted.text.as_str()),
        (StatusCode::OK, r#"{"success":true,"data":{"id":1}}"#)
    );
    assert_eq!(
        app.delete("/api/v1/webhooks/1").await.error(),
        (404, "not_found", "No such webhook: 1")
    );
    assert_eq!(app.get(WEBHOOKS).await.json["data"], json!([]));
}

/// Ids count from 1 and are never reused.
#[tokio::test]
async fn ids_are_never_reused() {
    let app = TestApp::new().await;
    for id in 1..=3 {
        assert_eq!(app.create(valid()).await.json["data"]["id"], id);
    }
    app.delete("/api/v1/webhooks/3").await;
    app.delete("/api/v1/webhooks/1").await;
    assert_eq!(app.create(valid()).await.json["data"]["id"], 4);
    let listed = app.get(WEBHOOKS).await;
    let ids: Vec<_> = listed.json["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|webhook| webhook["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids, [2, 4]);
}

/// A webhook is shown in detail, and a PATCH changes only the fields that it names.
#[tokio::test]
async fn patch_changes_named_fields() {
    let app = TestApp::new().await;
    app.create(valid_with("description", json!("Production")))
        .await;
    let mut expected = created_webhook();
    let shown = app.get(FIRST).await;
    assert_eq!(
        (shown.status, &shown.json["data"]),
        (StatusCode::OK, &expected)
    );

    app.clock.advance(Duration::from_secs(1));
    let change = json!({
        "events": ["job.failed"],
        "secret_key": "open sesame",
        "description": null,
        "max_per_second": 50,
    });
    let changed = patch(&app, change).await;
    expected["events"] = json!(["job.failed"]);
    expected["signed"] = json!(true);
    expected["description"] = Value::Null;
    expected["max_per_second"] = json!(50);
    expected["updated_at"] = json!("2024-12-23T10:00:01Z");
    assert_eq!(
        (changed.status, &changed.json["data"]),
        (StatusCode::OK, &expected)
    );
    assert!(!changed.text.contains("sesame"));

    let change = json!({
        "status": "disabled",
        "url": "https://example.com/other",
        "secret_key": null,
        "max_per_second": null,
    });
    let disabled = patch(&app, change).await;
    expected["url"] = json!("https://example.com/other");
    expected["status"] = json!("disabled");
    expected["signed"] = json!(false);
    expected["max_per_second"] = Value::Null;
    expected["disabled_reason"] = json!("Disabled through the API.");
    assert_eq!(disabled.json["data"], expected);
    let enabled = patch(&app, json!({"status": "active"})).await;
    expected["status"] = json!("active");
    expected["disabled_reason"] = Value::Null;
    assert_eq!(enabled.json["data"], expected);
}

/// A PATCH with an invalid field returns 400, names the field and changes nothing.
#[tokio::test]
async fn invalid_patch_changes_nothing() {
    let app = TestApp::new().await;
    app.create(valid_with("description", json!("Production")))
        .await;
    app.clock.advance(Duration::from_secs(1));
    for (body, message) in [
        (
            json!({"status": "paused"}),
            "status: expected `active` or `disabled`",
        ),
        (json!({"status": null}), "status: expected a string"),
        (json!({"url": null}), "url: expected a string"),
        (
            json!({"url": "ftp://example.com"}),
            "url: expected a URL that begins with `https://`",
        ),
        (json!({"events": []}), "events: expected at least one event"),
        (
            json!({"secret_key": "short"}),
            "secret_key: expected 8 to 256 characters",
        ),
        (
            json!({"max_per_second": 0}),
            "max_per_second: expected a whole number from 1 to 1000, or null",
        ),
        (
            json!({"max_per_second": 1.5}),
            "max_per_second: expected a whole number from 1 to 1000, or null",
        ),
        (
            json!({"max_per_second": "10"}),
            "max_per_second: expected a whole number from 1 to 1000, or null",
        ),
        (
            json!({"description": "x".repeat(501)}),
            "description: expected at most 500 characters",
        ),
        (json!({"id": 2}), "id: unknown field `id`, expected one of"),
    ] {
        let response = patch(&app, body).await;
        let (status, code, text) = response.error();
        assert_eq!((status, code), (400, "invalid_request"));
        assert!(text.starts_with(message), "{text}");
    }
    assert_eq!(app.get(FIRST).await.json["data"], created_webhook());
}

/// A deleted webhook cannot be read or changed.
#[tokio::test]
async fn deleted_webhook_returns_404() {
    let app = TestApp::new().await;
    app.create(valid()).await;
    for status in ["disabled", "active"] {
        patch(&app, json!({"status": status})).await;
    }
    app.delete(FIRST).await;
    for response in [
        patch(&app, json!({"status": "active"})).await,
        app.get(FIRST).await,
    ] {
        assert_eq!(response.error(), (404, "not_found", "No such webhook: 1"));
    }
    assert_eq!(
        app.tables.items_under("RESUME").await.len(),
        1,
        "the next run of the job deletes it"
    );
}

async fn patch(app: &TestApp, body: Value) -> TestResponse {
    app.send_json("PATCH", FIRST, &body).await
}

/// The details of a new webhook with the description `Production`.
fn created_webhook() -> Value {
    json!({
        "id": 1,
        "url": "https://example.com/hooks",
        "events": ["job.completed", "job.failed"],
        "status": "active",
        "created_at": "2024-12-23T10:00:00Z",
        "updated_at": "2024-12-23T10:00:00Z",
        "description": "Production",
        "signed": false,
        "headers": [],
        "disabled_reason": null,
        "max_per_second": null,
        "health": {
            "state": "unknown",
            "failing_since": null,
            "last_failure": null,
            "first_success_after_failure_at": null,
        },
    })
}

/// A webhook of another account returns 404.
#[tokio::test]
async fn foreign_webhook_returns_404() {
    let app = TestApp::new().await;
    app.create(valid()).await;
    app.create(valid()).await;
    let app = app.with_other_account().await;
    for id in [
        "1",
        "2",
        "3",
        "0",
        "-1",
        "01",
        "abc",
        "99999999999999999999",
    ] {
        let response = app.delete(&format!("/api/v1/webhooks/{id}")).await;
        assert_eq!(
            response.error(),
            (404, "not_found", format!("No such webhook: {id}").as_str())
        );
    }
    assert_eq!(
        app.delete("/api/v1/webhooks/%FF").await.error(),
        (404, "not_found", "No such webhook")
    );
    assert_eq!(app.get(WEBHOOKS).await.json["data"], json!([]));
    assert_eq!(app.create(valid()).await.json["data"]["id"], 1);
}

/// One of the deletes succeeds, and the account has room for one more webhook, not for eight.
#[tokio::test]
async fn concurrent_deletes_count_once() {
    let app = TestApp::with(TargetPolicy::Any, NO_LIMITS, 2).await;
    for _ in 0..2 {
        assert_eq!(app.create(valid()).await.status, StatusCode::CREATED);
    }
    let deletes = (0..8).map(|_| app.delete("/api/v1/webhooks/1"));
    let responses = futures_util::future::join_all(deletes).await;
    let mut statuses: Vec<_> = responses.iter().map(|response| response.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses[0], StatusCode::OK);
    assert_eq!(statuses[1..], [StatusCode::NOT_FOUND; 7]);
    assert_eq!(app.create(valid()).await.status, StatusCode::CREATED);
    assert_eq!(app.create(valid()).await.status, StatusCode::CONFLICT);
}

/// Concurrent requests never share an id and do not exceed the limit of webhooks.
#[tokio::test]
async fn concurrent_creates_respect_limit() {
    let app = TestApp::with(TargetPolicy::Any, NO_LIMITS, 10).await;
    let responses = futures_util::future::join_all((0..16).map(|_| app.create(valid()))).await;
    let mut ids: Vec<_> = responses
        .iter()
        .filter_map(|response| response.json["data"]["id"].as_u64())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=10).collect::<Vec<_>>());
    for refused in responses
        .iter()
        .filter(|response| response.status != StatusCode::CREATED)
    {
        assert_eq!(
            refused.error(),
            (
                409,
                "conflict",
                "The account has reached its limit of 10 webhooks; delete one first"
            )
        );
    }
    app.delete("/api/v1/webhooks/5").await;
    assert_eq!(app.create(valid()).await.json["data"]["id"], 11);
}

/// Creating a webhook with a blocked target returns 400 with the rule.
#[tokio::test]
async fn blocked_target_is_refused_at_creation() {
    let app = TestApp::with(TargetPolicy::Public, NO_LIMITS, 50).await;
    for (url, rule) in [
        ("http://example.com/", NOT_HTTPS),
        ("https://127.0.0.1/", NOT_ALLOWED),
        ("https://0x7f.1/", NOT_ALLOWED),
        ("https://169.254.169.254/latest/meta-data", NOT_ALLOWED),
        ("https://[::ffff:10.0.0.1]/", NOT_ALLOWED),
        ("https://localhost/", NOT_ALLOWED),
    ] {
        let response = app
            .create(json!({"url": url, "events": ["job.failed"]}))
            .await;
        let (status, code, message) = response.error();
        assert_eq!((status, code), (400, "invalid_request"));
        assert!(
            message.starts_with("url: expected a public https address"),
            "{message}"
        );
        assert!(message.contains(rule), "{url}: {message}");
    }
    let unresolved = app
        .create(json!({"url": "https://no-such-host.invalid/", "events": ["job.failed"]}))
        .await;
    assert_eq!(unresolved.status, StatusCode::CREATED);
}

/// No response contains a secret.
#[tokio::test]
async fn responses_hide_secrets() {
    let app = TestApp::new().await;
    let mut body = valid();
    body["secret_key"] = json!("open sesame");
    let created = app.create(body.clone()).await;
    body["events"] = json!([]);
    for response in [
        created,
        app.get(WEBHOOKS).await,
        app.create(body).await,
        app.delete("/api/v1/webhooks/1").await,
    ] {
        assert!(
            !response.text.contains("sesame") && !response.text.contains("secret"),
            "{}",
            response.text
        );
    }
}
