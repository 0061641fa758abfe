//! Deliveries that wait for an unreachable endpoint, and the probes that find out whether it
//! responds again. Two processes share the tables.

use std::{collections::HashSet, time::Duration};

use aws_sdk_dynamodb::types::AttributeValue;
use nano_webhooks::{
    dispatch::Dispatcher,
    store::{
        key_schema, leases::ClaimOutcome, notifications::Notifications, update::WebhookUpdate,
    },
};
use nano_webhooks_core::{
    delivery::{
        DeliveryState, endpoint_health::EndpointHealth, scheduled_retry::RetryMessage,
        wait_reason::WaitReason,
    },
    endpoint_url::EndpointUrl,
    timestamp::Timestamp,
    webhook::WebhookStatus,
};

use crate::support::{
    accounts::account,
    breaker_fixture::BreakerFixture,
    metrics::collect_metrics,
    proxy::Proxy,
    retry_fixture::{RetryFixture, START},
    stream::{dispatch_batch, insert_record, job_image},
    tables::patient_timeouts,
    webhooks::put_health,
};

const RETENTION: Duration = Duration::from_hours(1);

/// Queued deliveries and new events wait without an attempt, a due time or a message.
#[tokio::test]
async fn open_breaker_pauses_deliveries() {
    let mut opened = BreakerFixture::open().await;
    opened.end_job().await;
    opened.fixture.clock.advance(Duration::from_secs(45));
    let before = opened.fixture.deliveries(opened.webhook).await;
    opened.fixture.sweep().await;
    opened.receive_messages().await;
    let after = opened.fixture.deliveries(opened.webhook).await;
    assert_eq!(after, before, "nothing comes up");
    assert_eq!(opened.waiting().await, after.len());
    let newest = &after[0];
    assert_eq!(
        (newest.state, newest.waiting_for, newest.attempt_count),
        (DeliveryState::Paused, Some(WaitReason::Endpoint), 0)
    );
    assert_eq!(opened.fixture.requests(), 0);
}

/// Without new events, waiting deliveries are made due after 1, 2, 5, 10 and then every 15 minutes.
#[tokio::test]
async fn probes_follow_intervals() {
    let mut opened = BreakerFixture::open().await;
    let minutes = opened.minutes_with_attempts(65).await;
    assert_eq!(minutes, [1, 3, 8, 18, 33, 48, 63]);
    let probes = collect_metrics(&opened.fixture.dispatcher)
        .get("Probes")
        .copied();
    assert_eq!(probes, Some(7.0));
    for delivery in opened.pending().await {
        assert!(delivery.schedule_step < 5, "{delivery:?}");
        assert_eq!(delivery.state, DeliveryState::Paused);
    }
}

/// The endpoint receives at most one request a minute, whatever arrives in both processes.
#[tokio::test]
async fn processes_share_one_probe_per_minute() {
    let mut opened = BreakerFixture::open().await;
    let mut probed_at: Vec<Timestamp> = Vec::new();
    for _ in 0..40 {
        opened.fixture.clock.advance(Duration::from_secs(15));
        let before = opened.fixture.requests();
        opened.end_job().await;
        opened.end_job().await;
        opened.run_schedules().await;
        let now = opened.fixture.clock.now();
        probed_at.extend(vec![now; opened.fixture.requests() - before]);
    }
    assert!(probed_at.len() >= 9, "{probed_at:?}");
    for pair in probed_at.windows(2) {
        let apart = pair[1].saturating_duration_since(pair[0]);
        assert!(apart >= Duration::from_mins(1), "{probed_at:?}");
    }
    let pending = opened.pending().await;
    assert_eq!(pending.len(), opened.waiting().await);
}

/// Each probe is another delivery, so that one that the endpoint cannot handle does not keep the
/// breaker open.
#[tokio::test]
async fn probes_take_turns() {
    let mut opened = BreakerFixture::open().await;
    opened.minutes_with_attempts(8).await;
    let received = opened.fixture.receiver.received();
    let ids: HashSet<_> = received
        .iter()
        .map(|request| request.header("webhook-id").to_owned())
        .collect();
    assert_eq!((ids.len(), received.len()), (3, 3));
}

/// A success closes the breaker and resumes everything that waited, spaced in time.
#[tokio::test]
async fn success_resumes_waiting_deliveries() {
    let mut opened = BreakerFixture::open().await;
    for _ in 0..10 {
        opened.end_job().await;
    }
    opened.receive_messages().await;
    opened.fixture.receiver.release();
    opened.pass_minute().await;
    let health = opened.fixture.health(opened.webhook).await;
    assert!(!health.is_open());
    assert_eq!(health.probed_at, None);
    let counted = collect_metrics(&opened.fixture.dispatcher);
    assert_eq!(
        counted.get("BreakersOpened"),
        Some(&1.0),
        "opened by the first process"
    );
    let tables = &opened.fixture.tables;
    assert_eq!(tables.items_under("PROBE").await.len(), 0);
    assert_eq!(tables.items_under("RESUME").await.len(), 1);
    opened.fixture.advance().await;
    let mut due: Vec<_> = opened
        .pending()
        .await
        .iter()
        .filter_map(|delivery| match delivery.state {
            DeliveryState::Pending(due) => Some(due),
            _ => None,
        })
        .collect();
    due.sort();
    let resumed_at = opened.fixture.clock.now();
    assert!(due.len() >= 10, "{due:?}");
    let spaced = due
        .iter()
        .filter(|due| **due > resumed_at)
        .collect::<HashSet<_>>();
    assert!(spaced.len() >= 10, "{due:?}");
    opened.settle().await;
    for delivery in opened.fixture.deliveries(opened.webhook).await {
        assert_eq!(delivery.state, DeliveryState::Delivered);
    }
}

/// The holder of the right dies before or while it probes. The next probe is made when its time has
/// come, and nothing is lost.
#[tokio::test]
async fn dead_holder_delays_only_one_probe() {
    for died_after_claim in [false, true] {
        let mut opened = BreakerFixture::open().await;
        opened.receive_messages().await;
        opened.fixture.clock.advance(Duration::from_mins(1));
        let store = opened.fixture.tables.store.clone();
        let acme = account("acme");
        let now = opened.fixture.clock.now();
        assert_eq!(opened.fixture.advance().await, 1);
        let due = opened.fixture.tables.timers().pop().unwrap();
        if died_after_claim {
            let claimed = store
                .leases()
                .claim(&due.message.key, due.message.attempt_count, now);
            assert!(matches!(claimed.await.unwrap(), ClaimOutcome::Acquired(_)));
        }
        let health = opened.fixture.health(opened.webhook).await;
        let acquired = store.probes().acquire(&acme, opened.webhook, &health, now);
        assert!(acquired.await.unwrap().is_applied());
        // The holder dies here. If it had leased a delivery, the sweep finds it when the lease has
        // ended. Otherwise the job makes another one due.
        let minutes = opened.minutes_with_attempts(8).await;
        let expected = if died_after_claim { 1 } else { 2 };
        assert_eq!(minutes.first(), Some(&expected), "{minutes:?}");
        opened.fixture.receiver.release();
        opened.settle().await;
        for delivery in opened.fixture.deliveries(opened.webhook).await {
            assert_eq!(delivery.state, DeliveryState::Delivered);
        }
    }
}

/// The right to probe is granted to one of many processes that ask at the same time.
#[tokio::test]
async fn right_is_granted_once() {
    let opened = BreakerFixture::open().await;
    let probes = opened.fixture.tables.store.probes();
    let health = opened.fixture.health(opened.webhook).await;
    let acme = account("acme");
    let mut granted = Vec::new();
    for minute in 0..3 {
        let now = opened.fixture.clock.now() + Duration::from_mins(minute);
        let requests = (0..8).map(|_| probes.acquire(&acme, opened.webhook, &health, now));
        let outcomes = futures_util::future::join_all(requests).await;
        let applied = outcomes
            .into_iter()
            .filter(|outcome| outcome.as_ref().unwrap().is_applied())
            .count();
        granted.push(applied);
    }
    assert_eq!(granted, [0, 1, 1], "opening counts as the first attempt");
}

/// If nothing waits, the breaker stays open, and the next event is the probe itself.
#[tokio::test]
async fn idle_endpoint_is_probed_by_next_event() {
    let mut opened = BreakerFixture::open().await;
    let leases = opened.fixture.tables.store.leases();
    let now = opened.fixture.clock.now();
    for delivery in opened.pending().await {
        let cancelled = leases.cancel(&delivery.key, now, RETENTION).await.unwrap();
        assert!(cancelled.is_applied());
    }
    assert_eq!(opened.minutes_with_attempts(20).await, [0; 0]);
    assert_eq!(opened.fixture.tables.items_under("PROBE").await.len(), 1);
    opened.fixture.receiver.release();
    opened.end_job().await;
    assert_eq!(opened.fixture.requests(), 1);
    assert!(!opened.fixture.health(opened.webhook).await.is_open());
    assert!(opened.pending().await.is_empty());
}

/// A manual retry of a waiting delivery is attempted at once, and waits again if it fails.
#[tokio::test]
async fn manual_retry_is_attempted_while_open() {
    let mut opened = BreakerFixture::open().await;
    opened.end_job().await;
    let waiting = opened.fixture.deliveries(opened.webhook).await.remove(0);
    let now = opened.fixture.clock.now();
    let store = opened.fixture.tables.store.clone();
    for attempts in 1..=2 {
        let current = store.deliveries().get(&waiting.key).await.unwrap().unwrap();
        assert_eq!(current.state, DeliveryState::Paused);
        let retried = store.leases().schedule_retry(&current, now, RETENTION);
        assert!(retried.await.unwrap().is_some());
        let message = RetryMessage {
            key: current.key.clone(),
            attempt_count: current.attempt_count,
        };
        opened.fixture.retry(&message).await;
        assert_eq!(opened.fixture.requests(), attempts);
    }
    let failed = store.deliveries().get(&waiting.key).await.unwrap().unwrap();
    assert_eq!(
        (failed.state, failed.waiting_for, failed.schedule_step),
        (DeliveryState::Paused, Some(WaitReason::Endpoint), 0)
    );
    opened.fixture.receiver.release();
    store
        .leases()
        .schedule_retry(&failed, now, RETENTION)
        .await
        .unwrap()
        .unwrap();
    let message = RetryMessage {
        key: failed.key.clone(),
        attempt_count: failed.attempt_count,
    };
    opened.fixture.retry(&message).await;
    assert!(!opened.fixture.health(opened.webhook).await.is_open());
    opened.settle().await;
}

/// Another URL forgets the health and resumes what waited for the former endpoint.
#[tokio::test]
async fn changed_url_resumes_waiting_deliveries() {
    let mut opened = BreakerFixture::open().await;
    opened.end_job().await;
    opened.receive_messages().await;
    let moved = WebhookUpdate {
        url: Some(EndpointUrl::parse(&opened.fixture.receiver.url("/ok")).unwrap()),
        ..WebhookUpdate::default()
    };
    let webhooks = opened.fixture.tables.store.webhooks();
    let now = opened.fixture.clock.now();
    webhooks
        .update(&account("acme"), opened.webhook, &moved, now)
        .await
        .unwrap();
    let tables = &opened.fixture.tables;
    assert_eq!(tables.items_under("PROBE").await.len(), 0);
    opened.settle().await;
    for delivery in opened.fixture.deliveries(opened.webhook).await {
        assert_eq!(delivery.state, DeliveryState::Delivered);
    }
}

/// A disabled webhook is not probed. Enabling it resumes what waited for the endpoint too.
#[tokio::test]
async fn disabled_webhook_keeps_waiting_deliveries() {
    let mut opened = BreakerFixture::open().await;
    opened.end_job().await;
    opened.receive_messages().await;
    let waiting = opened.pending().await.len();
    let set = async |opened: &BreakerFixture, status| {
        let update = WebhookUpdate {
            status: Some(status),
            ..WebhookUpdate::default()
        };
        let now = opened.fixture.clock.now();
        let webhooks = opened.fixture.tables.store.webhooks();
        webhooks
            .update(&account("acme"), opened.webhook, &update, now)
            .await
            .unwrap();
    };
    set(&opened, WebhookStatus::Disabled).await;
    assert_eq!(opened.minutes_with_attempts(30).await, [0; 0]);
    assert_eq!(opened.fixture.tables.items_under("PROBE").await.len(), 0);
    assert_eq!(opened.pending().await.len(), waiting);
    opened.fixture.receiver.release();
    set(&opened, WebhookStatus::Active).await;
    opened.settle().await;
}

/// Opening the breaker ends a resume, so that a large backlog is not made due in vain.
#[tokio::test]
async fn reopened_breaker_ends_resume() {
    let mut opened = BreakerFixture::open().await;
    opened.receive_messages().await;
    let store = opened.fixture.tables.store.clone();
    let acme = account("acme");
    let now = opened.fixture.clock.now();
    let read = async || {
        let webhooks = store.webhooks();
        let record = webhooks.get_record(&acme, opened.webhook).await;
        record.unwrap().unwrap()
    };
    let open = read().await;
    let closed = EndpointHealth {
        has_succeeded: true,
        ..EndpointHealth::default()
    };
    let items = store.health();
    let none = Notifications::default();
    let write = items.write(&acme, &open, &closed, &none, now, RETENTION);
    assert!(write.await.unwrap().is_applied());
    assert_eq!(
        opened.fixture.tables.items_under("RESUME").await.len(),
        1,
        "what waited is resumed"
    );
    let stale = items.write(&acme, &open, &closed, &none, now, RETENTION);
    assert!(!stale.await.unwrap().is_applied(), "written since");
    let reread = read().await;
    let write = items.write(&acme, &reread, &open.health, &none, now, RETENTION);
    assert!(write.await.unwrap().is_applied());
    let tables = &opened.fixture.tables;
    assert_eq!(tables.items_under("RESUME").await.len(), 0);
    assert_eq!(tables.items_under("PROBE").await.len(), 1);
}

/// An event that waits costs one conditional write, and its item is in no index but that of states.
#[tokio::test]
async fn waiting_event_costs_one_write() {
    let opened = BreakerFixture::open().await;
    let waiting_before = opened.waiting().await;
    let proxy = Proxy::start(opened.fixture.tables.endpoint.clone()).await;
    let client = nano_webhooks_cli::local_client(&proxy.url, patient_timeouts());
    let dispatcher = Dispatcher {
        store: opened.fixture.tables.store_through(client),
        ..opened.fixture.dispatcher.clone()
    };
    let records: Vec<_> = (1000..1100)
        .map(|n| insert_record(n, job_image(&format!("t{n}"), "completed")))
        .collect();
    assert_eq!(dispatch_batch(&dispatcher, &records).await, []);
    let expected =
        [("BatchGetItem", 1), ("PutItem", 100), ("Query", 1)].map(|(name, n)| (name.to_owned(), n));
    assert_eq!(proxy.counts(), expected);
    let deliveries = &opened.fixture.tables.names.deliveries;
    let items = opened.fixture.tables.items(deliveries).await;
    let waiting: Vec<_> = items
        .iter()
        .filter(|item| item.contains_key("waiting_for"))
        .collect();
    assert_eq!(waiting.len(), waiting_before + 100);
    for item in waiting {
        for absent in ["next_attempt_at", "sweep_at", "due_shard", "leased_until"] {
            assert!(!item.contains_key(absent), "{absent}");
        }
        assert!(item.contains_key("expires_at") && item.contains_key("state_key"));
    }
}

/// A breaker that an earlier version opened has no marker and no time of a probe, and its
/// deliveries are due. One of them is the probe, and the others wait.
#[tokio::test]
async fn breaker_of_earlier_version_is_probed() {
    let fixture = RetryFixture::new("1h").await;
    let webhook = fixture.subscribe("/dead").await;
    let slow = EndpointHealth {
        has_succeeded: true,
        slow: true,
        ..EndpointHealth::default()
    };
    put_health(&fixture.tables, webhook, &slow).await;
    fixture.end_jobs(1, 3).await;
    let open = EndpointHealth {
        consecutive_failures: 9,
        failing_since: Some(START),
        ..slow
    };
    put_health(&fixture.tables, webhook, &open).await;
    for timer in fixture.tables.timers() {
        fixture.retry(&timer.message).await;
    }
    assert_eq!(fixture.requests(), 1);
    let health = fixture.health(webhook).await;
    assert_eq!((health.probed_at, health.probe_count), (Some(START), 1));
    assert_eq!(fixture.tables.items_under("PROBE").await.len(), 1);
    for delivery in fixture.deliveries(webhook).await {
        assert_eq!(delivery.state, DeliveryState::Paused);
    }
    // The event that arrives first would have been the probe as well.
    put_health(&fixture.tables, webhook, &open).await;
    fixture.end_jobs(11, 2).await;
    assert_eq!(fixture.requests(), 2);
    fixture.receiver.release();
    fixture.clock.advance(Duration::from_mins(2));
    assert_eq!(fixture.advance().await, 1);
    fixture.retry(&fixture.timer().message).await;
    assert!(!fixture.health(webhook).await.is_open());
    assert_eq!(fixture.advance().await, 4);
}

/// Deliveries that an earlier version paused have no recorded reason.
#[tokio::test]
async fn paused_delivery_of_earlier_version_is_read() {
    let mut opened = BreakerFixture::open().await;
    opened.end_job().await;
    let key = opened.fixture.deliveries(opened.webhook).await[0]
        .key
        .clone();
    let primary = nano_webhooks::store::key_schema::delivery(&key);
    opened
        .fixture
        .tables
        .client
        .update_item()
        .table_name(&opened.fixture.tables.names.deliveries)
        .set_key(Some(primary.into_item()))
        .update_expression("REMOVE waiting_for")
        .send()
        .await
        .unwrap();
    let store = opened.fixture.tables.store.clone();
    let deliveries = store.deliveries();
    let paused = deliveries.get(&key).await.unwrap().unwrap();
    assert_eq!(
        (paused.state, paused.waiting_for),
        (DeliveryState::Paused, None)
    );
    opened.fixture.receiver.release();
    opened.settle().await;
    let delivered = deliveries.get(&key).await.unwrap().unwrap();
    assert_eq!(delivered.state, DeliveryState::Delivered);
}

/// The waiting deliveries of a deleted webhook are cancelled, however many they are.
#[tokio::test]
async fn deleted_webhook_cancels_waiting_deliveries() {
    let mut opened = BreakerFixture::open().await;
    let webhook = opened.webhook;
    let now = opened.fixture.clock.now();
    let webhooks = opened.fixture.tables.store.webhooks();
    let deleted = webhooks.delete(&account("acme"), webhook, now).await;
    assert!(deleted.unwrap().is_applied());
    opened.settle().await;
    for delivery in opened.fixture.deliveries(webhook).await {
        assert_eq!(delivery.state, DeliveryState::Cancelled);
    }
    assert_eq!(opened.fixture.requests(), 0);
}

/// A delivery that was made due as the probe, but is not attempted, is not followed by another one
/// in each run.
#[tokio::test]
async fn due_probe_is_not_repeated_each_minute() {
    let opened = BreakerFixture::open().await;
    let waiting = opened.waiting().await;
    opened.fixture.clock.advance(Duration::from_mins(1));
    assert_eq!(opened.fixture.advance().await, 1);
    for _ in 0..3 {
        assert_eq!(opened.fixture.advance().await, 0);
    }
    assert_eq!(opened.waiting().await, waiting - 1);
}

/// Health that cannot be read is replaced by the next write.
#[tokio::test]
async fn unreadable_health_is_replaced() {
    let fixture = RetryFixture::new("1h").await;
    let webhook = fixture.subscribe("/status/500").await;
    let mut item = key_schema::health(&account("acme"), webhook).into_item();
    item.insert("revision".to_owned(), AttributeValue::N("7".to_owned()));
    item.insert("failures".to_owned(), AttributeValue::S("many".to_owned()));
    let put = fixture.tables.client.put_item();
    put.table_name(&fixture.tables.names.webhooks)
        .set_item(Some(item))
        .send()
        .await
        .unwrap();
    fixture.end_jobs(1, 1).await;
    assert_eq!(fixture.health(webhook).await.failing_since, Some(START));
}
