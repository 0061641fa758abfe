//! The shape of the tables, as the template creates them when deployed and this module creates them elsewhere.

use aws_sdk_dynamodb::{
    Client,
    operation::create_table::builders::CreateTableFluentBuilder,
    types::{
        AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType,
        Projection, ProjectionType, ScalarAttributeType, StreamSpecification, StreamViewType,
        TimeToLiveSpecification,
    },
};

use super::{Result, TableNames, key_schema};

/// The index of deliveries that are due: by shard and `sweep_at`.
pub const DUE_INDEX: &str = "due";
/// The index of deliveries by webhook and state, for those that are pending or failed.
pub const STATE_INDEX: &str = "by_state";
/// The attributes of the indexes' keys.
pub const DUE_SHARD: &str = "due_shard";
/// See [`DUE_INDEX`].
pub const SWEEP_AT: &str = "sweep_at";
/// See [`STATE_INDEX`].
pub const STATE_KEY: &str = "state_key";
/// The attribute that DynamoDB's TTL looks at, in both tables: seconds since the epoch.
pub const EXPIRES_AT: &str = "expires_at";
/// What a row of the delivery list needs beside the keys; the payload is left out.
pub const SUMMARY_ATTRIBUTES: [&str; 7] = [
    "event",
    "task_id",
    "status",
    "attempt_count",
    "created_at",
    "next_attempt_at",
    "last_failure",
];

/// Creates the tables that do not exist yet; `jobs` is the platform's, with its stream.
///
/// Says whether ours are new.
///
/// # Errors
/// If the engine refuses.
pub async fn create_if_missing(client: &Client, tables: &TableNames, jobs: &str) -> Result<bool> {
    create(client, jobs, |table| {
        let stream = StreamSpecification::builder()
            .stream_enabled(true)
            .stream_view_type(StreamViewType::NewAndOldImages)
            .build()
            .expect("every required part is set");
        table
            .attribute_definitions(text("task_id"))
            .key_schema(hash_key("task_id"))
            .stream_specification(stream)
    })
    .await?;
    let new = create(client, &tables.webhooks, with_primary_key).await?;
    if new {
        enable_ttl(client, &tables.webhooks).await?;
    }
    let deliveries = |table| {
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
    };
    if create(client, &tables.deliveries, deliveries).await? {
        enable_ttl(client, &tables.deliveries).await?;
    }
    Ok(new)
}

/// Creates one table; `false` if it was there.
async fn create(
    client: &Client,
    name: &str,
    shape: impl FnOnce(CreateTableFluentBuilder) -> CreateTableFluentBuilder,
) -> Result<bool> {
    let table = client
        .create_table()
        .table_name(name)
        .billing_mode(BillingMode::PayPerRequest);
    match shape(table).send().await {
        Ok(_) => Ok(true),
        Err(error)
            if error.as_service_error().is_some_and(
                aws_sdk_dynamodb::operation::create_table::CreateTableError::is_resource_in_use_exception,
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
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
