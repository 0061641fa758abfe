//! The API over test tables, called without sockets.

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode},
};
use http_body_util::BodyExt;
use nano_webhooks::{
    api::{AppState, router},
    client::{
        target_guard::TargetGuard,
        webhook_client::{self, WebhookClient},
    },
    clock::Clock,
    dispatch::Dispatcher,
    store::{Store, rate_limits::RateLimits},
};
use nano_webhooks_core::{api_key::ApiKey, target_policy::TargetPolicy, timestamp::Timestamp};
use serde_json::Value;
use tower::ServiceExt;

use crate::support::{
    accounts::create_key,
    permissions,
    stream::{completed_jobs, dispatch_batch},
    tables::TestTables,
};

pub const NO_LIMITS: RateLimits = RateLimits {
    per_minute: None,
    per_day: None,
};

pub const WEBHOOKS: &str = "/api/v1/webhooks";

/// The API as account `acme`.
pub struct TestApp {
    pub tables: TestTables,
    pub router: Router,
    pub key: ApiKey,
    pub clock: Clock,
}

pub struct TestResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
    pub json: Value,
}

impl TestResponse {
    pub fn error(&self) -> (u16, &str, &str) {
        assert_eq!(self.json["success"], false, "{}", self.text);
        let part = |name| self.json["error"][name].as_str().unwrap();
        (self.status.as_u16(), part("code"), part("message"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

impl TestApp {
    pub async fn new() -> Self {
        Self::with(TargetPolicy::Any, NO_LIMITS, 50).await
    }

    pub async fn with(
        targets: TargetPolicy,
        rate_limits: RateLimits,
        webhooks_per_account: u32,
    ) -> Self {
        let tables = TestTables::new().await;
        let clock = Clock::manual(Timestamp::from_millis(1_734_948_000_000));
        let key = create_key(&tables, "acme", clock.now()).await;
        let router = routed(
            &tables,
            tables.store_as(permissions::API),
            &clock,
            targets,
            rate_limits,
            webhooks_per_account,
        );
        Self {
            tables,
            router,
            key,
            clock,
        }
    }

    /// The same app over another store.
    pub fn over(self, store: Store, rate_limits: RateLimits) -> Self {
        let router = routed(
            &self.tables,
            store,
            &self.clock,
            TargetPolicy::Any,
            rate_limits,
            50,
        );
        Self { router, ..self }
    }

    /// The same app as account `other`.
    pub async fn with_other_account(self) -> Self {
        let key = create_key(&self.tables, "other", self.clock.now()).await;
        Self { key, ..self }
    }

    /// Dispatches `count` completed jobs of account `acme`.
    pub async fn end_jobs(&self, first: usize, count: usize) {
        let dispatcher = Dispatcher {
            clock: self.clock.clone(),
            ..self.tables.dispatcher()
        };
        let records = completed_jobs(first, count);
        assert_eq!(dispatch_batch(&dispatcher, &records).await, []);
    }

    /// The number of webhooks that the list has.
    pub async fn count_webhooks(&self) -> usize {
        let listed = self.get(WEBHOOKS).await;
        listed.json["data"].as_array().unwrap().len()
    }

    pub async fn send(&self, request: Request<Body>) -> TestResponse {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"));
        // Every response has these headers.
        assert_eq!(parts.headers["content-type"], "application/json");
        assert!(!parts.headers["x-request-id"].is_empty());
        TestResponse {
            status: parts.status,
            headers: parts.headers,
            text,
            json,
        }
    }

    /// The status of a response whose body need not be JSON.
    pub async fn send_raw(&self, request: Request<Body>) -> StatusCode {
        self.router.clone().oneshot(request).await.unwrap().status()
    }

    pub fn request(&self, method: &str, path: &str) -> axum::http::request::Builder {
        Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(path)
            .header("authorization", format!("Bearer {}", self.key.expose()))
    }

    pub async fn get(&self, path: &str) -> TestResponse {
        self.send(self.request("GET", path).body(Body::empty()).unwrap())
            .await
    }

    /// The same request with another key.
    pub async fn get_with(&self, key: &str, path: &str) -> TestResponse {
        let request = Request::get(path).header("authorization", format!("Bearer {key}"));
        self.send(request.body(Body::empty()).unwrap()).await
    }

    pub async fn delete(&self, path: &str) -> TestResponse {
        self.send(self.request("DELETE", path).body(Body::empty()).unwrap())
            .await
    }

    pub async fn post(&self, body: impl Into<Body>) -> TestResponse {
        self.send(
            self.request("POST", WEBHOOKS)
                .header("content-type", "application/json")
                .body(body.into())
                .unwrap(),
        )
        .await
    }

    pub async fn create(&self, body: Value) -> TestResponse {
        self.post(body.to_string()).await
    }

    /// Creates a webhook with an idempotency key.
    pub async fn post_idempotent(
        &self,
        key: &str,
        body: &(impl ToString + ?Sized),
    ) -> TestResponse {
        let request = self
            .request("POST", WEBHOOKS)
            .header("content-type", "application/json")
            .header("idempotency-key", key);
        self.send(request.body(body.to_string().into()).unwrap())
            .await
    }

    pub async fn send_json(&self, method: &str, path: &str, body: &Value) -> TestResponse {
        let request = self
            .request(method, path)
            .header("content-type", "application/json");
        self.send(request.body(body.to_string().into()).unwrap())
            .await
    }

    /// A POST without a body.
    pub async fn post_to(&self, path: &str) -> TestResponse {
        self.send(self.request("POST", path).body(Body::empty()).unwrap())
            .await
    }
}

pub fn routed(
    tables: &TestTables,
    store: Store,
    clock: &Clock,
    targets: TargetPolicy,
    rate_limits: RateLimits,
    webhooks_per_account: u32,
) -> Router {
    router(AppState {
        store,
        account_claim: None,
        client: WebhookClient::new(
            TargetGuard::new(targets, vec![]),
            webhook_client::Timeouts::QUEUED,
            None,
        )
        .unwrap(),
        guard: TargetGuard::new(targets, vec![]),
        clock: clock.clone(),
        queue: tables.queue.clone(),
        retention: Duration::from_hours(24),
        webhooks_per_account,
        max_test_events: 100,
        rate_limits,
    })
}
