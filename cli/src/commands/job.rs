//! `job`: finished jobs, written as a worker does.

use std::io::Write;

use aws_sdk_dynamodb::types::AttributeValue;
use nano_webhooks::{clock::Clock, random, store};
use nano_webhooks_core::event::JobOutcome;
use serde_json::json;

use super::tables::{dynamodb_client, load_jobs_table};
use crate::{args::JobArgs, json_line::print_json};

/// Writes a finished job with one PutItem.
pub async fn put(args: JobArgs, outcome: JobOutcome) -> anyhow::Result<()> {
    let account = args.account;
    let table = load_jobs_table(&args.tables)?;
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
        .item("data", args.data.0)
        .send()
        .await
        .map_err(store::Error::from)?;
    let status = outcome.as_str();
    if args.json {
        let written = json!({
            "task_id": task_id,
            "account": account.as_str(),
            "status": status,
        });
        print_json(&written)?;
    } else {
        writeln!(
            std::io::stdout(),
            "Wrote job {task_id} of account {account} with status {status}."
        )?;
    }
    Ok(())
}
