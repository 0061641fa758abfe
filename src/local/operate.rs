//! What operators and workers do, against local or real tables: one noun, one file.

pub(super) mod jobs;
pub(super) mod keys;
mod progress;
pub(super) mod secrets;

use aws_sdk_dynamodb::Client;

use super::{
    cli::{Failed, TablesArgs},
    dynamodb,
    serve::out_of_reach,
};
use crate::{
    aws,
    config::{Config, Defaults, variable},
    store::{
        self, Store,
        vault::{Vault, Wrapping},
    },
    webhook::Account,
};

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
