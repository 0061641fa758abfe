//! The files of `events/`, passed to the handlers in the form of the Lambda runtime.

use std::{fs, path::Path, time::Duration};

use lambda_http::{Adapter, LambdaEvent, request::LambdaRequest};
use lambda_runtime::Context;
use nano_webhooks::{
    api::{AppState, router},
    client::target_guard::TargetGuard,
    clock::{Clock, Deadline},
    dispatch::lambda_event::Invocation,
    random,
    store::rate_limits::RateLimits,
};
use nano_webhooks_core::{api_key::ApiKey, target_policy::TargetPolicy};
use serde_json::{Value, json};
use tower::Service;

use crate::support::{
    accounts::account, receiver::Receiver, tables::TestTables, webhooks::subscribe,
};

fn event(name: &str) -> String {
    fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("events")
            .join(name),
    )
    .unwrap()
}

fn api(tables: &TestTables, claim: Option<&str>, rate_limits: RateLimits) -> axum::Router {
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

/// The API function handles each sample event of API Gateway.
#[tokio::test]
async fn api_handles_sample_events() {
    let tables = TestTables::new().await;
    let key = ApiKey::from_random(&random::bytes());
    tables
        .store
        .api_keys()
        .insert(&account("acme"), &key, Clock::system().now())
        .await
        .unwrap();
    let limits = RateLimits {
        per_minute: Some(60),
        per_day: Some(10_000),
    };
    let mut function = Adapter::from(api(&tables, None, limits));
    let mut invoke = async |name: &str, key: &str| -> Value {
        let request: LambdaRequest =
            serde_json::from_str(&event(name).replace("sk-REPLACE", key)).unwrap();
        let response = function
            .call(LambdaEvent::new(request, Context::default()))
            .await
            .unwrap();
        serde_json::to_value(response).unwrap()
    };
    for (name, status) in [
        ("api-create.json", 201),
        ("api-list.json", 200),
        ("api-delete.json", 200),
        ("api-unknown-route.json", 404),
    ] {
        let response = invoke(name, key.expose()).await;
        assert_eq!(response["statusCode"], status, "{name}: {response}");
        let body: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
        assert_eq!(body["success"], status < 300);
        let sent: Value = serde_json::from_str(&event(name)).unwrap();
        assert_eq!(
            response["headers"]["x-request-id"], sent["requestContext"]["requestId"],
            "{name}: {response}"
        );
    }
    for name in ["api-create.json", "api-list.json", "api-delete.json"] {
        assert_eq!(
            invoke(name, "sk-REPLACE").await["statusCode"],
            401,
            "{name}"
        );
    }
}

/// With `ACCOUNT_CLAIM` the authorizer names the account; without it the claim is ignored.
#[tokio::test]
async fn authorizer_claim_names_account() {
    let tables = TestTables::new().await;
    let key = ApiKey::from_random(&random::bytes());
    tables
        .store
        .api_keys()
        .insert(&account("acme"), &key, Clock::system().now())
        .await
        .unwrap();
    subscribe(&tables, "acme", "https://example.com/acme", None).await;
    subscribe(&tables, "globex", "https://example.com/globex", None).await;
    let of = |webhook: &str| json!([format!("https://example.com/{webhook}")]);
    let token = |claims: Value| json!({"jwt": {"claims": claims, "scopes": null}});
    let of_lambda = |context: Value| json!({"lambda": context});
    for (claim, authorizer, key, seen) in [
        (
            None,
            Some(token(json!({"tenant": "globex"}))),
            key.expose(),
            Some(of("acme")),
        ),
        (
            None,
            Some(token(json!({"tenant": "globex"}))),
            "sk-REPLACE",
            None,
        ),
        (
            None,
            Some(of_lambda(json!({"tenant": "globex"}))),
            "sk-REPLACE",
            None,
        ),
        (
            Some("tenant"),
            Some(token(json!({"tenant": "globex"}))),
            "sk-REPLACE",
            Some(of("globex")),
        ),
        (
            Some("tenant"),
            Some(token(json!({"tenant": "globex"}))),
            key.expose(),
            Some(of("globex")),
        ),
        (
            Some("tenant"),
            Some(of_lambda(json!({"tenant": "globex"}))),
            "sk-REPLACE",
            Some(of("globex")),
        ),
        (
            Some("tenant"),
            Some(of_lambda(json!({"tenant": 7}))),
            key.expose(),
            None,
        ),
        (
            Some("tenant"),
            Some(token(json!({"sub": "globex"}))),
            key.expose(),
            None,
        ),
        (
            Some("tenant"),
            Some(token(json!({"tenant": ""}))),
            key.expose(),
            None,
        ),
        (Some("tenant"), None, key.expose(), None),
    ] {
        let mut function = Adapter::from(api(
            &tables,
            claim,
            RateLimits {
                per_minute: None,
                per_day: None,
            },
        ));
        let mut sent: Value =
            serde_json::from_str(&event("api-list.json").replace("sk-REPLACE", key)).unwrap();
        let shown = format!("{claim:?} {authorizer:?}");
        if let Some(authorizer) = authorizer {
            sent["requestContext"]["authorizer"] = authorizer;
        }
        let request: LambdaRequest = serde_json::from_value(sent).unwrap();
        let response = function
            .call(LambdaEvent::new(request, Context::default()))
            .await
            .unwrap();
        let response = serde_json::to_value(response).unwrap();
        let body: Value = serde_json::from_str(response["body"].as_str().unwrap()).unwrap();
        let urls = body["data"].as_array().map(|all| {
            all.iter()
                .map(|webhook| webhook["url"].clone())
                .collect::<Value>()
        });
        assert_eq!(
            (response["statusCode"] == 200, urls),
            (seen.is_some(), seen),
            "{shown}: {response}"
        );
        assert!(
            response["statusCode"] == 200 || response["statusCode"] == 401,
            "{shown}: {response}"
        );
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
