//! The surroundings of the service: tables in an engine of another process, webhooks and jobs.

use std::{collections::HashMap, future};

use aws_sdk_dynamodb::{
    Client,
    types::{AttributeValue, PutRequest, WriteRequest},
};
use futures_util::future::join_all;
use hyper::body::Bytes;
use nano_webhooks::{
    aws,
    clock::Clock,
    dispatch::stream_record::Record,
    store::{
        Store, TableNames,
        data_keys::{DataKeyCache, KeyProvider},
        tables,
        webhooks::{CreateOutcome, NewWebhook},
    },
};
use nano_webhooks_cli::{embedded_dynamodb::EmbeddedDynamoDb, local_client};
use nano_webhooks_core::{
    account_id::AccountId, endpoint_url::EndpointUrl, event_type::EventTypes, secret::Secret,
    static_headers::StaticHeaders,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    fake_dynamodb,
    process_stats::{self, Process},
};

type Item = HashMap<String, AttributeValue>;

/// The number of items in a batch write.
const ITEMS_PER_WRITE: usize = 25;
/// How many items [`Platform::fill_delivery_log`] writes at a time.
const ITEMS_AT_A_TIME: usize = 1_000;
/// How many webhooks an account has that [`Platform::fill_other_accounts`] stores.
const WEBHOOKS_PER_ACCOUNT: usize = 100;

/// An engine in another process, with the service's tables.
pub struct Platform {
    /// The engine.
    pub engine: Process,
    /// Its URL.
    pub endpoint: String,
    /// A client of the engine.
    pub client: Client,
    /// The tables' names.
    pub tables: TableNames,
    /// The service's store on these tables.
    pub store: Store,
}

/// The engine's process: prints its URL, and waits to be killed.
pub async fn run_engine() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("the listener is bound");
    let _engine = EmbeddedDynamoDb::start(listener, None).expect("the engine starts");
    println!("http://{address}");
    future::pending::<()>().await;
}

impl Platform {
    /// Starts an engine and creates the tables.
    pub async fn start() -> Self {
        let (engine, endpoint) = Process::spawn_role(&["engine"]);
        let client = local_client(&endpoint, aws::timeouts());
        let tables = TableNames {
            webhooks: "webhooks".to_owned(),
            deliveries: "deliveries".to_owned(),
        };
        tables::create_if_missing(&client, &tables, "jobs")
            .await
            .expect("the tables are created");
        let store = Store::new(
            client.clone(),
            tables.clone(),
            DataKeyCache::new(KeyProvider::None),
        );
        Self {
            engine,
            endpoint,
            client,
            tables,
            store,
        }
    }

    /// Replaces the deliveries table with a fake.
    pub fn fake_deliveries_table(&mut self) {
        self.endpoint = fake_dynamodb::start(&self.endpoint);
    }

    /// The environment of a function with these tables.
    pub fn environment(&self) -> Vec<(&str, &str)> {
        vec![
            ("AWS_ENDPOINT_URL_DYNAMODB", &self.endpoint),
            ("WEBHOOKS_TABLE", &self.tables.webhooks),
            ("DELIVERIES_TABLE", &self.tables.deliveries),
            ("RETRY_QUEUE_URL", "http://127.0.0.1:9/none"),
            ("TARGETS", "any"),
            ("RATE_LIMIT_PER_MINUTE", "100000000"),
            ("RATE_LIMIT_PER_DAY", "100000000"),
        ]
    }

    /// Registers a webhook with a secret.
    pub async fn subscribe(&self, account: &str, url: &str) {
        let new = NewWebhook {
            url: EndpointUrl::parse(url).expect("a URL"),
            events: EventTypes::parse(["job.completed"]).expect("known events"),
            secret: Some(Secret::parse("my-secret-key".to_owned()).expect("a secret")),
            headers: StaticHeaders::NONE,
            description: None,
            max_per_second: None,
        };
        let account = AccountId::parse(account).expect("a name");
        let created = self
            .store
            .webhooks()
            .create(&account, &new, 1_000, None, Clock::system().now())
            .await;
        assert!(
            matches!(created, Ok(CreateOutcome::Webhook(_))),
            "{created:?}"
        );
    }

    /// Stores webhooks of other accounts, 100 per account.
    pub async fn fill_other_accounts(&self, webhooks: usize) {
        let webhook = self.find_item(&self.tables.webhooks, "url").await;
        for first in (0..webhooks).step_by(ITEMS_PER_WRITE) {
            let copies = (first..first + ITEMS_PER_WRITE)
                .map(|number| copy_webhook(&webhook, number))
                .collect();
            self.write(&self.tables.webhooks, copies).await;
        }
    }

    /// Stores copies `from` to `to` of a delivery of the account `acme`, with older event ids.
    pub async fn fill_delivery_log(&self, from: usize, to: usize) {
        let delivery = self.find_item(&self.tables.deliveries, "attempts").await;
        for start in (from..to).step_by(ITEMS_AT_A_TIME) {
            let end = to.min(start + ITEMS_AT_A_TIME);
            let writes = (start..end)
                .step_by(ITEMS_PER_WRITE)
                .map(|first| self.write_delivery_copies(&delivery, first));
            join_all(writes).await;
        }
    }

    async fn write_delivery_copies(&self, delivery: &Item, first: usize) {
        let copies = (first..first + ITEMS_PER_WRITE)
            .map(|number| copy_delivery(delivery, number))
            .collect();
        self.write(&self.tables.deliveries, copies).await;
    }

    async fn write(&self, table: &str, items: Vec<Item>) {
        let writes = items.into_iter().map(put_request).collect();
        self.client
            .batch_write_item()
            .request_items(table, writes)
            .send()
            .await
            .expect("the engine accepts the items");
    }

    /// Finds an item that has an attribute.
    async fn find_item(&self, table: &str, attribute: &str) -> Item {
        let scan = self
            .client
            .scan()
            .table_name(table)
            .limit(1_000)
            .send()
            .await
            .expect("the engine responds");
        scan.items()
            .iter()
            .find(|item| item.contains_key(attribute))
            .expect("the table has such an item")
            .clone()
    }
}

fn copy_webhook(webhook: &Item, number: usize) -> Item {
    let account = number / WEBHOOKS_PER_ACCOUNT;
    let id = number % WEBHOOKS_PER_ACCOUNT + 1;
    let mut copy = webhook.clone();
    copy.insert(
        "PK".to_owned(),
        AttributeValue::S(format!("ACCOUNT#other-{account}")),
    );
    copy.insert(
        "SK".to_owned(),
        AttributeValue::S(format!("WEBHOOK#{id:010}")),
    );
    copy
}

fn copy_delivery(delivery: &Item, number: usize) -> Item {
    let mut copy = delivery.clone();
    copy.insert(
        "SK".to_owned(),
        AttributeValue::S(format!("evt_00000000000000000{number:09}")),
    );
    copy
}

fn put_request(item: Item) -> WriteRequest {
    let put = PutRequest::builder()
        .set_item(Some(item))
        .build()
        .expect("the request has an item");
    WriteRequest::builder().put_request(put).build()
}

/// The jobs of a run, as Lambda passes them to the dispatcher.
pub struct JobBatches<'a> {
    /// The accounts that own the jobs, in turn.
    pub accounts: &'a [&'a str],
    /// The number of records in a batch.
    pub records: usize,
    /// The bytes that are added to each payload.
    pub padding: usize,
}

impl JobBatches<'_> {
    /// Creates batches of jobs with numbers from `first_job` on.
    pub fn create(&self, first_job: usize, batches: usize) -> Vec<Bytes> {
        (0..batches)
            .map(|batch| self.create_one(first_job + batch * self.records))
            .collect()
    }

    fn create_one(&self, first_job: usize) -> Bytes {
        let records: Vec<_> = (0..self.records)
            .map(|index| {
                let account = self.accounts[(first_job + index) % self.accounts.len()];
                stream_record(first_job + index, account, self.padding)
            })
            .collect();
        Bytes::from(json!({ "Records": records }).to_string())
    }
}

/// The payload of a job's event. `padding` bytes make it longer.
pub fn payload(padding: usize) -> String {
    let record = Record::from_json(&stream_record(0, "acme", padding).to_string());
    record
        .event()
        .expect("a valid record")
        .expect("an event")
        .to_canonical_json()
}

/// The stream record of a finished job.
fn stream_record(number: usize, account: &str, padding: usize) -> Value {
    let seconds = process_stats::unix_millis() / 1000;
    let task_id = format!("task_{number}");
    json!({
        "eventID": format!("{number:032x}"),
        "eventName": "INSERT",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "eventSourceARN":
            "arn:aws:dynamodb:us-east-1:123456789012:table/jobs/stream/2024-12-23T00:00:00.000",
        "dynamodb": {
            "ApproximateCreationDateTime": seconds,
            "Keys": {"task_id": {"S": task_id}},
            "SequenceNumber": format!("{number:021}"),
            "SizeBytes": 300,
            "StreamViewType": "NEW_AND_OLD_IMAGES",
            "NewImage": job_image(&task_id, account, padding),
        },
    })
}

/// A finished job in DynamoDB's JSON.
pub fn job_image(task_id: &str, account: &str, padding: usize) -> Value {
    json!({
        "task_id": {"S": task_id},
        "account_id": {"S": account},
        "task_type": {"S": "image"},
        "status": {"S": "completed"},
        "updated_at": {"S": "2024-12-23T10:00:00Z"},
        "data": {"M": {
            "url": {"S": "https://cdn.example.com/outputs/2024/12/23/image-0123456789abcdef.png"},
            "credits_charged": {"N": "6"},
            "width": {"N": "1024"},
            "height": {"N": "1024"},
            "padding": {"S": "x".repeat(padding)},
        }},
    })
}
