//! `keys`: API keys.

use std::io::Write;

use serde_json::json;

use super::{explain, open_store, parse_account};
use crate::args::{CliError, KeysCommand};
use nano_webhooks::clock::Clock;
use nano_webhooks::random;
use nano_webhooks_core::api_key::ApiKey;

/// Does a command on API keys.
pub(crate) async fn run(command: KeysCommand) -> Result<(), CliError> {
    let mut out = std::io::stdout();
    match command {
        KeysCommand::Create {
            account,
            json,
            tables,
        } => {
            let (account, key) = (
                parse_account(&account)?,
                ApiKey::from_random(&random::bytes()),
            );
            let added = open_store(&tables)
                .await?
                .api_keys()
                .insert(&account, &key, Clock::system().now())
                .await;
            added.map_err(|error| explain(&error, &tables))?;
            if json {
                writeln!(
                    out,
                    "{}",
                    json!({ "account": account.as_str(), "api_key": key.expose() })
                )?;
            } else {
                writeln!(out, "{}", key.expose())?;
                writeln!(
                    std::io::stderr(),
                    "Keep it: it is shown this once and stored as a hash alone."
                )?;
            }
        }
        KeysCommand::List {
            account,
            json,
            tables,
        } => {
            let listed = open_store(&tables)
                .await?
                .api_keys()
                .list(&parse_account(&account)?)
                .await;
            for key in listed.map_err(|error| explain(&error, &tables))? {
                let (created_at, last_used_on) = (key.created_at.to_rfc3339(), key.last_used_on);
                if json {
                    let key = json!({ "prefix": key.prefix, "created_at": created_at, "last_used_on": last_used_on });
                    writeln!(out, "{key}")?;
                } else {
                    let used = last_used_on
                        .map_or_else(|| "never used".to_owned(), |day| format!("last used {day}"));
                    writeln!(out, "{}…  created {created_at}  {used}", key.prefix)?;
                }
            }
        }
        KeysCommand::Revoke {
            account,
            key,
            tables,
        } => {
            let account = parse_account(&account)?;
            let given = ApiKey::parse(&key);
            let prefix = given
                .as_ref()
                .map_or_else(|_| key.trim_end_matches('…'), ApiKey::prefix);
            let revoked = open_store(&tables)
                .await?
                .api_keys()
                .revoke(&account, prefix)
                .await;
            if !revoked.map_err(|error| explain(&error, &tables))? {
                return Err(CliError(format!(
                    "account {account} has no key {prefix}…; `keys list` shows those it has"
                )));
            }
            writeln!(out, "Revoked {prefix}…")?;
        }
    }
    Ok(())
}
