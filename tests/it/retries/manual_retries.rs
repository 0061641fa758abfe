//! Retries that a customer requests.

use std::time::Duration;

use nano_webhooks_core::delivery::{DeliveryState, scheduled_retry::RetryMessage};

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
    let by_hand = async || {
        let before = fixture.only(webhook).await;
        let hastened = fixture
            .tables
            .store
            .leases()
            .schedule_retry(&before, fixture.clock.now(), Duration::from_hours(1))
            .await
            .unwrap();
        assert!(hastened.is_some());
        let again = fixture
            .tables
            .store
            .leases()
            .schedule_retry(&before, fixture.clock.now(), Duration::from_hours(1))
            .await
            .unwrap();
        assert!(
            again.is_none(),
            "the delivery has changed since it was read"
        );
        fixture
            .retry(&RetryMessage {
                key: before.key.clone(),
                attempt_count: before.attempt_count,
            })
            .await;
        let after = fixture.only(webhook).await;
        assert_eq!(
            (after.state, after.attempt_count, after.state_before_retry),
            (before.state, before.attempt_count + 1, None)
        );
    };
    let by_schedule = async || {
        fixture.clock.advance(Duration::from_hours(2));
        let before = fixture.only(webhook).await;
        fixture
            .retry(&RetryMessage {
                key: before.key.clone(),
                attempt_count: before.attempt_count,
            })
            .await;
        fixture.only(webhook).await.state
    };
    by_hand().await;
    by_hand().await;
    assert!(matches!(by_schedule().await, DeliveryState::Pending(_)));
    by_hand().await;
    assert_eq!(by_schedule().await, DeliveryState::Failed);
    by_hand().await;
    assert_eq!(
        (fixture.only(webhook).await.state, fixture.requests()),
        (DeliveryState::Failed, 7)
    );
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
        .delete(&account("acme"), webhook)
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
