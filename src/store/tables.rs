//! The tables and their indexes. The template creates them in a deployment; this module creates
//! them in local mode and tests.

use aws_sdk_dynamodb::{
    Client,
    operation::create_table::builders::CreateTableFluentBuilder,
    types::{
        AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType,
        Projection, ProjectionType, ScalarAttributeType, StreamSpecification, StreamViewType,
        TimeToLiveSpecification,
    },
};

use super::{error::Result, key_schema};

/// The index of pending deliveries by shard and `sweep_at`.
pub const DUE_INDEX: &str = "due";
/// The index of pending and failed deliveries by webhook and state.
pub const STATE_INDEX: &str = "by_state";
/// The partition key of [`DUE_INDEX`].
pub const DUE_SHARD: &str = "due_shard";
/// The sort key of [`DUE_INDEX`].
pub const SWEEP_AT: &str = "sweep_at";
/// The partition key of [`STATE_INDEX`].
pub const STATE_KEY: &str = "state_key";
/// The attribute of DynamoDB's TTL in both tables, in seconds since the epoch.
pub const EXPIRES_AT: &str = "expires_at";
/// The attribute that counts the writes of a health item.
pub(super) const REVISION: &str = "revision";
/// The attributes of a delivery that a list shows, except its keys. The payload is not among them.
pub const SUMMARY_ATTRIBUTES: [&str; 7] = [
    "event",
    "task_id",
    "status",
    "attempt_count",
    "created_at",
    "next_attempt_at",
    "last_failure",
];

/// The names of the tables.
#[derive(Clone, Debug)]
pub struct TableNames {
    /// Accounts, API keys, webhooks, counters and poison records.
    pub webhooks: String,
    /// The deliveries.
    pub deliveries: String,
}

/// Whether a table existed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableOutcome {
    /// It was created.
    Created,
    /// It existed.
    Existed,
}

/// Creates the tables that do not exist, among them the platform's table `jobs` with its stream.
/// Returns whether the Webhooks table is new.
pub async fn create_if_missing(
    client: &Client,
    tables: &TableNames,
    jobs: &str,
) -> Result<TableOutcome> {
    create(configure_jobs(client.create_table().table_name(jobs))).await?;
    let webhooks = client.create_table().table_name(&tables.webhooks);
    let webhooks_outcome = create(with_primary_key(webhooks)).await?;
    if webhooks_outcome == TableOutcome::Created {
        enable_ttl(client, &tables.webhooks).await?;
    }
    let deliveries = client.create_table().table_name(&tables.deliveries);
    if create(configure_deliveries(deliveries)).await? == TableOutcome::Created {
        enable_ttl(client, &tables.deliveries).await?;
    }
    Ok(webhooks_outcome)
}

async fn create(table: CreateTableFluentBuilder) -> Result<TableOutcome> {
    let response = table.billing_mode(BillingMode::PayPerRequest).send().await;
    let Err(error) = response else {
        return Ok(TableOutcome::Created);
    };
    match error.as_service_error() {
        Some(service) if service.is_resource_in_use_exception() => Ok(TableOutcome::Existed),
        _ => Err(error.into()),
    }
}

fn configure_jobs(table: CreateTableFluentBuilder) -> CreateTableFluentBuilder {
    let stream = StreamSpecification::builder()
        .stream_enabled(true)
        .stream_view_type(StreamViewType::NewAndOldImages)
        .build()
        .expect("every required part is set");
    table
        .attribute_definitions(text("task_id"))
        .key_schema(hash_key("task_id"))
        .stream_specification(stream)
}

fn configure_deliveries(table: CreateTableFluentBuilder) -> CreateTableFluentBuilder {
    let due = GlobalSecondaryIndex::builder()
        .index_name(DUE_INDEX)
        .key_schema(hash_key(DUE_SHARD))
        .key_schema(range_key(SWEEP_AT))
        .projection(projection(&["attempt_count", "next_attempt_at"]))
        .build()
        .expect("every required part is set");
    let by_state = GlobalSecondaryIndex::builder()
        .index_name(STATE_INDEX)
        .key_schema(hash_key(STATE_KEY))
        .key_schema(range_key(key_schema::SK))
        .projection(projection(&SUMMARY_ATTRIBUTES))
        .build()
        .expect("every required part is set");
    with_primary_key(table)
        .attribute_definitions(text(DUE_SHARD))
        .attribute_definitions(attribute(SWEEP_AT, ScalarAttributeType::N))
        .attribute_definitions(text(STATE_KEY))
        .global_secondary_indexes(due)
        .global_secondary_indexes(by_state)
}

async fn enable_ttl(client: &Client, table: &str) -> Result<()> {
    let ttl = TimeToLiveSpecification::builder()
        .enabled(true)
        .attribute_name(EXPIRES_AT)
        .build()
        .expect("every required part is set");
    client
        .update_time_to_live()
        .table_name(table)
        .time_to_live_specification(ttl)
        .send()
        .await?;
    Ok(())
}

fn with_primary_key(table: CreateTableFluentBuilder) -> CreateTableFluentBuilder {
    table
        .attribute_definitions(text(key_schema::PK))
        .attribute_definitions(text(key_schema::SK))
        .key_schema(hash_key(key_schema::PK))
        .key_schema(range_key(key_schema::SK))
}

fn text(name: &str) -> AttributeDefinition {
    attribute(name, ScalarAttributeType::S)
}

fn attribute(name: &str, kind: ScalarAttributeType) -> AttributeDefinition {
    AttributeDefinition::builder()
        .attribute_name(name)
        .attribute_type(kind)
        .build()
        .expect("every required part is set")
}

fn hash_key(name: &str) -> KeySchemaElement {
    key_element(name, KeyType::Hash)
}

fn range_key(name: &str) -> KeySchemaElement {
    key_element(name, KeyType::Range)
}

fn key_element(name: &str, kind: KeyType) -> KeySchemaElement {
    KeySchemaElement::builder()
        .attribute_name(name)
        .key_type(kind)
        .build()
        .expect("every required part is set")
}

fn projection(attributes: &[&str]) -> Projection {
    let names = attributes.iter().map(|name| (*name).to_owned()).collect();
    Projection::builder()
        .projection_type(ProjectionType::Include)
        .set_non_key_attributes(Some(names))
        .build()
}
