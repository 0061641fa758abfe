//! API keys: found by their hash, listed by their prefix.

use aws_sdk_dynamodb::types::{AttributeValue, Delete, Put, TransactWriteItem};
use serde::{Deserialize, Serialize};

use super::{
    Error, Result, Store, corrupt, from_item,
    keys::{self, Primary},
    to_item,
    webhooks::{cancelled, failed_condition},
};
use crate::{api_key::ApiKey, clock::Instant, webhook::Account};

/// An API key as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedKey {
    /// The beginning of the key, enough to tell it from the account's others.
    pub prefix: String,
    /// When it was created.
    pub created_at: Instant,
}

/// The key by its hash: whose it is.
#[derive(Serialize, Deserialize)]
struct OwnerRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    account: String,
}

/// The key in its account's list: what may be shown, and the hash by which to find the other.
#[derive(Serialize, Deserialize)]
struct ListedRow {
    #[serde(rename = "PK")]
    pk: String,
    #[serde(rename = "SK")]
    sk: String,
    sha256: String,
    created_at: Instant,
}

impl Store {
    /// The account that a key belongs to; `None` if there is no such key or it was revoked.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn account_of(&self, key: &ApiKey) -> Result<Option<Account>> {
        let Some(item) = self.item(keys::api_key(&key.sha256())).await? else { return Ok(None) };
        let row: OwnerRow = from_item(item)?;
        Account::parse(&row.account).map(Some).map_err(|_| corrupt("account"))
    }

    /// Adds a key to an account; adding it again changes nothing.
    ///
    /// # Errors
    /// If DynamoDB does not answer, or the key belongs to another account.
    pub async fn add_key(&self, account: &Account, key: &ApiKey, now: Instant) -> Result<()> {
        let put = |row| {
            let put = Put::builder().table_name(&self.tables.webhooks).set_item(Some(row));
            let put = put.condition_expression("attribute_not_exists(PK)").build().expect("every required part is set");
            TransactWriteItem::builder().put(put).build()
        };
        let Primary { pk, sk } = keys::api_key(&key.sha256());
        let owner = put(to_item(&OwnerRow { pk, sk, account: account.to_string() })?);
        let Primary { pk, sk } = keys::listed_api_key(account, key.prefix());
        let listed = put(to_item(&ListedRow { pk, sk, sha256: hex::encode(key.sha256()), created_at: now })?);
        match self.client.transact_write_items().transact_items(owner).transact_items(listed).send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                cancelled(error)?;
                match self.account_of(key).await? {
                    Some(owner) if owner == *account => Ok(()),
                    _ => Err(Error::Internal("the API key is in use".to_owned())),
                }
            }
        }
    }

    /// An account's keys, by prefix.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn keys_of(&self, account: &Account) -> Result<Vec<ListedKey>> {
        let mut pages = self
            .client
            .query()
            .table_name(&self.tables.webhooks)
            .consistent_read(true)
            .key_condition_expression("PK = :account AND begins_with(SK, :key)")
            .expression_attribute_values(":account", AttributeValue::S(keys::account(account)))
            .expression_attribute_values(":key", AttributeValue::S(keys::API_KEY_PREFIX.to_owned()))
            .into_paginator()
            .items()
            .send();
        let mut listed = Vec::new();
        while let Some(item) = pages.next().await {
            let row: ListedRow = from_item(item?)?;
            let prefix = row.sk.strip_prefix(keys::API_KEY_PREFIX).ok_or_else(|| corrupt("key prefix"))?;
            listed.push(ListedKey { prefix: prefix.to_owned(), created_at: row.created_at });
        }
        Ok(listed)
    }

    /// Revokes the key with this prefix, at once; `false` if the account has none.
    ///
    /// # Errors
    /// If DynamoDB does not answer.
    pub async fn revoke_key(&self, account: &Account, prefix: &str) -> Result<bool> {
        let listed = keys::listed_api_key(account, prefix);
        let Some(item) = self.item(listed.clone()).await? else { return Ok(false) };
        let row: ListedRow = from_item(item)?;
        let mut sha256 = [0; 32];
        hex::decode_to_slice(&row.sha256, &mut sha256).map_err(|_| corrupt("key hash"))?;
        let delete = |key: Primary| {
            let delete = Delete::builder().table_name(&self.tables.webhooks).set_key(Some(key.into_item()));
            let delete =
                delete.condition_expression("attribute_exists(PK)").build().expect("every required part is set");
            TransactWriteItem::builder().delete(delete).build()
        };
        let parts = vec![delete(keys::api_key(&sha256)), delete(listed)];
        match self.client.transact_write_items().set_transact_items(Some(parts)).send().await {
            Ok(_) => Ok(true),
            Err(error) => {
                let gone = cancelled(error)?.iter().any(failed_condition);
                if gone { Ok(false) } else { Err(Error::Unavailable("the key is being changed".to_owned())) }
            }
        }
    }
}
