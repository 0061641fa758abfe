//! The files of `events/`, passed to the handlers in the form of the Lambda runtime.

use std::{fs, path::Path, time::Duration};

use axum::Router;
use lambda_http::{Adapter, LambdaEvent, request::LambdaRequest};
use lambda_runtime::Context;
use nano_webhooks::{
    api::{AppState, router},
    client::target_guard::TargetGuard,
    clock::{Clock, Deadline},
    dispatch::lambda_event::Invocation,
    store::rate_limits::RateLimits,
};
use nano_webhooks_core::{api_key::ApiKey, target_policy::TargetPolicy};
use serde_json::{Value, json};
use tower::Service;

use crate::support::{
    accounts::create_key, app::NO_LIMITS, receiver::Receiver, tables::TestTables,
    webhooks::subscribe,
};

/// The key of the sample events.
const UNKNOWN_KEY: &str = "sk-REPLACE";

fn event(name: &str) -> String {
    fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("events")
            .join(name),
    )
    .unwrap()
}

fn api(tables: &TestTables, claim: Option<&str>, rate_limits: RateLimits) -> Router {
    router(AppState {
        store: tables.store.clone(),
        account_claim: claim.map(str::to_owned),
        client: crate::support::client::client(),
        guard: TargetGuard::new(TargetPolicy::Public, vec![]),
        clock: Clock::system(),
        queue: tables.queue.clone(),
        retention: Duration::from_hours(24),
        webhooks_per_account: 50,
        max_test_events: 100,
        rate_limits,
    })
}

/// Calls the API function with an event of API Gateway.
async fn invoke(api: &Router, event: Value) -> Value {
    let request: LambdaRequest = serde_json::from_value(event).unwrap();
    let response = Adapter::from(api.clone())
        .call(LambdaEvent::new(request, Context::default()))
        .await
        .unwrap();
    serde_json::to_value(response).unwrap()
}

fn api_event(name: &str, key: &str) -> Value {
    serde_json::from_str(&event(name).replace(UNKNOWN_KEY, key)).unwrap()
}

/// The API function handles each sample event of API Gateway.
#[tokio::test]
async fn api_handles_sample_events() {
    let tables = TestTables::new().await;
    let key = create_key(&tables, "acme", Clock::system().now()).await;
    let limits = RateLimits {
        per_minute: Some(60),
        per_day: Some(10_000),
    };
    let api = api(&tables, None, limits);
    for (name, status) in [
        ("api-create.json", 201),
        ("api-list.json", 200),
        ("api-delete.json", 200),
        ("api-unknown-route.json", 404),
    ] {
        let event = api_event(name, key.expose());
        let response = invoke(&api, event.clone()).await;
        assert_eq!(response["statusCode"], status, "{name}: {response}");
        let body: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
        assert_eq!(body["success"], status < 300);
        assert_eq!(
            response["headers"]["x-request-id"], event["requestContext"]["requestId"],
            "{name}: {response}"
        );
    }
    for name in ["api-create.json", "api-list.json", "api-delete.json"] {
        let response = invoke(&api, api_event(name, UNKNOWN_KEY)).await;
        assert_eq!(response["statusCode"], 401, "{name}");
    }
}

/// The accounts `acme`, which has a key, and `globex`. Each has one webhook.
struct ClaimFixture {
    tables: TestTables,
    key: ApiKey,
}

impl ClaimFixture {
    async fn new() -> Self {
        let tables = TestTables::new().await;
        let key = create_key(&tables, "acme", Clock::system().now()).await;
        for name in ["acme", "globex"] {
            subscribe(&tables, name, &format!("https://example.com/{name}"), None).await;
        }
        Self { tables, key }
    }

    /// The URLs of the webhooks that a list request returns. `None` if the response is 401.
    async fn list(&self, claim: Option<&str>, authorizer: Value, key: &str) -> Option<Value> {
        let mut event = api_event("api-list.json", key);
        if !authorizer.is_null() {
            event["requestContext"]["authorizer"] = authorizer;
        }
        let response = invoke(&api(&self.tables, claim, NO_LIMITS), event).await;
        if response["statusCode"] == 401 {
            return None;
        }
        assert_eq!(response["statusCode"], 200, "{response}");
        let body: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
        let webhooks = body["data"].as_array().unwrap().iter();
        Some(webhooks.map(|webhook| webhook["url"].clone()).collect())
    }
}

/// The context of a JWT authorizer.
fn jwt_context(claims: &Value) -> Value {
    json!({"jwt": {"claims": claims, "scopes": null}})
}

/// The context of a Lambda authorizer.
fn lambda_context(context: &Value) -> Value {
    json!({"lambda": context})
}

/// With `ACCOUNT_CLAIM` the authorizer names the account, whatever the key.
#[tokio::test]
async fn authorizer_claim_names_account() {
    let fixture = ClaimFixture::new().await;
    for (authorizer, key) in [
        (jwt_context(&json!({"tenant": "globex"})), UNKNOWN_KEY),
        (
            jwt_context(&json!({"tenant": "globex"})),
            fixture.key.expose(),
        ),
        (lambda_context(&json!({"tenant": "globex"})), UNKNOWN_KEY),
    ] {
        let shown = authorizer.to_string();
        assert_eq!(
            fixture.list(Some("tenant"), authorizer, key).await,
            Some(json!(["https://example.com/globex"])),
            "{shown}"
        );
    }
}

/// With `ACCOUNT_CLAIM` a request without a usable claim returns 401, even with a valid key.
#[tokio::test]
async fn unusable_claim_returns_401() {
    let fixture = ClaimFixture::new().await;
    for authorizer in [
        lambda_context(&json!({"tenant": 7})),
        jwt_context(&json!({"sub": "globex"})),
        jwt_context(&json!({"tenant": ""})),
        Value::Null,
    ] {
        let shown = authorizer.to_string();
        let key = fixture.key.expose();
        assert_eq!(
            fixture.list(Some("tenant"), authorizer, key).await,
            None,
            "{shown}"
        );
    }
}

/// Without `ACCOUNT_CLAIM` the key names the account, and the claim is ignored.
#[tokio::test]
async fn claim_is_ignored_by_default() {
    let fixture = ClaimFixture::new().await;
    let claims = jwt_context(&json!({"tenant": "globex"}));
    let with_key = fixture.list(None, claims.clone(), fixture.key.expose());
    assert_eq!(with_key.await, Some(json!(["https://example.com/acme"])));
    for authorizer in [claims, lambda_context(&json!({"tenant": "globex"}))] {
        assert_eq!(fixture.list(None, authorizer, UNKNOWN_KEY).await, None);
    }
}

/// The dispatch function handles each sample event of the stream.
#[tokio::test]
async fn dispatch_handles_stream_samples() {
    for (name, heard, poison) in [
        ("stream-completed.json", &[("acme", "job.completed")][..], 0),
        ("stream-failed.json", &[("acme", "job.failed")], 0),
        (
            "stream-mixed.json",
            &[
                ("acme", "job.completed"),
                ("acme", "job.completed"),
                ("acme", "job.failed"),
                ("globex", "job.completed"),
            ],
            4,
        ),
    ] {
        let tables = TestTables::new().await;
        let receiver = Receiver::start().await;
        for who in ["acme", "globex"] {
            subscribe(&tables, who, &receiver.url(&format!("/{who}")), None).await;
        }
        let invocation = Invocation::from_json(&event(name)).unwrap();
        let response = tables
            .dispatcher()
            .invoke(invocation, Deadline::from_now(Duration::from_secs(20)))
            .await
            .unwrap();
        assert_eq!(response, json!({ "batchItemFailures": [] }), "{name}");
        let mut received: Vec<_> = receiver
            .received()
            .iter()
            .map(|request| {
                (
                    request.path[1..].to_owned(),
                    request.header("x-nano-event").to_owned(),
                )
            })
            .collect();
        received.sort();
        let heard: Vec<_> = heard
            .iter()
            .map(|(who, event)| ((*who).to_owned(), (*event).to_owned()))
            .collect();
        assert_eq!(received, heard, "{name}");
        assert_eq!(tables.items_under("POISON#").await.len(), poison, "{name}");
    }
}

/// The dispatch function handles messages of the queue and events of the schedules.
#[tokio::test]
async fn dispatch_handles_queue_and_schedule() {
    let tables = TestTables::new().await;
    for (name, response) in [
        ("queue-retry.json", json!({ "batchItemFailures": [] })),
        ("schedule-sweep.json", json!(0)),
        ("schedule-advance.json", json!(0)),
    ] {
        let invocation = Invocation::from_json(&event(name)).unwrap();
        let given = tables
            .dispatcher()
            .invoke(invocation, Deadline::from_now(Duration::from_secs(20)))
            .await
            .unwrap();
        assert_eq!(given, response, "{name}");
    }
}
