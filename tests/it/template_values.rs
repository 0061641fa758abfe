//! Writes and verifies `ci/template-values.json`: the values of the code that `template.yaml` must
//! agree with. `ci/template_test.py` compares the template with this file.

use std::{cell::RefCell, collections::BTreeSet, fs, path::Path, time::Duration};

use aws_sdk_dynamodb::types::{KeySchemaElement, StreamViewType, TableDescription};
use nano_webhooks::{
    config::{
        Config, ConfigDefaults, ConfigError, late_attempts_enabled, retry_queue_url, stack_name,
    },
    dispatch::{CONCURRENT_MESSAGES, RECORDING_RESERVE},
    metrics::{Counter, Histogram, Metrics, SweepStats},
    store::{data_keys, key_schema, tables},
};
use nano_webhooks_cli::{BATCH_SIZE, BATCH_TIMEOUT, SCHEDULE_INTERVAL};
use nano_webhooks_core::{
    delivery::{failure::FailureKind, lease},
    event::JobOutcome,
    timestamp::Timestamp,
};
use serde_json::{Map, Value, json};

use crate::support::{accounts::account, tables::TestTables};

/// The required settings, without which the functions would stop before they read the others.
const REQUIRED: [&str; 3] = ["WEBHOOKS_TABLE", "DELIVERIES_TABLE", "RETRY_QUEUE_URL"];

/// The file in the repository has the values of the code.
#[tokio::test]
async fn template_values_are_current() {
    let values = json!({
        "environment": environment(),
        "failures": FailureKind::ALL.map(FailureKind::as_str),
        "job_statuses": [JobOutcome::Completed.as_str(), JobOutcome::Failed.as_str()],
        "kms_encryption_context": data_keys::ENCRYPTION_CONTEXT_KEY,
        "metrics": metrics(),
        "numbers": numbers(),
        "partitions": partitions(),
        "tables": tables().await,
    });
    let text = format!("{values:#}\n");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("ci/template-values.json");
    #[expect(
        clippy::disallowed_methods,
        reason = "the variable asks for an update of the file"
    )]
    if std::env::var("UPDATE_TEMPLATE_VALUES").is_ok() {
        fs::write(&file, &text).unwrap();
    }
    assert!(
        fs::read_to_string(file).is_ok_and(|stored| stored == text),
        "ci/template-values.json is outdated: \
         run UPDATE_TEMPLATE_VALUES=1 cargo test --test it template_values"
    );
}

/// The names of the environment variables that were read.
#[derive(Default)]
struct VariableNames(RefCell<BTreeSet<String>>);

impl VariableNames {
    #[expect(
        clippy::unnecessary_wraps,
        reason = "the configuration expects a result"
    )]
    fn read(&self, name: &str) -> Result<Option<String>, ConfigError> {
        self.0.borrow_mut().insert(name.to_owned());
        Ok(REQUIRED.contains(&name).then(|| "value".to_owned()))
    }
}

/// The environment variables that each function reads.
fn environment() -> Value {
    let names = VariableNames::default();
    let read = |name: &str| names.read(name);
    Config::from_env(read, ConfigDefaults::DEPLOYED).unwrap();
    retry_queue_url(read).unwrap();
    stack_name(read).unwrap();
    late_attempts_enabled(read).unwrap();
    json!(names.0.into_inner())
}

/// The sets of dimensions of each metric.
fn metrics() -> Value {
    let metrics = Metrics::embedded();
    let counts = [
        Counter::Events,
        Counter::Attempts,
        Counter::FailedAttempts(FailureKind::Dns),
        Counter::DeferredAttempts,
        Counter::Delivered,
        Counter::Failed,
        Counter::Poison,
        Counter::BreakersOpened,
        Counter::BreakersClosed,
        Counter::Probes,
        Counter::WebhooksDisabled,
    ];
    for count in counts {
        metrics.increment(count);
    }
    for measure in [Histogram::AttemptDuration, Histogram::DeliveryLatency] {
        metrics.record(measure, Duration::from_secs(1));
    }
    metrics.record_sweep(SweepStats {
        due: 1,
        lag: Duration::from_secs(1),
        refused: 1,
    });
    let mut dimensions = Map::new();
    for line in metrics.drain_emf("stack", Timestamp::from_millis(0)) {
        let line: Value = serde_json::from_str(&line).unwrap();
        let directive = &line["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(directive["Namespace"], "NanoWebhooks");
        for metric in directive["Metrics"].as_array().unwrap() {
            dimensions.insert(
                metric["Name"].as_str().unwrap().to_owned(),
                directive["Dimensions"].clone(),
            );
        }
    }
    dimensions.sort_keys();
    Value::Object(dimensions)
}

/// Times in seconds, and counts.
fn numbers() -> Value {
    json!({
        "concurrent_messages": CONCURRENT_MESSAGES,
        "lease_seconds": lease::LEASE_DURATION.as_secs(),
        "local_batch_seconds": BATCH_TIMEOUT.as_secs(),
        "local_batch_size": BATCH_SIZE,
        "local_schedule_interval_seconds": SCHEDULE_INTERVAL.as_secs(),
        "max_queue_delay_seconds": lease::MAX_QUEUE_DELAY.as_secs(),
        "recording_reserve_seconds": RECORDING_RESERVE.as_secs(),
        "sweep_lookahead_seconds": lease::SWEEP_LOOKAHEAD.as_secs(),
    })
}

/// The patterns of the partition keys in the Webhooks table that policies name.
fn partitions() -> Value {
    json!({
        "account": key_schema::account_partition(&account("*")),
        "data_keys": key_schema::DATA_KEYS,
        "holds": format!("{}*", key_schema::HOLDS),
        "notices": format!("{}*", key_schema::NOTICES),
        "open_breakers": key_schema::OPEN_BREAKERS,
        "poison": format!("{}*", key_schema::POISON),
        "replays": key_schema::ACTIVE_REPLAYS,
        "resumes": key_schema::PENDING_RESUMES,
    })
}

/// The tables that local mode creates.
async fn tables() -> Value {
    let test_tables = TestTables::new().await;
    let mut all = Map::new();
    let names = [
        ("Deliveries", &test_tables.names.deliveries),
        ("Jobs", &test_tables.jobs),
        ("Webhooks", &test_tables.names.webhooks),
    ];
    for (logical_id, name) in names {
        let table = test_tables
            .client
            .describe_table()
            .table_name(name)
            .send()
            .await
            .unwrap()
            .table
            .unwrap();
        let mut description = describe(&table);
        if logical_id != "Jobs" {
            description["ttl"] = json!(tables::EXPIRES_AT);
        }
        all.insert(logical_id.to_owned(), description);
    }
    Value::Object(all)
}

fn describe(table: &TableDescription) -> Value {
    let mut attributes = Map::new();
    for definition in table.attribute_definitions() {
        attributes.insert(
            definition.attribute_name().to_owned(),
            json!(definition.attribute_type().as_str()),
        );
    }
    attributes.sort_keys();
    let mut indexes = Map::new();
    for index in table.global_secondary_indexes() {
        let projection = index.projection().unwrap();
        let projected: BTreeSet<_> = projection.non_key_attributes().iter().collect();
        let description = json!({
            "keys": keys(index.key_schema()),
            "projection": projection.projection_type().unwrap().as_str(),
            "projected": projected,
        });
        indexes.insert(index.index_name().unwrap().to_owned(), description);
    }
    indexes.sort_keys();
    let stream = table
        .stream_specification()
        .and_then(|stream| stream.stream_view_type());
    json!({
        "attributes": attributes,
        "indexes": indexes,
        "keys": keys(table.key_schema()),
        "stream": stream.map(StreamViewType::as_str),
    })
}

fn keys(schema: &[KeySchemaElement]) -> Value {
    schema
        .iter()
        .map(|key| json!([key.attribute_name(), key.key_type().as_str()]))
        .collect()
}
