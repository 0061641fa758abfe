//! Secrets of webhooks, encrypted with a data key.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    data_keys::{DataKeys, no_provider},
    error::{Error, Result},
    item::{Item, attr_s, primary_key, to_attribute},
    key_schema,
    table_client::{TableClient, WriteOutcome},
};
use crate::{concurrency, random};
use nano_webhooks_core::{
    account_id::AccountId, data_key::DataKey, secret::Secret, timestamp::Timestamp,
    webhook::WebhookId,
};

/// How many webhooks are re-encrypted at the same time.
const REENCRYPT_CONCURRENCY: usize = 16;
/// The attribute of a webhook that holds its secrets.
pub(super) const SECRETS: &str = "secrets";

/// A secret as it is stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSecret {
    #[serde(flatten)]
    encoding: SecretEncoding,
    /// When it stops signing; absent in the newest secret.
    #[serde(default, rename = "until", skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum SecretEncoding {
    /// Encrypted with the data key of this version.
    Encrypted {
        data_key: u32,
        #[serde(rename = "sealed")]
        ciphertext: String,
    },
    /// Unencrypted.
    Plain { plain: Zeroizing<String> },
}

impl StoredSecret {
    /// Whether it signs at `now`.
    pub fn is_active(&self, now: Timestamp) -> bool {
        match self.expires_at {
            Some(expires_at) => expires_at > now,
            None => true,
        }
    }

    /// When it stops signing; `None` for the newest secret.
    pub const fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// The same secret, expiring at the given time or earlier.
    #[must_use]
    pub(super) fn expiring_at(mut self, latest: Timestamp) -> Self {
        self.expires_at = match self.expires_at {
            Some(expires_at) => Some(expires_at.min(latest)),
            None => Some(latest),
        };
        self
    }

    fn is_encrypted_with(&self, version: u32) -> bool {
        match self.encoding {
            SecretEncoding::Encrypted { data_key, .. } => data_key == version,
            SecretEncoding::Plain { .. } => false,
        }
    }
}

impl fmt::Debug for StoredSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredSecret(…)")
    }
}

/// The hash of a request as it is stored. The request may contain a secret, so a data key hashes it
/// if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    fingerprint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_key: Option<u32>,
}

/// How many webhooks of a page were re-encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReencryptStats {
    /// Webhooks whose secrets were encrypted with the active data key.
    pub reencrypted: u64,
    /// Webhooks whose secrets were encrypted with it before.
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

/// See [`Store::secrets`](super::Store::secrets).
#[derive(Clone, Copy, Debug)]
pub struct Secrets<'a> {
    table: &'a TableClient,
    data_keys: DataKeys<'a>,
}

impl<'a> Secrets<'a> {
    pub(super) const fn new(table: &'a TableClient, data_keys: DataKeys<'a>) -> Self {
        Self { table, data_keys }
    }
}

impl Secrets<'_> {
    /// The data key that encrypts. Creates one if the configured key has wrapped none. `None` if
    /// secrets are stored unencrypted.
    pub async fn active_data_key(self, now: Timestamp) -> Result<Option<Arc<DataKey>>> {
        self.data_keys.active(now).await
    }

    /// Creates a data key and returns its version. It encrypts from now on in this process, and in
    /// others after their next start.
    pub async fn rotate_data_key(self, now: Timestamp) -> Result<u32> {
        self.data_keys.rotate(now).await
    }

    /// Encrypts a webhook's secret with the active data key.
    pub(super) async fn encrypt(
        self,
        account: &AccountId,
        webhook: WebhookId,
        secret: &Secret,
        now: Timestamp,
    ) -> Result<StoredSecret> {
        let data_key = self.data_keys.active(now).await?;
        Ok(to_stored_secret(
            data_key.as_deref(),
            account,
            webhook,
            secret,
        ))
    }

    /// Decrypts those of a webhook's secrets that sign at `now`. The error is [`Error::Unreadable`]
    /// if a secret was encrypted for another webhook, which never changes.
    pub async fn decrypt_active(
        self,
        account: &AccountId,
        webhook: WebhookId,
        stored: &[StoredSecret],
        now: Timestamp,
    ) -> Result<Vec<Secret>> {
        let mut secrets = Vec::with_capacity(stored.len());
        for secret in stored {
            if secret.is_active(now) {
                secrets.push(self.decrypt(account, webhook, secret).await?);
            }
        }
        Ok(secrets)
    }

    async fn decrypt(
        self,
        account: &AccountId,
        webhook: WebhookId,
        stored: &StoredSecret,
    ) -> Result<Secret> {
        match &stored.encoding {
            SecretEncoding::Plain { plain } => {
                Secret::from_stored(plain.to_string()).map_err(|_| Error::corrupt_item("secret"))
            }
            SecretEncoding::Encrypted {
                data_key,
                ciphertext,
            } => {
                let data_key = self.data_keys.get(*data_key).await?;
                data_key.decrypt(account, webhook, ciphertext).map_err(|_| {
                    Error::corrupt_item("secret: it was not encrypted for this webhook")
                })
            }
        }
    }

    /// Encrypts a page of webhooks' secrets with the active data key. Returns the position of the
    /// next page; `None` after the last one.
    pub async fn reencrypt_page(
        self,
        cursor: Option<ReencryptCursor>,
        now: Timestamp,
    ) -> Result<(ReencryptStats, Option<ReencryptCursor>)> {
        let Some(data_key) = self.data_keys.active(now).await? else {
            return Err(no_provider());
        };
        let page = self
            .table
            .scan()
            .consistent_read(true)
            .filter_expression("begins_with(SK, :webhook) AND attribute_exists(#secrets)")
            .expression_attribute_names("#secrets", SECRETS)
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
        let Some(current) = item.get(SECRETS) else {
            return Ok(ReencryptOutcome::Unchanged);
        };
        let mut secrets: Vec<StoredSecret> = serde_dynamo::from_attribute_value(current.clone())
            .map_err(|_| Error::corrupt_item("list of secrets"))?;
        let is_unchanged = secrets
            .iter()
            .all(|secret| secret.is_encrypted_with(data_key.version()));
        if is_unchanged {
            return Ok(ReencryptOutcome::Unchanged);
        }
        for stored in &mut secrets {
            let secret = self.decrypt(&account, webhook, stored).await?;
            stored.encoding = encode_secret(Some(data_key), &account, webhook, &secret);
        }
        let response = self
            .table
            .update(key_schema::webhook(&account, webhook))
            .update_expression("SET #secrets = :updated")
            .condition_expression("#secrets = :current")
            .expression_attribute_names("#secrets", SECRETS)
            .expression_attribute_values(":current", current.clone())
            .expression_attribute_values(":updated", to_attribute(&secrets)?)
            .send()
            .await;
        match WriteOutcome::from_response(response)? {
            WriteOutcome::Applied => Ok(ReencryptOutcome::Reencrypted),
            WriteOutcome::ConditionFailed => Ok(ReencryptOutcome::Conflicted),
        }
    }

    /// The fingerprint of a request with this hash.
    pub(super) async fn fingerprint(
        self,
        request_hash: &[u8; 32],
        now: Timestamp,
    ) -> Result<Fingerprint> {
        match self.data_keys.active(now).await? {
            None => Ok(Fingerprint {
                fingerprint: hex::encode(request_hash),
                data_key: None,
            }),
            Some(data_key) => Ok(Fingerprint {
                fingerprint: data_key.fingerprint(request_hash),
                data_key: Some(data_key.version()),
            }),
        }
    }

    /// Whether a request with this hash has the stored fingerprint.
    pub(super) async fn fingerprint_matches(
        self,
        stored: &Fingerprint,
        request_hash: &[u8; 32],
    ) -> Result<bool> {
        let expected = match stored.data_key {
            None => hex::encode(request_hash),
            Some(version) => self.data_keys.get(version).await?.fingerprint(request_hash),
        };
        Ok(stored.fingerprint == expected)
    }
}

/// The webhook that a scanned item belongs to. The scan also finds items that are no webhooks.
fn parse_webhook_key(item: &Item) -> Option<(AccountId, WebhookId)> {
    let key = primary_key(item)?;
    let account = key_schema::parse_account(&key.pk)?;
    let webhook = key_schema::parse_webhook(&key.sk)?;
    Some((account, webhook))
}

/// Makes the stored form of the newest secret of a webhook: encrypted, or plain without a data key.
pub(super) fn to_stored_secret(
    data_key: Option<&DataKey>,
    account: &AccountId,
    webhook: WebhookId,
    secret: &Secret,
) -> StoredSecret {
    StoredSecret {
        encoding: encode_secret(data_key, account, webhook, secret),
        expires_at: None,
    }
}

fn encode_secret(
    data_key: Option<&DataKey>,
    account: &AccountId,
    webhook: WebhookId,
    secret: &Secret,
) -> SecretEncoding {
    match data_key {
        None => SecretEncoding::Plain {
            plain: Zeroizing::new(secret.expose().to_owned()),
        },
        Some(data_key) => SecretEncoding::Encrypted {
            data_key: data_key.version(),
            ciphertext: data_key.encrypt(account, webhook, secret, random::bytes()),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The stored form is fixed: tables hold secrets that earlier versions wrote.
    #[test]
    fn stored_secrets_are_read() {
        let stored = json!([
            { "data_key": 3, "sealed": "AAEC" },
            { "plain": "a-plain-secret", "until": 1_734_912_000_000_i64 },
        ]);
        let secrets: Vec<StoredSecret> = serde_json::from_value(stored.clone()).unwrap();
        assert!(secrets[0].is_encrypted_with(3) && !secrets[0].is_encrypted_with(2));
        assert_eq!(secrets[0].expires_at(), None);
        let expires_at = Timestamp::from_millis(1_734_912_000_000);
        assert_eq!(secrets[1].expires_at(), Some(expires_at));
        assert_eq!(serde_json::to_value(secrets).unwrap(), stored);
    }
}
