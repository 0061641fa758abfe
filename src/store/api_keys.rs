//! API keys: found by their hash, listed by their prefix.

use serde::{Deserialize, Serialize};

use super::{
    error::{Error, Result},
    item::{attr_s, from_item, to_item},
    key_schema::{self, PrimaryKey},
    table_client::{
        TableClient, WriteOutcome, cancellation_reasons, insert_if_absent, is_condition_failure,
    },
};
use crate::{concurrency, error_chain::error_chain};
use nano_webhooks_core::{account_id::AccountId, api_key::ApiKey, timestamp::Timestamp};

/// How many keys of a list are read at the same time.
const CONCURRENT_LOOKUPS: usize = 8;

/// An API key in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKeySummary {
    /// The first characters of the key, which identify it in its account.
    pub prefix: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// The day (UTC) of its last use, such as `2024-12-23`; `None` if it was never used.
    pub last_used_on: Option<String>,
}

/// The key by its hash: its account and its last use.
#[derive(Serialize, Deserialize)]
struct ApiKeyRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    account: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_used_on: Option<String>,
}

/// The key in its account's list: what may be shown, and the hash that finds the [`ApiKeyRow`].
#[derive(Serialize, Deserialize)]
struct ApiKeyListingRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    sha256: String,
    created_at: Timestamp,
}

impl ApiKeyListingRow {
    fn key_by_hash(&self) -> Result<PrimaryKey> {
        let mut sha256 = [0; 32];
        hex::decode_to_slice(&self.sha256, &mut sha256)
            .map_err(|_| Error::corrupt_item("API key hash"))?;
        Ok(key_schema::api_key(&sha256))
    }

    fn prefix(&self) -> Result<&str> {
        self.sk
            .strip_prefix(key_schema::API_KEY_PREFIX)
            .ok_or_else(|| Error::corrupt_item("API key prefix"))
    }
}

/// See [`Store::api_keys`](super::Store::api_keys).
#[derive(Clone, Copy, Debug)]
pub struct ApiKeys<'a> {
    table: &'a TableClient,
}

impl<'a> ApiKeys<'a> {
    pub(super) const fn new(table: &'a TableClient) -> Self {
        Self { table }
    }
}

impl ApiKeys<'_> {
    /// The account of a key; `None` if the key does not exist or was revoked. The first use on a
    /// day is saved.
    pub async fn authenticate(self, key: &ApiKey, now: Timestamp) -> Result<Option<AccountId>> {
        let Some(row) = self.find_key(key_schema::api_key(&key.sha256())).await? else {
            return Ok(None);
        };
        let account = AccountId::parse(&row.account).map_err(|_| Error::corrupt_item("account"))?;
        let today = key_schema::utc_day(now);
        let is_used_today = match row.last_used_on {
            Some(day) => day >= today,
            None => false,
        };
        if !is_used_today && let Err(error) = self.touch(key, &today).await {
            tracing::warn!(
                account = account.as_str(),
                error = error_chain(&error),
                "Could not save the last use of an API key"
            );
        }
        Ok(Some(account))
    }

    async fn find_key(self, key: PrimaryKey) -> Result<Option<ApiKeyRow>> {
        self.table.get_row(key).await
    }

    async fn touch(self, key: &ApiKey, today: &str) -> Result<()> {
        let response = self
            .table
            .update(key_schema::api_key(&key.sha256()))
            .update_expression("SET last_used_on = :today")
            // Without this condition, the update would restore a key that is revoked at the same
            // time.
            .condition_expression("attribute_exists(PK)")
            .expression_attribute_values(":today", attr_s(today))
            .send()
            .await;
        WriteOutcome::from_response(response)?;
        Ok(())
    }

    /// Adds a key to an account. Adding it again changes nothing. Fails if another account has the
    /// key.
    pub async fn insert(self, account: &AccountId, key: &ApiKey, now: Timestamp) -> Result<()> {
        let PrimaryKey { pk, sk } = key_schema::api_key(&key.sha256());
        let row = ApiKeyRow {
            pk,
            sk,
            account: account.to_string(),
            last_used_on: None,
        };
        let PrimaryKey { pk, sk } = key_schema::api_key_listing(account, key.display_prefix());
        let listing = ApiKeyListingRow {
            pk,
            sk,
            sha256: hex::encode(key.sha256()),
            created_at: now,
        };
        let writes = vec![
            self.table.transact_put(insert_if_absent(to_item(&row)?)),
            self.table
                .transact_put(insert_if_absent(to_item(&listing)?)),
        ];
        let Err(error) = self.table.try_transact_write(writes).await else {
            return Ok(());
        };
        cancellation_reasons(error)?;
        match self.find_key(key_schema::api_key(&key.sha256())).await? {
            Some(existing) if existing.account == account.as_str() => Ok(()),
            _ => Err(Error::internal("the API key is in use")),
        }
    }

    /// The account's keys, by prefix.
    pub async fn list(self, account: &AccountId) -> Result<Vec<ApiKeySummary>> {
        let mut items = self
            .table
            .query()
            .consistent_read(true)
            .key_condition_expression("PK = :account AND begins_with(SK, :key)")
            .expression_attribute_values(
                ":account",
                attr_s(&key_schema::account_partition(account)),
            )
            .expression_attribute_values(":key", attr_s(key_schema::API_KEY_PREFIX))
            .into_paginator()
            .items()
            .send();
        let mut listings = Vec::new();
        while let Some(item) = items.next().await {
            listings.push(from_item::<ApiKeyListingRow>(item?)?);
        }
        let summaries = concurrency::map_concurrent(listings, CONCURRENT_LOOKUPS, |listing| {
            self.summarize(listing)
        });
        let mut summaries = summaries.await.into_iter().collect::<Result<Vec<_>>>()?;
        summaries.sort_unstable_by(|a, b| a.prefix.cmp(&b.prefix));
        Ok(summaries)
    }

    async fn summarize(self, listing: ApiKeyListingRow) -> Result<ApiKeySummary> {
        let row = self.find_key(listing.key_by_hash()?).await?;
        Ok(ApiKeySummary {
            prefix: listing.prefix()?.to_owned(),
            created_at: listing.created_at,
            last_used_on: row.and_then(|row| row.last_used_on),
        })
    }

    /// Revokes the account's key with this prefix, with immediate effect. The condition fails if
    /// there is none.
    pub async fn revoke(self, account: &AccountId, prefix: &str) -> Result<WriteOutcome> {
        let listing_key = key_schema::api_key_listing(account, prefix);
        let Some(item) = self.table.get(listing_key.clone()).await? else {
            return Ok(WriteOutcome::ConditionFailed);
        };
        let listing: ApiKeyListingRow = from_item(item)?;
        let deletes = vec![
            self.table.transact_delete_existing(listing.key_by_hash()?),
            self.table.transact_delete_existing(listing_key),
        ];
        let Err(error) = self.table.try_transact_write(deletes).await else {
            return Ok(WriteOutcome::Applied);
        };
        if cancellation_reasons(error)?
            .iter()
            .any(is_condition_failure)
        {
            Ok(WriteOutcome::ConditionFailed)
        } else {
            Err(Error::unavailable(
                "another request is changing the API key",
            ))
        }
    }
}
