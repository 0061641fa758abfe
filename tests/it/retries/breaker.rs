//! Endpoint health: the circuit breaker and the attempts in flight.

use std::time::Duration;

use nano_webhooks::{
    client::{
        target_guard::TargetGuard,
        webhook_client::{Timeouts, WebhookClient},
    },
    dispatch::Dispatcher,
};
use nano_webhooks_core::{
    delivery::{DeliveryState, endpoint_health::EndpointHealth},
    target_policy::TargetPolicy,
    webhook::WebhookId,
};

use crate::support::{
    metrics::collect_metrics,
    retry_fixture::{RetryFixture, START},
    stream::{dispatch_batch, insert_record, job_image},
    webhooks::put_health,
};

/// A hanging endpoint delays one batch once; its other deliveries go to the queue.
#[tokio::test]
async fn hanging_endpoint_delays_batch_once() {
    let fixture = RetryFixture::new("10s").await;
    let hanging = fixture.subscribe("/hang").await;
    let healthy = fixture.subscribe("/ok").await;
    fixture.end_jobs(1, 20).await;
    assert_eq!(
        count_attempted(&fixture, hanging).await,
        1,
        "an endpoint that never responded gets one attempt"
    );
    assert_eq!(
        fixture.states(healthy).await,
        [DeliveryState::Delivered; 20]
    );
    assert!(fixture.health(hanging).await.slow);

    fixture.end_jobs(101, 20).await;
    assert_eq!(
        count_attempted(&fixture, hanging).await,
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

/// The number of deliveries that were attempted.
async fn count_attempted(fixture: &RetryFixture, webhook: WebhookId) -> usize {
    let mut deliveries = fixture.deliveries(webhook).await;
    deliveries.retain(|delivery| delivery.attempt_count > 0);
    deliveries.len()
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
    put_health(&fixture.tables, webhook, &well).await;
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
    let slow = EndpointHealth {
        has_succeeded: true,
        slow: true,
        ..EndpointHealth::default()
    };
    put_health(&fixture.tables, webhook, &slow).await;
    fixture.end_jobs(1, 36).await;
    let timers = fixture.tables.timers();
    futures_util::future::join_all(timers.iter().map(|timer| fixture.retry(&timer.message))).await;
    let (tried, deferred): (Vec<_>, Vec<_>) = fixture
        .deliveries(webhook)
        .await
        .into_iter()
        .partition(|delivery| delivery.attempt_count == 1);
    assert_eq!(
        (tried.len(), deferred.len(), fixture.requests()),
        (32, 4, 32)
    );
    for delivery in deferred {
        let DeliveryState::Pending(due) = delivery.state else {
            panic!()
        };
        assert!(
            (5..=10).contains(&due.saturating_duration_since(START).as_secs()),
            "{due:?}"
        );
    }
    assert_eq!(fixture.tables.timers().len(), 36);
}
