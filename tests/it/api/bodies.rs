//! Request bodies: their size, their type, and their fields.

use axum::{body::Body, http::StatusCode};
use serde_json::json;

use super::{valid, valid_with};
use crate::support::app::{TestApp, WEBHOOKS};

const NO_OBJECT: &str = "The request body is not an object; expected a JSON object";

/// A body that is no JSON object, or not a complete one, returns 400.
#[tokio::test]
async fn malformed_body_is_described() {
    let app = TestApp::new().await;
    let trailing = format!("{} x", valid());
    for (body, message) in [
        ("", "The request body is empty; expected a JSON object"),
        (
            "{",
            "The request body is not valid JSON: EOF while parsing an object at line 1 column 1",
        ),
        ("[]", NO_OBJECT),
        (r#"["https://example.com",["job.failed"],null]"#, NO_OBJECT),
        ("\"x\"", NO_OBJECT),
        (
            &trailing,
            "The request body is not valid JSON: trailing characters",
        ),
        (r#"{"events":["job.failed"]}"#, "url: required"),
        (r#"{"url":"https://example.com"}"#, "events: required"),
        (
            r#"{"url":"https://example.com","url":"https://example.com","events":["job.failed"]}"#,
            "duplicate field `url`",
        ),
    ] {
        assert_refused(&app, body, message).await;
    }
    assert_eq!(app.count_webhooks().await, 0);
}

/// A body with an invalid field returns 400 and names the field.
#[tokio::test]
async fn invalid_field_is_named() {
    let app = TestApp::new().await;
    for (field, value, message) in [
        (
            "secret",
            json!("12345678"),
            "secret: unknown field `secret`, expected one of \
             `url`, `events`, `secret_key`, `headers`, `description`",
        ),
        (
            "secret_key",
            json!("short"),
            "secret_key: expected 8 to 256 characters",
        ),
        (
            "secret_key",
            json!("whsec_###"),
            "secret_key: expected base64 with padding after `whsec_`",
        ),
        (
            "secret_key",
            json!(87_654_321),
            "secret_key: expected a string",
        ),
    ] {
        let body = valid_with(field, value).to_string();
        assert_refused(&app, &body, message).await;
    }
    assert_eq!(app.count_webhooks().await, 0);
}

#[tokio::test]
async fn invalid_url_is_described() {
    let app = TestApp::new().await;
    for (url, message) in [
        (json!(5), "url: expected a string"),
        (
            json!("example.com"),
            "url: expected a URL that begins with `https://`",
        ),
        (
            json!("https://example.com/#top"),
            "url: expected a URL without a fragment (`#`)",
        ),
        (
            json!("https://me@example.com/"),
            "url: expected a URL without user name or password",
        ),
        (
            json!("https://hooks..example.com/"),
            "url: expected a host name of at most 253 characters, each part of 1 to 63",
        ),
    ] {
        let body = valid_with("url", url).to_string();
        assert_refused(&app, &body, message).await;
    }
    assert_eq!(app.count_webhooks().await, 0);
}

#[tokio::test]
async fn invalid_events_are_described() {
    let app = TestApp::new().await;
    for (events, message) in [
        (json!("job.failed"), "events: expected an array of strings"),
        (json!([1]), "events: expected an array of strings"),
        (json!([]), "events: expected at least one event"),
        (
            json!(["job.failed", "job.failed"]),
            "events: `job.failed` is listed twice, expected each event once",
        ),
        (
            json!(["job.done"]),
            "events: unknown event `job.done`, expected one or more of \
             `job.completed`, `job.failed`, `webhook.disabled`, `webhook.failing`, \
             `webhook.recovered`, `delivery.exhausted`",
        ),
    ] {
        let body = valid_with("events", events).to_string();
        assert_refused(&app, &body, message).await;
    }
    assert_eq!(app.count_webhooks().await, 0);
}

async fn assert_refused(app: &TestApp, body: &str, message: &str) {
    let response = app.post(body.to_owned()).await;
    let (status, code, text) = response.error();
    assert_eq!((status, code), (400, "invalid_request"), "{body}");
    assert!(text.starts_with(message), "{body}: {text}");
    assert!(!text.contains("87654321"), "{text}");
}

/// A body of 64 KiB is read, and a longer one returns 413.
#[tokio::test]
async fn body_is_limited_to_64_kib() {
    let app = TestApp::new().await;
    let mut body = valid().to_string();
    body += &" ".repeat(64 * 1024 - body.len());
    assert_eq!(app.post(body.clone()).await.status, StatusCode::CREATED);
    let response = app.post(body + " ").await;
    assert_eq!(
        response.error(),
        (
            413,
            "payload_too_large",
            "The request body is too large; expected at most 64 KiB"
        )
    );
}

/// A body with another content type than JSON returns 415.
#[tokio::test]
async fn other_content_type_returns_415() {
    let app = TestApp::new().await;
    for (declared, accepted) in [
        (None, false),
        (Some("text/plain"), false),
        (Some("application/x-www-form-urlencoded"), false),
        (Some("application/json; charset=utf-8"), true),
        (Some("Application/JSON"), true),
        (Some("application/vnd.example+json"), true),
    ] {
        let mut request = app.request("POST", WEBHOOKS);
        if let Some(declared) = declared {
            request = request.header("content-type", declared);
        }
        let response = app
            .send(request.body(Body::from(valid().to_string())).unwrap())
            .await;
        if accepted {
            assert_eq!(response.status, StatusCode::CREATED, "{declared:?}");
        } else {
            assert_eq!(response.error().0, 415, "{declared:?}");
            assert_eq!(response.error().1, "unsupported_media_type");
        }
    }
}
