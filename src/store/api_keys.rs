//! API keys: found by their hash, listed by their prefix.

use aws_sdk_dynamodb::types::{AttributeValue, Delete, Put, TransactWriteItem};
use serde::{Deserialize, Serialize};

use super::{
    Error, Result, Store, corrupt_item, from_item, into_condition_result,
    key_schema::{self, PrimaryKey},
    to_item,
    webhooks::{cancellation_reasons, is_condition_failure},
};
use crate::concurrency;
use nano_webhooks_core::{account_id::AccountId, api_key::ApiKey, timestamp::Timestamp};

/// An API key as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKeySummary {
    /// The beginning of the key, enough to tell it from the account's others.
    pub prefix: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// The day (UTC) of its last use, such as `2024-12-23`; `None`: it was never used.
    pub last_used_on: Option<String>,
}

/// How many keys are looked up at the same time.
const CONCURRENT_LOOKUPS: usize = 8;

/// The key by its hash: whose it is, and when it was last used.
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

/// The key in its account's list: what may be shown, and the hash by which to find the other.
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
    fn hash(&self) -> Result<[u8; 32]> {
        let mut sha256 = [0; 32];
        hex::decode_to_slice(&self.sha256, &mut sha256).map_err(|_| corrupt_item("key hash"))?;
        Ok(sha256)
    }
}

/// See [`Store::api_keys`].
#[derive(Clone, Copy, Debug)]
pub struct ApiKeys<'a> {
    store: &'a Store,
}

impl<'a> ApiKeys<'a> {
    pub(super) const fn new(store: &'a Store) -> Self {
        Self { store }
    }
}

impl ApiKeys<'_> {
    /// The account that a key belongs to; `None` if there is no such key or it was revoked. The first use on a day is written
    /// down.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn authenticate(self, key: &ApiKey, now: Timestamp) -> Result<Option<AccountId>> {
        let Some(row) = self.find(key_schema::api_key(&key.sha256())).await? else {
            return Ok(None);
        };
        let today = key_schema::utc_day(now);
        if row.last_used_on.is_none_or(|day| day < today)
            && let Err(error) = self.touch(key, today).await
        {
            tracing::warn!(account = row.account, %error, "the use of an API key was not written down");
        }
        AccountId::parse(&row.account)
            .map(Some)
            .map_err(|_| corrupt_item("account"))
    }

    async fn find(self, key: PrimaryKey) -> Result<Option<ApiKeyRow>> {
        self.store.item(key).await?.map(from_item).transpose()
    }

    async fn touch(self, key: &ApiKey, today: String) -> Result<()> {
        let update = self
            .store
            .client
            .update_item()
            .table_name(&self.store.tables.webhooks)
            .set_key(Some(key_schema::api_key(&key.sha256()).into_item()))
            .update_expression("SET last_used_on = :today")
            // A key that is revoked meanwhile must not come back.
            .condition_expression("attribute_exists(PK)")
            .expression_attribute_values(":today", AttributeValue::S(today));
        into_condition_result(update.send().await).map(drop)
    }

    /// Adds a key to an account; adding it again changes nothing.
    ///
    /// # Errors
    /// If DynamoDB does not answer, or the key belongs to another account.
    pub async fn insert(self, account: &AccountId, key: &ApiKey, now: Timestamp) -> Result<()> {
        let put = |row| {
            let put = Put::builder()
                .table_name(&self.store.tables.webhooks)
                .set_item(Some(row));
            let put = put
                .condition_expression("attribute_not_exists(PK)")
                .build()
                .expect("every required part is set");
            TransactWriteItem::builder().put(put).build()
        };
        let PrimaryKey { pk, sk } = key_schema::api_key(&key.sha256());
        let owner = put(to_item(&ApiKeyRow {
            pk,
            sk,
            account: account.to_string(),
            last_used_on: None,
        })?);
        let PrimaryKey { pk, sk } = key_schema::api_key_listing(account, key.display_prefix());
        let listed = put(to_item(&ApiKeyListingRow {
            pk,
            sk,
            sha256: hex::encode(key.sha256()),
            created_at: now,
        })?);
        match self
            .store
            .client
            .transact_write_items()
            .transact_items(owner)
            .transact_items(listed)
            .send()
            .await
        {
            Ok(_) => Ok(()),
            Err(error) => {
                cancellation_reasons(error)?;
                match self.find(key_schema::api_key(&key.sha256())).await? {
                    Some(owner) if owner.account == account.as_str() => Ok(()),
                    _ => Err(Error::Internal("the API key is in use".to_owned())),
                }
            }
        }
    }

    /// An account's keys, by prefix.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn list(self, account: &AccountId) -> Result<Vec<ApiKeySummary>> {
        let mut pages = self
            .store
            .client
            .query()
            .table_name(&self.store.tables.webhooks)
            .consistent_read(true)
            .key_condition_expression("PK = :account AND begins_with(SK, :key)")
            .expression_attribute_values(
                ":account",
                AttributeValue::S(key_schema::account(account)),
            )
            .expression_attribute_values(
                ":key",
                AttributeValue::S(key_schema::API_KEY_PREFIX.to_owned()),
            )
            .into_paginator()
            .items()
            .send();
        let mut rows = Vec::new();
        while let Some(item) = pages.next().await {
            rows.push(from_item(item?)?);
        }
        let listed = rows.into_iter().map(|row: ApiKeyListingRow| async move {
            let prefix = row
                .sk
                .strip_prefix(key_schema::API_KEY_PREFIX)
                .ok_or_else(|| corrupt_item("key prefix"))?
                .to_owned();
            let last_used_on = self
                .find(key_schema::api_key(&row.hash()?))
                .await?
                .and_then(|owner| owner.last_used_on);
            Ok(ApiKeySummary {
                prefix,
                created_at: row.created_at,
                last_used_on,
            })
        });
        concurrency::join_bounded(listed.collect(), CONCURRENT_LOOKUPS)
            .await
            .into_iter()
            .collect()
    }

    /// Revokes the key with this prefix, at once; `false` if the account has none.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn revoke(self, account: &AccountId, prefix: &str) -> Result<bool> {
        let listed = key_schema::api_key_listing(account, prefix);
        let Some(item) = self.store.item(listed.clone()).await? else {
            return Ok(false);
        };
        let row: ApiKeyListingRow = from_item(item)?;
        let sha256 = row.hash()?;
        let delete = |key: PrimaryKey| {
            let delete = Delete::builder()
                .table_name(&self.store.tables.webhooks)
                .set_key(Some(key.into_item()));
            let delete = delete
                .condition_expression("attribute_exists(PK)")
                .build()
                .expect("every required part is set");
            TransactWriteItem::builder().delete(delete).build()
        };
        let parts = vec![delete(key_schema::api_key(&sha256)), delete(listed)];
        match self
            .store
            .client
            .transact_write_items()
            .set_transact_items(Some(parts))
            .send()
            .await
        {
            Ok(_) => Ok(true),
            Err(error) => {
                let gone = cancellation_reasons(error)?
                    .iter()
                    .any(is_condition_failure);
                if gone {
                    Ok(false)
                } else {
                    Err(Error::Unavailable("the key is being changed".to_owned()))
                }
            }
        }
    }
}
