//! Operational events: what the account's other webhooks and the operator receive about a webhook.

use std::time::Duration;

use nano_webhooks::{
    clock::Deadline,
    dispatch::{Dispatcher, InFlightLimiter},
    store::notifications::OperatorNotices,
};
use nano_webhooks_core::{
    delivery::{Delivery, DeliveryState, endpoint_health::EndpointHealth},
    webhook::WebhookId,
};
use serde_json::{Value, json};

use crate::support::{
    permissions,
    proxy::{Fault, PartitionFault, Proxy},
    retry_fixture::{RetryFixture, START},
    sns::Sns,
    stream::{completed_jobs, dispatch_batch},
    tables::patient_timeouts,
    webhooks::put_health,
};

const ALL: [&str; 4] = [
    "webhook.disabled",
    "webhook.failing",
    "webhook.recovered",
    "delivery.exhausted",
];
/// A fifth of the time after which a webhook is disabled.
const FIRST_THRESHOLD: Duration = Duration::from_hours(24);

/// A webhook, and another one of its account that subscribes to its events.
struct Account {
    fixture: RetryFixture,
    webhook: WebhookId,
    notified: WebhookId,
}

impl Account {
    async fn new(path: &str, notified_path: &str) -> Self {
        let fixture = RetryFixture::new("10s").await;
        let webhook = fixture.subscribe(path).await;
        let notified = fixture.subscribe_to(notified_path, &ALL).await;
        Self {
            fixture,
            webhook,
            notified,
        }
    }

    /// The payloads of what the other webhook receives, the oldest first.
    async fn payloads(&self) -> Vec<Value> {
        let mut deliveries = self.fixture.deliveries(self.notified).await;
        deliveries.reverse();
        deliveries
            .iter()
            .map(|delivery| serde_json::from_str(&delivery.payload).unwrap())
            .collect()
    }

    async fn notified_types(&self) -> Vec<String> {
        let payloads = self.payloads().await;
        payloads
            .iter()
            .map(|payload| payload["event"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Passes time and lets an attempt fail.
    async fn fail_at(&self, job: usize, since_start: Duration) {
        let elapsed = self.fixture.clock.now().saturating_duration_since(START);
        self.fixture
            .clock
            .advance(since_start.saturating_sub(elapsed));
        self.fixture.end_jobs(job, 1).await;
    }

    /// A process of the same deployment.
    fn other_process(&self) -> Dispatcher {
        Dispatcher {
            limiter: InFlightLimiter::default(),
            ..self.fixture.dispatcher.clone()
        }
    }

    /// A process that reaches the tables through a proxy.
    fn process_behind(&self, proxy: &Proxy) -> Dispatcher {
        let client = nano_webhooks_cli::local_client(&proxy.url, patient_timeouts());
        let role = permissions::DISPATCH;
        Dispatcher {
            store: self.fixture.tables.store_with_role(&client, role),
            ..self.other_process()
        }
    }

    /// Passes all messages, and those that follow from them, until none is due.
    async fn pass_messages(&self) {
        loop {
            let timers = self.fixture.tables.timers();
            if timers.is_empty() {
                return;
            }
            self.fixture.clock.advance(Duration::from_secs(15));
            for timer in timers {
                self.fixture.retry(&timer.message).await;
            }
        }
    }

    async fn failed(&self, webhook: WebhookId) -> Vec<Delivery> {
        let deliveries = self.fixture.deliveries(webhook).await;
        let failed = deliveries.into_iter();
        failed
            .filter(|delivery| delivery.state == DeliveryState::Failed)
            .collect()
    }
}

/// A webhook that fails is reported at 20, 50 and 90 % of the time after which it is disabled, once
/// each.
#[tokio::test]
async fn failing_webhook_is_reported_at_thresholds() {
    let account = Account::new("/status/500", "/ok").await;
    for (job, hours) in [
        (1, 0),
        (2, 23),
        (3, 24),
        (4, 25),
        (5, 60),
        (6, 61),
        (7, 108),
        (8, 119),
    ] {
        account.fail_at(job, Duration::from_hours(hours)).await;
    }
    let payloads = account.payloads().await;
    let percents: Vec<_> = payloads
        .iter()
        .map(|payload| payload["data"]["threshold_percent"].as_u64())
        .collect();
    assert_eq!(percents, [Some(20), Some(50), Some(90)]);
    assert_eq!(
        payloads[0],
        json!({
            "event": "webhook.failing",
            "data": {
                "disabled_at": (START + Duration::from_hours(120)).to_rfc3339(),
                "failing_since": START.to_rfc3339(),
                "last_failure": "status",
                "threshold_percent": 20,
                "url": account.fixture.receiver.url("/status/500"),
                "webhook_id": account.webhook.get(),
            },
            "timestamp": (START + FIRST_THRESHOLD).to_rfc3339(),
        })
    );
}

/// A success after that is reported once. One after a short failure is not.
#[tokio::test]
async fn recovery_follows_report() {
    let account = Account::new("/ok", "/ok").await;
    for (notified_percent, expected) in [(0, 0), (20, 1)] {
        let failing = EndpointHealth {
            failing_since: Some(START - FIRST_THRESHOLD),
            notified_percent,
            ..EndpointHealth::default()
        };
        put_health(&account.fixture.tables, account.webhook, &failing).await;
        account.fixture.end_jobs(1 + expected * 10, 3).await;
        assert_eq!(account.notified_types().await.len(), expected);
    }
    assert_eq!(account.notified_types().await, ["webhook.recovered"]);
    let health = account.fixture.health(account.webhook).await;
    assert_eq!(health.notified_percent, 0);
}

/// Processes that observe the same threshold at the same time report it once.
#[tokio::test]
async fn concurrent_processes_report_once() {
    let account = Account::new("/status/500", "/ok").await;
    account.fail_at(1, Duration::ZERO).await;
    account.fixture.clock.advance(FIRST_THRESHOLD);
    let (first, second) = (account.other_process(), account.other_process());
    let (jobs, other_jobs) = (completed_jobs(2, 1), completed_jobs(3, 1));
    tokio::join!(
        dispatch_batch(&first, &jobs),
        dispatch_batch(&second, &other_jobs)
    );
    account
        .fail_at(4, FIRST_THRESHOLD + Duration::from_secs(5))
        .await;
    assert_eq!(account.notified_types().await, ["webhook.failing"]);
}

/// A process that dies before, in or after the transaction of a report neither loses nor repeats
/// it.
#[tokio::test]
async fn crash_neither_loses_nor_repeats_report() {
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::ResponseLost] {
        let account = Account::new("/status/500", "/ok").await;
        account.fail_at(1, Duration::ZERO).await;
        account.fixture.clock.advance(FIRST_THRESHOLD);
        let proxy = Proxy::start(account.fixture.tables.endpoint.clone()).await;
        let process = account.process_behind(&proxy);
        proxy.arm_matching("TransactWriteItems", "webhook.failing", 0, fault);
        let jobs = completed_jobs(2, 1);
        let ended = proxy.until_crash(dispatch_batch(&process, &jobs)).await;
        assert_eq!(ended.is_none(), fault != Fault::ResponseLost, "{fault:?}");
        assert!(!proxy.disarm(), "{fault:?}");
        // The batch is read again, and another event follows.
        assert_eq!(dispatch_batch(&account.fixture.dispatcher, &jobs).await, []);
        account
            .fail_at(3, FIRST_THRESHOLD + Duration::from_mins(1))
            .await;
        assert_eq!(
            account.notified_types().await,
            ["webhook.failing"],
            "{fault:?}"
        );
    }
}

/// A delivery that used its whole schedule is reported, at most once an hour for each webhook.
#[tokio::test]
async fn exhausted_delivery_is_reported_once_an_hour() {
    let account = Account::new("/status/500", "/ok").await;
    account.fixture.end_jobs(1, 2).await;
    account.pass_messages().await;
    assert_eq!(account.failed(account.webhook).await.len(), 2);
    let payloads = account.payloads().await;
    assert_eq!(payloads.len(), 1, "{payloads:?}");
    let data = &payloads[0]["data"];
    assert_eq!(
        (
            &payloads[0]["event"],
            &data["event"],
            &data["attempt_count"]
        ),
        (
            &json!("delivery.exhausted"),
            &json!("job.completed"),
            &json!(2)
        )
    );
    assert_eq!(
        (&data["last_failure"], &data["webhook_id"]),
        (&json!("status"), &json!(account.webhook.get()))
    );
    let failed = account.failed(account.webhook).await;
    let reported = failed
        .iter()
        .any(|delivery| data["event_id"] == delivery.key.event.as_str());
    assert!(reported, "{data}");

    account.fixture.clock.advance(Duration::from_hours(1));
    account.fixture.end_jobs(10, 1).await;
    account.pass_messages().await;
    assert_eq!(account.notified_types().await, ["delivery.exhausted"; 2]);
}

/// A process that dies while it writes the last result neither loses nor repeats the report.
#[tokio::test]
async fn crash_neither_loses_nor_repeats_exhausted() {
    for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::ResponseLost] {
        let account = Account::new("/status/500", "/ok").await;
        account.fixture.end_jobs(1, 1).await;
        let message = account.fixture.timer().message;
        account.fixture.clock.advance(Duration::from_secs(15));
        let proxy = Proxy::start(account.fixture.tables.endpoint.clone()).await;
        let process = account.process_behind(&proxy);
        proxy.arm_matching("TransactWriteItems", "delivery.exhausted", 0, fault);
        let retry = permissions::run_as(permissions::RETRY, process.retry(&message));
        let ended = proxy.until_crash(retry).await;
        assert_eq!(ended.is_none(), fault != Fault::ResponseLost, "{fault:?}");
        // The lease ends, and the sweep finds what was not written.
        account.fixture.clock.advance(Duration::from_mins(1));
        account.fixture.sweep().await;
        account.pass_messages().await;
        assert_eq!(account.failed(account.webhook).await.len(), 1, "{fault:?}");
        let notified = account.notified_types().await;
        assert_eq!(notified, ["delivery.exhausted"], "{fault:?}");
    }
}

/// The result of a last attempt does not wait for the partition of a webhook that is notified.
#[tokio::test]
async fn exhausted_delivery_is_recorded_without_report() {
    let account = Account::new("/status/500", "/ok").await;
    account.fixture.end_jobs(1, 1).await;
    let message = account.fixture.timer().message;
    account.fixture.clock.advance(Duration::from_secs(15));
    let proxy = Proxy::start(account.fixture.tables.endpoint.clone()).await;
    proxy.set_partition_fault(&["acme#2"], PartitionFault::Throttled);
    let process = account.process_behind(&proxy);
    let retry = permissions::run_as(permissions::RETRY, process.retry(&message));
    retry.await.unwrap();
    assert_eq!(account.failed(account.webhook).await.len(), 1);
    assert!(account.notified_types().await.is_empty());
}

/// Two webhooks that fail and receive events about each other do not raise events without end.
#[tokio::test]
async fn failing_webhooks_do_not_loop() {
    let account = Account::new("/status/500", "/status/500").await;
    let tables = &account.fixture.tables;
    let url = account.fixture.receiver.url("/status/500");
    let other = crate::support::webhooks::subscribe_to(tables, "acme", &url, &ALL, None).await;
    account.fixture.end_jobs(1, 1).await;
    for _ in 0..10 {
        account.pass_messages().await;
        account.fixture.clock.advance(Duration::from_hours(2));
        account.fixture.sweep().await;
    }
    for webhook in [account.notified, other] {
        let deliveries = account.fixture.deliveries(webhook).await;
        assert_eq!(deliveries.len(), 1, "{deliveries:?}");
    }
}

/// The operator's topic receives each event, in order. What it rejects is published later.
#[tokio::test]
async fn events_are_published_to_topic() {
    let account = Account::new("/status/500", "/ok").await;
    let sns = Sns::start().await;
    let store = account.fixture.dispatcher.store.clone();
    let process = Dispatcher {
        store: store.with_operator_notices(OperatorNotices::Recorded),
        operator_topic: Some(sns.topic()),
        ..account.other_process()
    };
    assert_eq!(dispatch_batch(&process, &completed_jobs(1, 1)).await, []);
    account.fixture.clock.advance(FIRST_THRESHOLD);
    assert_eq!(dispatch_batch(&process, &completed_jobs(2, 1)).await, []);
    sns.set_rejects(true);
    let deadline = Deadline::from_now(Duration::from_mins(1));
    process.advance(deadline).await.unwrap();
    assert_eq!(account.fixture.tables.items_under("NOTICE#").await.len(), 1);
    sns.set_rejects(false);
    process.advance(deadline).await.unwrap();
    process.advance(deadline).await.unwrap();
    let messages = sns.messages();
    let [(event, message)] = &messages[..] else {
        panic!("{messages:?}");
    };
    let notified = &account.fixture.only(account.notified).await;
    assert_eq!(event, "webhook.failing");
    assert_eq!(
        (&message["id"], &message["account_id"]),
        (&json!(notified.key.event.as_str()), &json!("acme"))
    );
    let payload: Value = serde_json::from_str(&notified.payload).unwrap();
    assert_eq!(message["payload"], payload);
    assert_eq!(account.fixture.tables.items_under("NOTICE#").await.len(), 0);
}
