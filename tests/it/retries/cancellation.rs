//! Deliveries of a deleted webhook.

use std::time::Duration;

use nano_webhooks::store::leases::ClaimOutcome;
use nano_webhooks_core::delivery::{DeliveryState, scheduled_retry::RetryMessage};

use crate::support::{
    accounts::account,
    retry_fixture::{RetryFixture, START},
};

/// Deliveries of a deleted webhook are cancelled and stay readable.
#[tokio::test]
async fn deleted_webhook_cancels_deliveries() {
    let fixture = RetryFixture::new("10s").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 2).await;
    let timers = fixture.tables.timers();
    assert!(
        fixture
            .tables
            .store
            .webhooks()
            .delete(&account("acme"), webhook, fixture.clock.now())
            .await
            .unwrap()
            .is_applied()
    );
    fixture.retry(&timers[0].message).await;
    let mut states = fixture.states(webhook).await;
    states.retain(|state| *state == DeliveryState::Cancelled);
    assert_eq!(states.len(), 1);
    fixture
        .tables
        .store
        .leases()
        .cancel_pending(&account("acme"), webhook, START, Duration::from_hours(1))
        .await
        .unwrap();
    assert_eq!(fixture.states(webhook).await, [DeliveryState::Cancelled; 2]);
    fixture.clock.advance(Duration::from_secs(20));
    fixture.retry(&timers[1].message).await;
    assert_eq!(fixture.requests(), 1, "a cancelled delivery is not sent");
}

/// An attempt in flight while its webhook is deleted is recorded before the delivery is cancelled.
#[tokio::test]
async fn attempt_in_flight_is_recorded_on_delete() {
    let fixture = RetryFixture::new("1s,10s").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    let timer = fixture.timer();
    fixture.clock.advance(Duration::from_secs(2));
    let store = &fixture.tables.store;
    let ClaimOutcome::Acquired(lease) = store
        .leases()
        .claim(&timer.message.key, 1, fixture.clock.now())
        .await
        .unwrap()
    else {
        panic!()
    };
    store
        .webhooks()
        .delete(&account("acme"), webhook, fixture.clock.now())
        .await
        .unwrap();
    store
        .leases()
        .cancel_pending(
            &account("acme"),
            webhook,
            fixture.clock.now(),
            Duration::from_hours(1),
        )
        .await
        .unwrap();
    let mut settled = lease.delivery.clone();
    settled.attempt_count = 2;
    assert!(
        store
            .leases()
            .complete(
                &lease,
                &settled,
                fixture.clock.now(),
                Duration::from_hours(1)
            )
            .await
            .unwrap()
            .is_applied()
    );
    fixture
        .retry(&RetryMessage {
            attempt_count: 2,
            ..timer.message
        })
        .await;
    let delivery = fixture.only(webhook).await;
    assert_eq!(
        (delivery.state, delivery.attempt_count, fixture.requests()),
        (DeliveryState::Cancelled, 2, 1)
    );
}
