//! First attempts: from batches of stream records to signed requests and recorded deliveries.

use std::time::Duration;

use nano_webhooks::{
    aws,
    client::{
        target_guard::TargetGuard,
        webhook_client::{Timeouts, WebhookClient},
    },
    clock::{Clock, Deadline},
    dispatch::Dispatcher,
    store::Store,
};
use nano_webhooks_cli::local_client;
use nano_webhooks_core::{
    delivery::{
        Delivery, DeliveryKey, DeliveryState, endpoint_health::EndpointHealth, failure::FailureKind,
    },
    event::EventId,
    target_policy::TargetPolicy,
    timestamp::Timestamp,
    webhook::WebhookId,
};
use serde_json::{Value, json};

use crate::support::{
    accounts::account,
    proxy::{Fault, Proxy},
    receiver::{Received, Receiver, TEST_TIMEOUT},
    stream::{ARN, batch, completed_jobs, dispatch_batch, insert_record, job_image, stream_record},
    tables::TestTables,
    webhooks::{put_health, subscribe},
};

async fn delivery(tables: &TestTables, webhook: WebhookId, event: &str) -> Delivery {
    let key = DeliveryKey {
        account: account("acme"),
        webhook,
        event: EventId::parse(event).unwrap(),
    };
    tables
        .store
        .deliveries()
        .get(&key)
        .await
        .unwrap()
        .unwrap_or_else(|| panic!("no delivery of {event}"))
}

/// The record of a job whose status changed from `old` to `new`.
fn status_change(sequence: usize, job: &str, old: &str, new: &str) -> Value {
    let old = job_image(job, old);
    stream_record(sequence, "MODIFY", Some(job_image(job, new)), Some(old))
}

/// A completed job is sent to each subscribed webhook, signed, and recorded.
#[tokio::test]
async fn completed_job_reaches_every_subscriber() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    let signed = subscribe(
        &tables,
        "acme",
        &receiver.url("/signed"),
        Some("my-secret-key"),
    )
    .await;
    let unsigned = subscribe(&tables, "acme", &receiver.url("/unsigned"), None).await;
    subscribe(&tables, "other", &receiver.url("/other"), None).await;
    let dispatcher = tables.dispatcher();
    assert_eq!(dispatch_batch(&dispatcher, &completed_jobs(1, 1)).await, []);

    let mut received = receiver.wait_for(2).await;
    assert_eq!(received.len(), 2);
    received.sort_by_key(|request| request.path.clone());
    assert_complete_requests(&received);
    assert_is_signed(&received[0]);
    for absent in ["x-nano-signature", "webhook-signature"] {
        assert!(!received[1].headers.contains_key(absent));
    }
    let event = received[0].header("webhook-id");
    for webhook in [signed, unsigned] {
        assert_delivered(&delivery(&tables, webhook, event).await);
    }
    let items = tables.items(&tables.names.deliveries).await;
    assert_eq!(items.len(), 2);
    for item in items {
        assert!(item.contains_key("expires_at"));
        for index_key in ["due_shard", "sweep_at", "state_key"] {
            assert!(
                !item.contains_key(index_key),
                "a successful delivery costs no index write"
            );
        }
    }
}

/// The body of the event of job `t1`.
const T1_COMPLETED: &str = concat!(
    r#"{"event":"job.completed","task_id":"t1","task_type":"image","status":"completed","#,
    r#""data":{"credits_charged":6},"timestamp":"2024-12-23T10:00:00Z"}"#,
);

/// The requests have the body and the headers of the first attempt, and one event id.
fn assert_complete_requests(received: &[Received]) {
    for request in received {
        assert_eq!(request.body, T1_COMPLETED);
        assert_eq!(request.header("content-type"), "application/json");
        assert_eq!(
            request.header("user-agent"),
            format!("nano-webhooks/{}", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(
            (
                request.header("x-nano-event"),
                request.header("x-nano-attempt")
            ),
            ("job.completed", "1")
        );
        assert_eq!(
            request.header("x-nano-timestamp"),
            request.header("webhook-timestamp")
        );
        assert_eq!(
            request.header("webhook-id"),
            received[0].header("webhook-id")
        );
    }
}

fn assert_is_signed(request: &Received) {
    let verifier = standardwebhooks::Webhook::from_bytes(b"my-secret-key".to_vec()).unwrap();
    verifier
        .verify(request.body.as_bytes(), &request.headers)
        .unwrap();
    assert!(request.header("x-nano-signature").starts_with("v1="));
}

fn assert_delivered(delivery: &Delivery) {
    assert_eq!(
        (delivery.state, delivery.attempt_count, &*delivery.payload),
        (DeliveryState::Delivered, 1, T1_COMPLETED)
    );
    let attempt = &delivery.attempts[0];
    assert_eq!(
        (attempt.number, attempt.status_code, attempt.failure),
        (1, Some(200), None)
    );
    assert_eq!(attempt.response_excerpt.as_deref(), Some("ok"));
}

/// An event arises when the status becomes terminal, and at no other change.
#[tokio::test]
async fn terminal_status_raises_event() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    subscribe(&tables, "acme", &receiver.url("/"), None).await;
    let mut no_status = job_image("x", "completed");
    no_status.as_object_mut().unwrap().remove("status");
    let mut odd_status = job_image("x", "completed");
    odd_status["status"] = json!({"N": "1"});
    let records = [
        insert_record(1, job_image("t1", "completed")),
        insert_record(2, job_image("t2", "failed")),
        insert_record(3, job_image("t3", "processing")),
        status_change(4, "t4", "processing", "completed"),
        status_change(5, "t5", "completed", "completed"),
        status_change(6, "t6", "failed", "completed"),
        status_change(7, "t7", "completed", "processing"),
        stream_record(8, "REMOVE", None, Some(job_image("t8", "completed"))),
        insert_record(9, no_status.clone()),
        insert_record(10, odd_status),
        stream_record(
            11,
            "MODIFY",
            Some(job_image("t11", "failed")),
            Some(no_status),
        ),
        insert_record(12, job_image("t12", "COMPLETED")),
    ];
    assert_eq!(dispatch_batch(&tables.dispatcher(), &records).await, []);
    let mut arrived: Vec<_> = receiver
        .wait_for(5)
        .await
        .iter()
        .map(|request| {
            (
                request.json()["task_id"].as_str().unwrap().to_owned(),
                request.header("x-nano-event").to_owned(),
            )
        })
        .collect();
    arrived.sort();
    let expected = [
        ("t1", "completed"),
        ("t11", "failed"),
        ("t2", "failed"),
        ("t4", "completed"),
        ("t6", "completed"),
    ];
    assert_eq!(
        arrived,
        expected.map(|(task, status)| (task.to_owned(), format!("job.{status}")))
    );
    assert_eq!(tables.items_under("POISON#").await.len(), 0);
}

/// A malformed record is stored with its reason, and the other records are delivered.
#[tokio::test]
async fn malformed_record_becomes_poison() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    subscribe(&tables, "acme", &receiver.url("/"), None).await;
    let bad = malformed_records();
    let mut records: Vec<_> = bad.iter().map(|(record, _)| record.clone()).collect();
    records.insert(0, insert_record(100, job_image("first", "completed")));
    records.push(insert_record(101, job_image("last", "completed")));
    assert_eq!(dispatch_batch(&tables.dispatcher(), &records).await, []);
    assert_eq!(
        dispatch_batch(&tables.dispatcher(), &records).await,
        [],
        "the batch is read again"
    );

    let received = receiver.wait_for(2).await;
    let mut tasks: Vec<_> = received
        .iter()
        .map(|request| request.json()["task_id"].clone())
        .collect();
    tasks.sort_by_key(ToString::to_string);
    assert_eq!(tasks, ["first", "last"]);

    let mut poison = tables.items_under("POISON#").await;
    assert_eq!(poison.len(), bad.len());
    for (_, reason) in &bad {
        let place = poison
            .iter()
            .position(|item| item["reason"].as_s().unwrap().starts_with(reason))
            .unwrap_or_else(|| panic!("{reason}: {poison:?}"));
        let item = poison.remove(place);
        if *reason == NO_ACCOUNT {
            let image = item["image"].as_s().unwrap();
            assert!(image.contains("credits_charged"));
            assert_eq!(item["stream"].as_s().unwrap(), ARN);
        }
    }
}

const NO_ACCOUNT: &str = "`account_id`: missing, expected a string (S)";

/// Records that cannot be understood, and how their reasons begin.
fn malformed_records() -> Vec<(Value, &'static str)> {
    let huge = json!({"M": {"text": {"S": "x".repeat(256 * 1024)}}});
    let mut records = vec![
        (insert_record(1, job_without("account_id")), NO_ACCOUNT),
        (
            insert_record(2, job_with("account_id", json!({"N": "1"}))),
            "`account_id`: expected a string (S)",
        ),
        (
            insert_record(3, job_with("account_id", json!({"S": ""}))),
            "`account_id`: expected an account id of 1 to 256 bytes",
        ),
        (
            insert_record(4, job_without("task_type")),
            "`task_type`: missing, expected a string (S)",
        ),
        (
            insert_record(5, job_with("data", json!({"S": "{}"}))),
            "`data`: expected a map (M)",
        ),
        (
            insert_record(9, job_with("data", huge)),
            "the payload would have 262278 bytes, expected at most 262144",
        ),
    ];
    records.extend(malformed_changes());
    records
}

/// Records without a change of a job, and how their reasons begin. The last has the most general
/// reason.
fn malformed_changes() -> [(Value, &'static str); 6] {
    [
        (
            stream_record(6, "MODIFY", Some(job_image("t", "failed")), None),
            "no old image: the stream's view type must be NEW_AND_OLD_IMAGES",
        ),
        (
            stream_record(7, "INSERT", None, None),
            "no new image: the stream's view type must be NEW_AND_OLD_IMAGES",
        ),
        (
            stream_record(8, "UPSERT", Some(job_image("t", "failed")), None),
            "unknown event name `UPSERT`, expected INSERT, MODIFY or REMOVE",
        ),
        (
            json!({"nonsense": true}),
            "not a stream record: missing field `awsRegion` at line 1 column 17",
        ),
        (
            json!(42),
            "not a stream record: invalid type: integer `42`, \
             expected struct EventRecord at line 1 column 2",
        ),
        (
            insert_record(10, job_with("data", json!({"M": {"n": {"Q": "1"}}}))),
            "not a stream record: ",
        ),
    ]
}

fn job_with(field: &str, value: Value) -> Value {
    let mut job = job_image("t", "completed");
    job[field] = value;
    job
}

fn job_without(field: &str) -> Value {
    let mut job = job_image("t", "completed");
    job.as_object_mut().unwrap().remove(field);
    job
}

/// The other webhooks of the account receive their events.
#[tokio::test]
async fn unreadable_webhook_delays_no_other() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    subscribe(&tables, "acme", &receiver.url("/broken"), None).await;
    subscribe(&tables, "acme", &receiver.url("/healthy"), None).await;
    let items = tables.items_under("ACCOUNT#acme").await;
    let mut broken = items
        .into_iter()
        .find(|item| item["SK"].as_s().unwrap() == "WEBHOOK#0000000001")
        .unwrap();
    broken.insert(
        "url".into(),
        aws_sdk_dynamodb::types::AttributeValue::S("nonsense".into()),
    );
    tables
        .client
        .put_item()
        .table_name(&tables.names.webhooks)
        .set_item(Some(broken))
        .send()
        .await
        .unwrap();
    assert_eq!(
        dispatch_batch(
            &tables.dispatcher(),
            &[insert_record(1, job_image("t", "failed"))]
        )
        .await,
        []
    );
    let received = receiver.wait_for(1).await;
    assert_eq!(
        received
            .iter()
            .map(|request| request.path.as_str())
            .collect::<Vec<_>>(),
        ["/healthy"]
    );
    let poison = tables.items_under("POISON#").await;
    assert!(
        poison[0]["reason"]
            .as_s()
            .unwrap()
            .starts_with("webhook 1 cannot be read: "),
        "the webhook is stored as poison"
    );
}

/// A batch that is read twice sends nothing twice, and each change of a job raises its own event.
#[tokio::test]
async fn repeated_batch_sends_nothing_twice() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    subscribe(&tables, "acme", &receiver.url("/"), None).await;
    let dispatcher = tables.dispatcher();
    let first = insert_record(1, job_image("t", "failed"));
    let records = [
        first.clone(),
        first,
        status_change(2, "t", "failed", "completed"),
        status_change(3, "t", "completed", "failed"),
    ];
    for _ in 0..3 {
        assert_eq!(dispatch_batch(&dispatcher, &records).await, []);
    }
    let received = receiver.wait_for(3).await;
    let mut ids: Vec<_> = received
        .iter()
        .map(|request| request.header("webhook-id").to_owned())
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!((received.len(), ids.len()), (3, 3));
}

/// Attempts that wait for their endpoints do not delay other attempts.
#[tokio::test]
async fn waiting_attempts_do_not_block_others() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    let well = EndpointHealth {
        has_succeeded: true,
        ..EndpointHealth::default()
    };
    for _ in 0..3 {
        let webhook = subscribe(&tables, "acme", &receiver.url("/hang"), None).await;
        put_health(&tables, webhook, &well).await;
    }
    let limits = Timeouts {
        connect: 2 * TEST_TIMEOUT,
        total: 2 * TEST_TIMEOUT,
    };
    let direct_client =
        WebhookClient::new(TargetGuard::new(TargetPolicy::Any, vec![]), limits, None).unwrap();
    let dispatcher = Dispatcher {
        direct_client,
        batch_wait: 2 * TEST_TIMEOUT,
        ..tables.dispatcher()
    };
    let jobs: Vec<_> = (0..32)
        .map(|n| insert_record(n, job_image(&format!("t{n}"), "completed")))
        .collect();
    let run = tokio::spawn(async move {
        dispatcher
            .handle_stream_batch(&batch(&jobs), Deadline::from_now(3 * TEST_TIMEOUT))
            .await
    });
    // No attempt ends, so each of the three endpoints has its maximum in flight.
    receiver.wait_for(3 * 32).await;
    assert!(!run.is_finished());
    run.abort();
}

/// A URL whose attempts fail.
struct FailingUrl {
    url: String,
    failure: FailureKind,
    status: Option<u16>,
}

impl FailingUrl {
    fn new(url: String, failure: FailureKind, status: Option<u16>) -> Self {
        Self {
            url,
            failure,
            status,
        }
    }

    /// How the description of the failure begins.
    fn detail(&self) -> &'static str {
        match (self.failure, self.status) {
            (FailureKind::Timeout, None) => "Connected, but no response within the deadline",
            _ => "",
        }
    }

    fn assert_recorded(&self, delivery: &Delivery) {
        let url = &self.url;
        let DeliveryState::Pending(due) = delivery.state else {
            panic!("{url}: {delivery:?}")
        };
        let wait = due.as_unix_millis() - 1_734_948_001_000;
        assert!((4_000..=6_000).contains(&wait), "{url}: due in {wait} ms");
        let attempt = &delivery.attempts[0];
        assert_eq!(
            (attempt.failure, attempt.status_code),
            (Some(self.failure), self.status),
            "{url}"
        );
        let detail = attempt.detail.as_ref().unwrap();
        assert!(
            detail.starts_with(self.detail()) && detail.ends_with('.'),
            "{url}: {detail}"
        );
    }
}

fn failing_urls(receiver: &Receiver) -> [FailingUrl; 7] {
    // No process listens on this port.
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = format!("http://{}/", unused.local_addr().unwrap());
    let unknown = "http://no-such-host.invalid/".to_owned();
    let not_tls = receiver.url.replace("http:", "https:");
    [
        FailingUrl::new(receiver.url("/status/500"), FailureKind::Status, Some(500)),
        FailingUrl::new(receiver.url("/status/404"), FailureKind::Status, Some(404)),
        FailingUrl::new(receiver.url("/redirect"), FailureKind::Redirect, Some(302)),
        FailingUrl::new(receiver.url("/hang"), FailureKind::Timeout, None),
        FailingUrl::new(refused, FailureKind::Connect, None),
        FailingUrl::new(unknown, FailureKind::Dns, None),
        FailingUrl::new(not_tls, FailureKind::Tls, None),
    ]
}

/// A failed attempt is recorded as pending with its due time.
#[tokio::test]
async fn failed_attempt_is_rescheduled() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    let failing = failing_urls(&receiver);
    let mut webhooks = Vec::new();
    for failing in &failing {
        webhooks.push(subscribe(&tables, "acme", &failing.url, None).await);
    }
    subscribe(&tables, "acme", &receiver.url("/large"), None).await;
    let dispatcher = Dispatcher {
        clock: Clock::manual(Timestamp::from_millis(1_734_948_001_000)),
        ..tables.dispatcher()
    };
    assert_eq!(
        dispatch_batch(&dispatcher, &[insert_record(1, job_image("t", "failed"))]).await,
        []
    );

    let items = tables.items(&tables.names.deliveries).await;
    assert_eq!(items.len(), failing.len() + 1);
    let event = items[0]["SK"].as_s().unwrap();
    for (webhook, failing) in webhooks.into_iter().zip(&failing) {
        failing.assert_recorded(&delivery(&tables, webhook, event).await);
    }
    let mut delivered = 0;
    for item in &items {
        let pending = item["status"].as_s().unwrap() == "pending";
        for index_key in ["due_shard", "sweep_at", "state_key"] {
            assert_eq!(item.contains_key(index_key), pending);
        }
        assert_eq!(
            item.contains_key("expires_at"),
            !pending,
            "a pending delivery does not expire"
        );
        if item["status"].as_s().unwrap() == "delivered" {
            delivered += 1;
        }
    }
    assert_eq!(delivered, 1, "a large 2xx response is a success");
    assert!(
        receiver
            .received()
            .iter()
            .all(|request| request.path != "/redirected"),
        "a redirect is not followed"
    );
}

/// An event without time for an attempt in this invocation is recorded as due now.
#[tokio::test]
async fn late_event_is_deferred_to_queue() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    let webhook = subscribe(&tables, "acme", &receiver.url("/"), None).await;
    let dispatcher = tables.dispatcher();
    let records = batch(&[insert_record(1, job_image("t", "failed"))]);
    let response = dispatcher
        .handle_stream_batch(&records, Deadline::from_now(Duration::ZERO))
        .await;
    assert_eq!(response.batch_item_failures, []);
    let items = tables.items(&tables.names.deliveries).await;
    let delivery = delivery(&tables, webhook, items[0]["SK"].as_s().unwrap()).await;
    assert_eq!((delivery.attempt_count, delivery.attempts.len()), (0, 0));
    assert_eq!(delivery.state, DeliveryState::Pending(delivery.created_at));
    assert_eq!(receiver.received().len(), 0);
}

/// A record is reported as failed while its deliveries cannot be recorded.
#[tokio::test]
async fn unrecorded_event_fails_record() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    subscribe(&tables, "acme", &receiver.url("/"), None).await;
    let records = [
        insert_record(1, job_image("t1", "processing")),
        insert_record(2, job_image("t2", "completed")),
        json!(1),
    ];
    let numbers = [Some(format!("{:021}", 2)), None];

    let unreachable = tables.store_through(local_client("http://127.0.0.1:9", aws::timeouts()));
    let dispatcher = Dispatcher {
        store: unreachable,
        ..tables.dispatcher()
    };
    assert_eq!(
        dispatch_batch(&dispatcher, &records).await,
        numbers,
        "no table is reachable"
    );

    let mut names = tables.names.clone();
    names.deliveries = "no-such-table".into();
    let no_deliveries = Store::new(tables.client.clone(), names, tables.vault.clone());
    let dispatcher = Dispatcher {
        store: no_deliveries,
        ..tables.dispatcher()
    };
    assert_eq!(
        dispatch_batch(&dispatcher, &records).await,
        numbers[..1],
        "the deliveries table is not reachable"
    );

    assert_eq!(dispatch_batch(&tables.dispatcher(), &records).await, []);
    assert_eq!(receiver.wait_for(1).await[0].json()["task_id"], "t2");
}

/// A batch of the largest size that Lambda sends is delivered and recorded.
#[tokio::test]
async fn largest_batch_is_delivered() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    for n in 0..3 {
        subscribe(
            &tables,
            "acme",
            &receiver.url(&format!("/{n}")),
            Some("my-secret-key"),
        )
        .await;
    }
    let records: Vec<_> = (0..100)
        .map(|n| insert_record(n, job_image(&format!("t{n}"), "completed")))
        .collect();
    assert_eq!(dispatch_batch(&tables.dispatcher(), &records).await, []);
    assert_eq!(receiver.wait_for(300).await.len(), 300);
    let items = tables.items(&tables.names.deliveries).await;
    assert_eq!(items.len(), 300);
    assert!(
        items
            .iter()
            .all(|item| item["status"].as_s().unwrap() == "delivered")
    );
}

/// A dispatcher with the policy `public` calls no private address.
#[tokio::test]
async fn private_address_is_not_called() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    let webhook = subscribe(
        &tables,
        "acme",
        &receiver.url.replace("http:", "https:"),
        None,
    )
    .await;
    let guard = nano_webhooks::client::target_guard::TargetGuard::new(
        nano_webhooks_core::target_policy::TargetPolicy::Public,
        vec![],
    );
    let limits = nano_webhooks::client::webhook_client::Timeouts::DIRECT;
    let client =
        nano_webhooks::client::webhook_client::WebhookClient::new(guard, limits, None).unwrap();
    let dispatcher = Dispatcher {
        direct_client: client,
        ..tables.dispatcher()
    };
    assert_eq!(
        dispatch_batch(&dispatcher, &[insert_record(1, job_image("t", "failed"))]).await,
        []
    );
    let items = tables.items(&tables.names.deliveries).await;
    let attempt = &delivery(&tables, webhook, items[0]["SK"].as_s().unwrap())
        .await
        .attempts[0];
    assert_eq!(attempt.failure, Some(FailureKind::Blocked));
    assert_eq!(
        attempt.detail.as_deref(),
        Some(
            "The target policy does not allow this target (it resolves to an address that is not \
             allowed). Use a public https address."
        )
    );
}

/// Writes that a hot partition leaves unprocessed are retried, and the others are not delayed.
#[tokio::test]
async fn unprocessed_writes_are_retried() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    let proxy = Proxy::start(tables.endpoint.clone()).await;
    let dispatcher = Dispatcher {
        store: tables.store_through(local_client(
            &proxy.url,
            crate::support::tables::patient_timeouts(),
        )),
        ..tables.dispatcher()
    };
    subscribe(&tables, "acme", &receiver.url("/status/500/other"), None).await;
    subscribe(&tables, "acme", &receiver.url("/hot"), None).await;

    proxy.arm("BatchWriteItem", 0, Fault::PartialBatch(2));
    assert_eq!(
        dispatch_batch(&dispatcher, &completed_jobs(0, 10)).await,
        [],
        "the delivery is written by the last try"
    );
    assert_eq!(tables.items(&tables.names.deliveries).await.len(), 20);
    assert_eq!(tables.timers().len(), 10);
    assert_eq!(count_requests(&receiver), (1, 10));

    // Before the deadline no write to the hot partition succeeds.
    proxy.arm("BatchWriteItem", 0, Fault::PartialBatch(usize::MAX));
    let response = dispatcher
        .handle_stream_batch(
            &batch(&completed_jobs(10, 10)),
            Deadline::from_now(Duration::from_secs(6)),
        )
        .await;
    assert_eq!(response.batch_item_failures.len(), 10);
    assert_eq!(tables.items(&tables.names.deliveries).await.len(), 30);
    assert_eq!(
        tables.timers().len(),
        10,
        "the other deliveries are recorded"
    );

    proxy.disarm();
    let again = completed_jobs(10, 10);
    assert_eq!(dispatch_batch(&dispatcher, &again).await, []);
    assert_eq!(tables.items(&tables.names.deliveries).await.len(), 40);
    assert_eq!(tables.timers().len(), 0);
    // What was recorded is not sent again.
    assert_eq!(count_requests(&receiver), (2, 30));
}

/// The number of requests to the failing and to the hot endpoint.
fn count_requests(receiver: &Receiver) -> (usize, usize) {
    let mut counts = (0, 0);
    for request in receiver.received() {
        match request.path.as_str() {
            "/status/500/other" => counts.0 += 1,
            "/hot" => counts.1 += 1,
            other => panic!("{other}"),
        }
    }
    counts
}
