//! The surroundings of the service: tables in an engine of another process, webhooks and jobs.

use std::{collections::HashMap, env};

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
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{
    fake_dynamodb,
    process_stats::{self, Process},
};

type Item = HashMap<String, AttributeValue>;

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

/// The engine's process.
pub async fn run(_: env::Args) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("the listener is bound");
    let _engine =
        EmbeddedDynamoDb::start(listener, None).unwrap_or_else(|failed| panic!("{failed:?}"));
    println!("http://{address}");
    std::future::pending::<()>().await;
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
            .expect("the tables are made");
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
            description: None,
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
        let model = self.find_item(&self.tables.webhooks, "url").await;
        for first in (0..webhooks).step_by(25) {
            let copy = |n: usize| {
                let mut item = model.clone();
                item.insert(
                    "PK".to_owned(),
                    AttributeValue::S(format!("ACCOUNT#crowd-{}", n / 100)),
                );
                item.insert(
                    "SK".to_owned(),
                    AttributeValue::S(format!("WEBHOOK#{:010}", n % 100 + 1)),
                );
                item
            };
            self.write(
                &self.tables.webhooks,
                (first..first + 25).map(copy).collect(),
            )
            .await;
        }
    }

    /// Stores copies `from` to `upto` of a delivery of the account `acme`, with older event ids.
    pub async fn fill_delivery_log(&self, from: usize, upto: usize) {
        let model = self.find_item(&self.tables.deliveries, "attempts").await;
        for first in (from..upto).step_by(1_000) {
            let batches = (first..upto.min(first + 1_000)).step_by(25).map(|first| {
                let copy = |n: usize| {
                    let mut item = model.clone();
                    item.insert(
                        "SK".to_owned(),
                        AttributeValue::S(format!("evt_00000000000000000{n:09}")),
                    );
                    item
                };
                self.write(
                    &self.tables.deliveries,
                    (first..first + 25).map(copy).collect(),
                )
            });
            join_all(batches).await;
        }
    }

    async fn write(&self, table: &str, items: Vec<Item>) {
        let put = |item| {
            PutRequest::builder()
                .set_item(Some(item))
                .build()
                .expect("every part is set")
        };
        let writes = items
            .into_iter()
            .map(|item| WriteRequest::builder().put_request(put(item)).build())
            .collect();
        self.client
            .batch_write_item()
            .request_items(table, writes)
            .send()
            .await
            .expect("the engine takes them");
    }

    /// An item that has an attribute.
    async fn find_item(&self, table: &str, attribute: &str) -> Item {
        let all = self
            .client
            .scan()
            .table_name(table)
            .limit(1_000)
            .send()
            .await
            .expect("the engine responds");
        all.items()
            .iter()
            .find(|item| item.contains_key(attribute))
            .expect("there is one to copy")
            .clone()
    }
}

/// The payload of a job's event.
pub fn body(padding: usize) -> String {
    let record = Record::from_json(&record(0, "acme", padding).to_string());
    record
        .event()
        .expect("it is a record")
        .expect("it is an event")
        .to_canonical_json()
}

/// A stream record of a finished job. `padding` bytes make its payload longer.
pub fn record(n: usize, account: &str, padding: usize) -> Value {
    let seconds = process_stats::unix_millis() / 1000;
    json!({
        "eventID": format!("{n:032x}"), "eventName": "INSERT", "eventVersion": "1.1", "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "eventSourceARN": "arn:aws:dynamodb:us-east-1:123456789012:table/jobs/stream/2024-12-23T00:00:00.000",
        "dynamodb": {
            "ApproximateCreationDateTime": seconds, "Keys": {"task_id": {"S": format!("task_{n}")}},
            "SequenceNumber": format!("{n:021}"), "SizeBytes": 300, "StreamViewType": "NEW_AND_OLD_IMAGES",
            "NewImage": job(&format!("task_{n}"), account, padding),
        },
    })
}

/// A finished job in DynamoDB's JSON.
pub fn job(task: &str, account: &str, padding: usize) -> Value {
    json!({
        "task_id": {"S": task}, "account_id": {"S": account}, "task_type": {"S": "image"},
        "status": {"S": "completed"}, "updated_at": {"S": "2024-12-23T10:00:00Z"},
        "data": {"M": {
            "url": {"S": "https://cdn.example.com/outputs/2024/12/23/image-0123456789abcdef.png"},
            "credits_charged": {"N": "6"}, "width": {"N": "1024"}, "height": {"N": "1024"},
            "padding": {"S": "x".repeat(padding)},
        }},
    })
}

/// Batches of records with numbers from `first` on. The accounts take turns.
pub fn batches(
    first: usize,
    batches: usize,
    records: usize,
    accounts: &[&str],
    padding: usize,
) -> Vec<Bytes> {
    let batch = |n: usize| {
        let numbers = (n * records..(n + 1) * records).map(|m| first + m);
        let records: Vec<_> = numbers
            .map(|m| record(m, accounts[m % accounts.len()], padding))
            .collect();
        Bytes::from(json!({ "Records": records }).to_string())
    };
    (0..batches).map(batch).collect()
}
