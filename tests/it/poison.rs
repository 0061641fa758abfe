//! Poison records: kept, listed, and read again when their jobs were mended.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use nano_webhooks::{
    clock::{Clock, Deadline},
    dispatch::{
        Dispatcher,
        poison_reason::PoisonReason,
        redrive::{RedriveOutcome, redrive},
    },
    store::{
        delivery_log::{DeliveryFilter, DeliverySummary},
        poison::{MAX_IMAGE, NewPoisonRecord, PoisonId, PoisonRecord},
        update::WebhookUpdate,
    },
};
use nano_webhooks_core::{
    delivery::{DeliveryKey, DeliveryState},
    endpoint_url::EndpointUrl,
    event::{EventId, JobEvent, MAX_PAYLOAD_LEN},
    timestamp::Timestamp,
    webhook::{WebhookId, WebhookStatus},
};
use serde_json::{Value, json};

use crate::{
    dispatch::{
        batch, dispatch_batch, insert_record, job_image, stream_record, subscribe, subscribe_to,
    },
    support::{
        Receiver, TestTables, account,
        permissions::{RETRY, run_as},
    },
};

const START: Timestamp = Timestamp::from_millis(1_734_948_001_500);
const DAY: &str = "2024-12-23";
const RETENTION: Duration = Duration::from_hours(24);

/// Tables, an endpoint, and a dispatcher with the clock in hand.
struct PoisonFixture {
    world: TestTables,
    receiver: Receiver,
    dispatcher: Dispatcher,
    clock: Clock,
}

impl PoisonFixture {
    async fn new() -> Self {
        let (world, receiver) = (TestTables::new().await, Receiver::start().await);
        let clock = Clock::manual(START);
        let dispatcher = Dispatcher {
            clock: clock.clone(),
            ..world.dispatcher()
        };
        Self {
            world,
            receiver,
            dispatcher,
            clock,
        }
    }

    async fn subscribe(&self, path: &str) -> WebhookId {
        subscribe(
            &self.world,
            "acme",
            &self.receiver.url(path),
            Some("my-secret-key"),
        )
        .await
    }

    /// Writes a job, as a worker or an operator would.
    async fn put(&self, job: &Value) {
        let item: serde_dynamo::Item = serde_json::from_value(job.clone()).unwrap();
        let put = self.world.client.put_item().table_name(&self.world.jobs);
        put.set_item(Some(item.into())).send().await.unwrap();
    }

    /// Takes the record of a job that was written, which must be poison.
    async fn poison(&self, sequence: usize, job: &Value) -> PoisonRecord {
        let before = self.kept().await.len();
        assert_eq!(
            dispatch_batch(&self.dispatcher, &[of(sequence, job)]).await,
            []
        );
        let kept = self.kept().await;
        assert_eq!(kept.len(), before + 1);
        let number = format!("{sequence:021}");
        kept.into_iter()
            .find(|kept| kept.poison.sequence_number == number)
            .unwrap()
    }

    async fn kept(&self) -> Vec<PoisonRecord> {
        let page = self
            .world
            .store
            .poison()
            .list_page(DAY, None, 100)
            .await
            .unwrap();
        assert!(page.next.is_none());
        page.kept
    }

    async fn redrive(&self, kept: &PoisonRecord) -> RedriveOutcome {
        let Self { world, clock, .. } = self;
        redrive(
            &world.store,
            Some(&world.jobs),
            kept,
            clock.now(),
            clock.now(),
            RETENTION,
        )
        .await
        .unwrap()
    }

    /// The event that came of a record, how many deliveries are new, and how many were there.
    async fn event(&self, kept: &PoisonRecord) -> (Box<JobEvent>, usize, usize) {
        match self.redrive(kept).await {
            RedriveOutcome::Redriven {
                event,
                recorded,
                already_recorded,
            } => (event, recorded, already_recorded),
            other => panic!("{other:?}"),
        }
    }

    /// Why a record stays, which its item says too.
    async fn stays(&self, kept: &PoisonRecord) -> String {
        match self.redrive(kept).await {
            RedriveOutcome::StillPoison { reason, .. } => {
                let reason = reason.to_string();
                assert!(
                    self.kept()
                        .await
                        .iter()
                        .any(|now| now.id() == kept.id() && now.poison.reason == reason)
                );
                reason
            }
            other => panic!("{other:?}"),
        }
    }

    async fn deliveries(&self, webhook: WebhookId) -> Vec<DeliverySummary> {
        let filter = DeliveryFilter {
            status: None,
            event: None,
            after: None,
            limit: 100,
        };
        self.world
            .store
            .delivery_log()
            .list(&account("acme"), webhook, &filter)
            .await
            .unwrap()
            .deliveries
    }

    /// Sweeps, and makes the attempts that come of it.
    async fn sweep(&self) -> usize {
        let swept = self
            .dispatcher
            .sweep(Deadline::from_now(Duration::from_secs(20)))
            .await
            .unwrap();
        for timer in self.world.timers() {
            run_as(RETRY, self.dispatcher.retry(&timer.message))
                .await
                .unwrap();
        }
        swept
    }
}

/// The stream record of a job that was written.
fn of(sequence: usize, job: &Value) -> Value {
    let mut record = insert_record(sequence, job.clone());
    record["dynamodb"]["Keys"] = json!({ "task_id": job["task_id"] });
    record
}

fn without(field: &str, mut job: Value) -> Value {
    job.as_object_mut().unwrap().remove(field).unwrap();
    job
}

fn with(field: &str, value: Value, mut job: Value) -> Value {
    job[field] = value;
    job
}

/// The id that the event of this record has.
fn id_of(record: &Value) -> EventId {
    batch(std::slice::from_ref(record))[0]
        .event()
        .unwrap()
        .unwrap()
        .id
}

/// A job that was fixed becomes the event that its record would have raised, once.
#[tokio::test]
async fn fixed_job_is_redriven_once() {
    let scene = PoisonFixture::new().await;
    let webhook = scene.subscribe("/hook").await;
    let (whole, broken) = (
        job_image("t1", "completed"),
        without("account_id", job_image("t1", "completed")),
    );
    scene.put(&broken).await;
    let kept = scene.poison(7, &broken).await;
    assert_eq!(kept.id().to_string(), format!("{DAY}/{:021}", 7));
    assert_eq!(
        (kept.kept_at, kept.poison.created_at),
        (START, Some(Timestamp::from_millis(1_734_948_000_000)))
    );
    assert_eq!(kept.poison.keys, r#"{"task_id":{"S":"t1"}}"#);

    assert_eq!(
        scene.stays(&kept).await,
        "`account_id`: missing, expected a string (S)"
    );
    scene.clock.advance(Duration::from_hours(1));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mended = with(
        "data",
        json!({"M": {"mended": {"BOOL": true}}}),
        whole.clone(),
    );
    scene
        .put(&with("traceparent", json!({ "S": trace }), mended))
        .await;
    let (event, recorded, existing) = scene.event(&kept).await;
    assert_eq!((recorded, existing), (1, 0));
    assert_eq!(event.id, id_of(&of(7, &whole)));
    assert_eq!(scene.kept().await, []);
    assert_eq!(scene.receiver.received().len(), 0, "the sweep sends it");

    assert_eq!(scene.sweep().await, 1);
    let received = scene.receiver.wait_for(1).await.pop().unwrap();
    let body = r#"{"event":"job.completed","task_id":"t1","task_type":"image","status":"completed","data":{"mended":true},"timestamp":"2024-12-23T10:00:00Z"}"#;
    assert_eq!(
        (received.body.as_str(), received.header("webhook-id")),
        (body, event.id.as_str())
    );
    assert!(received.is_signed_by("my-secret-key"));
    assert_eq!(received.header("traceparent"), trace);

    // As after a crash between the deliveries and the record.
    let (again, recorded, existing) = scene.event(&kept).await;
    assert_eq!((again.id, recorded, existing), (event.id, 0, 1));
    assert_eq!(
        (
            scene.sweep().await,
            scene.receiver.received().len(),
            scene.deliveries(webhook).await.len()
        ),
        (0, 1, 1)
    );
}

/// A redriven event reaches each active, subscribed webhook and no other.
#[tokio::test]
async fn redrive_reaches_subscribed_webhooks() {
    let scene = PoisonFixture::new().await;
    let hears = [scene.subscribe("/one").await, scene.subscribe("/two").await];
    let of_failures = subscribe_to(
        &scene.world,
        "acme",
        &scene.receiver.url("/three"),
        &["job.failed"],
        None,
    )
    .await;
    let disabled = scene.subscribe("/four").await;
    let change = WebhookUpdate {
        status: Some(WebhookStatus::Disabled),
        ..WebhookUpdate::default()
    };
    assert!(
        scene
            .world
            .store
            .webhooks()
            .update(&account("acme"), disabled, &change, START)
            .await
            .unwrap()
    );
    subscribe(&scene.world, "other", &scene.receiver.url("/other"), None).await;

    let broken = without("account_id", job_image("t1", "completed"));
    let kept = scene.poison(1, &broken).await;
    scene.put(&job_image("t1", "completed")).await;
    let (_, recorded, existing) = scene.event(&kept).await;
    assert_eq!((recorded, existing), (2, 0));
    for webhook in hears {
        assert_eq!(scene.deliveries(webhook).await.len(), 1);
    }
    for webhook in [of_failures, disabled] {
        assert_eq!(scene.deliveries(webhook).await, []);
    }
    assert_eq!(scene.sweep().await, 2);
    let mut paths: Vec<_> = scene
        .receiver
        .wait_for(2)
        .await
        .into_iter()
        .map(|request| request.path)
        .collect();
    paths.sort();
    assert_eq!(paths, ["/one", "/two"]);
}

/// A redrive creates the missing deliveries and repeats none.
#[tokio::test]
async fn redrive_sends_missing_deliveries() {
    let scene = PoisonFixture::new().await;
    let (healthy, broken) = (
        scene.subscribe("/healthy").await,
        scene.subscribe("/broken").await,
    );
    let mut items = scene.world.items_under("ACCOUNT#acme").await;
    items.retain(|item| item["SK"].as_s().unwrap() == &format!("WEBHOOK#{:010}", broken.get()));
    let whole = items.pop().unwrap();
    let put = |item| {
        scene
            .world
            .client
            .put_item()
            .table_name(&scene.world.tables.webhooks)
            .set_item(Some(item))
            .send()
    };
    let mut unreadable = whole.clone();
    unreadable.insert("url".to_owned(), AttributeValue::S("nonsense".to_owned()));
    put(unreadable).await.unwrap();

    // The job is gone by now, but what was kept tells all.
    let kept = scene.poison(1, &job_image("t1", "failed")).await;
    assert_eq!(scene.receiver.wait_for(1).await[0].path, "/healthy");
    let reason = scene.stays(&kept).await;
    assert!(
        reason.starts_with("a webhook of the account cannot be read: "),
        "{reason}"
    );
    assert_eq!(scene.kept().await.len(), 1);

    put(whole).await.unwrap();
    let (event, recorded, existing) = scene.event(&kept).await;
    assert_eq!(
        (event.id, recorded, existing),
        (id_of(&of(1, &job_image("t1", "failed"))), 1, 1)
    );
    assert_eq!(scene.sweep().await, 1);
    assert_eq!(scene.receiver.wait_for(2).await[1].path, "/broken");
    assert_eq!(
        (
            scene.deliveries(healthy).await.len(),
            scene.deliveries(broken).await.len()
        ),
        (1, 1)
    );
}

/// A job with another status today is not used for the event of the record; its stored image is.
#[tokio::test]
async fn later_job_status_is_not_redriven() {
    let scene = PoisonFixture::new().await;
    scene.subscribe("/hook").await;
    let broken = with("account_id", json!({"N": "1"}), job_image("t1", "failed"));
    let kept = scene.poison(1, &broken).await;
    for now in ["completed", "processing"] {
        scene.put(&job_image("t1", now)).await;
        assert_eq!(
            scene.stays(&kept).await,
            "`account_id`: expected a string (S)"
        );
    }
    scene.put(&job_image("t1", "failed")).await;
    assert_eq!(scene.event(&kept).await.0.outcome.as_str(), "failed");
}

/// A record without its image is parsed from the job.
#[tokio::test]
async fn record_without_image_uses_job() {
    let scene = PoisonFixture::new().await;
    scene.subscribe("/hook").await;
    // Longer than is kept, and yet no body that is too large: a type stands beside each number in the image.
    let numbers: Vec<_> = (0..30_000).map(|_| json!({"N": "1"})).collect();
    let whole = with(
        "data",
        json!({"M": {"numbers": {"L": numbers}}}),
        job_image("t1", "completed"),
    );
    let broken = without("account_id", whole.clone());
    assert!(broken.to_string().len() > MAX_IMAGE);
    let kept = scene.poison(1, &broken).await;
    assert_eq!(kept.poison.image, None);

    assert_eq!(
        scene.stays(&kept).await,
        "its image was not stored, and the job is gone"
    );
    let nowhere = redrive(&scene.world.store, None, &kept, START, START, RETENTION)
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
    scene
        .put(&with("status", json!({"S": "processing"}), whole.clone()))
        .await;
    assert_eq!(
        scene.stays(&kept).await,
        "its image was not stored, and the job is in progress now"
    );
    scene.put(&whole).await;
    let (event, recorded, _) = scene.event(&kept).await;
    assert_eq!((event.id, recorded), (id_of(&of(1, &whole)), 1));
    assert_eq!(scene.sweep().await, 1);
    let received = scene.receiver.wait_for(1).await.pop().unwrap();
    assert_eq!(
        received.json()["data"]["numbers"].as_array().unwrap().len(),
        30_000
    );
}

/// A payload that is too large stays poison until the job is smaller.
#[tokio::test]
async fn large_payload_stays_poison() {
    let scene = PoisonFixture::new().await;
    scene.subscribe("/hook").await;
    let large = with(
        "data",
        json!({"M": {"text": {"S": "x".repeat(MAX_PAYLOAD_LEN)}}}),
        job_image("t1", "completed"),
    );
    scene.put(&large).await;
    let kept = scene.poison(1, &large).await;
    let reason = scene.stays(&kept).await;
    assert!(
        reason.starts_with("the payload would have ")
            && reason.ends_with(", expected at most 262144"),
        "{reason}"
    );
    scene.put(&job_image("t1", "completed")).await;
    assert_eq!(scene.event(&kept).await.1, 1);
}

/// Text that is not a record stays poison unless it can be parsed now.
#[tokio::test]
async fn unparsable_text_stays_poison() {
    let scene = PoisonFixture::new().await;
    scene.subscribe("/hook").await;
    let keep = async |number: &str, image: Option<String>| {
        let poison = NewPoisonRecord {
            reason: "not a stream record".to_owned(),
            stream: String::new(),
            sequence_number: number.to_owned(),
            created_at: None,
            keys: String::new(),
            image,
        };
        scene
            .world
            .store
            .poison()
            .put(&poison, START, START + RETENTION)
            .await
            .unwrap();
        let mut named = scene
            .world
            .store
            .poison()
            .find(&PoisonId::parse(&format!("{DAY}/{number}")).unwrap())
            .await;
        let named = named.as_mut().unwrap();
        assert_eq!(named.len(), 1);
        named.pop().unwrap()
    };
    let garbage = keep("unknown-1", Some("{}".to_owned())).await;
    let reason = scene.stays(&garbage).await;
    assert!(
        reason.starts_with("not a stream record: missing field"),
        "the reason is kept up to date: {reason}"
    );
    let lost = keep("unknown-2", Some("x".repeat(MAX_IMAGE + 1))).await;
    assert_eq!(
        scene.stays(&lost).await,
        "not a stream record, and too large to be stored"
    );

    let ended = of(9, &job_image("t9", "completed"));
    let (event, recorded, _) = scene
        .event(&keep("unknown-3", Some(ended.to_string())).await)
        .await;
    assert_eq!((event.id, recorded), (id_of(&ended), 1));
    let going_on = of(10, &job_image("t10", "processing"));
    let kept = keep("unknown-4", Some(going_on.to_string())).await;
    assert!(matches!(
        scene.redrive(&kept).await,
        RedriveOutcome::NotAnEvent
    ));
    let left: Vec<_> = scene
        .kept()
        .await
        .iter()
        .map(|kept| kept.poison.sequence_number.clone())
        .collect();
    assert_eq!(left, ["unknown-2", "unknown-1"]);
}

/// A change without an old image raises an event when an operator redrives it.
#[tokio::test]
async fn missing_old_image_is_redriven() {
    let scene = PoisonFixture::new().await;
    scene.subscribe("/hook").await;
    let change = stream_record(1, "MODIFY", Some(job_image("t", "completed")), None);
    assert_eq!(dispatch_batch(&scene.dispatcher, &[change]).await, []);
    let kept = scene.kept().await.pop().unwrap();
    assert_eq!(scene.event(&kept).await.1, 1);
}

/// A record without a creation time uses the time at which it was stored.
#[tokio::test]
async fn record_without_time_uses_stored_at() {
    let scene = PoisonFixture::new().await;
    scene.subscribe("/hook").await;
    let kept = scene
        .poison(1, &without("account_id", job_image("t1", "completed")))
        .await;
    let mut item = scene.world.items_under("POISON#").await.pop().unwrap();
    item.remove("record_created_at").unwrap();
    let table = &scene.world.tables.webhooks;
    scene
        .world
        .client
        .put_item()
        .table_name(table)
        .set_item(Some(item))
        .send()
        .await
        .unwrap();
    let older = scene.kept().await.pop().unwrap();
    assert_eq!(
        (
            older.poison.created_at,
            older.record_created_at(),
            older.id()
        ),
        (None, START, kept.id())
    );
    scene
        .put(&without("updated_at", job_image("t1", "completed")))
        .await;
    let (event, ..) = scene.event(&older).await;
    assert!(event.id > EventId::min_at(START) && event.id < EventId::max_at(START));
    assert_eq!(event.timestamp, START.to_rfc3339());
}

/// Poison records are listed by page, found by their number, and counted.
#[tokio::test]
async fn records_are_listed_and_counted() {
    let scene = PoisonFixture::new().await;
    let store = &scene.world.store;
    for (stream, number) in [
        ("arn:a", "1"),
        ("arn:b", "1"),
        ("arn:a", "10"),
        ("arn:a", "11"),
        ("", "unknown-1"),
    ] {
        let poison = NewPoisonRecord {
            reason: "é".repeat(600),
            stream: stream.to_owned(),
            sequence_number: number.to_owned(),
            created_at: None,
            keys: String::new(),
            image: None,
        };
        store
            .poison()
            .put(&poison, START, START + RETENTION)
            .await
            .unwrap();
    }
    let (mut listed, mut from) = (Vec::new(), None);
    loop {
        let page = store.poison().list_page(DAY, from, 2).await.unwrap();
        assert!(page.kept.len() <= 2);
        // What was listed may be taken out before the next page is read.
        for kept in &page.kept {
            store.poison().delete(kept).await.unwrap();
        }
        listed.extend(page.kept);
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    let ids: Vec<_> = listed.iter().map(|kept| kept.id().to_string()).collect();
    assert_eq!(
        ids,
        ["unknown-1", "11", "10", "1", "1"].map(|number| format!("{DAY}/{number}"))
    );
    for kept in &listed {
        store
            .poison()
            .put(&kept.poison, START, START + RETENTION)
            .await
            .unwrap();
    }
    for (number, streams) in [
        ("1", &["arn:a", "arn:b"][..]),
        ("10", &["arn:a"]),
        ("unknown-1", &[""]),
        ("unknown-", &[]),
        ("12", &[]),
    ] {
        let named = store
            .poison()
            .find(&PoisonId::parse(&format!("{DAY}/{number}")).unwrap())
            .await
            .unwrap();
        let named: Vec<_> = named
            .iter()
            .map(|kept| kept.poison.stream.as_str())
            .collect();
        assert_eq!(named, streams, "{number}");
    }
    assert_eq!(store.poison().count(DAY, 100).await.unwrap(), (5, true));
    assert_eq!(
        store.poison().count("2024-12-22", 100).await.unwrap(),
        (0, true)
    );
    for wrong in ["", "1", "2024-12-23/", "2024-13-23/1", "yesterday/1"] {
        assert_eq!(PoisonId::parse(wrong), None, "{wrong}");
    }
}

/// Counting stops with the page that reaches its limit.
#[tokio::test]
async fn count_stops_at_limit() {
    let scene = PoisonFixture::new().await;
    let store = &scene.world.store;
    // More than the 1 MB that a page of DynamoDB has.
    for number in 1..=6 {
        let poison = NewPoisonRecord {
            reason: "large".to_owned(),
            stream: "arn".to_owned(),
            sequence_number: number.to_string(),
            created_at: None,
            keys: "{}".to_owned(),
            image: Some("x".repeat(MAX_IMAGE)),
        };
        store
            .poison()
            .put(&poison, START, START + RETENTION)
            .await
            .unwrap();
    }
    let (counted, complete) = store.poison().count(DAY, 1).await.unwrap();
    assert!((1..6).contains(&counted) && !complete, "{counted}");
    assert_eq!(store.poison().count(DAY, 100).await.unwrap(), (6, true));
}

/// The other poison records are listed.
#[tokio::test]
async fn unreadable_record_hides_no_other() {
    let scene = PoisonFixture::new().await;
    let kept = scene
        .poison(1, &without("account_id", job_image("t1", "completed")))
        .await;
    let mut broken = scene.world.items_under("POISON#").await.pop().unwrap();
    broken.insert("SK".to_owned(), AttributeValue::S("2#arn".to_owned()));
    broken.insert("reason".to_owned(), AttributeValue::N("1".to_owned()));
    let table = &scene.world.tables.webhooks;
    scene
        .world
        .client
        .put_item()
        .table_name(table)
        .set_item(Some(broken))
        .send()
        .await
        .unwrap();
    assert_eq!(scene.kept().await, [kept]);
}

/// A retry that an operator requests without a queue is found by the next sweep.
#[tokio::test]
async fn sweep_finds_retry_without_queue() {
    let scene = PoisonFixture::new().await;
    let webhook = scene.subscribe("/status/500").await;
    assert_eq!(
        dispatch_batch(&scene.dispatcher, &[of(1, &job_image("t1", "completed"))]).await,
        []
    );
    scene.world.timers();
    let key = DeliveryKey {
        account: account("acme"),
        webhook,
        event: scene.deliveries(webhook).await.pop().unwrap().event_id,
    };
    let store = &scene.world.store;
    let found = store.deliveries().get(&key).await.unwrap().unwrap();
    let hastened = store
        .leases()
        .schedule_retry_for_sweep(&found, START, RETENTION)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (hastened.state, hastened.state_before_retry),
        (DeliveryState::Pending(START), Some(found.state))
    );
    // It has changed since `found` was read.
    assert_eq!(
        store
            .leases()
            .schedule_retry_for_sweep(&found, START, RETENTION)
            .await
            .unwrap(),
        None
    );
    let url = EndpointUrl::parse(&scene.receiver.url("/ok")).unwrap();
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
    );
    assert_eq!(scene.sweep().await, 1);
    let received = scene.receiver.wait_for(2).await.pop().unwrap();
    assert_eq!(
        (received.path.as_str(), received.header("x-nano-attempt")),
        ("/ok", "2")
    );
    assert_eq!(
        store.deliveries().get(&key).await.unwrap().unwrap().state,
        DeliveryState::Delivered
    );

    let found = store.deliveries().get(&key).await.unwrap().unwrap();
    store
        .leases()
        .schedule_retry_for_sweep(&found, START, RETENTION)
        .await
        .unwrap()
        .unwrap();
    store.leases().claim(&key, 2, START).await.unwrap();
    let in_flight = store.deliveries().get(&key).await.unwrap().unwrap();
    assert_eq!(
        store
            .leases()
            .schedule_retry_for_sweep(&in_flight, START, RETENTION)
            .await
            .unwrap(),
        None,
        "it is in flight"
    );
}
