//! `job`: finished jobs, written as a worker does.

use std::{collections::HashMap, io::Write};

use anyhow::{Context, ensure};
use aws_sdk_dynamodb::types::AttributeValue;
use nano_webhooks::{
    clock::Clock,
    config::{ConfigDefaults, env_var},
    random, store,
};
use nano_webhooks_core::event::JobOutcome;
use serde_json::value::RawValue;

use super::tables::dynamodb_client;
use crate::args::JobArgs;

/// Writes a finished job with one PutItem.
pub async fn put(args: JobArgs, outcome: JobOutcome) -> anyhow::Result<()> {
    let data = parse_data(&args.data).context("--data")?;
    let account = args.account;
    let table =
        env_var("JOBS_TABLE")?.unwrap_or_else(|| ConfigDefaults::LOCAL_JOBS_TABLE.to_owned());
    let task_id = match args.task_id {
        Some(task_id) => task_id,
        None => format!("task_{}", hex::encode(random::bytes::<8>())),
    };
    let updated_at = Clock::system().now().to_rfc3339();
    dynamodb_client(&args.tables)
        .await
        .put_item()
        .table_name(table)
        .item("task_id", AttributeValue::S(task_id.clone()))
        .item("account_id", AttributeValue::S(account.as_str().to_owned()))
        .item("task_type", AttributeValue::S(args.task_type))
        .item("status", AttributeValue::S(outcome.as_str().to_owned()))
        .item("updated_at", AttributeValue::S(updated_at))
        .item("data", data)
        .send()
        .await
        .map_err(store::Error::from)?;
    let status = outcome.as_str();
    writeln!(
        std::io::stdout(),
        "Wrote job {task_id} of account {account} with status {status}."
    )?;
    Ok(())
}

fn parse_data(text: &str) -> anyhow::Result<AttributeValue> {
    let json: Box<RawValue> = serde_json::from_str(text)?;
    let data = to_attribute_value(&json)?;
    ensure!(data.is_m(), "expected a JSON object");
    Ok(data)
}

/// Converts JSON to a DynamoDB value. Numbers keep their text, because it may have more digits than
/// a double.
fn to_attribute_value(json: &RawValue) -> serde_json::Result<AttributeValue> {
    let text = json.get();
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let members: HashMap<String, &RawValue> = serde_json::from_str(text)?;
            let mut map = HashMap::with_capacity(members.len());
            for (name, value) in members {
                map.insert(name, to_attribute_value(value)?);
            }
            AttributeValue::M(map)
        }
        Some(b'[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(text)?;
            let mut list = Vec::with_capacity(elements.len());
            for element in elements {
                list.push(to_attribute_value(element)?);
            }
            AttributeValue::L(list)
        }
        Some(b'"') => AttributeValue::S(serde_json::from_str(text)?),
        Some(b't' | b'f') => AttributeValue::Bool(serde_json::from_str(text)?),
        Some(b'n') => AttributeValue::Null(true),
        _ => AttributeValue::N(text.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        let json = r#"{"n":12345678901234567890.10,"l":[null,true,"x\n"],"m":{}}"#;
        let value = parse_data(json).unwrap();
        let map = value.as_m().unwrap();
        assert_eq!(
            map["n"],
            AttributeValue::N("12345678901234567890.10".into())
        );
        assert_eq!(
            map["l"],
            AttributeValue::L(vec![
                AttributeValue::Null(true),
                AttributeValue::Bool(true),
                AttributeValue::S("x\n".into())
            ])
        );
        assert_eq!(map["m"], AttributeValue::M(HashMap::new()));
    }

    #[test]
    fn data_must_be_object() {
        for text in ["", "[]", "1", "null", "{", r#"{"a":NaN}"#] {
            assert!(parse_data(text).is_err(), "{text}");
        }
    }
}
