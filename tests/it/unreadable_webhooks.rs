//! Webhooks whose item or secret is invalid: their events wait, and one poison record in an hour
//! names the webhook.

use std::time::Duration;

use nano_webhooks::{
    clock::Deadline,
    dispatch::{Dispatcher, redrive::RedriveOutcome},
    store::poison::{PoisonRecord, PoisonWebhook, UNREADABLE_WEBHOOK_INTERVAL},
};
use nano_webhooks_cli::local_client;
use nano_webhooks_core::webhook::WebhookId;
use serde_json::Value;

use crate::support::{
    accounts::account,
    poison_fixture::{PoisonFixture, inserted},
    proxy::{Fault, Proxy},
    stream::{batch, dispatch_batch, job_image},
    tables::patient_timeouts,
    webhooks::subscribe_to,
};

const EVENTS: usize = 100;

fn records(from: usize, count: usize, status: &str) -> Vec<Value> {
    (from..from + count)
        .map(|number| inserted(number, &job_image(&format!("t{number}"), status)))
        .collect()
}

async fn dispatch(fixture: &PoisonFixture, records: &[Value]) {
    assert_eq!(dispatch_batch(&fixture.dispatcher, records).await, []);
}

/// The only poison record. It names the webhook.
async fn only_record(fixture: &PoisonFixture, webhook: WebhookId) -> PoisonRecord {
    let mut records = fixture.stored().await;
    assert_eq!(records.len(), 1);
    let record = records.pop().unwrap();
    let expected = PoisonWebhook {
        account: account("acme"),
        id: webhook,
    };
    assert_eq!(record.poison.webhook, Some(expected));
    record
}

async fn resume_by_redrive(fixture: &PoisonFixture, record: &PoisonRecord) {
    let outcome = fixture.redrive(record).await;
    assert!(
        matches!(outcome, RedriveOutcome::WebhookResumed(_)),
        "{outcome:?}"
    );
}

/// The status of each delivery of a webhook.
async fn statuses(fixture: &PoisonFixture, webhook: WebhookId) -> Vec<String> {
    let deliveries = fixture.deliveries(webhook).await;
    deliveries
        .into_iter()
        .map(|delivery| delivery.row.status)
        .collect()
}

/// The events of an unreadable webhook wait. It is stored once, also when the batch is read again,
/// and everything is sent after its repair.
#[tokio::test]
async fn unreadable_webhook_is_stored_once() {
    let fixture = PoisonFixture::new().await;
    let healthy = fixture.subscribe("/healthy").await;
    let broken = fixture.subscribe("/broken").await;
    let whole = fixture.break_webhook(broken).await;
    let batch_of_events = records(0, EVENTS, "completed");
    for _ in 0..2 {
        dispatch(&fixture, &batch_of_events).await;
    }
    assert_eq!(fixture.receiver.wait_for(EVENTS).await.len(), EVENTS);
    assert_eq!(statuses(&fixture, healthy).await, ["delivered"; EVENTS]);
    assert_eq!(statuses(&fixture, broken).await, ["pending"; EVENTS]);
    assert_eq!(fixture.sweep().await, 0, "nothing is due");
    let record = only_record(&fixture, broken).await;
    assert_eq!(
        record.poison.reason_code.as_deref(),
        Some("unreadable_webhook")
    );

    let reason = fixture.stays(&record).await;
    assert!(reason.starts_with("webhook 2 cannot be read: "), "{reason}");
    fixture.put_item(whole).await;
    resume_by_redrive(&fixture, &record).await;
    assert_eq!(fixture.stored().await, []);
    fixture.resume().await;
    let received = fixture.receiver.wait_for(2 * EVENTS).await;
    let to_broken = received.iter().filter(|request| request.path == "/broken");
    assert_eq!(to_broken.count(), EVENTS);
    assert_eq!(statuses(&fixture, broken).await, ["delivered"; EVENTS]);
}

/// An operator sees after an hour that a webhook still cannot be read.
#[tokio::test]
async fn unreadable_webhook_is_stored_each_interval() {
    let fixture = PoisonFixture::new().await;
    let broken = fixture.subscribe("/broken").await;
    fixture.break_webhook(broken).await;
    dispatch(&fixture, &records(0, 1, "completed")).await;
    only_record(&fixture, broken).await;
    fixture.clock.advance(UNREADABLE_WEBHOOK_INTERVAL);
    dispatch(&fixture, &records(1, 1, "completed")).await;
    assert_eq!(fixture.stored().await.len(), 2);
}

/// The subscriptions of an unreadable webhook are unknown. They are applied after the repair.
#[tokio::test]
async fn unsubscribed_event_is_cancelled_after_repair() {
    let fixture = PoisonFixture::new().await;
    let url = fixture.receiver.url("/hook");
    let webhook = subscribe_to(&fixture.tables, "acme", &url, &["job.failed"], None).await;
    let whole = fixture.break_webhook(webhook).await;
    dispatch(&fixture, &records(0, 1, "failed")).await;
    dispatch(&fixture, &records(1, 1, "completed")).await;
    fixture.put_item(whole).await;
    let record = only_record(&fixture, webhook).await;
    resume_by_redrive(&fixture, &record).await;
    fixture.resume().await;
    let received = fixture.receiver.wait_for(1).await;
    assert_eq!(received[0].json()["status"], "failed");
    let mut statuses = statuses(&fixture, webhook).await;
    statuses.sort_unstable();
    assert_eq!(statuses, ["cancelled", "delivered"]);
}

/// Events that need an invalid secret wait. If it is still invalid when the webhook is redriven,
/// the poison record comes back.
#[tokio::test]
async fn unreadable_secret_is_stored_once() {
    let fixture = PoisonFixture::new().await;
    let other = fixture.subscribe("/other").await;
    let broken = fixture.subscribe("/broken").await;
    let whole = fixture.webhook_item(broken).await;
    let mut moved = whole.clone();
    let secrets = fixture.webhook_item(other).await["secrets"].clone();
    moved.insert("secrets".to_owned(), secrets);
    fixture.put_item(moved).await;
    dispatch(&fixture, &records(0, EVENTS, "completed")).await;
    assert_eq!(statuses(&fixture, broken).await, ["pending"; EVENTS]);
    let record = only_record(&fixture, broken).await;
    assert_eq!(
        record.poison.reason_code.as_deref(),
        Some("unreadable_secret")
    );

    resume_by_redrive(&fixture, &record).await;
    fixture.resume().await;
    assert_eq!(statuses(&fixture, broken).await, ["pending"; EVENTS]);
    let record = only_record(&fixture, broken).await;

    fixture.put_item(whole).await;
    resume_by_redrive(&fixture, &record).await;
    fixture.resume().await;
    assert_eq!(
        fixture.receiver.wait_for(2 * EVENTS).await.len(),
        2 * EVENTS
    );
    assert_eq!(statuses(&fixture, broken).await, ["delivered"; EVENTS]);
}

/// A retry of a webhook that became unreadable waits as well, instead of failing again and again.
#[tokio::test]
async fn retry_of_unreadable_webhook_waits() {
    let fixture = PoisonFixture::new().await;
    let webhook = fixture.subscribe("/status/500").await;
    dispatch(&fixture, &records(0, 1, "completed")).await;
    let whole = fixture.break_webhook(webhook).await;
    let retry = fixture.tables.timers().pop().unwrap();
    fixture.clock.advance(Duration::from_mins(1));
    fixture.retry(&retry).await;
    let record = only_record(&fixture, webhook).await;
    fixture.clock.advance(Duration::from_hours(1));
    assert_eq!(fixture.sweep().await, 0, "nothing is due");

    fixture.put_item(whole).await;
    resume_by_redrive(&fixture, &record).await;
    fixture.resume().await;
    let received = fixture.receiver.wait_for(2).await;
    assert_eq!(received[1].header("x-nano-attempt"), "2");
}

/// If the poison record cannot be stored, the events that wait for the webhook are read again.
#[tokio::test]
async fn throttled_record_is_stored_later() {
    let fixture = PoisonFixture::new().await;
    let broken = fixture.subscribe("/broken").await;
    fixture.break_webhook(broken).await;
    let proxy = Proxy::start(fixture.tables.endpoint.clone()).await;
    let client = local_client(&proxy.url, patient_timeouts());
    let dispatcher = Dispatcher {
        store: fixture.tables.store_through(client),
        ..fixture.dispatcher.clone()
    };
    let events = records(0, 3, "completed");
    proxy.arm_matching("PutItem", "POISON#", 0, Fault::ThrottledAlways);
    let deadline = Deadline::from_now(Duration::from_secs(1));
    let response = dispatcher
        .handle_stream_batch(&batch(&events), deadline)
        .await;
    assert_eq!(response.batch_item_failures.len(), 3);
    assert_eq!(statuses(&fixture, broken).await, ["pending"; 3]);

    proxy.disarm();
    assert_eq!(dispatch_batch(&dispatcher, &events).await, []);
    assert_eq!(statuses(&fixture, broken).await, ["pending"; 3]);
    only_record(&fixture, broken).await;
}
