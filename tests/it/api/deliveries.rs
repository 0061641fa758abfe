//! The routes of deliveries.

use std::time::Duration;

use axum::{body::Body, http::StatusCode};
use nano_webhooks::{dispatch::Dispatcher, random};
use nano_webhooks_core::api_key::ApiKey;
use serde_json::{Value, json};

use super::valid;
use crate::support::{
    accounts::account,
    app::TestApp,
    receiver::Receiver,
    stream::{dispatch_batch, insert_record, job_image},
};

/// Deliveries are listed, shown and retried.
#[tokio::test]
async fn deliveries_are_listed_and_retried() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    app.create(json!({
        "url": receiver.url("/status/500"),
        "events": ["job.completed"],
        "secret_key": "open sesame",
    }))
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
        .get(&format!(
            "/api/v1/webhooks/1/deliveries\
             ?limit=5&cursor={cursor}&status=pending&event=job.completed"
        ))
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

    let theirs = ApiKey::from_random(&random::bytes());

    let other = account("other");
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
