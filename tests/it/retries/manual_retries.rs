//! Retries that a customer requests.

use std::time::Duration;

use nano_webhooks_core::{
    delivery::{Delivery, DeliveryState, scheduled_retry::RetryMessage},
    webhook::WebhookId,
};

use crate::support::{
    accounts::account,
    retry_fixture::{RetryFixture, START},
};

/// A manual retry counts as an attempt and does not change the schedule.
#[tokio::test]
async fn manual_retry_keeps_schedule() {
    let fixture = RetryFixture::new("1h,1h").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    retry_manually(&fixture, webhook).await;
    retry_manually(&fixture, webhook).await;
    assert!(matches!(
        retry_on_schedule(&fixture, webhook).await,
        DeliveryState::Pending(_)
    ));
    retry_manually(&fixture, webhook).await;
    assert_eq!(
        retry_on_schedule(&fixture, webhook).await,
        DeliveryState::Failed
    );
    retry_manually(&fixture, webhook).await;
    assert_eq!(
        (fixture.only(webhook).await.state, fixture.requests()),
        (DeliveryState::Failed, 7)
    );
}

/// Requests a retry twice, which makes one attempt, and checks that the schedule stays.
async fn retry_manually(fixture: &RetryFixture, webhook: WebhookId) {
    let before = fixture.only(webhook).await;
    let leases = fixture.tables.store.leases();
    let now = fixture.clock.now();
    let hour = Duration::from_hours(1);
    let scheduled = leases.schedule_retry(&before, now, hour).await.unwrap();
    assert!(scheduled.is_some());
    let again = leases.schedule_retry(&before, now, hour).await.unwrap();
    assert!(
        again.is_none(),
        "the delivery has changed since it was read"
    );
    fixture.retry(&next_message(&before)).await;
    let after = fixture.only(webhook).await;
    assert_eq!(
        (after.state, after.attempt_count, after.state_before_retry),
        (before.state, before.attempt_count + 1, None)
    );
}

/// Makes the attempt that is due by the schedule. Returns the delivery's state after it.
async fn retry_on_schedule(fixture: &RetryFixture, webhook: WebhookId) -> DeliveryState {
    fixture.clock.advance(Duration::from_hours(2));
    let before = fixture.only(webhook).await;
    fixture.retry(&next_message(&before)).await;
    fixture.only(webhook).await.state
}

/// The message of a delivery's next attempt.
fn next_message(delivery: &Delivery) -> RetryMessage {
    RetryMessage {
        key: delivery.key.clone(),
        attempt_count: delivery.attempt_count,
    }
}

/// A manual retry that was not made restores the state when the webhook is deleted or disabled.
#[tokio::test]
async fn withdrawn_retry_restores_state() {
    let fixture = RetryFixture::new("1h").await;
    let webhook = fixture.subscribe("/ok").await;
    fixture.end_jobs(1, 1).await;
    let delivered = fixture.only(webhook).await;
    let hastened = fixture
        .tables
        .store
        .leases()
        .schedule_retry(&delivered, START, Duration::from_hours(1))
        .await
        .unwrap()
        .unwrap();
    fixture
        .tables
        .store
        .webhooks()
        .delete(&account("acme"), webhook, fixture.clock.now())
        .await
        .unwrap();
    fixture
        .retry(&RetryMessage {
            key: hastened.key.clone(),
            attempt_count: 1,
        })
        .await;
    assert_eq!(
        (fixture.only(webhook).await.state, fixture.requests()),
        (DeliveryState::Delivered, 1)
    );
}
