//! API keys, and what a request without a valid one receives.

use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use nano_webhooks::random;
use nano_webhooks_core::api_key::ApiKey;
use serde_json::json;

use crate::support::{
    accounts::{account, create_key},
    app::{TestApp, WEBHOOKS},
    receiver::Receiver,
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
    let unused = create_key(&app.tables, "acme", app.clock.now()).await;
    assert_eq!(last_used_on(&app, &app.key).await, None);
    for (wait, day) in [
        (0, "2024-12-23"),
        (60, "2024-12-23"),
        (24 * 60 * 60, "2024-12-24"),
    ] {
        app.clock.advance(Duration::from_secs(wait));
        assert_eq!(app.get(WEBHOOKS).await.status, StatusCode::OK);
        assert_eq!(last_used_on(&app, &app.key).await.as_deref(), Some(day));
        assert_eq!(last_used_on(&app, &unused).await, None);
    }
    let everything = format!("{:?}", app.tables.items(&app.tables.names.webhooks).await);
    for key in [&unused, &app.key] {
        assert!(!everything.contains(&key.expose()[key.display_prefix().len()..]));
    }
}

/// The day of the last use that the list of keys shows.
async fn last_used_on(app: &TestApp, key: &ApiKey) -> Option<String> {
    let keys = app.tables.store.api_keys();
    let listed = keys.list(&account("acme")).await.unwrap();
    assert_eq!(listed.len(), 2);
    let shown = listed
        .into_iter()
        .find(|listed| listed.prefix == key.display_prefix());
    shown.unwrap().last_used_on
}

/// Every route needs a key and shows nothing of another account.
#[tokio::test]
async fn every_route_needs_own_key() {
    let app = TestApp::new().await;
    let resources = Resources::create(&app).await;
    let other = app.with_other_account().await;
    let document = other.get("/api/v1/openapi.json").await.json;
    let mut count = 0;
    for (route, item) in document["paths"].as_object().unwrap() {
        let path = resources.path(route);
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
                let request = other
                    .request(&method, &path)
                    .header("content-type", "application/json");
                let body = Body::from(valid_body(&method, route));
                let response = other.send(request.body(body).unwrap()).await;
                assert_eq!(response.error().0, 404, "{method} {route}");
            }
            count += 1;
        }
    }
    assert_eq!(count, 13);
}

/// A delivery and a replay of webhook 1.
struct Resources {
    event: String,
    replay: String,
}

impl Resources {
    async fn create(app: &TestApp) -> Self {
        let receiver = Receiver::start().await;
        app.create(json!({"url": receiver.url("/status/500"), "events": ["job.completed"]}))
            .await;
        app.end_jobs(1, 1).await;
        let listed = app.get("/api/v1/webhooks/1/deliveries").await;
        let event = listed.json["data"][0]["event_id"].as_str().unwrap();
        app.clock.advance(Duration::from_secs(1));
        let window = json!({"since": "2024-12-23T09:00:00Z"});
        let created = app
            .send_json("POST", "/api/v1/webhooks/1/replay", &window)
            .await;
        let replay = created.json["data"]["id"].as_str().unwrap();
        Self {
            event: event.to_owned(),
            replay: replay.to_owned(),
        }
    }

    /// The path of a route, with the ids of these resources.
    fn path(&self, route: &str) -> String {
        route
            .replace("{id}", "1")
            .replace("{event_id}", &self.event)
            .replace("{replay}", &self.replay)
    }
}

/// A valid request body of the route.
fn valid_body(method: &str, route: &str) -> &'static str {
    if route.ends_with("/replay") {
        return r#"{"since":"2024-12-23T09:00:00Z"}"#;
    }
    if method == "PATCH" { "{}" } else { "" }
}
