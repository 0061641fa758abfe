//! Attempts that the process cannot make: they are deferred, and the endpoint is not blamed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::FutureExt;
use nano_webhooks::{
    client::{
        local_failure::LocalFailure,
        resolver::Resolver,
        target_guard::TargetGuard,
        webhook_client::{Timeouts, WebhookClient},
    },
    dispatch::Dispatcher,
};
use nano_webhooks_core::{
    delivery::{
        Delivery, DeliveryState, endpoint_health::EndpointHealth, scheduled_retry::RetryMessage,
    },
    target_policy::TargetPolicy,
    webhook::WebhookId,
};

use crate::support::{metrics::collect_metrics, retry_fixture::RetryFixture, webhooks::subscribe};

/// What socket(2) returns if the process has no file descriptor left.
const EMFILE: i32 = 24;

/// A dispatcher whose lookups fail, while `is_exhausted`, for want of file descriptors.
struct ExhaustibleFixture {
    fixture: RetryFixture,
    is_exhausted: Arc<AtomicBool>,
}

impl ExhaustibleFixture {
    async fn new() -> Self {
        let fixture = RetryFixture::new("10s,20s").await;
        let is_exhausted = Arc::new(AtomicBool::new(true));
        let flag = is_exhausted.clone();
        let resolver = Resolver::new(Arc::new(move |_| {
            let result = if flag.load(Ordering::Relaxed) {
                Err(LocalFailure::OutOfResources(EMFILE).into())
            } else {
                Ok(vec!["127.0.0.1".parse().unwrap()])
            };
            async { result }.boxed()
        }));
        let guard = TargetGuard::new(TargetPolicy::Any, vec![]).with_resolver(resolver);
        let client = WebhookClient::new(guard, Timeouts::QUEUED, None).unwrap();
        let dispatcher = Dispatcher {
            direct_client: client.clone(),
            retry_client: client,
            ..fixture.dispatcher.clone()
        };
        Self {
            fixture: RetryFixture {
                dispatcher,
                ..fixture
            },
            is_exhausted,
        }
    }

    /// Subscribes an endpoint by its name.
    async fn subscribe(&self) -> WebhookId {
        let url = self.fixture.receiver.url("/ok");
        let url = url.replace("127.0.0.1", "endpoint.example");
        subscribe(&self.fixture.tables, "acme", &url, None).await
    }

    /// Passes the message of the deferred attempt when it is due, and returns the delivery.
    async fn retry(&self, webhook: WebhookId) -> Delivery {
        let timer = self.fixture.timer();
        let wait = timer
            .due
            .saturating_duration_since(self.fixture.clock.now());
        self.fixture.clock.advance(wait);
        self.fixture.retry(&timer.message).await;
        self.fixture.only(webhook).await
    }

    /// Requests a retry of the only delivery, and passes its message.
    async fn retry_manually(&self, webhook: WebhookId) -> Delivery {
        let delivery = self.fixture.only(webhook).await;
        let leases = self.fixture.tables.store.leases();
        let now = self.fixture.clock.now();
        let retention = self.fixture.dispatcher.retention;
        let scheduled = leases.schedule_retry(&delivery, now, retention).await;
        assert!(scheduled.unwrap().is_some());
        let message = RetryMessage {
            key: delivery.key,
            attempt_count: delivery.attempt_count,
        };
        self.fixture.retry(&message).await;
        self.fixture.only(webhook).await
    }
}

/// The seconds until the next attempt.
fn wait(delivery: &Delivery, fixture: &RetryFixture) -> u64 {
    let DeliveryState::Pending(due) = delivery.state else {
        panic!("expected a pending delivery: {delivery:?}");
    };
    due.saturating_duration_since(fixture.clock.now()).as_secs()
}

/// Neither the first attempt nor a queued one is used up, the endpoint's health stays as it was,
/// and the event is delivered as soon as the process can.
#[tokio::test]
async fn exhausted_process_defers_attempts() {
    let exhaustible = ExhaustibleFixture::new().await;
    let fixture = &exhaustible.fixture;
    let webhook = exhaustible.subscribe().await;
    fixture.end_jobs(1, 1).await;
    let mut delivery = fixture.only(webhook).await;
    for shortest in [1, 2, 4] {
        let wait = wait(&delivery, fixture);
        assert!((shortest..=shortest * 3 / 2).contains(&wait), "{wait}");
        assert_eq!((delivery.attempt_count, delivery.schedule_step), (0, 0));
        delivery = exhaustible.retry(webhook).await;
    }
    assert_eq!(fixture.health(webhook).await, EndpointHealth::default());
    let metrics = collect_metrics(&fixture.dispatcher);
    let counted = ["DeferredAttempts", "Attempts"].map(|name| metrics.get(name).copied());
    assert_eq!(counted, [Some(4.0), None]);

    exhaustible.is_exhausted.store(false, Ordering::Relaxed);
    delivery = exhaustible.retry(webhook).await;
    assert_eq!(delivery.state, DeliveryState::Delivered);
    assert_eq!((delivery.attempt_count, delivery.deferrals), (1, 0));
}

/// A manual retry of a settled delivery stays requested while the process cannot make it.
#[tokio::test]
async fn requested_retry_stays_requested() {
    let exhaustible = ExhaustibleFixture::new().await;
    let fixture = &exhaustible.fixture;
    let webhook = exhaustible.subscribe().await;
    exhaustible.is_exhausted.store(false, Ordering::Relaxed);
    fixture.end_jobs(1, 1).await;
    exhaustible.is_exhausted.store(true, Ordering::Relaxed);
    let deferred = exhaustible.retry_manually(webhook).await;
    assert!(deferred.is_manual_retry() && deferred.attempt_count == 1);
    exhaustible.is_exhausted.store(false, Ordering::Relaxed);
    let again = exhaustible.retry(webhook).await;
    assert_eq!(
        (again.state, again.attempt_count),
        (DeliveryState::Delivered, 2)
    );
}
