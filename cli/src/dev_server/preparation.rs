//! Prepares the tables of the service: creates them and their keys if they are missing.

use std::{fs, path::Path};

use anyhow::Context;
use aws_sdk_dynamodb::Client;
use nano_webhooks::{
    random,
    store::{
        self, Store, TableNames,
        data_keys::{DataKeyCache, KeyProvider},
        tables::{self, TableOutcome},
    },
};
use nano_webhooks_core::{
    account_id::AccountId, api_key::ApiKey, data_key::KeyMaterial, timestamp::Timestamp,
};

use super::data_dir::{DataDir, StoredKey};
use crate::invocation::command_prefix;

/// The account that exists from the start.
pub const DEMO_ACCOUNT: &str = "demo";

/// What is needed to prepare the tables.
pub struct Preparation<'a> {
    pub client: Client,
    pub tables: &'a TableNames,
    pub jobs_table: &'a str,
    /// `None` if the data is in memory.
    pub data_dir: Option<&'a DataDir>,
    pub now: Timestamp,
}

/// Tables that are ready for use.
pub struct PreparedTables {
    pub store: Store,
    /// A key of [`DEMO_ACCOUNT`].
    pub api_key: ApiKey,
}

impl Preparation<'_> {
    /// Creates the tables and the keys that are missing. `api_key` is the key that the user gave.
    pub async fn run(&self, api_key: Option<ApiKey>) -> anyhow::Result<PreparedTables> {
        let outcome = tables::create_if_missing(&self.client, self.tables, self.jobs_table).await?;
        let tables_are_new = outcome == TableOutcome::Created;
        let store = self.open_store().await?;
        let api_key = self
            .prepare_api_key(&store, api_key, tables_are_new)
            .await?;
        Ok(PreparedTables { store, api_key })
    }

    /// Opens the tables with the key that wraps data keys.
    async fn open_store(&self) -> anyhow::Result<Store> {
        let stored_key = match self.data_dir {
            Some(data_dir) => data_dir.load_or_create_secrets_key()?,
            None => StoredKey::Created(KeyMaterial::from_random(random::bytes())),
        };
        let (key, created_file) = match stored_key {
            StoredKey::Existing(key) => (key, None),
            StoredKey::Created(key) => (key, self.data_dir.map(DataDir::secrets_key_path)),
        };
        let cache = DataKeyCache::new(KeyProvider::Local(key));
        let store = Store::new(self.client.clone(), self.tables.clone(), cache);
        // Checked at the start and not with the first secret, because the tables may belong to
        // another data directory.
        let checked = store.secrets().active_data_key(self.now).await;
        match (checked, created_file) {
            (Ok(_), _) => Ok(store),
            (Err(error @ store::Error::KeyUnavailable(_)), Some(path)) => {
                // The tables have data keys that another key wraps, so the created key is useless.
                remove_file(&path)?;
                Err(anyhow::Error::new(error).context(explain_missing_secrets_key(&path)))
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// Finds or creates the key of the demo account, and adds it to the tables if it is new there.
    async fn prepare_api_key(
        &self,
        store: &Store,
        given: Option<ApiKey>,
        tables_are_new: bool,
    ) -> anyhow::Result<ApiKey> {
        let account = AccountId::parse(DEMO_ACCOUNT).map_err(anyhow::Error::msg)?;
        let stored_key = match (given, self.data_dir) {
            (Some(key), _) => StoredKey::Created(key),
            (None, Some(data_dir)) => data_dir.load_or_create_api_key()?,
            (None, None) => StoredKey::Created(ApiKey::from_random(&random::bytes())),
        };
        match stored_key {
            StoredKey::Existing(key) if !tables_are_new => {
                if store
                    .api_keys()
                    .authenticate(&key, self.now)
                    .await?
                    .is_none()
                {
                    tracing::warn!(
                        "The API key in the data directory is revoked; create a key with \
                         `{} keys create --account {DEMO_ACCOUNT}`",
                        command_prefix()
                    );
                }
                Ok(key)
            }
            StoredKey::Existing(key) | StoredKey::Created(key) => {
                store.api_keys().insert(&account, &key, self.now).await?;
                Ok(key)
            }
        }
    }
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}

fn explain_missing_secrets_key(path: &Path) -> String {
    format!(
        "{} is missing, and only it decrypts the secrets in these tables: restore it, or use \
         other tables",
        path.display()
    )
}
