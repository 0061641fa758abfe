//! Poison records, and their redrive.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::types::AttributeValue;
use nano_webhooks::{
    clock::{Clock, Deadline},
    dispatch::{
        Dispatcher,
        redrive::{RedriveOutcome, redrive},
    },
    store::{
        Item,
        delivery_log::{DeliveryFilter, DeliverySummary},
        poison::PoisonRecord,
    },
};
use nano_webhooks_core::{
    delivery::scheduled_retry::ScheduledRetry, event::JobEvent, timestamp::Timestamp,
    webhook::WebhookId,
};
use serde_json::{Value, json};

use crate::support::{
    accounts::account,
    permissions::{RETRY, run_as},
    receiver::Receiver,
    stream::{dispatch_batch, insert_record},
    tables::TestTables,
    webhooks::subscribe,
};

pub const START: Timestamp = Timestamp::from_millis(1_734_948_001_500);

pub const DAY: &str = "2024-12-23";

pub const RETENTION: Duration = Duration::from_hours(24);

/// Tables, an endpoint, and a dispatcher whose clock the test moves.
pub struct PoisonFixture {
    pub tables: TestTables,
    pub receiver: Receiver,
    pub dispatcher: Dispatcher,
    pub clock: Clock,
}

impl PoisonFixture {
    pub async fn new() -> Self {
        let tables = TestTables::new().await;
        let receiver = Receiver::start().await;
        let clock = Clock::manual(START);
        let dispatcher = Dispatcher {
            clock: clock.clone(),
            ..tables.dispatcher()
        };
        Self {
            tables,
            receiver,
            dispatcher,
            clock,
        }
    }

    pub async fn subscribe(&self, path: &str) -> WebhookId {
        subscribe(
            &self.tables,
            "acme",
            &self.receiver.url(path),
            Some("my-secret-key"),
        )
        .await
    }

    /// Writes a job, as a worker or an operator would.
    pub async fn put(&self, job: &Value) {
        let item: serde_dynamo::Item = serde_json::from_value(job.clone()).unwrap();
        let put = self.tables.client.put_item().table_name(&self.tables.jobs);
        put.set_item(Some(item.into())).send().await.unwrap();
    }

    /// Writes an item of the webhooks table.
    pub async fn put_item(&self, item: Item) {
        self.tables.put_webhooks_item(item).await;
    }

    /// The stored item of a webhook.
    pub async fn webhook_item(&self, webhook: WebhookId) -> Item {
        self.tables.webhook_item("acme", webhook).await
    }

    /// Makes a webhook's item invalid. Returns the valid one.
    pub async fn break_webhook(&self, webhook: WebhookId) -> Item {
        self.tables.break_webhook("acme", webhook).await
    }

    /// Stores a record as version 0.2.0 did: all records of a day are in one partition.
    pub async fn put_unsharded(&self, number: &str, image: Option<String>) {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let mut item = HashMap::from([
            ("PK".to_owned(), text(&format!("POISON#{DAY}"))),
            ("SK".to_owned(), text(&format!("{number}#arn"))),
            ("reason".to_owned(), text("large")),
            ("stream".to_owned(), text("arn")),
            ("sequence_number".to_owned(), text(number)),
            ("keys".to_owned(), text("{}")),
            ("created_at".to_owned(), AttributeValue::N("0".to_owned())),
        ]);
        if let Some(image) = image {
            item.insert("image".to_owned(), AttributeValue::S(image));
        }
        self.put_item(item).await;
    }

    /// Dispatches the record of a job, which must become poison.
    pub async fn poison(&self, sequence: usize, job: &Value) -> PoisonRecord {
        let before = self.stored().await.len();
        assert_eq!(
            dispatch_batch(&self.dispatcher, &[inserted(sequence, job)]).await,
            []
        );
        let records = self.stored().await;
        assert_eq!(records.len(), before + 1);
        let number = format!("{sequence:021}");
        records
            .into_iter()
            .find(|record| record.poison.sequence_number == number)
            .unwrap()
    }

    pub async fn stored(&self) -> Vec<PoisonRecord> {
        let page = self
            .tables
            .store
            .poison()
            .list_page(DAY, None, 100)
            .await
            .unwrap();
        assert!(page.next.is_none());
        page.records
    }

    pub async fn redrive(&self, record: &PoisonRecord) -> RedriveOutcome {
        let Self { tables, clock, .. } = self;
        redrive(
            &tables.store,
            Some(&tables.jobs),
            record,
            clock.now(),
            clock.now(),
            RETENTION,
        )
        .await
        .unwrap()
    }

    /// The event of a redriven record, the number of new deliveries, and the number of existing
    /// ones.
    pub async fn event(&self, record: &PoisonRecord) -> (Box<JobEvent>, usize, usize) {
        match self.redrive(record).await {
            RedriveOutcome::Redriven {
                event,
                recorded,
                already_recorded,
            } => (event, recorded, already_recorded),
            other => panic!("{other:?}"),
        }
    }

    /// The reason why a record is still poison, which is also stored in its item.
    pub async fn stays(&self, record: &PoisonRecord) -> String {
        let RedriveOutcome::StillPoison { reason, .. } = self.redrive(record).await else {
            panic!("{:?} is not poison any more", record.id());
        };
        let text = reason.to_string();
        let records = self.stored().await;
        let stored = records.iter().find(|stored| stored.id() == record.id());
        let poison = &stored.unwrap().poison;
        assert_eq!(poison.reason, text);
        assert_eq!(poison.reason_code.as_deref(), Some(reason.code()));
        text
    }

    pub async fn deliveries(&self, webhook: WebhookId) -> Vec<DeliverySummary> {
        let filter = DeliveryFilter {
            status: None,
            event: None,
            after: None,
            limit: 100,
        };
        self.tables
            .store
            .delivery_log()
            .list(&account("acme"), webhook, &filter)
            .await
            .unwrap()
            .deliveries
    }

    /// Sweeps, and makes the attempts that the sweep enqueued.
    pub async fn sweep(&self) -> usize {
        let swept = self
            .dispatcher
            .sweep(Deadline::from_now(Duration::from_secs(20)))
            .await
            .unwrap();
        self.retry_all().await;
        swept
    }

    /// Advances resumes, and makes the attempts that became due.
    pub async fn resume(&self) {
        let deadline = Deadline::from_now(Duration::from_secs(20));
        self.dispatcher.advance(deadline).await.unwrap();
        self.clock.advance(Duration::from_mins(1));
        self.retry_all().await;
    }

    async fn retry_all(&self) {
        for timer in self.tables.timers() {
            self.retry(&timer).await;
        }
    }

    pub async fn retry(&self, retry: &ScheduledRetry) {
        run_as(RETRY, self.dispatcher.retry(&retry.message))
            .await
            .unwrap();
    }
}

/// The stream record of a write to the jobs table.
pub fn inserted(sequence: usize, job: &Value) -> Value {
    let mut record = insert_record(sequence, job.clone());
    record["dynamodb"]["Keys"] = json!({ "task_id": job["task_id"] });
    record
}
