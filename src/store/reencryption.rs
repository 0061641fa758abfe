//! Encrypts what is stored of webhooks with the active data key.

use aws_sdk_dynamodb::types::AttributeValue;

use super::{
    data_keys::no_provider,
    error::{Error, Result},
    item::{Item, attr_s, primary_key, to_attribute},
    key_schema,
    secrets::{SECRETS, Secrets, StoredSecret, to_stored_secret},
    stored_headers::{HEADERS, StoredHeaders},
    table_client::WriteOutcome,
};
use crate::concurrency;
use nano_webhooks_core::{
    account_id::AccountId, data_key::DataKey, timestamp::Timestamp, webhook::WebhookId,
};

/// How many webhooks are re-encrypted at the same time.
const REENCRYPT_CONCURRENCY: usize = 16;

/// How many webhooks of a page were re-encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReencryptStats {
    /// Webhooks whose secrets or headers were encrypted with the active data key.
    pub reencrypted: u64,
    /// Webhooks whose secrets and headers were encrypted with it before.
    pub unchanged: u64,
    /// Webhooks that another request changed at the same time. Another run must read them again.
    pub conflicted: u64,
}

/// The position of the next page of webhooks to re-encrypt.
#[derive(Clone, Debug)]
pub struct ReencryptCursor(Item);

enum ReencryptOutcome {
    Reencrypted,
    Unchanged,
    Conflicted,
}

/// The webhook that an attribute belongs to, and the data key to encrypt it with.
#[derive(Clone, Copy)]
struct Target<'a> {
    account: &'a AccountId,
    webhook: WebhookId,
    data_key: &'a DataKey,
}

/// A new value of an attribute.
struct Replacement {
    name: &'static str,
    current: AttributeValue,
    updated: AttributeValue,
}

impl Secrets<'_> {
    /// Encrypts the secrets and headers of a page of webhooks with the active data key. Returns the
    /// position of the next page; `None` after the last one.
    pub async fn reencrypt_page(
        self,
        cursor: Option<ReencryptCursor>,
        now: Timestamp,
    ) -> Result<(ReencryptStats, Option<ReencryptCursor>)> {
        let Some(data_key) = self.active_data_key(now).await? else {
            return Err(no_provider());
        };
        let has_value = "(attribute_exists(#secrets) OR attribute_exists(#headers))";
        let page = self
            .table
            .scan()
            .consistent_read(true)
            .filter_expression(format!("begins_with(SK, :webhook) AND {has_value}"))
            .expression_attribute_names("#secrets", SECRETS)
            .expression_attribute_names("#headers", HEADERS)
            .expression_attribute_values(":webhook", attr_s(key_schema::WEBHOOK_PREFIX))
            .set_exclusive_start_key(cursor.map(|cursor| cursor.0))
            .send()
            .await?;
        let items = page.items.unwrap_or_default();
        let outcomes = concurrency::map_concurrent(items, REENCRYPT_CONCURRENCY, |item| {
            self.reencrypt_webhook(item, &data_key)
        });
        let mut stats = ReencryptStats::default();
        for outcome in outcomes.await {
            match outcome? {
                ReencryptOutcome::Reencrypted => stats.reencrypted += 1,
                ReencryptOutcome::Unchanged => stats.unchanged += 1,
                ReencryptOutcome::Conflicted => stats.conflicted += 1,
            }
        }
        Ok((stats, page.last_evaluated_key.map(ReencryptCursor)))
    }

    async fn reencrypt_webhook(self, item: Item, data_key: &DataKey) -> Result<ReencryptOutcome> {
        let Some((account, webhook)) = parse_webhook_key(&item) else {
            return Ok(ReencryptOutcome::Unchanged);
        };
        let target = Target {
            account: &account,
            webhook,
            data_key,
        };
        let mut replacements = Vec::new();
        replacements.extend(self.reencrypt_secrets(target, &item).await?);
        replacements.extend(self.reencrypt_headers(target, &item).await?);
        if replacements.is_empty() {
            return Ok(ReencryptOutcome::Unchanged);
        }
        let mut update = self.table.update(key_schema::webhook(&account, webhook));
        let mut assignments = Vec::new();
        let mut conditions = Vec::new();
        for Replacement {
            name,
            current,
            updated,
        } in replacements
        {
            assignments.push(format!("#{name} = :updated_{name}"));
            conditions.push(format!("#{name} = :current_{name}"));
            update = update
                .expression_attribute_names(format!("#{name}"), name)
                .expression_attribute_values(format!(":current_{name}"), current)
                .expression_attribute_values(format!(":updated_{name}"), updated);
        }
        let response = update
            .update_expression(format!("SET {}", assignments.join(", ")))
            .condition_expression(conditions.join(" AND "))
            .send()
            .await;
        match WriteOutcome::from_response(response)? {
            WriteOutcome::Applied => Ok(ReencryptOutcome::Reencrypted),
            WriteOutcome::ConditionFailed => Ok(ReencryptOutcome::Conflicted),
        }
    }

    async fn reencrypt_secrets(
        self,
        target: Target<'_>,
        item: &Item,
    ) -> Result<Option<Replacement>> {
        let Some(current) = item.get(SECRETS) else {
            return Ok(None);
        };
        let mut secrets: Vec<StoredSecret> = serde_dynamo::from_attribute_value(current.clone())
            .map_err(|_| Error::corrupt_item("list of secrets"))?;
        let is_unchanged = secrets
            .iter()
            .all(|secret| secret.is_encrypted_with(target.data_key.version()));
        if is_unchanged {
            return Ok(None);
        }
        let Target {
            account,
            webhook,
            data_key,
        } = target;
        for stored in &mut secrets {
            let secret = self.decrypt(account, webhook, stored).await?;
            stored.encoding = to_stored_secret(Some(data_key), account, webhook, &secret).encoding;
        }
        Ok(Some(Replacement {
            name: SECRETS,
            current: current.clone(),
            updated: to_attribute(&secrets)?,
        }))
    }

    async fn reencrypt_headers(
        self,
        target: Target<'_>,
        item: &Item,
    ) -> Result<Option<Replacement>> {
        let Some(current) = item.get(HEADERS) else {
            return Ok(None);
        };
        let stored: StoredHeaders = serde_dynamo::from_attribute_value(current.clone())
            .map_err(|_| Error::corrupt_item("list of headers"))?;
        let Target {
            account,
            webhook,
            data_key,
        } = target;
        if stored.is_encrypted_with(data_key.version()) {
            return Ok(None);
        }
        let headers = self
            .decrypt_headers(account, webhook, Some(&stored))
            .await?;
        let updated = StoredHeaders::encode(Some(data_key), account, webhook, &headers);
        Ok(Some(Replacement {
            name: HEADERS,
            current: current.clone(),
            updated: to_attribute(&updated)?,
        }))
    }
}

/// The webhook that a scanned item belongs to. The scan also finds items that are no webhooks.
fn parse_webhook_key(item: &Item) -> Option<(AccountId, WebhookId)> {
    let key = primary_key(item)?;
    let account = key_schema::parse_account(&key.pk)?;
    let webhook = key_schema::parse_webhook(&key.sk)?;
    Some((account, webhook))
}
