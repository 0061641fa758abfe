//! Paused deliveries, and what enabling the webhook does with them.

use std::time::Duration;

use nano_webhooks_core::{
    delivery::{DeliveryState, endpoint_health::EndpointHealth},
    webhook::WebhookStatus,
};

use crate::support::{
    retry_fixture::{RetryFixture, START},
    webhooks::put_health,
};

/// A manual retry of a paused delivery that fails continues on the schedule.
#[tokio::test]
async fn paused_delivery_continues_on_schedule() {
    let fixture = RetryFixture::new("10s,20s").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    let timer = fixture.timer();
    fixture.set_status(webhook, WebhookStatus::Disabled).await;
    fixture.clock.advance(Duration::from_secs(15));
    fixture.retry(&timer.message).await;
    let paused = fixture.only(webhook).await;
    assert_eq!(paused.state, DeliveryState::Paused);
    fixture.set_status(webhook, WebhookStatus::Active).await;
    let now = fixture.clock.now();
    fixture
        .tables
        .store
        .leases()
        .schedule_retry(&paused, now, Duration::from_hours(1))
        .await
        .unwrap()
        .unwrap();
    fixture.retry(&timer.message).await;
    let DeliveryState::Pending(due) = fixture.only(webhook).await.state else {
        panic!("the delivery is never due")
    };
    assert!((16..=24).contains(&due.saturating_duration_since(now).as_secs()));
}

/// Enabling a webhook resets its health and sends its paused deliveries, paced.
#[tokio::test]
async fn enabling_resumes_paused_deliveries() {
    let fixture = RetryFixture::new("1h").await;
    let webhook = fixture.subscribe("/ok").await;
    let slow = EndpointHealth {
        has_succeeded: true,
        slow: true,
        failing_since: Some(START),
        ..EndpointHealth::default()
    };
    put_health(&fixture.tables, webhook, &slow).await;
    fixture.end_jobs(1, 3).await;
    fixture.set_status(webhook, WebhookStatus::Disabled).await;
    for timer in fixture.tables.timers() {
        fixture.retry(&timer.message).await;
    }
    assert_eq!(fixture.states(webhook).await, [DeliveryState::Paused; 3]);

    fixture.set_status(webhook, WebhookStatus::Active).await;
    assert_eq!(fixture.health(webhook).await, EndpointHealth::default());
    assert_eq!(fixture.advance().await, 3);
    let mut timers = fixture.tables.timers();
    timers.sort_by_key(|timer| timer.due);
    let waits: Vec<_> = timers
        .iter()
        .map(|timer| timer.due.saturating_duration_since(START).as_millis())
        .collect();
    assert_eq!(waits, [200, 400, 600], "the endpoint is not flooded");
    fixture.clock.advance(Duration::from_secs(1));
    for timer in timers {
        fixture.retry(&timer.message).await;
    }
    assert_eq!(fixture.states(webhook).await, [DeliveryState::Delivered; 3]);
    assert_eq!(
        fixture.tables.items_under("RESUME").await.len(),
        1,
        "a worker may have paused a delivery since"
    );
    fixture.clock.advance(Duration::from_mins(2));
    assert_eq!(fixture.advance().await, 0);
    assert_eq!(fixture.tables.items_under("RESUME").await.len(), 0);
}

/// A webhook that is enabled twice keeps the pace of its resume.
#[tokio::test]
async fn second_resume_keeps_pace() {
    let fixture = RetryFixture::new("1h").await;
    let webhook = fixture.subscribe("/ok").await;
    fixture.set_status(webhook, WebhookStatus::Active).await;
    let mut due = Vec::new();
    for first in [1, 10] {
        let slow = EndpointHealth {
            slow: true,
            ..EndpointHealth::default()
        };
        put_health(&fixture.tables, webhook, &slow).await;
        fixture.end_jobs(first, 3).await;
        fixture.set_status(webhook, WebhookStatus::Disabled).await;
        for timer in fixture.tables.timers() {
            if timer.due <= fixture.clock.now() {
                fixture.retry(&timer.message).await;
            }
        }
        fixture.set_status(webhook, WebhookStatus::Active).await;
        assert_eq!(fixture.advance().await, 3);
        due.extend(fixture.tables.timers().into_iter().map(|timer| timer.due));
    }
    due.sort();
    for pair in due.windows(2) {
        let apart = pair[1].saturating_duration_since(pair[0]);
        assert_eq!(apart, Duration::from_millis(200), "{due:?}");
    }
}
