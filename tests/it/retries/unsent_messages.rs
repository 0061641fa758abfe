//! Messages that SQS does not take: the next sweep sends them, whichever part sent them first.

use axum::http::StatusCode;
use nano_webhooks::dispatch::Dispatcher;
use nano_webhooks_cli::local_client;
use nano_webhooks_core::{
    delivery::{DeliveryState, lease::SWEEP_GRACE, scheduled_retry::RetryMessage},
    webhook::WebhookId,
};
use serde_json::json;

use crate::support::{
    app::NO_LIMITS,
    permissions::{API, DISPATCH},
    proxy::{PartitionFault, Proxy},
    replay_fixture::{ReplayFixture, SINCE, WEBHOOK},
    retry_fixture::RetryFixture,
    sqs::{Sqs, SqsMode},
    tables::patient_timeouts,
};

/// A webhook whose endpoint always fails, and a dispatcher that sends its messages to `sqs`.
async fn failing_endpoint(schedule: &str, sqs: &Sqs) -> (RetryFixture, WebhookId) {
    let mut fixture = RetryFixture::new(schedule).await;
    fixture.dispatcher.queue = sqs.queue();
    let webhook = fixture.subscribe("/status/500").await;
    (fixture, webhook)
}

/// Moves the clock to the due time of the only delivery.
async fn pass_until_due(fixture: &RetryFixture, webhook: WebhookId) {
    let DeliveryState::Pending(due) = fixture.only(webhook).await.state else {
        panic!("the delivery is not pending");
    };
    let wait = due.saturating_duration_since(fixture.clock.now());
    fixture.clock.advance(wait);
}

/// SQS rejects half of the messages of a recorded batch. The next sweep sends them.
#[tokio::test]
async fn sweep_sends_rejected_messages_of_batch() {
    let sqs = Sqs::start(SqsMode::RejectHalf).await;
    let (fixture, _) = failing_endpoint("10s", &sqs).await;
    fixture.end_jobs(1, 20).await;
    assert_eq!(sqs.message_count(), 10);
    sqs.set_mode(SqsMode::Accept);
    assert_eq!(fixture.sweep().await, 10);
    assert_eq!(sqs.message_count(), 20);
    assert_eq!(fixture.sweep().await, 0);
}

/// SQS does not respond after a batch was recorded. The batch ends, and the next sweep sends the
/// messages.
#[tokio::test]
async fn sweep_sends_hanging_messages_of_batch() {
    let sqs = Sqs::start(SqsMode::Hang).await;
    let (fixture, _) = failing_endpoint("10s", &sqs).await;
    fixture.end_jobs(1, 3).await;
    sqs.set_mode(SqsMode::Accept);
    assert_eq!(fixture.sweep().await, 3);
    assert_eq!(sqs.message_count(), 3);
}

/// SQS rejects the message that follows an early message, and the one that follows a failed retry.
/// The next sweep sends each.
#[tokio::test]
async fn sweep_sends_rejected_message_of_retry() {
    let sqs = Sqs::start(SqsMode::Accept).await;
    let (fixture, webhook) = failing_endpoint("10s,20s", &sqs).await;
    fixture.end_jobs(1, 1).await;
    let message = RetryMessage {
        key: fixture.only(webhook).await.key,
        attempt_count: 1,
    };
    for attempt_count in [1, 2] {
        sqs.set_mode(SqsMode::RejectAll);
        fixture.retry(&message).await;
        assert_eq!(fixture.only(webhook).await.attempt_count, attempt_count);
        sqs.set_mode(SqsMode::Accept);
        assert_eq!(fixture.sweep().await, 1, "after {attempt_count} attempts");
        pass_until_due(&fixture, webhook).await;
    }
    assert_eq!(sqs.message_count(), 3);
}

/// The table refuses to leave the delivery to the next sweep. A sweep sends its message five
/// minutes after it is due.
#[tokio::test]
async fn refused_request_delays_message() {
    let sqs = Sqs::start(SqsMode::RejectAll).await;
    let (mut fixture, webhook) = failing_endpoint("10s", &sqs).await;
    let proxy = Proxy::start(fixture.tables.endpoint.clone()).await;
    let client = local_client(&proxy.url, patient_timeouts());
    fixture.dispatcher.store = fixture.tables.store_with_role(&client, DISPATCH);
    proxy.set_partition_fault(&["acme#1"], PartitionFault::Throttled);
    fixture.end_jobs(1, 1).await;
    proxy.set_partition_fault(&[], PartitionFault::Throttled);
    sqs.set_mode(SqsMode::Accept);
    assert_eq!(fixture.sweep().await, 0);
    pass_until_due(&fixture, webhook).await;
    fixture.clock.advance(SWEEP_GRACE);
    assert_eq!(fixture.sweep().await, 1);
}

/// SQS rejects the messages of the API's first step of a replay, and of a manual retry. The next
/// sweep sends them.
#[tokio::test]
async fn sweep_sends_rejected_messages_of_api() {
    let sqs = Sqs::start(SqsMode::RejectAll).await;
    let mut fixture = ReplayFixture::new(3).await;
    fixture.app.tables.queue = sqs.queue();
    let store = fixture.app.tables.store_as(API);
    let fixture = ReplayFixture {
        dispatcher: Dispatcher {
            queue: sqs.queue(),
            ..fixture.dispatcher.clone()
        },
        app: fixture.app.over(store, NO_LIMITS),
        ..fixture
    };
    fixture.start_replay(json!({"since": SINCE})).await;
    sqs.set_mode(SqsMode::Accept);
    assert_eq!(fixture.sweep().await, 3);

    sqs.set_mode(SqsMode::RejectAll);
    let event = fixture.receiver.received()[0]
        .header("webhook-id")
        .to_owned();
    let path = format!("{WEBHOOK}/deliveries/{event}/retry");
    let response = fixture.app.post_to(&path).await;
    assert_eq!(response.status, StatusCode::ACCEPTED, "{}", response.text);
    sqs.set_mode(SqsMode::Accept);
    assert_eq!(fixture.sweep().await, 1);
    assert_eq!(sqs.message_count(), 4);
}
