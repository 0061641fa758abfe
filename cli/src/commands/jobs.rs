//! `job`: jobs that ended, written as a worker would.

use std::{collections::HashMap, io::Write};

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::value::RawValue;

use super::{dynamodb_client, explain, parse_account};
use crate::args::{CliError, JobArgs};
use nano_webhooks::{
    clock::Clock,
    config::{ConfigDefaults, env_var},
    random,
};
use nano_webhooks_core::event::JobOutcome;

/// Writes a job that ended, as a worker would: one PutItem, and nothing else.
pub(crate) async fn run(args: JobArgs, outcome: JobOutcome) -> Result<(), CliError> {
    let account = parse_account(&args.account)?;
    let data: Box<RawValue> =
        serde_json::from_str(&args.data).map_err(|error| CliError(format!("--data: {error}")))?;
    let data = attribute(&data).map_err(|error| CliError(format!("--data: {error}")))?;
    if !data.is_m() {
        return Err(CliError("--data: expected a JSON object".to_owned()));
    }
    let table =
        env_var("JOBS_TABLE")?.unwrap_or_else(|| ConfigDefaults::LOCAL_JOBS_TABLE.to_owned());
    let task_id = args
        .task_id
        .unwrap_or_else(|| format!("task_{}", hex::encode(random::bytes::<8>())));
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let written = dynamodb_client(&args.tables)
        .await
        .put_item()
        .table_name(&table)
        .item("task_id", text(&task_id))
        .item("account_id", text(account.as_str()))
        .item("task_type", text(&args.task_type))
        .item("status", text(outcome.as_str()))
        .item("updated_at", text(&Clock::system().now().to_rfc3339()))
        .item("data", data)
        .send()
        .await;
    written.map_err(|error| explain(&error.into(), &args.tables))?;
    Ok(writeln!(
        std::io::stdout(),
        "Job {task_id} of account {account} {}.",
        outcome.as_str()
    )?)
}

/// JSON as DynamoDB stores it. Numbers keep their text: it may have more digits than a double.
fn attribute(json: &RawValue) -> Result<AttributeValue, serde_json::Error> {
    let text = json.get();
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let entries: HashMap<String, &RawValue> = serde_json::from_str(text)?;
            let entries = entries
                .into_iter()
                .map(|(key, value)| Ok((key, attribute(value)?)));
            AttributeValue::M(entries.collect::<Result<_, serde_json::Error>>()?)
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text)?;
            AttributeValue::L(items.into_iter().map(attribute).collect::<Result<_, _>>()?)
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
    fn json_becomes_dynamodb_values_and_numbers_keep_their_digits() {
        let json = r#"{"n":12345678901234567890.10,"l":[null,true,"x\n"],"m":{}}"#;
        let value = attribute(&serde_json::from_str::<Box<RawValue>>(json).unwrap()).unwrap();
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
}
