//! Webhooks whose deliveries are spaced in time (`max_per_second`).

use std::time::Duration;

use nano_webhooks::{
    dispatch::{Dispatcher, InFlightLimiter},
    store::update::WebhookUpdate,
};
use nano_webhooks_core::{
    delivery::{Delivery, DeliveryState, pace::MaxPerSecond, wait_reason::WaitReason},
    timestamp::Timestamp,
    webhook::{WebhookId, WebhookStatus},
};

use crate::support::{
    accounts::account,
    proxy::{PartitionFault, Proxy},
    retry_fixture::{RetryFixture, START},
    stream::{completed_jobs, dispatch_batch},
    tables::patient_timeouts,
};

/// A webhook with a limit, and the messages of its deliveries.
struct PacedWebhook {
    fixture: RetryFixture,
    webhook: WebhookId,
}

impl PacedWebhook {
    async fn new(path: &str, max_per_second: u64) -> Self {
        let fixture = RetryFixture::new("10s,20s").await;
        let webhook = fixture.subscribe(path).await;
        let paced = Self { fixture, webhook };
        paced.limit(max_per_second).await;
        paced
    }

    async fn limit(&self, max_per_second: u64) {
        let update = WebhookUpdate {
            max_per_second: Some(MaxPerSecond::new(max_per_second)),
            ..WebhookUpdate::default()
        };
        let webhooks = self.fixture.tables.store.webhooks();
        let now = self.fixture.clock.now();
        let updated = webhooks
            .update(&account("acme"), self.webhook, &update, now)
            .await;
        assert!(updated.unwrap().is_applied());
    }

    /// Passes every message that is due, and returns the number of requests that followed.
    async fn receive_due(&self) -> usize {
        self.receive_late(Duration::ZERO).await
    }

    /// Passes every message that was due so long ago.
    async fn receive_late(&self, late: Duration) -> usize {
        let before = self.fixture.requests();
        for delivery in self.fixture.deliveries(self.webhook).await {
            if let DeliveryState::Pending(due) = delivery.state
                && due + late <= self.fixture.clock.now()
            {
                let message = nano_webhooks_core::delivery::scheduled_retry::RetryMessage {
                    key: delivery.key.clone(),
                    attempt_count: delivery.attempt_count,
                };
                self.fixture.retry(&message).await;
            }
        }
        self.fixture.requests() - before
    }

    /// When deliveries are due, in milliseconds from the start on, sorted. They wait for their
    /// turn.
    async fn waits(&self) -> Vec<u64> {
        let mut waits = Vec::new();
        for delivery in self.fixture.deliveries(self.webhook).await {
            if let Some(due) = wait_for_turn(&delivery) {
                let wait = due.saturating_duration_since(START);
                waits.push(u64::try_from(wait.as_millis()).unwrap());
            }
        }
        waits.sort_unstable();
        waits
    }
}

fn wait_for_turn(delivery: &Delivery) -> Option<Timestamp> {
    match (delivery.state, delivery.waiting_for) {
        (DeliveryState::Pending(due), Some(WaitReason::Rate)) => Some(due),
        _ => None,
    }
}

/// A burst is spaced in time: each delivery is attempted once, when it is its turn.
#[tokio::test]
async fn burst_is_spaced() {
    let paced = PacedWebhook::new("/ok", 2).await;
    paced.fixture.end_jobs(1, 6).await;
    assert_eq!(paced.fixture.requests(), 1);
    assert_eq!(paced.waits().await, [500, 1000, 1500, 2000, 2500]);
    for _ in 0..5 {
        paced.fixture.clock.advance(Duration::from_millis(499));
        assert_eq!(paced.receive_due().await, 0);
        paced.fixture.clock.advance(Duration::from_millis(1));
        assert_eq!(paced.receive_due().await, 1);
    }
    for delivery in paced.fixture.deliveries(paced.webhook).await {
        assert_eq!(
            (delivery.state, delivery.attempt_count, delivery.waiting_for),
            (DeliveryState::Delivered, 1, None)
        );
    }
}

/// The messages of deliveries that wait for their turn name the time, so no sweep is needed.
#[tokio::test]
async fn turn_has_message() {
    let paced = PacedWebhook::new("/ok", 1).await;
    paced.fixture.end_jobs(1, 3).await;
    let mut timers = paced.fixture.tables.timers();
    timers.sort_by_key(|timer| timer.due);
    let waits: Vec<_> = timers
        .iter()
        .map(|timer| timer.due.saturating_duration_since(START).as_secs())
        .collect();
    assert_eq!(waits, [1, 2]);
}

/// Processes share the slots of a webhook, and an idle time is not made up for.
#[tokio::test]
async fn processes_share_slots() {
    let paced = PacedWebhook::new("/ok", 4).await;
    let other = Dispatcher {
        limiter: InFlightLimiter::default(),
        ..paced.fixture.dispatcher.clone()
    };
    paced.fixture.end_jobs(1, 2).await;
    assert_eq!(dispatch_batch(&other, &completed_jobs(3, 2)).await, []);
    assert_eq!(paced.waits().await, [250, 500, 750]);
    paced.fixture.clock.advance(Duration::from_secs(1));
    assert_eq!(paced.receive_due().await, 3);
    paced.fixture.clock.advance(Duration::from_secs(59));
    paced.fixture.end_jobs(5, 3).await;
    assert_eq!(paced.waits().await, [60_250, 60_500]);
}

/// Attempts of a high limit that follow each other within a tenth of a second are made directly.
#[tokio::test]
async fn high_limit_sends_burst_directly() {
    let paced = PacedWebhook::new("/ok", 1_000).await;
    paced.fixture.end_jobs(1, 1).await;
    paced.fixture.clock.advance(Duration::from_secs(1));
    paced.fixture.end_jobs(2, 100).await;
    assert_eq!(paced.fixture.requests(), 101);
}

/// Retries that are due together take turns, without using attempts.
#[tokio::test]
async fn retries_take_turns() {
    let paced = PacedWebhook::new("/status/500", 1_000).await;
    paced.fixture.end_jobs(1, 4).await;
    paced.fixture.clock.advance(Duration::from_secs(30));
    assert_eq!(paced.receive_due().await, 4);
    paced.limit(1).await;
    paced.fixture.clock.advance(Duration::from_secs(30));
    assert_eq!(paced.receive_due().await, 1);
    assert_eq!(paced.waits().await, [61_000, 62_000, 63_000]);
    paced.fixture.clock.advance(Duration::from_secs(3));
    assert_eq!(paced.receive_due().await, 3);
    let deliveries = paced.fixture.deliveries(paced.webhook).await;
    let attempts: u32 = deliveries
        .iter()
        .map(|delivery| delivery.attempt_count)
        .sum();
    assert_eq!(usize::try_from(attempts).unwrap(), paced.fixture.requests());
}

/// A manual retry does not wait for its turn.
#[tokio::test]
async fn manual_retry_takes_no_slot() {
    let paced = PacedWebhook::new("/ok", 1).await;
    paced.fixture.end_jobs(1, 3).await;
    let deliveries = paced.fixture.deliveries(paced.webhook).await;
    let last = deliveries
        .iter()
        .max_by_key(|delivery| wait_for_turn(delivery))
        .unwrap();
    let leases = paced.fixture.tables.store.leases();
    let retention = Duration::from_hours(1);
    let retried = leases.schedule_retry(last, START, retention).await;
    assert!(retried.unwrap().is_some());
    assert_eq!(paced.receive_due().await, 1);
    assert_eq!(paced.waits().await, [1000]);
}

/// A resume keeps a limit that is lower than its own pace.
#[tokio::test]
async fn resume_keeps_limit() {
    let paced = PacedWebhook::new("/ok", 2).await;
    let fixture = &paced.fixture;
    fixture.end_jobs(1, 4).await;
    let disabled = WebhookStatus::Disabled;
    fixture.set_status(paced.webhook, disabled).await;
    fixture.clock.advance(Duration::from_secs(2));
    assert_eq!(paced.receive_due().await, 0);
    let active = WebhookStatus::Active;
    fixture.set_status(paced.webhook, active).await;
    assert_eq!(fixture.advance().await, 3);
    let mut due: Vec<_> = fixture.tables.timers();
    due.sort_by_key(|timer| timer.due);
    let due: Vec<_> = due.into_iter().rev().take(3).rev().collect();
    for pair in due.windows(2) {
        let apart = pair[1].due.saturating_duration_since(pair[0].due);
        assert_eq!(apart, Duration::from_millis(500));
    }
}

/// If slots cannot be reserved, the events are queued, and their attempts are made in time.
#[tokio::test]
async fn unavailable_slots_lose_nothing() {
    let paced = PacedWebhook::new("/ok", 2).await;
    let fixture = &paced.fixture;
    let proxy = Proxy::start(fixture.tables.endpoint.clone()).await;
    proxy.set_partition_fault(&["ACCOUNT#acme"], PartitionFault::Throttled);
    let client = nano_webhooks_cli::local_client(&proxy.url, patient_timeouts());
    let dispatcher = Dispatcher {
        store: fixture.tables.store_through(client),
        ..fixture.dispatcher.clone()
    };
    assert_eq!(dispatch_batch(&dispatcher, &completed_jobs(1, 2)).await, []);
    assert_eq!(fixture.requests(), 0);
    assert_eq!(paced.receive_due().await, 1);
    assert_eq!(paced.waits().await, [500]);
}

/// A limit that is raised applies to new events at once, although others wait behind the old one.
#[tokio::test]
async fn raised_limit_applies_at_once() {
    let paced = PacedWebhook::new("/ok", 1).await;
    paced.fixture.end_jobs(1, 20).await;
    assert_eq!(paced.waits().await.last(), Some(&19_000));
    paced.fixture.clock.advance(Duration::from_millis(1));
    paced.limit(10).await;
    let before = paced.fixture.requests();
    paced.fixture.end_jobs(100, 3).await;
    // The second slot opens 100 ms before its time.
    assert_eq!(paced.fixture.requests(), before + 2);
    assert_eq!(paced.waits().await[0], 201);
}

/// Slots of an earlier limit are not used, so that two limits do not add up.
#[tokio::test]
async fn changed_limit_does_not_add_up() {
    let paced = PacedWebhook::new("/ok", 5).await;
    paced.fixture.end_jobs(1, 11).await;
    for (limit, first) in [(6, 100), (5, 200)] {
        paced.fixture.clock.advance(Duration::from_millis(1));
        paced.limit(limit).await;
        paced.fixture.end_jobs(first, 10).await;
    }
    let mut arrivals = Vec::new();
    for _ in 0..100 {
        paced.fixture.clock.advance(Duration::from_millis(100));
        arrivals.push(paced.receive_due().await);
    }
    assert_eq!(arrivals.iter().sum::<usize>() + 3, 31, "three were direct");
    for second in arrivals.windows(10) {
        assert!(second.iter().sum::<usize>() <= 6, "{arrivals:?}");
    }
}

/// Slots that are missed while no worker runs are reserved again, so the limit holds afterwards.
#[tokio::test]
async fn missed_slots_are_reserved_again() {
    let paced = PacedWebhook::new("/ok", 1).await;
    paced.fixture.end_jobs(1, 6).await;
    paced.fixture.clock.advance(Duration::from_hours(1));
    assert_eq!(paced.receive_due().await, 1);
    assert_eq!(paced.waits().await.len(), 4);
    for _ in 0..4 {
        paced.fixture.clock.advance(Duration::from_secs(1));
        assert_eq!(paced.receive_due().await, 1);
    }
}

/// Messages that are always late do not miss every slot: a delivery that missed one has more time
/// for the next.
#[tokio::test]
async fn late_messages_are_sent() {
    let paced = PacedWebhook::new("/ok", 1).await;
    paced.fixture.end_jobs(1, 8).await;
    assert_eq!(paced.fixture.requests(), 1);
    for _ in 0..24 {
        paced.fixture.clock.advance(Duration::from_secs(1));
        paced.receive_late(Duration::from_secs(4)).await;
    }
    assert_eq!((paced.fixture.requests(), paced.waits().await), (8, vec![]));
}

/// A delivery whose endpoint has no free place for an attempt keeps its slot.
#[tokio::test]
async fn deferral_keeps_slot() {
    let paced = PacedWebhook::new("/ok", 1).await;
    paced.fixture.end_jobs(1, 2).await;
    let leases = paced.fixture.tables.store.leases();
    let waiting = paced.fixture.deliveries(paced.webhook).await;
    let waiting = waiting
        .iter()
        .find(|delivery| wait_for_turn(delivery).is_some());
    let key = &waiting.unwrap().key;
    paced.fixture.clock.advance(Duration::from_secs(1));
    let now = paced.fixture.clock.now();
    let due = now + Duration::from_secs(5);
    assert!(leases.defer(key, 0, due, now).await.unwrap().is_applied());
    assert_eq!(paced.waits().await, [6000]);
}
