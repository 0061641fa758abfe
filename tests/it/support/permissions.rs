//! Enforces the DynamoDB permissions in `ci/permissions.json` in the test process.
//! `ci/template_test.py` checks that the template's roles grant the same permissions.

use std::{collections::HashMap, future::Future, sync::LazyLock};

use aws_sdk_dynamodb::{
    config::{
        ConfigBag, Intercept, RuntimeComponents,
        interceptors::BeforeSerializationInterceptorContextRef,
    },
    error::BoxError,
    operation::{
        batch_get_item::BatchGetItemInput, batch_write_item::BatchWriteItemInput,
        delete_item::DeleteItemInput, get_item::GetItemInput, put_item::PutItemInput,
        query::QueryInput, transact_write_items::TransactWriteItemsInput,
        update_item::UpdateItemInput,
    },
    types::{AttributeValue, TransactWriteItem},
};
use nano_webhooks::store::{TableNames, key_schema::PK};

/// The role of the API function.
pub const API: &str = "ApiRole";
/// The role of the function that reads the jobs stream and sweeps.
pub const DISPATCH: &str = "DispatchRole";
/// The role of the function that reads the retry queue.
pub const RETRY: &str = "RetryRole";

/// Partition patterns by resource and action.
type Permissions = HashMap<String, HashMap<String, Vec<String>>>;
type Item = HashMap<String, AttributeValue>;

static ROLES: LazyLock<HashMap<String, Permissions>> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../ci/permissions.json")).unwrap());

tokio::task_local! {
    static CURRENT_ROLE: &'static str;
}

/// Runs a future with the permissions of `role` instead of the store's role.
pub async fn run_as<F: Future>(role: &'static str, future: F) -> F::Output {
    CURRENT_ROLE.scope(role, future).await
}

/// Rejects requests that the role does not permit, as IAM does.
#[derive(Debug)]
pub struct Enforce {
    role: &'static str,
    tables: TableNames,
}

impl Enforce {
    pub fn new(role: &'static str, tables: TableNames) -> Self {
        Self { role, tables }
    }

    fn check(&self, access: &Access<'_>) -> Result<(), BoxError> {
        let role = CURRENT_ROLE.try_with(|role| *role).unwrap_or(self.role);
        let mut resource = self.logical_id(access.table).to_owned();
        if let Some(index) = access.index {
            resource = format!("{resource}/index/{index}");
        }
        let action = format!("dynamodb:{}", access.action);
        let patterns = ROLES[role]
            .get(&resource)
            .and_then(|actions| actions.get(&action));
        let Some(patterns) = patterns else {
            return Err(format!("{role} does not permit {action} on {resource}").into());
        };
        if patterns
            .iter()
            .any(|pattern| matches(pattern, access.partition))
        {
            return Ok(());
        }
        let partition = access.partition;
        Err(format!("{role} does not permit {action} on {resource} in {partition:?}").into())
    }

    fn logical_id<'a>(&self, table: &'a str) -> &'a str {
        if table == self.tables.webhooks {
            "Webhooks"
        } else if table == self.tables.deliveries {
            "Deliveries"
        } else {
            table
        }
    }
}

impl Intercept for Enforce {
    fn name(&self) -> &'static str {
        "EnforcePermissions"
    }

    fn read_before_serialization(
        &self,
        context: &BeforeSerializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let input = context.input();
        let accesses = if let Some(input) = input.downcast_ref::<GetItemInput>() {
            vec![Access::to_item("GetItem", input.table_name(), input.key())]
        } else if let Some(input) = input.downcast_ref::<PutItemInput>() {
            vec![Access::to_item("PutItem", input.table_name(), input.item())]
        } else if let Some(input) = input.downcast_ref::<UpdateItemInput>() {
            vec![Access::to_item(
                "UpdateItem",
                input.table_name(),
                input.key(),
            )]
        } else if let Some(input) = input.downcast_ref::<DeleteItemInput>() {
            vec![Access::to_item(
                "DeleteItem",
                input.table_name(),
                input.key(),
            )]
        } else if let Some(input) = input.downcast_ref::<QueryInput>() {
            query(input)
        } else if let Some(input) = input.downcast_ref::<BatchGetItemInput>() {
            batch("BatchGetItem", input.request_items().unwrap().keys())
        } else if let Some(input) = input.downcast_ref::<BatchWriteItemInput>() {
            batch("BatchWriteItem", input.request_items().unwrap().keys())
        } else if let Some(input) = input.downcast_ref::<TransactWriteItemsInput>() {
            input
                .transact_items()
                .iter()
                .flat_map(transact_write)
                .collect()
        } else {
            return Err(format!("{} does not permit {input:?}", self.role).into());
        };
        accesses.iter().try_for_each(|access| self.check(access))
    }
}

/// One access of a request to a table or an index.
struct Access<'a> {
    action: &'static str,
    table: &'a str,
    index: Option<&'a str>,
    /// `None` if a request can access several partitions.
    partition: Option<&'a str>,
}

impl<'a> Access<'a> {
    fn to_item(action: &'static str, table: Option<&'a str>, item: Option<&'a Item>) -> Self {
        let partition = item
            .and_then(|item| item.get(PK))
            .map(|key| key.as_s().unwrap().as_str());
        Self {
            action,
            table: table.unwrap(),
            index: None,
            partition,
        }
    }
}

fn query(input: &QueryInput) -> Vec<Access<'_>> {
    let condition = input.key_condition_expression().unwrap();
    let placeholder = condition.split_whitespace().nth(2).unwrap();
    let values = input.expression_attribute_values().unwrap();
    vec![Access {
        action: "Query",
        table: input.table_name().unwrap(),
        index: input.index_name(),
        partition: Some(values[placeholder].as_s().unwrap()),
    }]
}

fn batch<'a>(action: &'static str, tables: impl Iterator<Item = &'a String>) -> Vec<Access<'a>> {
    tables
        .map(|table| Access {
            action,
            table,
            index: None,
            partition: None,
        })
        .collect()
}

fn transact_write(item: &TransactWriteItem) -> Vec<Access<'_>> {
    let mut accesses = Vec::new();
    if let Some(put) = item.put() {
        accesses.push(Access::to_item(
            "PutItem",
            Some(put.table_name()),
            Some(put.item()),
        ));
    }
    if let Some(update) = item.update() {
        accesses.push(Access::to_item(
            "UpdateItem",
            Some(update.table_name()),
            Some(update.key()),
        ));
    }
    if let Some(delete) = item.delete() {
        accesses.push(Access::to_item(
            "DeleteItem",
            Some(delete.table_name()),
            Some(delete.key()),
        ));
    }
    if let Some(check) = item.condition_check() {
        let action = "ConditionCheckItem";
        accesses.push(Access::to_item(
            action,
            Some(check.table_name()),
            Some(check.key()),
        ));
    }
    accesses
}

/// Compares a partition with a pattern that can end with `*`.
fn matches(pattern: &str, partition: Option<&str>) -> bool {
    match (pattern.strip_suffix('*'), partition) {
        (Some(""), _) => true,
        (Some(prefix), Some(partition)) => partition.starts_with(prefix),
        (None, Some(partition)) => partition == pattern,
        (_, None) => false,
    }
}
