//! Due and failed deliveries of many accounts, and a dispatcher that reaches the tables through a
//! proxy.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    time::Duration,
};

use aws_sdk_dynamodb::types::{AttributeValue, PutRequest, WriteRequest};
use nano_webhooks::{
    clock::Deadline,
    dispatch::Dispatcher,
    random,
    store::{
        self, Item,
        replays::{CreateReplayOutcome, Replay, ReplayFilter, ReplayKey},
    },
};
use nano_webhooks_core::{replay::ReplayId, timestamp::Timestamp, webhook::WebhookId};

use crate::support::{
    accounts,
    metrics::collect_metrics,
    permissions::DISPATCH,
    proxy::Proxy,
    retry_fixture::RetryFixture,
    tables::{TestTables, patient_timeouts},
    webhooks::subscribe,
};

/// The most writes in one BatchWriteItem request.
const BATCH_SIZE: usize = 25;

pub struct SweepFixture {
    pub proxy: Proxy,
    pub dispatcher: Dispatcher,
    fixture: RetryFixture,
    /// A pending delivery as the service wrote it.
    sample: Item,
}

/// How deliveries are spread over the shards of the due index.
#[derive(Clone, Copy)]
pub enum Shards {
    All,
    First,
}

impl SweepFixture {
    pub async fn new() -> Self {
        let fixture = RetryFixture::new("2h").await;
        fixture.subscribe("/status/500").await;
        fixture.end_jobs(1, 1).await;
        let sample = take_sample(&fixture.tables).await;
        let proxy = Proxy::start(fixture.tables.endpoint.clone()).await;
        let client = nano_webhooks_cli::local_client(&proxy.url, patient_timeouts());
        let dispatcher = Dispatcher {
            store: fixture.tables.store_with_role(&client, DISPATCH),
            ..fixture.dispatcher.clone()
        };
        let fixture = Self {
            proxy,
            dispatcher,
            fixture,
            sample,
        };
        fixture.take_metrics();
        fixture
    }

    pub fn now(&self) -> Timestamp {
        self.dispatcher.clock.now()
    }

    pub const fn tables(&self) -> &TestTables {
        &self.fixture.tables
    }

    /// Writes due deliveries of webhook 1 of an account. The sweep should have looked at them
    /// `overdue` ago.
    pub async fn add_due(&self, account: &str, count: usize, shards: Shards, overdue: Duration) {
        let mut items = Vec::with_capacity(count);
        for number in 0..count {
            let shard = match shards {
                Shards::All => number % 16,
                Shards::First => 0,
            };
            items.push(self.due_delivery(account, number, shard, overdue));
        }
        self.write(items).await;
    }

    /// Writes one due delivery of webhook 1 of each account, spread over the shards.
    pub async fn add_due_to_each(&self, accounts: &[String], overdue: Duration) {
        let accounts = accounts.iter().enumerate();
        let items =
            accounts.map(|(number, account)| self.due_delivery(account, 0, number % 16, overdue));
        self.write(items.collect()).await;
    }

    fn due_delivery(&self, account: &str, number: usize, shard: usize, overdue: Duration) -> Item {
        let sweep_at = self.now().as_unix_millis() - i64::try_from(overdue.as_millis()).unwrap();
        let mut item = self.delivery(account, number, "pending");
        let mut set = |name: &str, value| item.insert(name.to_owned(), value);
        set("due_shard", AttributeValue::S(format!("{shard:02}")));
        set("sweep_at", AttributeValue::N(sweep_at.to_string()));
        set("next_attempt_at", AttributeValue::N(sweep_at.to_string()));
        item
    }

    /// Subscribes webhook 1 of an account and writes failed deliveries of it.
    pub async fn add_failed(&self, account: &str, count: usize) {
        subscribe(self.tables(), account, "https://example.com/", None).await;
        let mut items = Vec::with_capacity(count);
        for number in 0..count {
            items.push(self.idle_delivery(account, number, "failed"));
        }
        self.write(items).await;
    }

    /// Writes paused deliveries of webhook 1 of an account. Later numbers are newer.
    pub async fn add_paused(&self, account: &str, numbers: Range<usize>) {
        let items = numbers.map(|number| self.idle_delivery(account, number, "pending"));
        self.write(items.collect()).await;
    }

    /// Starts to resume the paused deliveries of webhook 1 of an account, which it subscribes.
    pub async fn start_resume(&self, account: &str) {
        subscribe(self.tables(), account, "https://example.com/", None).await;
        let webhook = WebhookId::new(1).unwrap();
        let account = accounts::account(account);
        let resumes = self.dispatcher.store.resumes();
        resumes.start(&account, webhook, self.now()).await.unwrap();
    }

    /// Moves the clock.
    pub fn pass(&self, time: Duration) {
        self.fixture.clock.advance(time);
    }

    /// A delivery that is not due.
    fn idle_delivery(&self, account: &str, number: usize, status: &str) -> Item {
        let mut item = self.delivery(account, number, status);
        for name in ["next_attempt_at", "sweep_at", "due_shard"] {
            item.remove(name);
        }
        item
    }

    /// A copy of the sample as a delivery of webhook 1 of an account.
    fn delivery(&self, account: &str, number: usize, status: &str) -> Item {
        let mut item = self.sample.clone();
        let mut set = |name: &str, value| item.insert(name.to_owned(), AttributeValue::S(value));
        set("PK", format!("{account}#1"));
        set("SK", format!("evt_01JFS8TX80{number:016}"));
        set("status", status.to_owned());
        set("state_key", format!("{account}#1#{status}"));
        item
    }

    async fn write(&self, items: Vec<Item>) {
        let mut writes = Vec::with_capacity(items.len());
        for item in items {
            let put = PutRequest::builder().set_item(Some(item)).build().unwrap();
            writes.push(WriteRequest::builder().put_request(put).build());
        }
        for batch in writes.chunks(BATCH_SIZE) {
            let request = self.tables().client.batch_write_item();
            request
                .request_items(&self.tables().names.deliveries, batch.to_vec())
                .send()
                .await
                .unwrap();
        }
    }

    /// Starts a replay of the failed deliveries of webhook 1 of an account.
    pub async fn start_replay(&self, account: &str) -> ReplayKey {
        let key = ReplayKey {
            account: accounts::account(account),
            webhook: WebhookId::new(1).unwrap(),
            id: ReplayId::from_random(random::bytes()),
        };
        let replay = Replay::new(Timestamp::from_millis(0), self.now(), ReplayFilter::Failed);
        let expires_at = self.now() + Duration::from_hours(24);
        let replays = self.tables().store.replays();
        let outcome = replays.create(&key, &replay, expires_at).await.unwrap();
        assert_eq!(outcome, CreateReplayOutcome::Created);
        key
    }

    pub async fn replay(&self, key: &ReplayKey) -> Replay {
        let replay = self.tables().store.replays().get(key).await;
        replay.unwrap().unwrap()
    }

    /// Advances resumes and replays once. Returns the number of deliveries that became due.
    pub async fn advance(&self) -> usize {
        let deadline = Deadline::from_now(Duration::from_mins(10));
        self.dispatcher.advance(deadline).await.unwrap()
    }

    pub async fn sweep(&self) -> store::Result<usize> {
        self.dispatcher
            .sweep(Deadline::from_now(Duration::from_mins(10)))
            .await
    }

    /// The metrics since the last call.
    pub fn take_metrics(&self) -> BTreeMap<String, f64> {
        collect_metrics(&self.dispatcher)
    }

    /// How many messages of each account the sweeps since the last call sent.
    pub fn take_messages(&self) -> HashMap<String, usize> {
        let mut messages = HashMap::new();
        for timer in self.tables().timers() {
            let account = timer.message.key.account.to_string();
            *messages.entry(account).or_default() += 1;
        }
        messages
    }

    /// How many deliveries of an account are pending.
    pub async fn pending(&self, account: &str) -> usize {
        self.pending_items(account).await.len()
    }

    /// The pending deliveries of an account.
    pub async fn pending_items(&self, account: &str) -> Vec<Item> {
        let mut items = self.tables().items(&self.tables().names.deliveries).await;
        let partition = AttributeValue::S(format!("{account}#1"));
        let pending = AttributeValue::S("pending".to_owned());
        items.retain(|item| item["PK"] == partition && item["status"] == pending);
        items
    }
}

/// Removes the only delivery from the table.
async fn take_sample(tables: &TestTables) -> Item {
    let sample = tables.items(&tables.names.deliveries).await.remove(0);
    let delete = tables.client.delete_item();
    delete
        .table_name(&tables.names.deliveries)
        .key("PK", sample["PK"].clone())
        .key("SK", sample["SK"].clone())
        .send()
        .await
        .unwrap();
    sample
}
