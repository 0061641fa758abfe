//! Access to the tables that an operator command works on.

use aws_sdk_dynamodb::Client;
use nano_webhooks::{
    aws,
    config::{Config, ConfigDefaults, ConfigError, env_var},
    store::{
        Store,
        data_keys::{DataKeyCache, KeyProvider},
    },
};

use crate::{
    args::TablesArgs,
    local_client::local_client,
    store_error::{TablesLocation, explain_store_error},
};

pub fn load_config() -> Result<Config, ConfigError> {
    Config::from_env(env_var, ConfigDefaults::LOCAL)
}

pub async fn dynamodb_client(args: &TablesArgs) -> Client {
    if args.aws {
        Client::new(&aws::load_sdk_config().await)
    } else {
        local_client(&args.dynamodb_endpoint, aws::timeouts())
    }
}

/// Opens the tables for a command that does not use secrets.
pub async fn open_store(args: &TablesArgs) -> anyhow::Result<Store> {
    let cache = DataKeyCache::new(KeyProvider::None);
    let client = dynamodb_client(args).await;
    Ok(Store::new(client, load_config()?.tables, cache))
}

/// The name of the jobs table. With `--aws` there is no default, so it may be unknown.
pub fn jobs_table(args: &TablesArgs) -> Result<Option<String>, ConfigError> {
    match env_var("JOBS_TABLE")? {
        Some(name) => Ok(Some(name)),
        None if args.aws => Ok(None),
        None => Ok(Some(ConfigDefaults::LOCAL_JOBS_TABLE.to_owned())),
    }
}

/// Adds to an error of the store where the tables are and what to check. Other errors stay as they
/// are.
pub fn explain_error(error: anyhow::Error, args: &TablesArgs) -> anyhow::Error {
    let location = if args.aws {
        TablesLocation::Aws
    } else {
        TablesLocation::Engine(args.dynamodb_endpoint.clone())
    };
    match load_config() {
        Ok(config) => explain_store_error(error, &location, &config.tables),
        Err(_) => error,
    }
}
