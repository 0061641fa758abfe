//! Retries, the delivery log and endpoint health. The test passes each message and moves the clock.

use std::time::Duration;

use nano_webhooks::{
    client::{
        target_guard::TargetGuard,
        webhook_client::{Timeouts, WebhookClient},
    },
    clock::Deadline,
    dispatch::{Dispatcher, lambda_event::Invocation},
    store::{delivery_log::DeliveryFilter, leases::ClaimOutcome, update::WebhookUpdate},
};
use nano_webhooks_core::{
    delivery::{
        Delivery, DeliveryState, endpoint_health::EndpointHealth, failure::FailureKind,
        scheduled_retry::RetryMessage, status::DeliveryStatus,
    },
    endpoint_url::EndpointUrl,
    target_policy::TargetPolicy,
    webhook::WebhookStatus,
};
use serde_json::json;

use crate::support::{
    accounts::account,
    metrics::collect_metrics,
    proxy::Proxy,
    retry_fixture::{RetryFixture, START},
    stream::{dispatch_batch, insert_record, job_image},
};

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

/// Early, late and repeated messages make no additional attempt.
#[tokio::test]
async fn stale_message_makes_no_attempt() {
    let fixture = RetryFixture::new("10s,20s").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    let first = fixture.timer();
    fixture.retry(&first.message).await;
    assert_eq!(
        fixture.timer(),
        first,
        "an early message is scheduled again"
    );
    assert_eq!(fixture.requests(), 1);

    fixture.clock.advance(Duration::from_secs(15));
    fixture.retry(&first.message).await;
    let second = fixture.timer();
    for _ in 0..3 {
        fixture.retry(&first.message).await;
    }
    assert_eq!(
        (fixture.requests(), fixture.tables.timers().len()),
        (2, 0),
        "a stale message is dropped"
    );
    assert_eq!(fixture.only(webhook).await.attempt_count, 2);
    assert_eq!(second.message.attempt_count, 2);
}

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

/// Deliveries of a deleted webhook are cancelled and stay readable.
#[tokio::test]
async fn deleted_webhook_cancels_deliveries() {
    let fixture = RetryFixture::new("10s").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 2).await;
    let timers = fixture.tables.timers();
    assert!(
        fixture
            .tables
            .store
            .webhooks()
            .delete(&account("acme"), webhook)
            .await
            .unwrap()
            .is_applied()
    );
    fixture.retry(&timers[0].message).await;
    let states = fixture
        .deliveries(webhook)
        .await
        .into_iter()
        .map(|delivery| delivery.state);
    assert_eq!(
        states
            .filter(|state| *state == DeliveryState::Cancelled)
            .count(),
        1
    );
    fixture
        .tables
        .store
        .leases()
        .cancel_pending(&account("acme"), webhook, START, Duration::from_hours(1))
        .await
        .unwrap();
    assert!(
        fixture
            .deliveries(webhook)
            .await
            .iter()
            .all(|delivery| delivery.state == DeliveryState::Cancelled)
    );
    fixture.clock.advance(Duration::from_secs(20));
    fixture.retry(&timers[1].message).await;
    assert_eq!(fixture.requests(), 1, "a cancelled delivery is not sent");
}

/// An attempt in flight while its webhook is deleted is recorded before the delivery is cancelled.
#[tokio::test]
async fn attempt_in_flight_is_recorded_on_delete() {
    let fixture = RetryFixture::new("1s,10s").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    let timer = fixture.timer();
    fixture.clock.advance(Duration::from_secs(2));
    let store = &fixture.tables.store;
    let ClaimOutcome::Acquired(lease) = store
        .leases()
        .claim(&timer.message.key, 1, fixture.clock.now())
        .await
        .unwrap()
    else {
        panic!()
    };
    store
        .webhooks()
        .delete(&account("acme"), webhook)
        .await
        .unwrap();
    store
        .leases()
        .cancel_pending(
            &account("acme"),
            webhook,
            fixture.clock.now(),
            Duration::from_hours(1),
        )
        .await
        .unwrap();
    let mut settled = lease.delivery.clone();
    settled.attempt_count = 2;
    assert!(
        store
            .leases()
            .complete(
                &lease,
                &settled,
                fixture.clock.now(),
                Duration::from_hours(1)
            )
            .await
            .unwrap()
            .is_applied()
    );
    fixture
        .retry(&RetryMessage {
            attempt_count: 2,
            ..timer.message
        })
        .await;
    let delivery = fixture.only(webhook).await;
    assert_eq!(
        (delivery.state, delivery.attempt_count, fixture.requests()),
        (DeliveryState::Cancelled, 2, 1)
    );
}

/// A 410 disables the webhook at once and pauses its deliveries.
#[tokio::test]
async fn gone_endpoint_is_disabled() {
    let fixture = RetryFixture::new("10s").await;
    let webhook = fixture.subscribe("/status/410").await;
    fixture.end_jobs(1, 1).await;
    let timer = fixture.timer();
    let item = fixture
        .tables
        .items_under("ACCOUNT#")
        .await
        .into_iter()
        .find(|item| item.contains_key("disabled_reason"));
    let item = item.expect("the webhook is disabled");
    assert_eq!(
        collect_metrics(&fixture.dispatcher).get("WebhooksDisabled"),
        Some(&1.0)
    );
    assert_eq!(item["status"].as_s().unwrap(), "disabled");
    assert_eq!(
        item["disabled_reason"].as_s().unwrap(),
        "The endpoint responded with 410 Gone."
    );
    fixture.clock.advance(Duration::from_secs(20));
    fixture.retry(&timer.message).await;
    assert_eq!(fixture.only(webhook).await.state, DeliveryState::Paused);
    fixture.clock.advance(Duration::from_hours(1));
    assert_eq!(fixture.sweep().await, 0, "a paused delivery is not due");
    fixture.end_jobs(5, 1).await;
    assert_eq!(
        (fixture.requests(), fixture.deliveries(webhook).await.len()),
        (1, 1),
        "a disabled webhook gets no deliveries"
    );
}

/// A response of the previous URL neither disables the webhook nor changes its health.
#[tokio::test]
async fn response_of_old_url_is_ignored() {
    let fixture = RetryFixture::new("10s").await;
    let webhook = fixture.subscribe("/status/410").await;
    let store = &fixture.tables.store;
    let read = store
        .webhooks()
        .get_record(&account("acme"), webhook)
        .await
        .unwrap()
        .unwrap();
    store
        .webhooks()
        .put_health(
            &account("acme"),
            webhook,
            &EndpointHealth {
                consecutive_failures: 9,
                ..EndpointHealth::default()
            },
        )
        .await
        .unwrap();
    let moved = WebhookUpdate {
        url: Some(EndpointUrl::parse(&fixture.receiver.url("/ok")).unwrap()),
        ..WebhookUpdate::default()
    };
    assert!(
        store
            .webhooks()
            .update(&account("acme"), webhook, &moved, START)
            .await
            .unwrap()
            .is_applied()
    );
    assert_eq!(fixture.health(webhook).await, EndpointHealth::default());
    let (acme, hour) = (account("acme"), Duration::from_hours(1));
    assert!(
        !store
            .webhooks()
            .disable(&acme, &read.webhook, "Gone.", &[], START, hour)
            .await
            .unwrap()
            .is_applied()
    );
}

/// A manual retry of a paused delivery that fails continues on the schedule.
#[tokio::test]
async fn paused_delivery_continues_on_schedule() {
    let fixture = RetryFixture::new("10s,20s").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    let timer = fixture.timer();
    let store = &fixture.tables.store;
    let status = |status| WebhookUpdate {
        status: Some(status),
        ..WebhookUpdate::default()
    };
    store
        .webhooks()
        .update(
            &account("acme"),
            webhook,
            &status(WebhookStatus::Disabled),
            START,
        )
        .await
        .unwrap();
    fixture.clock.advance(Duration::from_secs(15));
    fixture.retry(&timer.message).await;
    let paused = fixture.only(webhook).await;
    assert_eq!(paused.state, DeliveryState::Paused);
    store
        .webhooks()
        .update(
            &account("acme"),
            webhook,
            &status(WebhookStatus::Active),
            START,
        )
        .await
        .unwrap();
    let now = fixture.clock.now();
    store
        .leases()
        .schedule_retry(&paused, now, Duration::from_hours(1))
        .await
        .unwrap()
        .unwrap();
    fixture.retry(&timer.message).await;
    let DeliveryState::Pending(due) = fixture.only(webhook).await.state else {
        panic!("the delivery is never due")
    };
    assert!((16..=24).contains(&due.saturating_duration_since(now).as_secs()));
}

/// The other webhooks of the account receive `webhook.disabled`.
#[tokio::test]
async fn other_webhooks_receive_webhook_disabled() {
    let fixture = RetryFixture::new("10s").await;
    let gone = fixture
        .subscribe_to("/status/410", &["job.completed", "webhook.disabled"])
        .await;
    let notified = fixture
        .subscribe_to("/notified", &["webhook.disabled"])
        .await;
    let other = fixture.subscribe_to("/other", &["job.failed"]).await;
    fixture.end_jobs(1, 1).await;
    let timer = fixture
        .tables
        .timers()
        .into_iter()
        .find(|timer| timer.message.key.webhook == notified);
    fixture
        .retry(&timer.expect("the notification is due at once").message)
        .await;
    let requests = fixture.receiver.received();
    assert_eq!(requests.len(), 2, "{requests:?}");
    let heard = &requests[1];
    assert_eq!(
        (heard.path.as_str(), heard.header("x-nano-event")),
        ("/notified", "webhook.disabled")
    );
    assert_eq!(
        heard.json(),
        json!({
            "event": "webhook.disabled",
            "data": {
                "disabled_reason": "The endpoint responded with 410 Gone.",
                "url": fixture.receiver.url("/status/410"),
                "webhook_id": gone.get(),
            },
            "timestamp": START.to_rfc3339(),
        })
    );
    let delivery = fixture.only(notified).await;
    assert_eq!(
        (delivery.state, delivery.task_id),
        (DeliveryState::Delivered, None)
    );
    assert!(fixture.deliveries(other).await.is_empty());
    assert_eq!(
        fixture.deliveries(gone).await.len(),
        1,
        "only the event of the job"
    );
}

/// Enabling a webhook resets its health and sends its paused deliveries, paced.
#[tokio::test]
async fn enabling_resumes_paused_deliveries() {
    let fixture = RetryFixture::new("1h").await;
    let webhook = fixture.subscribe("/ok").await;
    let store = &fixture.tables.store;
    let open = EndpointHealth {
        has_succeeded: true,
        slow: true,
        consecutive_failures: 9,
        failing_since: Some(START),
        ..EndpointHealth::default()
    };
    store
        .webhooks()
        .put_health(&account("acme"), webhook, &open)
        .await
        .unwrap();
    fixture.end_jobs(1, 3).await;
    let disable = WebhookUpdate {
        status: Some(WebhookStatus::Disabled),
        ..WebhookUpdate::default()
    };
    assert!(
        store
            .webhooks()
            .update(&account("acme"), webhook, &disable, START)
            .await
            .unwrap()
            .is_applied()
    );
    for timer in fixture.tables.timers() {
        fixture.retry(&timer.message).await;
    }
    assert!(
        fixture
            .deliveries(webhook)
            .await
            .iter()
            .all(|delivery| delivery.state == DeliveryState::Paused)
    );

    let enable = WebhookUpdate {
        status: Some(WebhookStatus::Active),
        ..WebhookUpdate::default()
    };
    assert!(
        store
            .webhooks()
            .update(&account("acme"), webhook, &enable, START)
            .await
            .unwrap()
            .is_applied()
    );
    assert_eq!(fixture.health(webhook).await, EndpointHealth::default());
    assert_eq!(fixture.advance().await, 3);
    let mut timers = fixture.tables.timers();
    timers.sort_by_key(|timer| timer.due);
    let waits: Vec<_> = timers
        .iter()
        .map(|timer| timer.due.saturating_duration_since(START).as_millis())
        .collect();
    assert_eq!(waits, [200, 400, 600], "the endpoint is not flooded");
    fixture.clock.advance(Duration::from_secs(1));
    for timer in timers {
        fixture.retry(&timer.message).await;
    }
    assert!(
        fixture
            .deliveries(webhook)
            .await
            .iter()
            .all(|delivery| delivery.state == DeliveryState::Delivered)
    );
    assert_eq!(
        fixture.tables.items_under("RESUME").await.len(),
        1,
        "a worker may have paused a delivery since"
    );
    fixture.clock.advance(Duration::from_mins(2));
    assert_eq!(fixture.advance().await, 0);
    assert_eq!(fixture.tables.items_under("RESUME").await.len(), 0);
}

/// Five days in which at least ten attempts were made and all failed disable a webhook. The failures
/// of one second are counted although they are not written one by one.
#[tokio::test]
async fn continuous_failures_disable_webhook() {
    let fixture = RetryFixture::new("10s").await;
    let dead = fixture.subscribe("/status/500").await;
    for job in 1..=8 {
        fixture.end_jobs(job, 1).await;
    }
    fixture.clock.advance(Duration::from_hours(119));
    fixture.end_jobs(9, 1).await;
    assert_eq!(disabled_webhooks(&fixture).await, 0);
    fixture.clock.advance(Duration::from_hours(1));
    fixture.end_jobs(10, 1).await;
    assert_eq!(disabled_webhooks(&fixture).await, 1);
    assert_eq!(
        fixture.health(dead).await.last_failure,
        Some(FailureKind::Status)
    );
}

/// A webhook that is seldom called is not disabled for a few failures.
#[tokio::test]
async fn few_failures_disable_no_webhook() {
    let fixture = RetryFixture::new("10s").await;
    fixture.subscribe("/status/500").await;
    for job in 1..=9 {
        fixture.end_jobs(job, 1).await;
        fixture.clock.advance(Duration::from_hours(24));
    }
    assert_eq!(disabled_webhooks(&fixture).await, 0);
    fixture.end_jobs(10, 1).await;
    assert_eq!(disabled_webhooks(&fixture).await, 1);
}

#[tokio::test]
async fn success_prevents_disabling() {
    let fixture = RetryFixture::new("10s").await;
    let saved = fixture.subscribe("/ok").await;
    let failing = EndpointHealth {
        failing_since: Some(START - Duration::from_hours(121)),
        failed_attempts: 10,
        ..EndpointHealth::default()
    };
    let webhooks = fixture.tables.store.webhooks();
    webhooks
        .put_health(&account("acme"), saved, &failing)
        .await
        .unwrap();
    fixture.end_jobs(1, 1).await;
    let health = fixture.health(saved).await;
    assert_eq!(
        (health.failing_since, health.first_success_after_failure_at),
        (None, Some(fixture.clock.now()))
    );
    assert_eq!(disabled_webhooks(&fixture).await, 0);
}

async fn disabled_webhooks(fixture: &RetryFixture) -> usize {
    let items = fixture.tables.items_under("ACCOUNT#").await;
    items
        .iter()
        .filter(|item| item.contains_key("disabled_reason"))
        .count()
}

/// A hanging endpoint delays one batch once; its other deliveries go to the queue.
#[tokio::test]
async fn hanging_endpoint_delays_batch_once() {
    let fixture = RetryFixture::new("10s").await;
    let hanging = fixture.subscribe("/hang").await;
    let healthy = fixture.subscribe("/ok").await;
    fixture.end_jobs(1, 20).await;
    let tried = |deliveries: Vec<Delivery>| {
        deliveries
            .iter()
            .filter(|delivery| delivery.attempt_count > 0)
            .count()
    };
    assert_eq!(
        tried(fixture.deliveries(hanging).await),
        1,
        "an endpoint that never responded gets one attempt"
    );
    assert!(
        fixture
            .deliveries(healthy)
            .await
            .iter()
            .all(|delivery| delivery.state == DeliveryState::Delivered)
    );
    assert!(fixture.health(hanging).await.slow);

    fixture.end_jobs(101, 20).await;
    assert_eq!(
        tried(fixture.deliveries(hanging).await),
        1,
        "later batches make no direct attempt"
    );
    assert_eq!(fixture.deliveries(healthy).await.len(), 40);
    assert_eq!(
        fixture.tables.timers().len(),
        40,
        "all deliveries are in the queue"
    );
}

/// Failures to respond open the breaker, and a success from the queue closes it.
#[tokio::test]
async fn success_closes_breaker() {
    let fixture = RetryFixture::new("1s,1s,1s,1s,1s,1s").await;
    let webhook = fixture.subscribe("/hang").await;
    fixture.end_jobs(1, 1).await;
    for _ in 0..4 {
        fixture.clock.advance(Duration::from_secs(2));
        fixture.retry(&fixture.timer().message).await;
    }
    assert!(fixture.health(webhook).await.is_open());
    assert_eq!(
        collect_metrics(&fixture.dispatcher).get("BreakersOpened"),
        Some(&1.0)
    );
    let timer = fixture.timer();
    fixture.clock.advance(Duration::from_secs(2));
    // The endpoint recovers: another receiver responds at its address.
    let mut healed = fixture
        .tables
        .items_under("ACCOUNT#")
        .await
        .into_iter()
        .find(|item| item.contains_key("url"))
        .unwrap();
    healed.insert(
        "url".into(),
        aws_sdk_dynamodb::types::AttributeValue::S(fixture.receiver.url("/ok")),
    );
    fixture
        .tables
        .client
        .put_item()
        .table_name(&fixture.tables.names.webhooks)
        .set_item(Some(healed))
        .send()
        .await
        .unwrap();
    fixture.retry(&timer.message).await;
    let health = fixture.health(webhook).await;
    assert!(!health.is_open() && !health.slow && health.has_succeeded);
    let counted = collect_metrics(&fixture.dispatcher);
    assert_eq!(
        (counted.get("BreakersClosed"), counted.get("BreakersOpened")),
        (Some(&1.0), None)
    );
    assert_eq!(fixture.only(webhook).await.state, DeliveryState::Delivered);
}

/// Concurrent failures open the breaker once.
#[tokio::test]
async fn concurrent_failures_open_breaker_once() {
    for (failures, opened) in [(4, None), (5, Some(&1.0)), (9, Some(&1.0))] {
        let fixture = RetryFixture::new("1s,1s").await;
        let webhook = fixture.subscribe("/hang").await;
        // The first attempt is direct, the others are queued.
        fixture.end_jobs(1, failures - 1).await;
        fixture.clock.advance(Duration::from_secs(2));
        let timers = fixture.tables.timers();
        futures_util::future::join_all(timers.iter().map(|timer| fixture.retry(&timer.message)))
            .await;
        assert_eq!(fixture.requests(), failures);
        assert_eq!(
            fixture.health(webhook).await.is_open(),
            opened.is_some(),
            "{failures}"
        );
        assert_eq!(
            collect_metrics(&fixture.dispatcher).get("BreakersOpened"),
            opened,
            "{failures}"
        );
    }
}

/// A success that started before the breaker opened closes it.
#[tokio::test]
async fn earlier_success_closes_breaker() {
    let fixture = RetryFixture::new("1h").await;
    let webhook = fixture.subscribe("/held").await;
    let well = EndpointHealth {
        has_succeeded: true,
        ..EndpointHealth::default()
    };
    fixture
        .tables
        .store
        .webhooks()
        .put_health(&account("acme"), webhook, &well)
        .await
        .unwrap();
    let patient = Timeouts {
        connect: Duration::from_secs(10),
        total: Duration::from_secs(10),
    };
    let direct_client =
        WebhookClient::new(TargetGuard::new(TargetPolicy::Any, vec![]), patient, None).unwrap();
    let patient = Dispatcher {
        direct_client,
        ..fixture.dispatcher.clone()
    };
    let held = tokio::spawn(async move {
        dispatch_batch(
            &patient,
            &[insert_record(1, job_image("held", "completed"))],
        )
        .await
    });
    fixture.receiver.wait_for(1).await;
    fixture.end_jobs(2, 5).await;
    assert!(fixture.health(webhook).await.is_open());
    fixture.receiver.release();
    assert_eq!(held.await.unwrap(), []);
    assert!(!fixture.health(webhook).await.is_open());
    assert_eq!(
        collect_metrics(&fixture.dispatcher).get("BreakersClosed"),
        Some(&1.0)
    );
}

/// Without a free slot a delivery is deferred and uses no attempt.
#[tokio::test]
async fn full_endpoint_defers_delivery() {
    let fixture = RetryFixture::new("1s").await;
    let webhook = fixture.subscribe("/hang").await;
    let open = EndpointHealth {
        has_succeeded: true,
        slow: true,
        consecutive_failures: 5,
        ..EndpointHealth::default()
    };
    fixture
        .tables
        .store
        .webhooks()
        .put_health(&account("acme"), webhook, &open)
        .await
        .unwrap();
    fixture.end_jobs(1, 12).await;
    let timers = fixture.tables.timers();
    futures_util::future::join_all(timers.iter().map(|timer| fixture.retry(&timer.message))).await;
    let (tried, put_off): (Vec<_>, Vec<_>) = fixture
        .deliveries(webhook)
        .await
        .into_iter()
        .partition(|delivery| delivery.attempt_count == 1);
    assert_eq!((tried.len(), put_off.len(), fixture.requests()), (8, 4, 8));
    for delivery in put_off {
        let DeliveryState::Pending(due) = delivery.state else {
            panic!()
        };
        assert!(
            (5..=10).contains(&due.saturating_duration_since(START).as_secs()),
            "{due:?}"
        );
    }
    assert_eq!(fixture.tables.timers().len(), 12);
}

/// A manual retry counts as an attempt and does not change the schedule.
#[tokio::test]
async fn manual_retry_keeps_schedule() {
    let fixture = RetryFixture::new("1h,1h").await;
    let webhook = fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    let by_hand = async || {
        let before = fixture.only(webhook).await;
        let hastened = fixture
            .tables
            .store
            .leases()
            .schedule_retry(&before, fixture.clock.now(), Duration::from_hours(1))
            .await
            .unwrap();
        assert!(hastened.is_some());
        let again = fixture
            .tables
            .store
            .leases()
            .schedule_retry(&before, fixture.clock.now(), Duration::from_hours(1))
            .await
            .unwrap();
        assert!(
            again.is_none(),
            "the delivery has changed since it was read"
        );
        fixture
            .retry(&RetryMessage {
                key: before.key.clone(),
                attempt_count: before.attempt_count,
            })
            .await;
        let after = fixture.only(webhook).await;
        assert_eq!(
            (after.state, after.attempt_count, after.state_before_retry),
            (before.state, before.attempt_count + 1, None)
        );
    };
    let by_schedule = async || {
        fixture.clock.advance(Duration::from_hours(2));
        let before = fixture.only(webhook).await;
        fixture
            .retry(&RetryMessage {
                key: before.key.clone(),
                attempt_count: before.attempt_count,
            })
            .await;
        fixture.only(webhook).await.state
    };
    by_hand().await;
    by_hand().await;
    assert!(matches!(by_schedule().await, DeliveryState::Pending(_)));
    by_hand().await;
    assert_eq!(by_schedule().await, DeliveryState::Failed);
    by_hand().await;
    assert_eq!(
        (fixture.only(webhook).await.state, fixture.requests()),
        (DeliveryState::Failed, 7)
    );
}

/// A manual retry that was not made restores the state when the webhook is deleted or disabled.
#[tokio::test]
async fn withdrawn_retry_restores_state() {
    let fixture = RetryFixture::new("1h").await;
    let webhook = fixture.subscribe("/ok").await;
    fixture.end_jobs(1, 1).await;
    let delivered = fixture.only(webhook).await;
    let hastened = fixture
        .tables
        .store
        .leases()
        .schedule_retry(&delivered, START, Duration::from_hours(1))
        .await
        .unwrap()
        .unwrap();
    fixture
        .tables
        .store
        .webhooks()
        .delete(&account("acme"), webhook)
        .await
        .unwrap();
    fixture
        .retry(&RetryMessage {
            key: hastened.key.clone(),
            attempt_count: 1,
        })
        .await;
    assert_eq!(
        (fixture.only(webhook).await.state, fixture.requests()),
        (DeliveryState::Delivered, 1)
    );
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

/// The delivery log is listed newest first, by page, status and event.
#[tokio::test]
async fn log_is_filtered_and_paged() {
    let fixture = RetryFixture::new("1h").await;
    let webhook = fixture.subscribe("/status/500").await;
    let healthy = fixture.subscribe("/ok").await;
    for second in 0..30 {
        fixture.end_jobs(second, 1).await;
    }
    let list = async |webhook, status, after, limit| {
        let filter = DeliveryFilter {
            status,
            event: None,
            after,
            limit,
        };
        fixture
            .tables
            .store
            .delivery_log()
            .list(&account("acme"), webhook, &filter)
            .await
            .unwrap()
    };
    for (webhook, status, found) in [
        (webhook, None, 30),
        (webhook, Some(DeliveryStatus::Pending), 30),
        (webhook, Some(DeliveryStatus::Failed), 0),
        (webhook, Some(DeliveryStatus::Delivered), 0),
        (healthy, Some(DeliveryStatus::Delivered), 30),
        (healthy, Some(DeliveryStatus::Pending), 0),
    ] {
        let (mut ids, mut after) = (Vec::new(), None);
        loop {
            let page = list(webhook, status, after.take(), 7).await;
            assert!(page.deliveries.len() <= 7);
            ids.extend(page.deliveries.into_iter().map(|listed| listed.event_id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(ids.len(), found, "{status:?}");
        assert!(
            ids.windows(2).all(|pair| pair[0] > pair[1]),
            "each delivery is listed once, newest first"
        );
    }
}

/// A queue batch reports the messages to repeat and drops unknown ones.
#[tokio::test]
async fn queue_batch_reports_failed_messages() {
    let fixture = RetryFixture::new("1s,1s").await;
    fixture.subscribe("/status/500").await;
    fixture.end_jobs(1, 1).await;
    let ours = fixture.timer().message.to_json();
    fixture.clock.advance(Duration::from_secs(2));
    let record = |id: &str, body: &str| json!({"messageId": id, "body": body, "eventSource": "aws:sqs", "awsRegion": "eu-west-1"});
    let event = json!({"Records": [record("m1", &ours), record("m2", "nonsense")]}).to_string();
    let invoke = async |dispatcher: &Dispatcher| {
        dispatcher
            .invoke(
                Invocation::from_json(&event).unwrap(),
                Deadline::from_now(Duration::from_secs(20)),
            )
            .await
            .unwrap()
    };
    let unreachable = fixture
        .tables
        .store_through(nano_webhooks_cli::local_client(
            "http://127.0.0.1:9",
            nano_webhooks::aws::timeouts(),
        ));
    let without_tables = Dispatcher {
        store: unreachable,
        ..fixture.dispatcher.clone()
    };
    assert_eq!(
        invoke(&without_tables).await,
        json!({"batchItemFailures": [{"itemIdentifier": "m1"}]})
    );
    assert_eq!(
        invoke(&fixture.dispatcher).await,
        json!({"batchItemFailures": []})
    );
    assert_eq!(fixture.requests(), 2);
    for job in ["sweep", "advance"] {
        let scheduled = format!(r#"{{"job":"{job}"}}"#);
        assert!(Invocation::from_json(&scheduled).is_ok(), "{job}");
    }
    for other in ["{}", "[]", "1", r#"{"job":"something else"}"#] {
        assert!(Invocation::from_json(other).is_err(), "{other}");
    }
}

/// A successful delivery costs one write unit, and reads are shared by the batch.
#[tokio::test]
async fn success_costs_one_write_unit() {
    let fixture = RetryFixture::new("1s").await;
    let webhook = fixture.subscribe("/ok").await;
    // Only the first success writes the endpoint's health.
    fixture.end_jobs(1000, 1).await;
    let proxy = Proxy::start(fixture.tables.endpoint.clone()).await;
    let counted = fixture
        .tables
        .store_through(nano_webhooks_cli::local_client(
            &proxy.url,
            crate::support::tables::patient_timeouts(),
        ));
    let dispatcher = Dispatcher {
        store: counted,
        ..fixture.dispatcher.clone()
    };
    let records: Vec<_> = (0..100)
        .map(|n| insert_record(n, job_image(&format!("t{n}"), "completed")))
        .collect();
    assert_eq!(dispatch_batch(&dispatcher, &records).await, []);
    let expected = [("BatchGetItem", 1), ("BatchWriteItem", 4), ("Query", 1)]
        .map(|(name, n)| (name.to_owned(), n));
    assert_eq!(proxy.counts(), expected);
    assert_eq!(fixture.deliveries(webhook).await.len(), 100);
    for item in fixture.tables.items(&fixture.tables.names.deliveries).await {
        assert!(
            !["due_shard", "sweep_at", "state_key"]
                .iter()
                .any(|key| item.contains_key(*key)),
            "the write touches no index"
        );
        assert!(size(&item) <= 1024, "{} bytes: {item:?}", size(&item));
    }
}

/// An item's size as DynamoDB counts it ("Item sizes and formats" of its developer guide), rounded up.
fn size(
    item: &std::collections::HashMap<String, aws_sdk_dynamodb::types::AttributeValue>,
) -> usize {
    use aws_sdk_dynamodb::types::AttributeValue;
    fn value(of: &AttributeValue) -> usize {
        match of {
            AttributeValue::S(text) => text.len(),
            AttributeValue::N(digits) => digits.len() / 2 + 2,
            AttributeValue::L(items) => 3 + items.iter().map(|item| 1 + value(item)).sum::<usize>(),
            AttributeValue::M(entries) => {
                3 + entries
                    .iter()
                    .map(|(key, item)| 1 + key.len() + value(item))
                    .sum::<usize>()
            }
            AttributeValue::Bool(_) | AttributeValue::Null(_) => 1,
            other => panic!("{other:?}"),
        }
    }
    item.iter()
        .map(|(key, attribute)| key.len() + value(attribute))
        .sum()
}
