//! Rotation of a webhook's secret: receivers with either secret can verify every event.

use std::time::Duration;

use axum::http::StatusCode;
use nano_webhooks::store::rotation::RotateOutcome;
use nano_webhooks_core::{secret::Secret, webhook::WebhookId};
use serde_json::{Value, json};

use crate::support::{
    accounts::account,
    app::{TestApp, TestResponse},
    proxy::{Fault, Proxy},
    receiver::{Received, Receiver},
};

const OLD: &str = "the-old-secret";
const HOUR: Duration = Duration::from_hours(1);

async fn rotate(app: &TestApp, body: Value) -> TestResponse {
    app.send_json("POST", "/api/v1/webhooks/1/rotate-secret", &body)
        .await
}

/// Completes a job, and returns the request that the receiver got.
async fn deliver(app: &TestApp, receiver: &Receiver, nth: usize) -> Received {
    app.end_jobs(nth, 1).await;
    receiver.wait_for(nth).await.pop().unwrap()
}

/// During the grace time both secrets sign `webhook-signature`, and the previous one signs
/// `X-Nano-Signature`.
#[tokio::test]
async fn old_secret_signs_during_grace() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    let created =
        json!({"url": receiver.url("/hook"), "events": ["job.completed"], "secret_key": OLD});
    assert_eq!(app.create(created).await.status, StatusCode::CREATED);
    assert!(deliver(&app, &receiver, 1).await.is_signed_by(OLD));

    let response = rotate(&app, json!({"grace_hours": 2})).await;
    assert_eq!(
        (response.status, response.header("cache-control")),
        (StatusCode::OK, "no-store"),
        "{}",
        response.text
    );
    let new = response.json["data"]["secret_key"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        response.json["data"],
        json!({
            "id": 1,
            "secret_key": new,
            "previous_valid_until": "2024-12-23T12:00:00Z",
            "active_secrets": 2,
        })
    );
    let received = deliver(&app, &receiver, 2).await;
    assert!(received.is_signed_by(OLD) && received.is_signed_by(&new));
    assert_eq!(received.header("webhook-signature").split(' ').count(), 2);
    assert!(received.has_nano_signature_of(OLD));

    app.clock.advance(2 * HOUR);
    let received = deliver(&app, &receiver, 3).await;
    assert!(!received.is_signed_by(OLD) && received.is_signed_by(&new));
    assert!(received.has_nano_signature_of(&new));
    let shown = app.get("/api/v1/webhooks/1").await;
    assert_eq!(shown.json["data"]["signed"], true);
    assert!(!shown.text.contains(&new));
}

/// After two rotations each secret signs `X-Nano-Signature` until it expires, the oldest first.
#[tokio::test]
async fn oldest_active_secret_signs_nano() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    let created =
        json!({"url": receiver.url("/hook"), "events": ["job.completed"], "secret_key": OLD});
    app.create(created).await;
    for (secret, hours) in [("the-second-secret", 1), ("the-third-secret", 2)] {
        rotate(&app, json!({"secret_key": secret, "grace_hours": hours})).await;
    }
    for (nth, expected) in [(1, OLD), (2, "the-second-secret"), (3, "the-third-secret")] {
        let received = deliver(&app, &receiver, nth).await;
        assert!(received.has_nano_signature_of(expected), "{expected}");
        assert!(received.is_signed_by("the-third-secret"));
        app.clock.advance(HOUR);
    }
}

/// The request can name the new secret, and without grace the previous one ends at once.
#[tokio::test]
async fn zero_grace_ends_old_secret() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    app.create(
        json!({"url": receiver.url("/hook"), "events": ["job.completed"], "secret_key": OLD}),
    )
    .await;
    let response = rotate(
        &app,
        json!({"secret_key": "the-new-secret", "grace_hours": 0}),
    )
    .await;
    assert_eq!(
        response.json["data"],
        json!({"id": 1, "previous_valid_until": null, "active_secrets": 1})
    );
    let received = deliver(&app, &receiver, 1).await;
    assert!(!received.is_signed_by(OLD) && received.is_signed_by("the-new-secret"));
}

/// A webhook without a secret gets its first one.
#[tokio::test]
async fn unsigned_webhook_gets_secret() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    app.create(json!({"url": receiver.url("/hook"), "events": ["job.completed"]}))
        .await;
    let response = app.post_to("/api/v1/webhooks/1/rotate-secret").await;
    assert_eq!(
        response.json["data"]["active_secrets"], 1,
        "{}",
        response.text
    );
    let secret = response.json["data"]["secret_key"].as_str().unwrap();
    assert!(deliver(&app, &receiver, 1).await.is_signed_by(secret));
}

/// At most three secrets are active; a fourth needs one of them to end.
#[tokio::test]
async fn active_secrets_are_limited() {
    let app = TestApp::new().await;
    let receiver = Receiver::start().await;
    app.create(
        json!({"url": receiver.url("/hook"), "events": ["job.completed"], "secret_key": OLD}),
    )
    .await;
    for (hours, live) in [(json!(1), 2), (json!(5.0), 3)] {
        assert_eq!(
            rotate(&app, json!({"grace_hours": hours})).await.json["data"]["active_secrets"],
            live
        );
    }
    let refused = rotate(&app, json!({})).await;
    let (status, code, message) = refused.error();
    assert_eq!((status, code), (409, "conflict"));
    assert!(message.contains("2024-12-23T11:00:00Z"), "{message}");
    assert_eq!(
        deliver(&app, &receiver, 1)
            .await
            .header("webhook-signature")
            .split(' ')
            .count(),
        3
    );

    app.clock.advance(HOUR);
    let response = rotate(&app, json!({})).await;
    assert_eq!(
        response.json["data"]["active_secrets"], 3,
        "{}",
        response.text
    );
    let response = rotate(&app, json!({"grace_hours": 0})).await;
    assert_eq!(
        response.json["data"]["active_secrets"], 1,
        "{}",
        response.text
    );
}

/// A rotation is applied once even if the response to its write is lost.
#[tokio::test]
async fn lost_response_rotates_once() {
    let app = TestApp::new().await;
    app.create(
        json!({"url": "https://example.com/", "events": ["job.completed"], "secret_key": OLD}),
    )
    .await;
    let proxy = Proxy::start(app.tables.endpoint.clone()).await;
    proxy.arm("UpdateItem", 0, Fault::ResponseLost);
    let store = app.tables.store_through(nano_webhooks_cli::local_client(
        &proxy.url,
        nano_webhooks::aws::timeouts(),
    ));
    let new = Secret::parse("the-new-secret".to_owned()).unwrap();
    let acme = account("acme");
    let webhook = WebhookId::new(1).unwrap();
    let rotated = store
        .webhooks()
        .rotate_secret(&acme, webhook, &new, HOUR, app.clock.now())
        .await
        .unwrap();
    assert_eq!(
        rotated,
        RotateOutcome::Rotated {
            active: 2,
            previous_expires_at: Some(app.clock.now() + HOUR)
        }
    );
    let subscriber = store
        .webhooks()
        .get_record(&acme, webhook)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(subscriber.secrets.len(), 2);
    assert_eq!(
        store
            .secrets()
            .decrypt_active(
                &acme,
                subscriber.webhook.id,
                &subscriber.secrets,
                app.clock.now()
            )
            .await
            .unwrap()[0],
        new
    );
}

/// Concurrent rotations lose no secret.
#[tokio::test]
async fn concurrent_rotations_lose_nothing() {
    let app = TestApp::new().await;
    app.create(
        json!({"url": "https://example.com/", "events": ["job.completed"], "secret_key": OLD}),
    )
    .await;
    let responses = futures_util::future::join_all((0..4).map(|_| rotate(&app, json!({})))).await;
    let mut live: Vec<_> = responses
        .iter()
        .filter_map(|response| response.json["data"]["active_secrets"].as_u64())
        .collect();
    live.sort_unstable();
    assert_eq!(live, [2, 3]);
    assert_eq!(
        responses
            .iter()
            .filter(|response| response.status == StatusCode::CONFLICT)
            .count(),
        2
    );
}

/// An invalid request returns 400 and names the field.
#[tokio::test]
async fn invalid_request_is_refused() {
    let app = TestApp::new().await;
    app.create(json!({"url": "https://example.com/", "events": ["job.completed"]}))
        .await;
    for (body, field) in [
        (json!({"secret_key": "short"}), "secret_key"),
        (json!({"secret_key": 7}), "secret_key"),
        (json!({"grace_hours": 169}), "grace_hours"),
        (json!({"grace_hours": -1}), "grace_hours"),
        (json!({"grace_hours": 1.5}), "grace_hours"),
        (json!({"grace_hours": "24"}), "grace_hours"),
        (json!({"grace": 1}), "grace"),
    ] {
        let refused = rotate(&app, body.clone()).await;
        let (status, code, message) = refused.error();
        assert_eq!((status, code), (400, "invalid_request"), "{body}");
        assert!(message.contains(field), "{message}");
    }
}
