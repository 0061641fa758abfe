//! Leases: one worker attempts a delivery, and another one takes over after a crash.

use std::time::Duration;

use crate::support::retry_fixture::RetryFixture;

/// Of two workers with the same message one makes the attempt.
#[tokio::test]
async fn only_one_worker_claims() {
    let fixture = RetryFixture::new("1s,20s").await;
    fixture.subscribe("/hang").await;
    fixture.end_jobs(1, 1).await;
    let timer = fixture.timer();
    fixture.clock.advance(Duration::from_secs(2));
    let retries = (0..4).map(|_| fixture.retry(&timer.message));
    futures_util::future::join_all(retries).await;
    assert_eq!(fixture.requests(), 2);
}

/// When a worker crashes, another one takes over after the lease has expired.
#[tokio::test]
async fn expired_lease_is_taken_over() {
    let fixture = RetryFixture::new("1s,1h").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    let timer = fixture.timer();
    fixture.clock.advance(Duration::from_secs(2));
    let key = &timer.message.key;
    fixture
        .tables
        .store
        .leases()
        .claim(key, 1, fixture.clock.now())
        .await
        .unwrap();
    fixture.retry(&timer.message).await;
    assert_eq!(
        (fixture.requests(), fixture.sweep().await),
        (1, 0),
        "the first worker still has the lease"
    );
    fixture.clock.advance(Duration::from_secs(45));
    assert_eq!(fixture.sweep().await, 1);
    fixture.retry(&fixture.timer().message).await;
    assert_eq!(
        (
            fixture.requests(),
            fixture.only(webhook).await.attempt_count
        ),
        (2, 2)
    );
}

/// A process that owns the tables alone takes over leases at its start.
#[tokio::test]
async fn sole_owner_takes_over_at_once() {
    let fixture = RetryFixture::new("10m,1h").await;
    fixture.subscribe("/status/500").await;
    fixture.subscribe("/status/503").await;
    fixture.end_jobs(1, 1).await;
    let timers = fixture.tables.timers();
    fixture.clock.advance(Duration::from_mins(13));
    fixture
        .tables
        .store
        .leases()
        .claim(&timers[0].message.key, 1, fixture.clock.now())
        .await
        .unwrap();
    assert_eq!(fixture.dispatcher.recover_abandoned().await.unwrap(), 2);
    for timer in fixture.tables.timers() {
        fixture.retry(&timer.message).await;
    }
    assert_eq!(fixture.requests(), 4);
}
