//! Webhooks that are disabled because of their endpoint.

use std::time::Duration;

use nano_webhooks::store::{notifications::Notifications, update::WebhookUpdate};
use nano_webhooks_core::{
    delivery::{DeliveryState, endpoint_health::EndpointHealth, failure::FailureKind},
    endpoint_url::EndpointUrl,
};
use serde_json::json;

use crate::support::{
    accounts::account,
    metrics::collect_metrics,
    retry_fixture::{RetryFixture, START},
    webhooks::put_health,
};

/// A 410 disables the webhook at once and pauses its deliveries.
#[tokio::test]
async fn gone_endpoint_is_disabled() {
    let fixture = RetryFixture::new("10s").await;
    let webhook = fixture.subscribe("/status/410").await;
    fixture.end_jobs(1, 1).await;
    let timer = fixture.timer();
    let item = fixture
        .tables
        .items_under("ACCOUNT#")
        .await
        .into_iter()
        .find(|item| item.contains_key("disabled_reason"));
    let item = item.expect("the webhook is disabled");
    assert_eq!(
        collect_metrics(&fixture.dispatcher).get("WebhooksDisabled"),
        Some(&1.0)
    );
    assert_eq!(item["status"].as_s().unwrap(), "disabled");
    assert_eq!(
        item["disabled_reason"].as_s().unwrap(),
        "The endpoint responded with 410 Gone."
    );
    fixture.clock.advance(Duration::from_secs(20));
    fixture.retry(&timer.message).await;
    assert_eq!(fixture.only(webhook).await.state, DeliveryState::Paused);
    fixture.clock.advance(Duration::from_hours(1));
    assert_eq!(fixture.sweep().await, 0, "a paused delivery is not due");
    fixture.end_jobs(5, 1).await;
    assert_eq!(
        (fixture.requests(), fixture.deliveries(webhook).await.len()),
        (1, 1),
        "a disabled webhook gets no deliveries"
    );
}

/// A response of the previous URL neither disables the webhook nor changes its health.
#[tokio::test]
async fn response_of_old_url_is_ignored() {
    let fixture = RetryFixture::new("10s").await;
    let webhook = fixture.subscribe("/status/410").await;
    let store = &fixture.tables.store;
    let read = store
        .webhooks()
        .get_record(&account("acme"), webhook)
        .await
        .unwrap()
        .unwrap();
    let open = EndpointHealth {
        consecutive_failures: 9,
        ..EndpointHealth::default()
    };
    put_health(&fixture.tables, webhook, &open).await;
    let moved = WebhookUpdate {
        url: Some(EndpointUrl::parse(&fixture.receiver.url("/ok")).unwrap()),
        ..WebhookUpdate::default()
    };
    assert!(
        store
            .webhooks()
            .update(&account("acme"), webhook, &moved, START)
            .await
            .unwrap()
            .is_applied()
    );
    assert_eq!(fixture.health(webhook).await, EndpointHealth::default());
    let acme = account("acme");
    let hour = Duration::from_hours(1);
    let none = Notifications::default();
    assert!(
        !store
            .webhooks()
            .disable(&acme, &read.webhook, "Gone.", &none, START, hour)
            .await
            .unwrap()
            .is_applied()
    );
}

/// The other webhooks of the account receive `webhook.disabled`.
#[tokio::test]
async fn other_webhooks_receive_webhook_disabled() {
    let fixture = RetryFixture::new("10s").await;
    let gone = fixture
        .subscribe_to("/status/410", &["job.completed", "webhook.disabled"])
        .await;
    let notified = fixture
        .subscribe_to("/notified", &["webhook.disabled"])
        .await;
    let other = fixture.subscribe_to("/other", &["job.failed"]).await;
    fixture.end_jobs(1, 1).await;
    let timer = fixture
        .tables
        .timers()
        .into_iter()
        .find(|timer| timer.message.key.webhook == notified);
    fixture
        .retry(&timer.expect("the notification is due at once").message)
        .await;
    let requests = fixture.receiver.received();
    assert_eq!(requests.len(), 2, "{requests:?}");
    let heard = &requests[1];
    assert_eq!(
        (heard.path.as_str(), heard.header("x-nano-event")),
        ("/notified", "webhook.disabled")
    );
    assert_eq!(
        heard.json(),
        json!({
            "event": "webhook.disabled",
            "data": {
                "disabled_reason": "The endpoint responded with 410 Gone.",
                "url": fixture.receiver.url("/status/410"),
                "webhook_id": gone.get(),
            },
            "timestamp": START.to_rfc3339(),
        })
    );
    let delivery = fixture.only(notified).await;
    assert_eq!(
        (delivery.state, delivery.task_id),
        (DeliveryState::Delivered, None)
    );
    assert!(fixture.deliveries(other).await.is_empty());
    assert_eq!(
        fixture.deliveries(gone).await.len(),
        1,
        "only the event of the job"
    );
}

/// Five days in which at least ten attempts were made and all failed disable a webhook. The
/// failures of one second are counted although they are not written one by one.
#[tokio::test]
async fn continuous_failures_disable_webhook() {
    let fixture = RetryFixture::new("10s").await;
    let dead = fixture.subscribe("/status/500").await;
    for job in 1..=8 {
        fixture.end_jobs(job, 1).await;
    }
    fixture.clock.advance(Duration::from_hours(119));
    fixture.end_jobs(9, 1).await;
    assert_eq!(disabled_webhooks(&fixture).await, 0);
    fixture.clock.advance(Duration::from_hours(1));
    fixture.end_jobs(10, 1).await;
    assert_eq!(disabled_webhooks(&fixture).await, 1);
    assert_eq!(
        fixture.health(dead).await.last_failure,
        Some(FailureKind::Status)
    );
}

/// A webhook that is seldom called is not disabled for a few failures.
#[tokio::test]
async fn few_failures_disable_no_webhook() {
    let fixture = RetryFixture::new("10s").await;
    fixture.subscribe("/status/500").await;
    for job in 1..=9 {
        fixture.end_jobs(job, 1).await;
        fixture.clock.advance(Duration::from_hours(24));
    }
    assert_eq!(disabled_webhooks(&fixture).await, 0);
    fixture.end_jobs(10, 1).await;
    assert_eq!(disabled_webhooks(&fixture).await, 1);
}

#[tokio::test]
async fn success_prevents_disabling() {
    let fixture = RetryFixture::new("10s").await;
    let saved = fixture.subscribe("/ok").await;
    let failing = EndpointHealth {
        failing_since: Some(START - Duration::from_hours(121)),
        failed_attempts: 10,
        ..EndpointHealth::default()
    };
    put_health(&fixture.tables, saved, &failing).await;
    fixture.end_jobs(1, 1).await;
    let health = fixture.health(saved).await;
    assert_eq!(
        (health.failing_since, health.first_success_after_failure_at),
        (None, Some(fixture.clock.now()))
    );
    assert_eq!(disabled_webhooks(&fixture).await, 0);
}

async fn disabled_webhooks(fixture: &RetryFixture) -> usize {
    let items = fixture.tables.items_under("ACCOUNT#").await;
    items
        .iter()
        .filter(|item| item.contains_key("disabled_reason"))
        .count()
}
