//! Poison records: stored, listed, and redriven after their jobs were fixed.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use nano_webhooks::{
    clock::Deadline,
    dispatch::{
        Dispatcher,
        poison_reason::PoisonReason,
        redrive::{RedriveOutcome, redrive},
    },
    store::{
        leases::ClaimOutcome,
        poison::{MAX_IMAGE, NewPoisonRecord, PoisonCount, PoisonId, PoisonRecord},
        update::WebhookUpdate,
    },
};
use nano_webhooks_cli::local_client;
use nano_webhooks_core::{
    delivery::{Delivery, DeliveryKey, DeliveryState},
    endpoint_url::EndpointUrl,
    event::{EventId, MAX_PAYLOAD_LEN},
    timestamp::Timestamp,
    webhook::{WebhookId, WebhookStatus},
};
use serde_json::{Value, json};

use crate::support::{
    accounts::account,
    poison_fixture::{DAY, PoisonFixture, RETENTION, START, inserted},
    proxy::{Fault, Proxy},
    stream::{ARN, batch, dispatch_batch, job_image, stream_record},
    tables::patient_timeouts,
    webhooks::{subscribe, subscribe_to},
};

fn without(field: &str, mut job: Value) -> Value {
    job.as_object_mut().unwrap().remove(field).unwrap();
    job
}

fn with(field: &str, value: Value, mut job: Value) -> Value {
    job[field] = value;
    job
}

/// The event id of this record.
fn event_id(record: &Value) -> EventId {
    batch(std::slice::from_ref(record))[0]
        .event()
        .unwrap()
        .unwrap()
        .id
}

/// A job that was fixed becomes the event that its record would have raised, once.
#[tokio::test]
async fn fixed_job_is_redriven_once() {
    let fixture = PoisonFixture::new().await;
    let webhook = fixture.subscribe("/hook").await;
    let whole = job_image("t1", "completed");
    let broken = without("account_id", whole.clone());
    fixture.put(&broken).await;
    let record = fixture.poison(7, &broken).await;
    assert_eq!(record.id().to_string(), format!("{DAY}/{:021}", 7));
    assert_eq!(
        (record.stored_at, record.poison.created_at),
        (START, Some(Timestamp::from_millis(1_734_948_000_000)))
    );
    assert_eq!(record.poison.keys, r#"{"task_id":{"S":"t1"}}"#);

    assert_eq!(
        fixture.stays(&record).await,
        "`account_id`: missing, expected a string (S)"
    );
    fixture.clock.advance(Duration::from_hours(1));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fixed = with(
        "data",
        json!({"M": {"fixed": {"BOOL": true}}}),
        whole.clone(),
    );
    fixture
        .put(&with("traceparent", json!({ "S": trace }), fixed))
        .await;
    let (event, recorded, existing) = fixture.event(&record).await;
    assert_eq!((recorded, existing), (1, 0));
    assert_eq!(event.id, event_id(&inserted(7, &whole)));
    assert_eq!(fixture.stored().await, []);
    assert_eq!(
        fixture.receiver.received().len(),
        0,
        "only the sweep sends the event"
    );

    assert_eq!(fixture.sweep().await, 1);
    let received = fixture.receiver.wait_for(1).await.pop().unwrap();
    let body = concat!(
        r#"{"event":"job.completed","task_id":"t1","task_type":"image","status":"completed","#,
        r#""data":{"fixed":true},"timestamp":"2024-12-23T10:00:00Z"}"#,
    );
    assert_eq!(
        (received.body.as_str(), received.header("webhook-id")),
        (body, event.id.as_str())
    );
    assert!(received.is_signed_by("my-secret-key"));
    assert_eq!(received.header("traceparent"), trace);

    // As after a crash between the writes of the deliveries and of the poison record.
    let (again, recorded, existing) = fixture.event(&record).await;
    assert_eq!((again.id, recorded, existing), (event.id, 0, 1));
    assert_eq!(
        (
            fixture.sweep().await,
            fixture.receiver.received().len(),
            fixture.deliveries(webhook).await.len()
        ),
        (0, 1, 1)
    );
}

/// A redriven event reaches each active, subscribed webhook and no other.
#[tokio::test]
async fn redrive_reaches_subscribed_webhooks() {
    let fixture = PoisonFixture::new().await;
    let expected_webhooks = [
        fixture.subscribe("/one").await,
        fixture.subscribe("/two").await,
    ];
    let of_failures = subscribe_to(
        &fixture.tables,
        "acme",
        &fixture.receiver.url("/three"),
        &["job.failed"],
        None,
    )
    .await;
    let disabled = fixture.subscribe("/four").await;
    let change = WebhookUpdate {
        status: Some(WebhookStatus::Disabled),
        ..WebhookUpdate::default()
    };
    assert!(
        fixture
            .tables
            .store
            .webhooks()
            .update(&account("acme"), disabled, &change, START)
            .await
            .unwrap()
            .is_applied()
    );
    subscribe(
        &fixture.tables,
        "other",
        &fixture.receiver.url("/other"),
        None,
    )
    .await;

    let broken = without("account_id", job_image("t1", "completed"));
    let record = fixture.poison(1, &broken).await;
    fixture.put(&job_image("t1", "completed")).await;
    let (_, recorded, existing) = fixture.event(&record).await;
    assert_eq!((recorded, existing), (2, 0));
    for webhook in expected_webhooks {
        assert_eq!(fixture.deliveries(webhook).await.len(), 1);
    }
    for webhook in [of_failures, disabled] {
        assert_eq!(fixture.deliveries(webhook).await, []);
    }
    assert_eq!(fixture.sweep().await, 2);
    let mut paths: Vec<_> = fixture
        .receiver
        .wait_for(2)
        .await
        .into_iter()
        .map(|request| request.path)
        .collect();
    paths.sort();
    assert_eq!(paths, ["/one", "/two"]);
}

/// Version 0.2.0 stored each event that an unreadable webhook missed. A redrive creates the missing
/// deliveries and repeats none.
#[tokio::test]
async fn redrive_sends_missing_deliveries() {
    let fixture = PoisonFixture::new().await;
    let healthy = fixture.subscribe("/healthy").await;
    let broken = fixture.subscribe("/broken").await;
    let record = inserted(1, &job_image("t1", "failed"));
    let poison = batch(std::slice::from_ref(&record))[0].to_poison(&PoisonReason::JobGone);
    let poison_records = fixture.tables.store.poison();
    poison_records
        .put_once(&poison, START, START + RETENTION)
        .await
        .unwrap();
    let stored = fixture.stored().await.pop().unwrap();

    let whole = fixture.break_webhook(broken).await;
    let reason = fixture.stays(&stored).await;
    assert!(reason.starts_with("webhook 2 cannot be read: "), "{reason}");
    fixture.sweep().await;
    assert_eq!(fixture.receiver.wait_for(1).await[0].path, "/healthy");

    fixture.put_item(whole).await;
    let (event, recorded, existing) = fixture.event(&stored).await;
    assert_eq!((event.id, recorded, existing), (event_id(&record), 1, 1));
    assert_eq!(fixture.sweep().await, 1);
    assert_eq!(fixture.receiver.wait_for(2).await[1].path, "/broken");
    assert_eq!(fixture.deliveries(healthy).await.len(), 1);
    assert_eq!(fixture.deliveries(broken).await.len(), 1);
    assert_eq!(fixture.stored().await, []);
}

/// A job with another status today is not used for the event of the record; its stored image is.
#[tokio::test]
async fn later_job_status_is_not_redriven() {
    let fixture = PoisonFixture::new().await;
    fixture.subscribe("/hook").await;
    let broken = with("account_id", json!({"N": "1"}), job_image("t1", "failed"));
    let record = fixture.poison(1, &broken).await;
    for now in ["completed", "processing"] {
        fixture.put(&job_image("t1", now)).await;
        assert_eq!(
            fixture.stays(&record).await,
            "`account_id`: expected a string (S)"
        );
    }
    fixture.put(&job_image("t1", "failed")).await;
    assert_eq!(fixture.event(&record).await.0.outcome.as_str(), "failed");
}

/// A record without its image is parsed from the job.
#[tokio::test]
async fn record_without_image_uses_job() {
    let fixture = PoisonFixture::new().await;
    fixture.subscribe("/hook").await;
    // The image is too long to be stored because it has the type of each number. The payload is not
    // too long.
    let numbers: Vec<_> = (0..30_000).map(|_| json!({"N": "1"})).collect();
    let whole = with(
        "data",
        json!({"M": {"numbers": {"L": numbers}}}),
        job_image("t1", "completed"),
    );
    let broken = without("account_id", whole.clone());
    assert!(broken.to_string().len() > MAX_IMAGE);
    let record = fixture.poison(1, &broken).await;
    assert_eq!(record.poison.image, None);

    assert_eq!(
        fixture.stays(&record).await,
        "its image was not stored, and the job is gone"
    );
    let nowhere = redrive(
        &fixture.tables.store,
        None,
        &record,
        START,
        START,
        RETENTION,
    )
    .await
    .unwrap();
    assert!(
        matches!(
            nowhere,
            RedriveOutcome::StillPoison {
                reason: PoisonReason::NoJobsTable,
                recorded: 0,
            }
        ),
        "{nowhere:?}"
    );
    fixture
        .put(&with("status", json!({"S": "processing"}), whole.clone()))
        .await;
    assert_eq!(
        fixture.stays(&record).await,
        "its image was not stored, and the job is in progress now"
    );
    fixture.put(&whole).await;
    let (event, recorded, _) = fixture.event(&record).await;
    assert_eq!((event.id, recorded), (event_id(&inserted(1, &whole)), 1));
    assert_eq!(fixture.sweep().await, 1);
    let received = fixture.receiver.wait_for(1).await.pop().unwrap();
    assert_eq!(
        received.json()["data"]["numbers"].as_array().unwrap().len(),
        30_000
    );
}

/// A payload that is too large stays poison until the job is smaller.
#[tokio::test]
async fn large_payload_stays_poison() {
    let fixture = PoisonFixture::new().await;
    fixture.subscribe("/hook").await;
    let large = with(
        "data",
        json!({"M": {"text": {"S": "x".repeat(MAX_PAYLOAD_LEN)}}}),
        job_image("t1", "completed"),
    );
    fixture.put(&large).await;
    let record = fixture.poison(1, &large).await;
    let reason = fixture.stays(&record).await;
    assert!(
        reason.starts_with("the payload would have ")
            && reason.ends_with(", expected at most 262144"),
        "{reason}"
    );
    fixture.put(&job_image("t1", "completed")).await;
    assert_eq!(fixture.event(&record).await.1, 1);
}

/// Text that is not a record stays poison unless it can be parsed now.
#[tokio::test]
async fn unparsable_text_stays_poison() {
    let fixture = PoisonFixture::new().await;
    fixture.subscribe("/hook").await;
    let garbage = put_text(&fixture, "unknown-1", "{}").await;
    let reason = fixture.stays(&garbage).await;
    assert!(
        reason.starts_with("not a stream record: missing field"),
        "the reason is updated: {reason}"
    );
    let lost = put_text(&fixture, "unknown-2", &"x".repeat(MAX_IMAGE + 1)).await;
    assert_eq!(
        fixture.stays(&lost).await,
        "not a stream record, and too large to be stored"
    );

    let ended = inserted(9, &job_image("t9", "completed"));
    let record = put_text(&fixture, "unknown-3", &ended.to_string()).await;
    let (event, recorded, _) = fixture.event(&record).await;
    assert_eq!((event.id, recorded), (event_id(&ended), 1));
    let going_on = inserted(10, &job_image("t10", "processing"));
    let record = put_text(&fixture, "unknown-4", &going_on.to_string()).await;
    assert!(matches!(
        fixture.redrive(&record).await,
        RedriveOutcome::NotAnEvent
    ));
    let left: Vec<_> = fixture
        .stored()
        .await
        .iter()
        .map(|record| record.poison.sequence_number.clone())
        .collect();
    assert_eq!(left, ["unknown-2", "unknown-1"]);
}

/// Stores text that is not a record as poison.
async fn put_text(fixture: &PoisonFixture, number: &str, text: &str) -> PoisonRecord {
    let poison = NewPoisonRecord {
        reason: "not a stream record".to_owned(),
        reason_code: None,
        stream: String::new(),
        sequence_number: number.to_owned(),
        created_at: None,
        keys: String::new(),
        image: Some(text.to_owned()),
        webhook: None,
    };
    let store = fixture.tables.store.poison();
    store
        .put_once(&poison, START, START + RETENTION)
        .await
        .unwrap();
    let id = format!("{DAY}/{number}").parse().unwrap();
    let mut named = store.find(&id).await.unwrap();
    assert_eq!(named.len(), 1);
    named.pop().unwrap()
}

/// A change without an old image raises an event when an operator redrives it.
#[tokio::test]
async fn missing_old_image_is_redriven() {
    let fixture = PoisonFixture::new().await;
    fixture.subscribe("/hook").await;
    let change = stream_record(1, "MODIFY", Some(job_image("t", "completed")), None);
    assert_eq!(dispatch_batch(&fixture.dispatcher, &[change]).await, []);
    let record = fixture.stored().await.pop().unwrap();
    assert_eq!(fixture.event(&record).await.1, 1);
}

/// A record without a creation time uses the time at which it was stored.
#[tokio::test]
async fn record_without_time_uses_stored_at() {
    let fixture = PoisonFixture::new().await;
    fixture.subscribe("/hook").await;
    let record = fixture
        .poison(1, &without("account_id", job_image("t1", "completed")))
        .await;
    let mut item = fixture.tables.items_under("POISON#").await.pop().unwrap();
    item.remove("record_created_at").unwrap();
    fixture.put_item(item).await;
    let older = fixture.stored().await.pop().unwrap();
    assert_eq!(
        (
            older.poison.created_at,
            older.record_created_at(),
            older.id()
        ),
        (None, START, record.id())
    );
    fixture
        .put(&without("updated_at", job_image("t1", "completed")))
        .await;
    let (event, ..) = fixture.event(&older).await;
    assert!(event.id > EventId::min_at(START) && event.id < EventId::max_at(START));
    assert_eq!(event.timestamp, START.to_rfc3339());
}

/// Five records. Two of them have the same number.
async fn put_five_records(fixture: &PoisonFixture) {
    let store = &fixture.tables.store;
    for (stream, number) in [
        ("arn:a", "1"),
        ("arn:b", "1"),
        ("arn:a", "10"),
        ("arn:a", "11"),
        ("", "unknown-1"),
    ] {
        let poison = NewPoisonRecord {
            reason: "é".repeat(600),
            reason_code: None,
            stream: stream.to_owned(),
            sequence_number: number.to_owned(),
            created_at: None,
            keys: String::new(),
            image: None,
            webhook: None,
        };
        store
            .poison()
            .put_once(&poison, START, START + RETENTION)
            .await
            .unwrap();
    }
}

/// Poison records are listed by page.
#[tokio::test]
async fn records_are_listed_by_page() {
    let fixture = PoisonFixture::new().await;
    put_five_records(&fixture).await;
    let store = &fixture.tables.store;
    let mut listed = Vec::new();
    let mut from = None;
    loop {
        let page = store.poison().list_page(DAY, from, 2).await.unwrap();
        assert!(page.records.len() <= 2);
        // Listed records can be deleted before the next page is read.
        for record in &page.records {
            store.poison().delete(record).await.unwrap();
        }
        listed.extend(page.records);
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    let ids: Vec<_> = listed
        .iter()
        .map(|record| record.id().to_string())
        .collect();
    assert_eq!(
        ids,
        ["unknown-1", "11", "10", "1", "1"].map(|number| format!("{DAY}/{number}"))
    );
}

/// Poison records are found by their number, and counted by day.
#[tokio::test]
async fn records_are_found_and_counted() {
    let fixture = PoisonFixture::new().await;
    put_five_records(&fixture).await;
    let store = &fixture.tables.store;
    for (number, streams) in [
        ("1", &["arn:a", "arn:b"][..]),
        ("10", &["arn:a"]),
        ("unknown-1", &[""]),
        ("unknown-", &[]),
        ("12", &[]),
    ] {
        let named = store
            .poison()
            .find(&format!("{DAY}/{number}").parse().unwrap())
            .await
            .unwrap();
        let named: Vec<_> = named
            .iter()
            .map(|record| record.poison.stream.as_str())
            .collect();
        assert_eq!(named, streams, "{number}");
    }
    assert_eq!(
        store.poison().count(DAY, 100).await.unwrap(),
        all_counted(5)
    );
    assert_eq!(
        store.poison().count("2024-12-22", 100).await.unwrap(),
        all_counted(0)
    );
    for wrong in ["", "1", "2024-12-23/", "2024-13-23/1", "yesterday/1"] {
        assert!(wrong.parse::<PoisonId>().is_err(), "{wrong}");
    }
}

/// Counting stops with the page that reaches its limit.
#[tokio::test]
async fn count_stops_at_limit() {
    let fixture = PoisonFixture::new().await;
    // More than one page of DynamoDB, which has 1 MB, in one partition.
    for number in 1..=6 {
        let image = "x".repeat(MAX_IMAGE);
        fixture
            .put_unsharded(&number.to_string(), Some(image))
            .await;
    }
    let poison = fixture.tables.store.poison();
    let count = poison.count(DAY, 1).await.unwrap();
    assert!(
        (1..6).contains(&count.records) && !count.is_complete,
        "{count:?}"
    );
    assert_eq!(poison.count(DAY, 100).await.unwrap(), all_counted(6));
}

/// Version 0.2.0 stored all records of a day in one partition. They are listed in one order with
/// the others, found, counted and redriven.
#[tokio::test]
async fn records_of_previous_version_are_redriven() {
    let fixture = PoisonFixture::new().await;
    fixture.subscribe("/hook").await;
    let broken = without("account_id", job_image("t1", "completed"));
    for sequence in [2, 4] {
        fixture.poison(sequence, &broken).await;
    }
    let template = fixture.tables.items_under("POISON#").await.pop().unwrap();
    for sequence in [1, 3, 5] {
        let number = format!("{sequence:021}");
        let mut item = template.clone();
        item.remove("reason_code").unwrap();
        let partition = format!("POISON#{DAY}");
        item.insert("PK".to_owned(), AttributeValue::S(partition));
        let name = format!("{number}#{ARN}");
        item.insert("SK".to_owned(), AttributeValue::S(name));
        item.insert("sequence_number".to_owned(), AttributeValue::S(number));
        fixture.put_item(item).await;
    }

    let poison = fixture.tables.store.poison();
    let mut numbers = Vec::new();
    let mut cursor = None;
    loop {
        let page = poison.list_page(DAY, cursor, 2).await.unwrap();
        for record in page.records {
            numbers.push(record.poison.sequence_number.parse::<usize>().unwrap());
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(numbers, [5, 4, 3, 2, 1]);
    assert_eq!(poison.count(DAY, 100).await.unwrap(), all_counted(5));

    let id = format!("{DAY}/{:021}", 3).parse().unwrap();
    let record = poison.find(&id).await.unwrap().pop().unwrap();
    assert_eq!(record.poison.reason_code, None);
    fixture.put(&job_image("t1", "completed")).await;
    let (event, recorded, _) = fixture.event(&record).await;
    let whole = inserted(3, &job_image("t1", "completed"));
    assert_eq!((event.id, recorded), (event_id(&whole), 1));
    assert_eq!(poison.find(&id).await.unwrap(), []);
    assert_eq!(poison.count(DAY, 100).await.unwrap(), all_counted(4));
}

/// Poison that cannot be stored delays no event of its batch, and is read again.
#[tokio::test]
async fn throttled_poison_delays_no_event() {
    let fixture = PoisonFixture::new().await;
    let webhook = fixture.subscribe("/hook").await;
    let proxy = Proxy::start(fixture.tables.endpoint.clone()).await;
    let client = local_client(&proxy.url, patient_timeouts());
    let dispatcher = Dispatcher {
        store: fixture.tables.store_through(client),
        ..fixture.dispatcher.clone()
    };
    let mut records = Vec::new();
    for number in 0..20 {
        let job = job_image(&format!("t{number}"), "completed");
        records.push(inserted(2 * number, &without("account_id", job.clone())));
        records.push(inserted(2 * number + 1, &job));
    }

    proxy.arm_matching("PutItem", "POISON#", 0, Fault::ThrottledAlways);
    let records_of_batch = batch(&records);
    let deadline = Deadline::from_now(Duration::from_secs(8));
    let mut dispatch = Box::pin(dispatcher.handle_stream_batch(&records_of_batch, deadline));
    tokio::select! {
        response = &mut dispatch => panic!("the poison cannot be stored yet: {response:?}"),
        received = fixture.receiver.wait_for(20) => assert_eq!(received.len(), 20),
    }
    let response = dispatch.await;
    let failed: Vec<_> = response
        .batch_item_failures
        .into_iter()
        .map(|failure| failure.item_identifier.unwrap())
        .collect();
    let expected: Vec<_> = (0..20)
        .map(|number| format!("{:021}", 2 * number))
        .collect();
    assert_eq!(failed, expected);
    assert_eq!(fixture.deliveries(webhook).await.len(), 20);
    assert_eq!(fixture.stored().await, []);

    proxy.disarm();
    assert_eq!(dispatch_batch(&dispatcher, &records).await, []);
    assert_eq!(fixture.stored().await.len(), 20);
    assert_eq!(fixture.receiver.wait_for(20).await.len(), 20);
}

/// The other poison records are listed.
#[tokio::test]
async fn unreadable_record_hides_no_other() {
    let fixture = PoisonFixture::new().await;
    let record = fixture
        .poison(1, &without("account_id", job_image("t1", "completed")))
        .await;
    let mut broken = fixture.tables.items_under("POISON#").await.pop().unwrap();
    broken.insert("SK".to_owned(), AttributeValue::S("2#arn".to_owned()));
    broken.insert("reason".to_owned(), AttributeValue::N("1".to_owned()));
    fixture.put_item(broken).await;
    assert_eq!(fixture.stored().await, [record]);
}

/// A retry that an operator requests without a queue is found by the next sweep.
#[tokio::test]
async fn sweep_finds_retry_without_queue() {
    let fixture = PoisonFixture::new().await;
    let webhook = fixture.subscribe("/status/500").await;
    let found = attempt_job(&fixture, webhook).await;
    let store = &fixture.tables.store;
    let scheduled = store
        .leases()
        .schedule_retry_for_sweep(&found, START, RETENTION)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (scheduled.state, scheduled.state_before_retry),
        (DeliveryState::Pending(START), Some(found.state))
    );
    // The delivery has changed since `found` was read.
    assert!(!schedule_for_sweep(&fixture, &found).await);
    let url = EndpointUrl::parse(&fixture.receiver.url("/ok")).unwrap();
    let change = WebhookUpdate {
        url: Some(url),
        ..WebhookUpdate::default()
    };
    assert!(
        store
            .webhooks()
            .update(&account("acme"), webhook, &change, START)
            .await
            .unwrap()
            .is_applied()
    );
    assert_eq!(fixture.sweep().await, 1);
    let received = fixture.receiver.wait_for(2).await.pop().unwrap();
    assert_eq!(
        (received.path.as_str(), received.header("x-nano-attempt")),
        ("/ok", "2")
    );
    let delivered = store.deliveries().get(&found.key).await.unwrap().unwrap();
    assert_eq!(delivered.state, DeliveryState::Delivered);
}

/// A delivery in flight cannot be scheduled for the sweep.
#[tokio::test]
async fn delivery_in_flight_is_not_rescheduled() {
    let fixture = PoisonFixture::new().await;
    let webhook = fixture.subscribe("/ok").await;
    let delivered = attempt_job(&fixture, webhook).await;
    assert!(schedule_for_sweep(&fixture, &delivered).await);
    let store = &fixture.tables.store;
    let claimed = store.leases().claim(&delivered.key, 1, START);
    assert!(matches!(claimed.await.unwrap(), ClaimOutcome::Acquired(_)));
    let deliveries = store.deliveries();
    let in_flight = deliveries.get(&delivered.key).await.unwrap().unwrap();
    assert!(!schedule_for_sweep(&fixture, &in_flight).await);
}

/// Makes the first attempt of a job's delivery.
async fn attempt_job(fixture: &PoisonFixture, webhook: WebhookId) -> Delivery {
    let record = inserted(1, &job_image("t1", "completed"));
    assert_eq!(dispatch_batch(&fixture.dispatcher, &[record]).await, []);
    fixture.tables.timers();
    let key = DeliveryKey {
        account: account("acme"),
        webhook,
        event: fixture.deliveries(webhook).await.pop().unwrap().event_id,
    };
    let deliveries = fixture.tables.store.deliveries();
    deliveries.get(&key).await.unwrap().unwrap()
}

/// Schedules a retry for the sweep. Returns whether the delivery was free and unchanged.
async fn schedule_for_sweep(fixture: &PoisonFixture, delivery: &Delivery) -> bool {
    let leases = fixture.tables.store.leases();
    let scheduled = leases.schedule_retry_for_sweep(delivery, START, RETENTION);
    scheduled.await.unwrap().is_some()
}

/// A count that reached the last record.
const fn all_counted(records: usize) -> PoisonCount {
    PoisonCount {
        records,
        is_complete: true,
    }
}
