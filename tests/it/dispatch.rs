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
    receiver::{Receiver, TEST_TIMEOUT},
    stream::{ARN, batch, dispatch_batch, insert_record, job_image, stream_record},
    tables::TestTables,
    webhooks::subscribe,
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
    assert_eq!(
        dispatch_batch(
            &tables.dispatcher(),
            &[insert_record(1, job_image("t1", "completed"))]
        )
        .await,
        []
    );

    let mut received = receiver.wait_for(2).await;
    assert_eq!(received.len(), 2);
    received.sort_by_key(|request| request.path.clone());
    let body = concat!(
        r#"{"event":"job.completed","task_id":"t1","task_type":"image","status":"completed","#,
        r#""data":{"credits_charged":6},"timestamp":"2024-12-23T10:00:00Z"}"#,
    );
    for request in &received {
        assert_eq!(request.body, body);
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
    let verifier = standardwebhooks::Webhook::from_bytes(b"my-secret-key".to_vec()).unwrap();
    verifier
        .verify(received[0].body.as_bytes(), &received[0].headers)
        .unwrap();
    assert!(received[0].header("x-nano-signature").starts_with("v1="));
    for absent in ["x-nano-signature", "webhook-signature"] {
        assert!(!received[1].headers.contains_key(absent));
    }

    let event = received[0].header("webhook-id");
    for webhook in [signed, unsigned] {
        let delivery = delivery(&tables, webhook, event).await;
        assert_eq!(
            (delivery.state, delivery.attempt_count, &*delivery.payload),
            (DeliveryState::Delivered, 1, body)
        );
        let attempt = &delivery.attempts[0];
        assert_eq!(
            (attempt.number, attempt.status_code, attempt.failure),
            (1, Some(200), None)
        );
        assert_eq!(attempt.response_excerpt.as_deref(), Some("ok"));
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

/// An event arises when the status becomes terminal, and at no other change.
#[tokio::test]
async fn terminal_status_raises_event() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    subscribe(&tables, "acme", &receiver.url("/"), None).await;
    let modify = |sequence, new: &str, old: &str| {
        stream_record(
            sequence,
            "MODIFY",
            Some(job_image(&format!("t{sequence}"), new)),
            Some(job_image(&format!("t{sequence}"), old)),
        )
    };
    let mut no_status = job_image("x", "completed");
    no_status.as_object_mut().unwrap().remove("status");
    let mut odd_status = job_image("x", "completed");
    odd_status["status"] = json!({"N": "1"});
    let records = [
        insert_record(1, job_image("t1", "completed")),
        insert_record(2, job_image("t2", "failed")),
        insert_record(3, job_image("t3", "processing")),
        modify(4, "completed", "processing"),
        modify(5, "completed", "completed"),
        modify(6, "completed", "failed"),
        modify(7, "processing", "completed"),
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
    let with = |field: &str, value: Option<Value>| {
        let mut job = job_image("t", "completed");
        match value {
            Some(value) => job[field] = value,
            None => drop(job.as_object_mut().unwrap().remove(field)),
        }
        job
    };
    let huge = json!({"M": {"text": {"S": "x".repeat(256 * 1024)}}});
    let bad = [
        (
            insert_record(1, with("account_id", None)),
            "`account_id`: missing, expected a string (S)",
        ),
        (
            insert_record(2, with("account_id", Some(json!({"N": "1"})))),
            "`account_id`: expected a string (S)",
        ),
        (
            insert_record(3, with("account_id", Some(json!({"S": ""})))),
            "`account_id`: expected an account id of 1 to 256 bytes",
        ),
        (
            insert_record(4, with("task_type", None)),
            "`task_type`: missing, expected a string (S)",
        ),
        (
            insert_record(5, with("data", Some(json!({"S": "{}"})))),
            "`data`: expected a map (M)",
        ),
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
            insert_record(9, with("data", Some(huge))),
            "the payload would have 262278 bytes, expected at most 262144",
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
            insert_record(10, with("data", Some(json!({"M": {"n": {"Q": "1"}}})))),
            "not a stream record: ",
        ),
    ];
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

    let poison = tables.items_under("POISON#").await;
    let mut reasons: Vec<_> = poison
        .iter()
        .map(|item| item["reason"].as_s().unwrap().clone())
        .collect();
    assert_eq!(reasons.len(), bad.len());
    for (_, reason) in &bad {
        let place = reasons
            .iter()
            .position(|stored| stored.starts_with(reason))
            .unwrap_or_else(|| panic!("{reason}: {reasons:?}"));
        reasons.remove(place);
    }
    let no_account = poison
        .iter()
        .find(|item| {
            item["reason"]
                .as_s()
                .unwrap()
                .starts_with("`account_id`: missing")
        })
        .unwrap();
    assert!(
        no_account["image"]
            .as_s()
            .unwrap()
            .contains("credits_charged")
    );
    assert_eq!(no_account["stream"].as_s().unwrap(), ARN);
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
            .starts_with("a webhook of the account cannot be read"),
        "the event is stored as poison"
    );
}

/// A batch that is read twice sends nothing twice, and each change of a job raises its own event.
#[tokio::test]
async fn repeated_batch_sends_nothing_twice() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    subscribe(&tables, "acme", &receiver.url("/"), None).await;
    let dispatcher = tables.dispatcher();
    let change = |sequence, new: &str, old: &str| {
        stream_record(
            sequence,
            "MODIFY",
            Some(job_image("t", new)),
            Some(job_image("t", old)),
        )
    };
    let first = insert_record(1, job_image("t", "failed"));
    let records = [
        first.clone(),
        first,
        change(2, "completed", "failed"),
        change(3, "failed", "completed"),
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
        tables
            .store
            .webhooks()
            .put_health(&account("acme"), webhook, &well)
            .await
            .unwrap();
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

/// A failed attempt is recorded as pending with its due time.
#[tokio::test]
async fn failed_attempt_is_rescheduled() {
    let tables = TestTables::new().await;
    let receiver = Receiver::start().await;
    let refused = format!("http://{}/", {
        // No process listens on this port.
        std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
    });
    let cases = [
        (receiver.url("/status/500"), FailureKind::Status, Some(500)),
        (receiver.url("/status/404"), FailureKind::Status, Some(404)),
        (receiver.url("/redirect"), FailureKind::Redirect, Some(302)),
        (receiver.url("/hang"), FailureKind::Timeout, None),
        (receiver.url("/drip"), FailureKind::Timeout, Some(200)),
        (refused, FailureKind::Connect, None),
        (
            "http://no-such-host.invalid/".to_owned(),
            FailureKind::Dns,
            None,
        ),
        (
            receiver.url.replace("http:", "https:"),
            FailureKind::Tls,
            None,
        ),
    ];
    let mut webhooks = Vec::new();
    for (url, ..) in &cases {
        webhooks.push(subscribe(&tables, "acme", url, None).await);
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
    assert_eq!(items.len(), cases.len() + 1);
    let event = items[0]["SK"].as_s().unwrap();
    for (webhook, (url, failure, status)) in webhooks.into_iter().zip(&cases) {
        let delivery = delivery(&tables, webhook, event).await;
        let DeliveryState::Pending(due) = delivery.state else {
            panic!("{url}: {delivery:?}")
        };
        let wait = due.as_unix_millis() - 1_734_948_001_000;
        assert!((4_000..=6_000).contains(&wait), "{url}: due in {wait} ms");
        let attempt = &delivery.attempts[0];
        assert_eq!(
            (attempt.failure, attempt.status_code),
            (Some(*failure), *status),
            "{url}"
        );
        let detail = attempt.detail.as_ref().unwrap();
        let begins = match (failure, status) {
            (FailureKind::Timeout, None) => "Connected, but no response within the deadline",
            (FailureKind::Timeout, Some(_)) => "The response started but did not end",
            _ => "",
        };
        assert!(
            detail.starts_with(begins) && detail.ends_with('.'),
            "{url}: {detail}"
        );
    }
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
    }
    assert_eq!(
        items
            .iter()
            .filter(|item| item["status"].as_s().unwrap() == "delivered")
            .count(),
        1,
        "a large 2xx response is a success"
    );
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
            "The target policy does not allow this address (loopback address). \
             Use a public https address."
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
    let records = |from| {
        (from..from + 10)
            .map(|n| insert_record(n, job_image(&format!("t{n}"), "completed")))
            .collect::<Vec<_>>()
    };
    let requests = async || {
        let received = receiver.wait_for(0).await;
        let of = |path| {
            received
                .iter()
                .filter(|request| request.path == path)
                .count()
        };
        (of("/status/500/other"), of("/hot"))
    };

    proxy.arm("BatchWriteItem", 0, Fault::PartialBatch(2));
    assert_eq!(
        dispatch_batch(&dispatcher, &records(0)).await,
        [],
        "the delivery is written by the last try"
    );
    assert_eq!(tables.items(&tables.names.deliveries).await.len(), 20);
    assert_eq!((tables.timers().len(), requests().await), (10, (1, 10)));

    // Before the deadline no write to the hot partition succeeds.
    proxy.arm("BatchWriteItem", 0, Fault::PartialBatch(usize::MAX));
    let response = dispatcher
        .handle_stream_batch(
            &batch(&records(10)),
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
    assert_eq!(dispatch_batch(&dispatcher, &records(10)).await, []);
    assert_eq!(tables.items(&tables.names.deliveries).await.len(), 40);
    assert_eq!(tables.timers().len(), 0);
    // What was recorded is not sent again.
    assert_eq!(requests().await, (2, 30));
}
