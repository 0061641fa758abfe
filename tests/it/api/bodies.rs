//! Request bodies: their size, their type, and their fields.

use axum::{body::Body, http::StatusCode};
use serde_json::{Value, json};

use super::valid;
use crate::support::app::{TestApp, WEBHOOKS};

/// A body with an invalid field returns 400 and names the field.
#[tokio::test]
async fn invalid_field_is_named() {
    let app = TestApp::new().await;
    let with = |field: &str, value: Value| {
        let mut body = valid();
        body[field] = value;
        body.to_string()
    };
    for (body, message) in [
        (
            String::new(),
            "The request body is empty; expected a JSON object",
        ),
        (
            "{".to_owned(),
            "The request body is not valid JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            "[]".to_owned(),
            "The request body is not an object; expected a JSON object",
        ),
        (
            r#"["https://example.com",["job.failed"],null]"#.to_owned(),
            "The request body is not an object; expected a JSON object",
        ),
        (
            "\"x\"".to_owned(),
            "The request body is not an object; expected a JSON object",
        ),
        (
            format!("{} x", valid()),
            "The request body is not valid JSON: trailing characters",
        ),
        (
            json!({"events":["job.failed"]}).to_string(),
            "url: required",
        ),
        (
            json!({"url":"https://example.com"}).to_string(),
            "events: required",
        ),
        (
            with("secret", json!("12345678")),
            "secret: unknown field `secret`, expected one of \
             `url`, `events`, `secret_key`, `description`",
        ),
        (
            r#"{"url":"https://example.com","url":"https://example.com","events":["job.failed"]}"#
                .to_owned(),
            "duplicate field `url`",
        ),
        (with("url", json!(5)), "url: expected a string"),
        (
            with("url", json!("example.com")),
            "url: expected a URL that begins with `https://`",
        ),
        (
            with("url", json!("https://example.com/#top")),
            "url: expected a URL without a fragment (`#`)",
        ),
        (
            with("url", json!("https://me@example.com/")),
            "url: expected a URL without user name or password",
        ),
        (
            with("events", json!("job.failed")),
            "events: expected an array of strings",
        ),
        (
            with("events", json!([1])),
            "events: expected an array of strings",
        ),
        (
            with("events", json!([])),
            "events: expected at least one event",
        ),
        (
            with("events", json!(["job.failed", "job.failed"])),
            "events: `job.failed` is listed twice, expected each event once",
        ),
        (
            with("events", json!(["job.done"])),
            "events: unknown event `job.done`, expected one or more of \
             `job.completed`, `job.failed`, `webhook.disabled`",
        ),
        (
            with("secret_key", json!("short")),
            "secret_key: expected 8 to 256 characters",
        ),
        (
            with("secret_key", json!("whsec_###")),
            "secret_key: expected base64 with padding after `whsec_`",
        ),
        (
            with("secret_key", json!(87_654_321)),
            "secret_key: expected a string",
        ),
    ] {
        let response = app.post(body.clone()).await;
        let (status, code, text) = response.error();
        assert_eq!((status, code), (400, "invalid_request"), "{body}");
        assert!(text.starts_with(message), "{body}: {text}");
        assert!(!text.contains("87654321"), "{text}");
    }
    assert_eq!(app.get(WEBHOOKS).await.json["data"], json!([]));
}

/// A body of 64 KiB is read, and a longer one returns 413.
#[tokio::test]
async fn body_is_limited_to_64_kib() {
    let app = TestApp::new().await;
    let padded = |length: usize| {
        format!(
            "{}{}",
            valid(),
            " ".repeat(length - valid().to_string().len())
        )
    };
    assert_eq!(
        app.post(padded(64 * 1024)).await.status,
        StatusCode::CREATED
    );
    let response = app.post(padded(64 * 1024 + 1)).await;
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
