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
    settings::read_setting,
    store_error::{TablesLocation, explain_store_error},
};

/// Reads the settings. With `--aws` the names of the tables have no defaults.
pub fn load_config(args: &TablesArgs) -> Result<Config, ConfigError> {
    let defaults = if args.aws {
        ConfigDefaults::DEPLOYED
    } else {
        ConfigDefaults::LOCAL
    };
    Config::from_env(read_setting, defaults)
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
    let tables = load_config(args)?.tables;
    let cache = DataKeyCache::new(KeyProvider::None);
    let client = dynamodb_client(args).await;
    Ok(Store::new(client, tables, cache))
}

/// Reads the name of the jobs table. With `--aws` it has no default.
pub fn load_jobs_table(args: &TablesArgs) -> Result<String, ConfigError> {
    match find_jobs_table(args)? {
        Some(name) => Ok(name),
        None => Err(ConfigError::new(
            "JOBS_TABLE",
            "missing, expected the name of a table",
        )),
    }
}

/// Reads the name of the jobs table for a command that can work without it.
pub fn find_jobs_table(args: &TablesArgs) -> Result<Option<String>, ConfigError> {
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
    match load_config(args) {
        Ok(config) => explain_store_error(error, &location, &config.tables),
        Err(_) => error,
    }
}
