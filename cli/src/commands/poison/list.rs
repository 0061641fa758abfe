//! `poison list`: prints poison records.

use nano_webhooks::{clock::Clock, store::poison::PoisonRecord};
use nano_webhooks_core::timestamp::Timestamp;
use serde_json::{Map, Value, json};

use super::paging::{PAGE_SIZE, days_to_list};
use crate::{
    args::ListPoisonArgs,
    commands::tables::{load_config, open_store},
    json_line::print_json,
    table::Table,
    terminal::{format_relative, print_remark},
};

pub async fn list(args: ListPoisonArgs) -> anyhow::Result<()> {
    let store = open_store(&args.tables).await?;
    let retention = load_config(&args.tables)?.retention;
    let now = Clock::system().now();
    let mut table = Table::new(["ID", "STORED", "SUBJECT", "REASON"]);
    let mut is_empty = true;
    for day in days_to_list(args.day, now, retention) {
        let mut cursor = None;
        loop {
            let page = store.poison().list_page(&day, cursor, PAGE_SIZE).await?;
            for record in &page.records {
                is_empty = false;
                if args.json {
                    print_json(&to_json(record))?;
                } else {
                    table.add_row(format_row(record, now));
                }
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
    }
    table.print()?;
    if is_empty {
        print_remark("No poison records.");
    }
    Ok(())
}

fn to_json(record: &PoisonRecord) -> Value {
    let poison = &record.poison;
    let keys = if poison.keys.is_empty() {
        Value::Null
    } else {
        parse_or_quote(&poison.keys)
    };
    json!({
        "id": record.id().to_string(),
        "stored_at": record.stored_at.to_rfc3339(),
        "created_at": poison.created_at.map(Timestamp::to_rfc3339),
        "reason": poison.reason,
        "reason_code": poison.reason_code,
        "keys": keys,
        "account": poison.webhook.as_ref().map(|webhook| webhook.account.as_str()),
        "webhook_id": poison.webhook.as_ref().map(|webhook| webhook.id.get()),
        "stream": poison.stream,
        "sequence_number": poison.sequence_number,
        "image": poison.image.as_deref().map(parse_or_quote),
    })
}

/// Parses JSON. Other text becomes a JSON string.
fn parse_or_quote(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}

fn format_row(record: &PoisonRecord, now: Timestamp) -> [String; 4] {
    let poison = &record.poison;
    let job = format_job_key(&poison.keys);
    let subject = match &poison.webhook {
        Some(webhook) => format!("webhook {} of account {}", webhook.id, webhook.account),
        None if job.is_empty() => "(unknown)".to_owned(),
        None => job,
    };
    let mut reason = poison.reason.clone();
    if poison.webhook.is_none() && poison.image.is_none() {
        reason += " (image not stored, too large; `redrive` reads the current job)";
    }
    [
        record.id().to_string(),
        format_relative(record.stored_at, now),
        subject,
        reason,
    ]
}

/// Formats the key of a job without types, such as `task_id=t1`.
fn format_job_key(keys: &str) -> String {
    let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
    let parts: Vec<_> = keys
        .iter()
        .map(|(name, typed_value)| format!("{name}={}", format_key_value(typed_value)))
        .collect();
    parts.join(", ")
}

/// Formats a DynamoDB value such as `{"S":"t1"}` without its type.
fn format_key_value(typed_value: &Value) -> String {
    let value = typed_value
        .as_object()
        .and_then(|object| object.values().next());
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => typed_value.to_string(),
    }
}
