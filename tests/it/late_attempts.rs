//! Late attempts: direct attempts that end after their batch.

use std::{collections::HashMap, time::Duration};

use futures_util::future::join_all;
use nano_webhooks::{
    dispatch::{
        Dispatcher,
        late_attempts::{LateAttempts, MAX_LATE},
    },
    store::holds::MAX_HOLDS_PER_WINDOW,
};
use nano_webhooks_core::{
    delivery::{DeliveryState, failure::FailureKind, lease::LEASE_DURATION},
    webhook::WebhookId,
};

use serde_json::json;
use tokio::time::timeout;

use crate::support::{
    client::client,
    receiver::TEST_TIMEOUT,
    retry_fixture::RetryFixture,
    stream::{completed_jobs, dispatch_batch, insert_record, job_image},
    webhooks::subscribe,
};

/// A process that continues after a batch, and a batch that waits no longer than the test needs.
async fn fixture() -> RetryFixture {
    let fixture = RetryFixture::new("10s").await;
    RetryFixture {
        dispatcher: Dispatcher {
            batch_wait: Duration::from_millis(50),
            direct_client: client(),
            late_attempts: LateAttempts::enabled(MAX_LATE),
            ..fixture.dispatcher.clone()
        },
        ..fixture
    }
}

/// Whether the delivery is recorded as being attempted by the process that holds its lease.
async fn is_in_flight(fixture: &RetryFixture, webhook: WebhookId) -> bool {
    let delivery = fixture.only(webhook).await;
    let items = fixture.tables.items(&fixture.tables.names.deliveries).await;
    let is_leased = items.iter().any(|item| {
        item["SK"].as_s().unwrap() == delivery.key.event.as_str()
            && item["PK"].as_s().unwrap() == &format!("acme#{webhook}")
            && item.contains_key("leased_until")
    });
    is_leased && delivery.state == DeliveryState::Pending(fixture.clock.now())
}

/// An endpoint that responds after its batch has ended receives its event once.
#[tokio::test]
async fn late_response_is_recorded_once() {
    let fixture = fixture().await;
    let held = fixture.subscribe("/held").await;
    fixture.end_jobs(1, 1).await;
    assert!(is_in_flight(&fixture, held).await);
    assert!(fixture.health(held).await.slow, "slow at once");
    assert_eq!(fixture.tables.timers(), []);

    // Health is written at most once a second.
    fixture.clock.advance(Duration::from_secs(1));
    fixture.receiver.release();
    fixture.dispatcher.late_attempts.drain().await;
    let delivery = fixture.only(held).await;
    assert_eq!(delivery.state, DeliveryState::Delivered);
    assert_eq!(delivery.attempts.len(), 1);
    assert_eq!(fixture.requests(), 1);
    assert_eq!(fixture.tables.timers(), []);
    assert!(fixture.health(held).await.has_succeeded);
}

/// The other deliveries of a late endpoint go to the queue, and other endpoints do not notice.
#[tokio::test]
async fn late_attempt_delays_no_other() {
    let fixture = fixture().await;
    let held = fixture.subscribe("/held").await;
    fixture.end_jobs(1, 5).await;
    let deliveries = fixture.deliveries(held).await;
    assert_eq!(deliveries.len(), 5);
    assert_eq!(fixture.requests(), 1);
    assert_eq!(fixture.tables.timers().len(), 4);
    fixture.receiver.release();
    fixture.dispatcher.late_attempts.drain().await;
}

/// Waits until a webhook has this many deliveries, all of them delivered.
async fn wait_until_delivered(fixture: &RetryFixture, webhook: WebhookId, count: usize) {
    let all_delivered = async {
        while fixture.states(webhook).await != vec![DeliveryState::Delivered; count] {
            tokio::task::yield_now().await;
        }
    };
    let waited = timeout(TEST_TIMEOUT, all_delivered).await;
    waited.expect("the events are recorded");
}

/// Six endpoints of different accounts sleep before each of three bursts. A cold one does not
/// respond until the test wakes it up, which is as long as it may take within the time of an
/// attempt. Each event arrives once and is delivered by its first attempt, also when the endpoint
/// stays on the queue because it was late before. The events of an endpoint that is awake are
/// recorded while the others are cold.
#[tokio::test]
async fn cold_endpoints_receive_each_event_once() {
    const BURSTS: usize = 3;
    let mut fixture = fixture().await;
    fixture.dispatcher.retry_client = client();
    let cold: Vec<_> = (0..6).map(|number| format!("cold-{number}")).collect();
    for account in &cold {
        let url = fixture.receiver.url(&format!("/cold/{account}"));
        subscribe(&fixture.tables, account, &url, None).await;
    }
    let awake = fixture.subscribe("/awake").await;
    for burst in 0..BURSTS {
        fixture.receiver.cool_down();
        let mut records = completed_jobs(burst * 10, 1);
        for (number, account) in cold.iter().enumerate() {
            let sequence = burst * 10 + number + 1;
            let mut image = job_image(&format!("t{sequence}"), "completed");
            image["account_id"] = json!({"S": account});
            records.push(insert_record(sequence, image));
        }
        assert_eq!(dispatch_batch(&fixture.dispatcher, &records).await, []);
        let timers = fixture.tables.timers();
        let retries = timers.iter().map(|timer| fixture.retry(&timer.message));
        let wake_up = async {
            let arrived = (burst + 1) * (cold.len() + 1);
            fixture.receiver.wait_for(arrived).await;
            wait_until_delivered(&fixture, awake, burst + 1).await;
            fixture.receiver.release();
        };
        tokio::join!(join_all(retries), wake_up);
        fixture.dispatcher.late_attempts.drain().await;
        fixture.clock.advance(Duration::from_mins(5));
    }
    assert_eq!(fixture.requests(), BURSTS * (cold.len() + 1));
    let mut delivered = HashMap::new();
    for item in fixture.tables.items(&fixture.tables.names.deliveries).await {
        assert_eq!(item["status"].as_s().unwrap(), "delivered", "{item:?}");
        assert_eq!(item["attempt_count"].as_n().unwrap(), "1", "{item:?}");
        let partition = item["PK"].as_s().unwrap().clone();
        *delivered.entry(partition).or_insert(0) += 1;
    }
    for account in cold.iter().map(String::as_str).chain(["acme"]) {
        assert_eq!(delivered[&format!("{account}#1")], BURSTS, "{account}");
    }
}

/// A late attempt that fails is followed by the next attempt of the schedule.
#[tokio::test]
async fn late_failure_schedules_next_attempt() {
    let mut fixture = RetryFixture::new("10s").await;
    // The client of the fixture gives up after 300 ms.
    fixture.dispatcher.batch_wait = Duration::from_millis(50);
    fixture.dispatcher.late_attempts = LateAttempts::enabled(MAX_LATE);
    let hanging = fixture.subscribe("/hang").await;
    fixture.end_jobs(1, 1).await;
    // Health is written at most once a second.
    fixture.clock.advance(Duration::from_secs(1));
    fixture.dispatcher.late_attempts.drain().await;
    let delivery = fixture.only(hanging).await;
    assert_eq!(delivery.attempts[0].failure, Some(FailureKind::Timeout));
    assert_eq!(fixture.timer().message.attempt_count, 1);
    assert!(fixture.health(hanging).await.failing_since.is_some());
}

/// If the process ends before the response, the sweep repeats the attempt when the lease ends. A
/// response that arrives afterward changes nothing.
#[tokio::test]
async fn late_response_after_lease_changes_nothing() {
    let fixture = fixture().await;
    let held = fixture.subscribe("/held").await;
    fixture.end_jobs(1, 1).await;
    assert_eq!(fixture.sweep().await, 0, "the lease is valid");
    fixture.clock.advance(LEASE_DURATION);
    assert_eq!(fixture.sweep().await, 1);
    let retried = fixture.timer().message;
    // The receiver holds only its first request, so this one fails after the fixture's time-out.
    fixture.retry(&retried).await;
    let after_retry = fixture.only(held).await;
    assert_eq!(after_retry.attempts.len(), 1);

    fixture.receiver.release();
    fixture.dispatcher.late_attempts.drain().await;
    assert_eq!(fixture.only(held).await, after_retry);
}

/// Beyond the limit of the deployment, an attempt is cut when its batch stops waiting.
#[tokio::test]
async fn full_hold_budget_cuts_attempts() {
    let fixture = fixture().await;
    let now = fixture.clock.now();
    for _ in 0..MAX_HOLDS_PER_WINDOW {
        let outcome = fixture.tables.store.holds().try_begin(now).await.unwrap();
        assert!(outcome.is_applied());
    }
    let held = fixture.subscribe("/held").await;
    fixture.end_jobs(1, 1).await;
    let delivery = fixture.only(held).await;
    assert_eq!(delivery.attempts[0].failure, Some(FailureKind::Timeout));
    assert!(delivery.attempts[0].duration_ms < TEST_TIMEOUT.as_millis().try_into().unwrap());

    fixture.clock.advance(Duration::from_secs(10));
    let next = fixture.clock.now();
    let outcome = fixture.tables.store.holds().try_begin(next).await.unwrap();
    assert!(outcome.is_applied(), "the next window has its own limit");
}
