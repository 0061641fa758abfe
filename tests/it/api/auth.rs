//! API keys, and what a request without a valid one receives.

use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use nano_webhooks::{dispatch::Dispatcher, random};
use nano_webhooks_core::api_key::ApiKey;
use serde_json::json;

use crate::support::{
    accounts::account,
    app::{TestApp, WEBHOOKS},
    receiver::Receiver,
    stream::{dispatch_batch, insert_record, job_image},
};

/// A missing or invalid key returns the documented message.
#[tokio::test]
async fn invalid_key_returns_401() {
    let app = TestApp::new().await;
    let unknown = ApiKey::from_random(&random::bytes());
    let key = app.key.expose();
    for authorization in [
        None,
        Some(String::new()),
        Some(key.to_owned()),
        Some(format!("Basic {key}")),
        Some("Bearer".to_owned()),
        Some("Bearer sk-123".to_owned()),
        Some(format!("Bearer {}", unknown.expose())),
        Some(format!("Bearer {key}x")),
    ] {
        for (method, path) in [
            ("GET", WEBHOOKS),
            ("POST", WEBHOOKS),
            ("DELETE", "/api/v1/webhooks/1"),
        ] {
            let mut request = Request::builder().method(method).uri(path);
            if let Some(authorization) = &authorization {
                request = request.header("authorization", authorization);
            }
            let response = app.send(request.body(Body::empty()).unwrap()).await;
            assert_eq!(
                response.error(),
                (401, "unauthorized", "Invalid or missing API key"),
                "{authorization:?}"
            );
        }
    }
    let revoked = app
        .tables
        .store
        .api_keys()
        .revoke(&account("acme"), app.key.display_prefix())
        .await
        .unwrap();
    assert!(revoked.is_applied());
    assert_eq!(app.get(WEBHOOKS).await.status, StatusCode::UNAUTHORIZED);
}

/// The authentication scheme is compared without regard to case (RFC 9110, section 11.1).
#[tokio::test]
async fn lower_case_bearer_scheme_is_accepted() {
    let app = TestApp::new().await;
    let authorization = format!("bearer {}", app.key.expose());
    let request = Request::get(WEBHOOKS).header("authorization", authorization);
    let response = app.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(response.status, StatusCode::OK);
}

/// The tables show the prefix of a key and the day of its last use, and nothing else.
#[tokio::test]
async fn key_shows_prefix_and_last_use() {
    let app = TestApp::new().await;
    let acme = account("acme");
    let unused = ApiKey::from_random(&random::bytes());
    app.tables
        .store
        .api_keys()
        .insert(&acme, &unused, app.clock.now())
        .await
        .unwrap();
    let used_on = async || {
        let listed = app.tables.store.api_keys().list(&acme).await.unwrap();
        assert_eq!(listed.len(), 2);
        let of = |key: &ApiKey| {
            listed
                .iter()
                .find(|listed| listed.prefix == key.display_prefix())
                .unwrap()
                .last_used_on
                .clone()
        };
        assert_eq!(of(&unused), None);
        of(&app.key)
    };
    assert_eq!(used_on().await, None);
    for (wait, day) in [
        (0, "2024-12-23"),
        (60, "2024-12-23"),
        (24 * 60 * 60, "2024-12-24"),
    ] {
        app.clock.advance(Duration::from_secs(wait));
        assert_eq!(app.get(WEBHOOKS).await.status, StatusCode::OK);
        assert_eq!(used_on().await.as_deref(), Some(day));
    }
    let everything = format!("{:?}", app.tables.items(&app.tables.names.webhooks).await);
    for key in [&unused, &app.key] {
        assert!(!everything.contains(&key.expose()[key.display_prefix().len()..]));
    }
}

/// Every route needs a key and shows nothing of another account.
#[tokio::test]
async fn every_route_needs_own_key() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    app.create(json!({"url": receiver.url("/status/500"), "events": ["job.completed"]}))
        .await;
    let dispatcher = Dispatcher {
        clock: app.clock.clone(),
        ..app.tables.dispatcher()
    };
    assert_eq!(
        dispatch_batch(
            &dispatcher,
            &[insert_record(1, job_image("t1", "completed"))]
        )
        .await,
        []
    );
    let listed = app.get("/api/v1/webhooks/1/deliveries").await;
    let event = listed.json["data"][0]["event_id"].as_str().unwrap();

    app.clock.advance(Duration::from_secs(1));
    let window = json!({"since": "2024-12-23T09:00:00Z"});
    let replay = app
        .send_json("POST", "/api/v1/webhooks/1/replay", &window)
        .await;
    let replay = replay.json["data"]["id"].as_str().unwrap();
    let theirs = ApiKey::from_random(&random::bytes());
    let other = account("other");
    app.tables
        .store
        .api_keys()
        .insert(&other, &theirs, app.clock.now())
        .await
        .unwrap();
    let other = TestApp { key: theirs, ..app };
    let document = other.get("/api/v1/openapi.json").await.json;
    let mut count = 0;
    for (route, item) in document["paths"].as_object().unwrap() {
        let path = route
            .replace("{id}", "1")
            .replace("{event_id}", event)
            .replace("{replay}", replay);
        for (method, operation) in item.as_object().unwrap() {
            if operation["security"] == json!([]) {
                continue;
            }
            let method = method.to_uppercase();
            let without_key = Request::builder()
                .method(method.as_str())
                .uri(&path)
                .body(Body::empty())
                .unwrap();
            let response = other.send(without_key).await;
            assert_eq!(response.error().0, 401, "{method} {route}");
            if route.contains("{id}") {
                let body = match route.rsplit('/').next() {
                    Some("replay") => r#"{"since":"2024-12-23T09:00:00Z"}"#,
                    _ if method == "PATCH" => "{}",
                    _ => "",
                };
                let request = other
                    .request(&method, &path)
                    .header("content-type", "application/json");
                let response = other.send(request.body(Body::from(body)).unwrap()).await;
                assert_eq!(response.error().0, 404, "{method} {route}");
            }
            count += 1;
        }
    }
    assert_eq!(count, 13);
}
