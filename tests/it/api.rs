//! The API's routes and every row of its error table, through the router over a real engine.

use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use nano_webhooks::{aws, dispatch::Dispatcher, random, store::rate_limits::RateLimits};
use nano_webhooks_cli::local_client;
use nano_webhooks_core::{api_key::ApiKey, target_policy::TargetPolicy};
use serde_json::{Value, json};

use crate::support::{
    accounts::account,
    app::{NO_LIMITS, TestApp, WEBHOOKS},
    proxy::{Fault, Proxy},
    receiver::Receiver,
    stream::{dispatch_batch, insert_record, job_image},
};

fn valid() -> Value {
    json!({ "url": "https://example.com/hooks", "events": ["job.completed", "job.failed"] })
}

/// A webhook is created, listed and deleted as documented.
#[tokio::test]
async fn webhook_routes_match_documentation() {
    let app = TestApp::new().await;
    let listed = app.get(WEBHOOKS).await;
    assert_eq!(
        (listed.status, listed.text.as_str()),
        (StatusCode::OK, r#"{"success":true,"data":[]}"#)
    );

    let created = app.create(json!({"url":"https://example.com/hooks","events":["job.failed","job.completed"],"secret_key":"open sesame"})).await;
    let webhook = r#"{"id":1,"url":"https://example.com/hooks","events":["job.failed","job.completed"],"status":"active"}"#;
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
            "secret: unknown field `secret`, expected one of `url`, `events`, `secret_key`, `description`",
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
            "events: unknown event `job.done`, expected one or more of `job.completed`, `job.failed`, `webhook.disabled`",
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

/// The tables show the prefix of a key and the day of its last use, and nothing else.
#[tokio::test]
async fn key_shows_prefix_and_last_use() {
    let app = TestApp::new().await;
    let (acme, unused) = (account("acme"), ApiKey::from_random(&random::bytes()));
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

/// A webhook of another account returns 404.
#[tokio::test]
async fn foreign_webhook_returns_404() {
    let app = TestApp::new().await;
    let (theirs, other) = (ApiKey::from_random(&random::bytes()), account("other"));
    app.tables
        .store
        .api_keys()
        .insert(&other, &theirs, app.clock.now())
        .await
        .unwrap();
    app.create(valid()).await;
    app.create(valid()).await;
    let app = TestApp { key: theirs, ..app };
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

/// Every route needs a key and shows nothing of another account.
#[tokio::test]
async fn every_route_needs_own_key() {
    let (app, receiver) = (TestApp::new().await, Receiver::start().await);
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
    let (theirs, other) = (ApiKey::from_random(&random::bytes()), account("other"));
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

/// The same idempotency key returns the same webhook, and 409 for a different body.
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

/// A webhook is shown in detail, and a PATCH changes only the fields that it names.
#[tokio::test]
async fn patch_changes_named_fields() {
    let app = TestApp::new().await;
    let mut body = valid();
    body["description"] = json!("Production");
    app.create(body).await;
    let path = "/api/v1/webhooks/1";
    let shown = app.get(path).await;
    let as_created = json!({
        "id": 1, "url": "https://example.com/hooks", "events": ["job.completed", "job.failed"], "status": "active",
        "created_at": "2024-12-23T10:00:00Z", "updated_at": "2024-12-23T10:00:00Z", "description": "Production",
        "signed": false, "disabled_reason": null,
        "health": {"state": "healthy", "failing_since": null, "last_failure": null, "first_success_after_failure_at": null},
    });
    assert_eq!(
        (shown.status, &shown.json["data"]),
        (StatusCode::OK, &as_created)
    );

    app.clock.advance(Duration::from_secs(1));
    let patch = async |body: Value| {
        let request = app
            .request("PATCH", path)
            .header("content-type", "application/json");
        app.send(request.body(Body::from(body.to_string())).unwrap())
            .await
    };
    let changed =
        patch(json!({"events": ["job.failed"], "secret_key": "open sesame", "description": null}))
            .await;
    let mut expected = as_created.clone();
    expected["events"] = json!(["job.failed"]);
    expected["signed"] = json!(true);
    expected["description"] = Value::Null;
    expected["updated_at"] = json!("2024-12-23T10:00:01Z");
    assert_eq!(
        (changed.status, &changed.json["data"]),
        (StatusCode::OK, &expected)
    );
    assert!(!changed.text.contains("sesame"));

    let disabled = patch(
        json!({"status": "disabled", "url": "https://example.com/other", "secret_key": null}),
    )
    .await;
    expected["url"] = json!("https://example.com/other");
    expected["status"] = json!("disabled");
    expected["signed"] = json!(false);
    expected["disabled_reason"] = json!("Disabled through the API.");
    assert_eq!(disabled.json["data"], expected);
    let enabled = patch(json!({"status": "active"})).await;
    expected["status"] = json!("active");
    expected["disabled_reason"] = Value::Null;
    assert_eq!(enabled.json["data"], expected);

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
            json!({"description": "x".repeat(501)}),
            "description: expected at most 500 characters",
        ),
        (json!({"id": 2}), "id: unknown field `id`, expected one of"),
    ] {
        let response = patch(body).await;
        let (status, code, text) = response.error();
        assert_eq!((status, code), (400, "invalid_request"));
        assert!(text.starts_with(message), "{text}");
    }
    assert_eq!(
        app.get(path).await.json["data"],
        expected,
        "what is refused changes nothing"
    );
    app.delete(path).await;
    assert_eq!(
        patch(json!({"status": "active"})).await.error(),
        (404, "not_found", "No such webhook: 1")
    );
    assert_eq!(
        app.get(path).await.error(),
        (404, "not_found", "No such webhook: 1")
    );
    assert_eq!(
        app.tables.items_under("RESUME").await.len(),
        1,
        "the next run of the job deletes it"
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

/// Deliveries are listed, shown and retried.
#[tokio::test]
async fn deliveries_are_listed_and_retried() {
    let (app, receiver) = (TestApp::new().await, Receiver::start().await);
    app.create(json!({"url": receiver.url("/status/500"), "events": ["job.completed"], "secret_key": "open sesame"}))
        .await;
    let dispatcher = Dispatcher {
        clock: app.clock.clone(),
        ..app.tables.dispatcher()
    };
    assert_eq!(
        dispatch_batch(
            &dispatcher,
            &[
                insert_record(1, job_image("t1", "completed")),
                insert_record(2, job_image("t2", "completed"))
            ]
        )
        .await,
        []
    );
    app.tables.timers();

    let first = app.get("/api/v1/webhooks/1/deliveries?limit=1").await;
    assert_eq!(first.status, StatusCode::OK);
    let cursor = first.json["next_cursor"].as_str().unwrap();
    let second = app
        .get(&format!("/api/v1/webhooks/1/deliveries?limit=5&cursor={cursor}&status=pending&event=job.completed"))
        .await;
    assert_eq!(second.json["next_cursor"], Value::Null);
    app.create(valid()).await;
    let of_another = app
        .get(&format!("/api/v1/webhooks/2/deliveries?cursor={cursor}"))
        .await;
    assert_eq!(
        of_another.error().0,
        400,
        "a cursor is good for its own list alone"
    );
    let row = &first.json["data"][0];
    let keys: Vec<_> = row
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let listed = [
        "event_id",
        "event",
        "task_id",
        "status",
        "attempt_count",
        "created_at",
        "next_attempt_at",
        "last_failure",
    ];
    assert_eq!(keys, listed);
    assert_ne!(row["event_id"], second.json["data"][0]["event_id"]);

    let tried = first.json["data"]
        .as_array()
        .unwrap()
        .iter()
        .chain(second.json["data"].as_array().unwrap());
    let tried = tried
        .into_iter()
        .find(|row| row["attempt_count"] == 1)
        .unwrap();
    let path = format!(
        "/api/v1/webhooks/1/deliveries/{}",
        tried["event_id"].as_str().unwrap()
    );
    let shown = app.get(&path).await;
    let data = &shown.json["data"];
    assert_eq!(data["payload"], receiver.received()[0].body);
    assert_eq!(
        (&data["status"], &data["last_failure"]),
        (&json!("pending"), &json!("status"))
    );
    let attempt = data["attempts"][0].as_object().unwrap();
    assert_eq!(
        attempt["detail"],
        "The endpoint returned status 500. Return a 2xx status to accept the event."
    );
    assert_eq!(
        (&attempt["status_code"], &attempt["response_excerpt"]),
        (&json!(500), &json!("as you asked"))
    );
    for (name, value) in attempt["request_headers"].as_object().unwrap() {
        assert_eq!(receiver.received()[0].header(name), value.as_str().unwrap());
    }
    assert!(!shown.text.contains("sesame"));

    let post = |path: String| app.send(app.request("POST", &path).body(Body::empty()).unwrap());
    for (declared, body, status) in [
        ("application/json", "{".to_owned(), 400),
        ("application/json", r#"{"now":true}"#.to_owned(), 400),
        ("text/plain", "now".to_owned(), 415),
        ("application/json", " ".repeat(64 * 1024 + 1), 413),
    ] {
        let request = app
            .request("POST", &format!("{path}/retry"))
            .header("content-type", declared);
        assert_eq!(
            app.send(request.body(Body::from(body)).unwrap())
                .await
                .error()
                .0,
            status
        );
    }
    let retried = post(format!("{path}/retry")).await;
    assert_eq!(
        (retried.status, &retried.json["data"]["status"]),
        (StatusCode::ACCEPTED, &json!("pending"))
    );
    let timer = app.tables.timers().pop().unwrap();
    assert_eq!(timer.due, app.clock.now());
    app.tables
        .store
        .leases()
        .claim(&timer.message.key, 1, app.clock.now())
        .await
        .unwrap();
    assert_eq!(post(format!("{path}/retry")).await.error().1, "conflict");

    // The lease has expired, as after a crash of its worker.
    app.clock.advance(Duration::from_mins(1));
    app.delete("/api/v1/webhooks/1").await;
    assert_eq!(app.get(&path).await.json["data"]["status"], "cancelled");
    assert_eq!(
        app.get("/api/v1/webhooks/1/deliveries").await.json["data"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        post(format!("{path}/retry")).await.error(),
        (404, "not_found", "No such webhook: 1")
    );
}

/// An invalid query parameter of a delivery list is named.
#[tokio::test]
async fn invalid_query_parameter_is_named() {
    let app = TestApp::new().await;
    app.create(valid()).await;
    for (query, message) in [
        (
            "status=done",
            "status: expected `pending`, `delivered`, `failed` or `cancelled`",
        ),
        (
            "event=job.done",
            "event: expected one of `job.completed`, `job.failed`, `webhook.disabled`",
        ),
        ("limit=0", "limit: expected a whole number from 1 to 100"),
        ("limit=101", "limit: expected a whole number from 1 to 100"),
        (
            "cursor=abc",
            "cursor: expected the `next_cursor` of a page of this webhook's deliveries",
        ),
        (
            "page=2",
            "page: unknown field `page`, expected one of `status`, `event`, `limit`, `cursor`",
        ),
        ("limit=1&limit=2", "limit: expected at most once"),
    ] {
        let response = app
            .get(&format!("/api/v1/webhooks/1/deliveries?{query}"))
            .await;
        assert_eq!(response.error(), (400, "invalid_request", message));
    }
    for path in [
        "/api/v1/webhooks/2/deliveries",
        "/api/v1/webhooks/x/deliveries",
    ] {
        assert_eq!(app.get(path).await.error().0, 404);
    }
    let event = "evt_01JFS8TX800000000000000000";
    let response = app
        .get(&format!("/api/v1/webhooks/1/deliveries/{event}"))
        .await;
    assert_eq!(
        response.error(),
        (
            404,
            "not_found",
            format!("Webhook 1 has no delivery {event}").as_str()
        )
    );
    assert_eq!(
        app.get("/api/v1/webhooks/1/deliveries/nonsense")
            .await
            .error()
            .0,
        404
    );

    let (theirs, other) = (ApiKey::from_random(&random::bytes()), account("other"));
    app.tables
        .store
        .api_keys()
        .insert(&other, &theirs, app.clock.now())
        .await
        .unwrap();
    let app = TestApp { key: theirs, ..app };
    assert_eq!(
        app.get("/api/v1/webhooks/1/deliveries").await.error(),
        (404, "not_found", "No such webhook: 1")
    );
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

/// The rate limit is exact under concurrency, and `Retry-After` has the time until the next window.
#[tokio::test]
async fn rate_limit_is_exact() {
    let app = TestApp::with(
        TargetPolicy::Any,
        RateLimits {
            per_minute: Some(5),
            per_day: Some(8),
        },
        50,
    )
    .await;
    app.clock.advance(Duration::from_secs(20));
    let statuses = async || {
        let responses = futures_util::future::join_all((0..10).map(|_| app.get(WEBHOOKS))).await;
        let refused: Vec<_> = responses
            .into_iter()
            .filter(|response| response.status != StatusCode::OK)
            .collect();
        for response in &refused {
            assert_eq!(
                response.error(),
                (429, "rate_limited", "Too many requests; try again later")
            );
        }
        (
            10 - refused.len(),
            refused[0].header("retry-after").to_owned(),
        )
    };
    assert_eq!(statuses().await, (5, "40".to_owned()));
    app.clock.advance(Duration::from_secs(40));
    // 2024-12-23T10:01:00Z: the day has three requests left and ends in 13 h 59 min.
    assert_eq!(statuses().await, (3, (13 * 3600 + 59 * 60).to_string()));
    app.clock.advance(Duration::from_hours(14));
    assert_eq!(statuses().await.0, 5);
}

/// Creating a webhook with a blocked target returns 400 with the rule.
#[tokio::test]
async fn blocked_target_is_refused_at_creation() {
    let app = TestApp::with(TargetPolicy::Public, NO_LIMITS, 50).await;
    for (url, rule) in [
        ("http://example.com/", "not https"),
        ("https://127.0.0.1/", "loopback address"),
        ("https://0x7f.1/", "loopback address"),
        (
            "https://169.254.169.254/latest/meta-data",
            "link-local address",
        ),
        ("https://[::ffff:10.0.0.1]/", "not a global unicast address"),
        ("https://localhost/", "loopback address"),
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
        assert!(
            message.contains(rule) || url.contains("localhost"),
            "{url}: {message}"
        );
    }
    let unresolved = app
        .create(json!({"url": "https://no-such-host.invalid/", "events": ["job.failed"]}))
        .await;
    assert_eq!(unresolved.status, StatusCode::CREATED);
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
