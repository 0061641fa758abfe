//! Account ids and API keys.

use nano_webhooks::random;
use nano_webhooks_core::{account_id::AccountId, api_key::ApiKey, timestamp::Timestamp};

use crate::support::tables::TestTables;

pub fn account(name: &str) -> AccountId {
    AccountId::parse(name).unwrap()
}

/// Stores a new API key of the account.
pub async fn create_key(tables: &TestTables, name: &str, now: Timestamp) -> ApiKey {
    let key = ApiKey::from_random(&random::bytes());
    tables
        .store
        .api_keys()
        .insert(&account(name), &key, now)
        .await
        .unwrap();
    key
}
