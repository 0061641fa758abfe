//! `keys` and `job`: what operators and workers do, against local or real tables.

use std::{collections::HashMap, io::Write, path::Path};

use aws_sdk_dynamodb::{Client, types::AttributeValue};
use serde_json::{json, value::RawValue};

use super::{
    cli::{Failed, JobArgs, KeysCommand, TablesArgs},
    dynamodb,
    serve::{kept_secrets_key, out_of_reach},
};
use crate::{
    api_key::ApiKey,
    aws,
    clock::Clock,
    config::{Config, ConfigError, Defaults, variable},
    event::Outcome,
    random,
    store::{
        self, Store,
        vault::{Resealed, Vault, Wrapping},
    },
    webhook::Account,
};

/// Does a command on API keys.
pub(super) async fn keys(command: KeysCommand) -> Result<(), Failed> {
    let mut out = std::io::stdout();
    match command {
        KeysCommand::Create { account, json, tables } => {
            let (account, key) = (parse_account(&account)?, ApiKey::generate());
            let added = open(&tables).await?.add_key(&account, &key, Clock::system().now()).await;
            added.map_err(|error| explain(&error, &tables))?;
            if json {
                writeln!(out, "{}", json!({ "account": account.as_str(), "api_key": key.expose() }))?;
            } else {
                writeln!(out, "{}", key.expose())?;
                writeln!(std::io::stderr(), "Keep it: it is shown this once and stored as a hash alone.")?;
            }
        }
        KeysCommand::List { account, json, tables } => {
            let listed = open(&tables).await?.keys_of(&parse_account(&account)?).await;
            for key in listed.map_err(|error| explain(&error, &tables))? {
                let (created_at, last_used_on) = (key.created_at.rfc3339(), key.last_used_on);
                if json {
                    let key = json!({ "prefix": key.prefix, "created_at": created_at, "last_used_on": last_used_on });
                    writeln!(out, "{key}")?;
                } else {
                    let used = last_used_on.map_or_else(|| "never used".to_owned(), |day| format!("last used {day}"));
                    writeln!(out, "{}…  created {created_at}  {used}", key.prefix)?;
                }
            }
        }
        KeysCommand::Revoke { account, key, tables } => {
            let account = parse_account(&account)?;
            let given = ApiKey::parse(&key);
            let prefix = given.as_ref().map_or_else(|_| key.trim_end_matches('…'), ApiKey::prefix);
            let revoked = open(&tables).await?.revoke_key(&account, prefix).await;
            if !revoked.map_err(|error| explain(&error, &tables))? {
                return Err(Failed(format!("account {account} has no key {prefix}…; `keys list` shows those it has")));
            }
            writeln!(out, "Revoked {prefix}…")?;
        }
    }
    Ok(())
}

/// Seals every stored secret under the newest data key, or under a new one.
pub(super) async fn reseal(new_key: bool, data_dir: &Path, tables: &TablesArgs) -> Result<(), Failed> {
    let config = Config::read(variable, Defaults::LOCAL)?;
    let vault = if tables.aws {
        let missing =
            || ConfigError::new("SECRETS_KMS_KEY_ID", "missing, expected the KMS key that the functions have");
        aws::vault(&aws::config().await, Some(config.secrets_kms_key_id.ok_or_else(missing)?))
    } else {
        Vault::new(Wrapping::Local(kept_secrets_key(data_dir)?))
    };
    let store = Store::new(client(tables).await, config.tables, vault);
    let clock = Clock::system();
    let explain = |error: store::Error| explain(&error, tables);
    if new_key {
        let version = store.start_data_key(clock.now()).await.map_err(explain)?;
        writeln!(std::io::stderr(), "Started data key {version}.")?;
    }
    let (mut all, mut from) = (Resealed::default(), None);
    loop {
        let (part, next) = store.reseal(from, clock.now()).await.map_err(explain)?;
        all.sealed += part.sealed;
        all.kept += part.kept;
        all.changed += part.changed;
        from = next;
        if from.is_none() {
            break;
        }
    }
    if all.changed > 0 {
        return Err(Failed(format!(
            "{} webhooks were changed by others at the same time ({} sealed anew): run it again",
            all.changed, all.sealed
        )));
    }
    Ok(writeln!(std::io::stdout(), "Secrets of {} webhooks sealed anew, {} were so already.", all.sealed, all.kept)?)
}

/// Writes a job that ended, as a worker would: one PutItem, and nothing else.
pub(super) async fn job(args: JobArgs, outcome: Outcome) -> Result<(), Failed> {
    let account = parse_account(&args.account)?;
    let data: Box<RawValue> = serde_json::from_str(&args.data).map_err(|error| Failed(format!("--data: {error}")))?;
    let data = attribute(&data).map_err(|error| Failed(format!("--data: {error}")))?;
    if !data.is_m() {
        return Err(Failed("--data: expected a JSON object".to_owned()));
    }
    let table = variable("JOBS_TABLE")?.unwrap_or_else(|| Defaults::LOCAL_JOBS_TABLE.to_owned());
    let task_id = args.task_id.unwrap_or_else(|| format!("task_{}", hex::encode(random::bytes::<8>())));
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let written = client(&args.tables)
        .await
        .put_item()
        .table_name(&table)
        .item("task_id", text(&task_id))
        .item("account_id", text(account.as_str()))
        .item("task_type", text(&args.task_type))
        .item("status", text(outcome.status()))
        .item("updated_at", text(&Clock::system().now().rfc3339()))
        .item("data", data)
        .send()
        .await;
    written.map_err(|error| explain(&error.into(), &args.tables))?;
    Ok(writeln!(std::io::stdout(), "Job {task_id} of account {account} {}.", outcome.status())?)
}

fn explain(error: &store::Error, tables: &TablesArgs) -> Failed {
    let place = if tables.aws { "the account of your AWS credentials" } else { &tables.dynamodb_endpoint };
    out_of_reach(error, place)
}

fn parse_account(name: &str) -> Result<Account, Failed> {
    Account::parse(name).map_err(|error| Failed(format!("--account: {error}")))
}

async fn client(args: &TablesArgs) -> Client {
    if args.aws { Client::new(&aws::config().await) } else { dynamodb(&args.dynamodb_endpoint) }
}

/// The tables, for commands that have nothing to do with secrets.
async fn open(args: &TablesArgs) -> Result<Store, Failed> {
    let config = Config::read(variable, Defaults::LOCAL)?;
    Ok(Store::new(client(args).await, config.tables, Vault::new(Wrapping::None)))
}

/// JSON as DynamoDB stores it. Numbers keep their text: it may have more digits than a double.
fn attribute(json: &RawValue) -> Result<AttributeValue, serde_json::Error> {
    let text = json.get();
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let entries: HashMap<String, &RawValue> = serde_json::from_str(text)?;
            let entries = entries.into_iter().map(|(key, value)| Ok((key, attribute(value)?)));
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
        assert_eq!(map["n"], AttributeValue::N("12345678901234567890.10".into()));
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
