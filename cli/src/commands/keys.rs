//! `keys`: API keys.

use std::{cmp::Reverse, io::Write};

use anyhow::bail;
use nano_webhooks::{clock::Clock, random, store::api_keys::ApiKeySummary};
use nano_webhooks_core::api_key::ApiKey;
use serde_json::json;

use super::tables::open_store;
use crate::{
    args::{CreateKeyArgs, ListKeysArgs, RevokeKeyArgs},
    json_line::print_json,
    table::Table,
    terminal::{format_relative, print_remark},
};

pub async fn create(args: CreateKeyArgs) -> anyhow::Result<()> {
    let account = args.account;
    let key = ApiKey::from_random(&random::bytes());
    let store = open_store(&args.tables).await?;
    store
        .api_keys()
        .insert(&account, &key, Clock::system().now())
        .await?;
    if args.json {
        let created = json!({ "account": account.as_str(), "api_key": key.expose() });
        print_json(&created)?;
    } else {
        writeln!(std::io::stdout(), "{}", key.expose())?;
        print_remark("Save this key. Only its hash is stored, so it cannot be shown again.");
    }
    Ok(())
}

pub async fn list(args: ListKeysArgs) -> anyhow::Result<()> {
    let store = open_store(&args.tables).await?;
    let mut keys = store.api_keys().list(&args.account).await?;
    // The store sorts by prefix, and a stable sort keeps that order for equal times.
    keys.sort_by_key(|key| Reverse(key.created_at));
    if args.json {
        return print_lines(keys);
    }
    if keys.is_empty() {
        print_remark(format_args!("Account {} has no API keys.", args.account));
    }
    let now = Clock::system().now();
    let mut table = Table::new(["KEY", "CREATED", "LAST USED"]);
    for key in keys {
        table.add_row([
            format!("{}…", key.prefix),
            format_relative(key.created_at, now),
            key.last_used_on.unwrap_or_else(|| "never".to_owned()),
        ]);
    }
    Ok(table.print()?)
}

fn print_lines(keys: Vec<ApiKeySummary>) -> anyhow::Result<()> {
    for key in keys {
        let row = json!({
            "prefix": key.prefix,
            "created_at": key.created_at.to_rfc3339(),
            "last_used_on": key.last_used_on,
        });
        print_json(&row)?;
    }
    Ok(())
}

pub async fn revoke(args: RevokeKeyArgs) -> anyhow::Result<()> {
    let account = args.account;
    let key = ApiKey::parse(&args.key);
    let prefix = match &key {
        Ok(key) => key.display_prefix(),
        Err(_) => args.key.trim_end_matches('…'),
    };
    let store = open_store(&args.tables).await?;
    let outcome = store.api_keys().revoke(&account, prefix).await?;
    if !outcome.is_applied() {
        bail!("account {account} has no key {prefix}…; list its keys with `keys list`");
    }
    if args.json {
        let revoked = json!({ "account": account.as_str(), "prefix": prefix });
        print_json(&revoked)?;
    } else {
        writeln!(std::io::stdout(), "Revoked {prefix}…")?;
    }
    Ok(())
}
