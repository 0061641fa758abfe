//! The retry schedule and the sweep.

use std::time::Duration;

use nano_webhooks_core::delivery::DeliveryState;

use crate::support::retry_fixture::{RetryFixture, START};

/// Attempts follow the schedule with one id and one body until it is exhausted.
#[tokio::test]
async fn attempts_follow_schedule() {
    let fixture = RetryFixture::new("10s,20s").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    for attempt in 1..=2 {
        let timer = fixture.timer();
        assert_eq!(timer.message.attempt_count, attempt);
        let wait = timer
            .due
            .saturating_duration_since(fixture.clock.now())
            .as_millis();
        let planned = u128::from(attempt) * 10_000;
        assert!(
            (planned * 8 / 10..=planned * 12 / 10).contains(&wait),
            "{wait}"
        );
        assert_eq!(
            fixture.only(webhook).await.state,
            DeliveryState::Pending(timer.due)
        );
        fixture
            .clock
            .advance(timer.due.saturating_duration_since(fixture.clock.now()));
        fixture.retry(&timer.message).await;
    }
    let delivery = fixture.only(webhook).await;
    assert_eq!(
        (delivery.state, delivery.attempt_count),
        (DeliveryState::Failed, 3)
    );
    assert_eq!(
        delivery
            .attempts
            .iter()
            .map(|attempt| attempt.number)
            .collect::<Vec<_>>(),
        [1, 2, 3]
    );
    assert_eq!(fixture.tables.timers(), []);
    let received = fixture.receiver.received();
    for (n, request) in received.iter().enumerate() {
        assert_eq!(request.header("x-nano-attempt"), (n + 1).to_string());
        assert_eq!(
            (request.header("webhook-id"), &request.body),
            (received[0].header("webhook-id"), &received[0].body)
        );
        assert_eq!(request.header("x-nano-signature").len(), 67);
    }
    assert_ne!(
        received[0].header("x-nano-timestamp"),
        received[2].header("x-nano-timestamp")
    );
    assert_ne!(
        received[0].header("x-nano-signature"),
        received[2].header("x-nano-signature")
    );
}

/// A delay that is longer than the queue allows waits for the sweep.
#[tokio::test]
async fn long_delay_waits_for_sweep() {
    let fixture = RetryFixture::new("2h").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    assert_eq!(fixture.tables.timers(), []);
    let DeliveryState::Pending(due) = fixture.only(webhook).await.state else {
        panic!()
    };
    fixture
        .clock
        .advance((due - Duration::from_mins(6)).saturating_duration_since(START));
    assert_eq!(fixture.sweep().await, 0);
    fixture.clock.advance(Duration::from_mins(1));
    assert_eq!(fixture.sweep().await, 1);
    assert_eq!(fixture.timer().due, due, "the message has the exact time");
    assert_eq!(
        fixture.sweep().await,
        0,
        "a queued delivery is not sent again"
    );
    fixture.clock.advance(Duration::from_mins(11));
    assert_eq!(fixture.sweep().await, 1, "a lost message is sent again");
}

/// The deliveries of the other webhooks are sent.
#[tokio::test]
async fn unreadable_item_delays_no_other() {
    let fixture = RetryFixture::new("2h").await;
    let broken = fixture.subscribe("/ok").await;
    let failing = fixture.subscribe("/status/500").await;
    let text = |text: &str| aws_sdk_dynamodb::types::AttributeValue::S(text.to_owned());
    let tables = &fixture.tables.names;
    let put = |table: &str| fixture.tables.client.put_item().table_name(table);
    let health = put(&tables.webhooks)
        .item("PK", text("ACCOUNT#acme"))
        .item("SK", text("WEBHOOK#0000000001#HEALTH"));
    health
        .item("last_failure", text("unheard of"))
        .send()
        .await
        .unwrap();
    let due = put(&tables.deliveries)
        .item("PK", text("acme#1"))
        .item("SK", text("evt_broken"))
        .item("due_shard", text("00"));
    due.item(
        "sweep_at",
        aws_sdk_dynamodb::types::AttributeValue::N("1".to_owned()),
    )
    .send()
    .await
    .unwrap();
    fixture.end_jobs(1, 1).await;
    assert_eq!(fixture.only(failing).await.attempt_count, 1);
    fixture.clock.advance(Duration::from_hours(3));
    assert_eq!(fixture.sweep().await, 1);
    let listed = fixture.tables.items(&tables.deliveries).await;
    assert!(
        listed
            .iter()
            .any(|item| item["PK"] == text("acme#1") && item["status"] == text("delivered")),
        "{broken}"
    );
}
